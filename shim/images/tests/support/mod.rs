//! What the tests of this crate share: images built by code, a real registry on loopback, a proxy that cuts, mounts.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(unreachable_pub, reason = "shared by several test binaries")]

pub mod gate;
pub mod tar;

use sha2::{Digest, Sha256};
use slipway_images::{Options, Registries, Store};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[derive(Clone, Copy, Debug)]
pub enum Packing {
    Plain,
    Gzip,
    /// Several members in one file.
    GzipMembers,
    /// With a skippable frame before it.
    Zstd,
}

pub fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    let gzip = |data: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    match packing {
        Packing::Plain => tar.to_vec(),
        Packing::Gzip => gzip(tar),
        Packing::GzipMembers => tar.chunks(700).flat_map(gzip).collect(),
        Packing::Zstd => {
            let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
            [skippable, zstd::encode_all(tar, 1).unwrap()].concat()
        }
    }
}

/// An image as bytes.
#[derive(Clone)]
pub struct Built {
    pub config: Vec<u8>,
    pub blobs: Vec<Vec<u8>>,
    pub tars: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub media_type: &'static str,
}

impl Built {
    pub fn id(&self) -> String {
        sha256(&self.config)
    }

    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }
}

pub const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn build(layers: &[(Vec<u8>, Packing)], run: &str) -> Built {
    build_as(layers, run, OCI, "amd64")
}

pub fn build_as(
    layers: &[(Vec<u8>, Packing)],
    run: &str,
    media_type: &'static str,
    architecture: &str,
) -> Built {
    let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| format!("{:?}", sha256(tar))).collect();
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{run},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    )
    .into_bytes();
    let blobs: Vec<Vec<u8>> = layers.iter().map(|(tar, packing)| pack(tar, *packing)).collect();
    let (config_type, layer_type) = if media_type == DOCKER {
        (
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
    } else {
        // Wrong for half of them, on purpose: the bytes decide (IMG-MT-03).
        ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip")
    };
    let descriptor = |kind: &str, bytes: &[u8]| {
        format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, sha256(bytes), bytes.len())
    };
    let tars = layers.iter().map(|(tar, _)| tar.clone()).collect();
    let layers: Vec<String> = blobs.iter().map(|blob| descriptor(layer_type, blob)).collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{},"layers":[{}]}}"#,
        descriptor(config_type, &config),
        layers.join(",")
    );
    Built { config, blobs, tars, manifest: manifest.into_bytes(), media_type }
}

/// Small layers that differ.
pub fn many_layers(count: usize) -> Vec<(Vec<u8>, Packing)> {
    let layer = |number: usize| (tar::Tar::new().file(&format!("f{number}"), "").end(), Packing::Plain);
    (0..count).map(layer).collect()
}

/// As `docker save` has it.
pub fn docker_archive(image: &Built, name: &str) -> Vec<u8> {
    let config = format!("{}.json", &image.id()[7..]);
    let layers: Vec<String> = (0..image.tars.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = format!(r#"[{{"Config":"{config}","RepoTags":["{name}"],"Layers":{layers:?}}}]"#);
    let tar = tar::Tar::new().file("manifest.json", manifest).file(&config, &image.config);
    layers.iter().zip(&image.tars).fold(tar, |tar, (name, content)| tar.file(name, content)).end()
}

/// A loopback port that no other test of this process was given.
fn free_port() -> u16 {
    static GIVEN: std::sync::Mutex<Vec<u16>> = std::sync::Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap();
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if !given.contains(&port) {
            given.push(port);
            return port;
        }
    }
}

fn is_up(server: &mut Child, address: SocketAddr) -> bool {
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        if server.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect(address).is_ok() {
            // Somebody else may have taken the port in between: then ours is about to give up.
            std::thread::sleep(Duration::from_millis(100));
            return server.try_wait().unwrap().is_none();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Debian's docker-registry on a free loopback port, ended by its pid.
pub struct Registry {
    child: Child,
    pub dir: TempDir,
    data: PathBuf,
    pub address: SocketAddr,
}

impl Registry {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        Self::serve(dir, data, "")
    }

    /// Another server of the same content, with more lines for its `http` section: what is pushed to this one can be
    /// pulled from that one.
    pub fn behind(&self, http: &str) -> Self {
        Self::serve(tempfile::tempdir().unwrap(), self.data.clone(), http)
    }

    fn serve(dir: TempDir, data: PathBuf, http: &str) -> Self {
        for _ in 0..5 {
            let port = free_port();
            let config = dir.path().join("config.yml");
            let text = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}",
                data.display()
            );
            std::fs::write(&config, text).unwrap();
            let mut child = Command::new("/usr/bin/docker-registry")
                .arg("serve")
                .arg(&config)
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            if is_up(&mut child, address) {
                return Self { child, dir, data, address };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not come up");
    }

    pub fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.address)
    }

    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = &digest[7..];
        self.data.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    pub async fn push(&self, path: &str, image: &Built, tag: &str) {
        for blob in image.blobs.iter().chain([&image.config]) {
            self.push_blob(path, blob).await;
        }
        self.push_manifest(path, &image.manifest, image.media_type, tag).await;
    }

    pub async fn push_blob(&self, path: &str, blob: &[u8]) {
        let client = reqwest_client();
        let digest = sha256(blob);
        let url = format!("http://{}/v2/{path}/blobs/uploads/", self.address);
        let answer = client.post(url).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let separator = if location.contains('?') { '&' } else { '?' };
        let put = client
            .put(format!("{location}{separator}digest={digest}"))
            .body(blob.to_vec())
            .send()
            .await
            .unwrap();
        assert_eq!(put.status(), 201);
    }

    pub async fn push_manifest(&self, path: &str, manifest: &[u8], media_type: &str, tag: &str) {
        let url = format!("http://{}/v2/{path}/manifests/{tag}", self.address);
        let put = reqwest_client()
            .put(url)
            .header("content-type", media_type)
            .body(manifest.to_vec())
            .send()
            .await
            .unwrap();
        let status = put.status();
        assert_eq!(status, 201, "{}", put.text().await.unwrap());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reqwest_client() -> reqwest::Client {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}

pub fn store_at(dir: &Path, hosts_dirs: Vec<PathBuf>) -> Store {
    Store::open(Options {
        root: dir.join("store"),
        registries: Registries { hosts_dirs, auth_file: None, parallel_layers: 3 },
        policy: Default::default(),
    })
    .unwrap()
}

/// A store of its own; `root` is checked to be empty of half-made things at the end of a test.
pub fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path(), Vec::new());
    (dir, store)
}

fn count(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

/// Waits until nothing half-made and nothing thrown away is left; then the layers must be `layers`.
pub fn assert_layers(dir: &TempDir, layers: usize) {
    let root = dir.path().join("store");
    let until = Instant::now() + Duration::from_secs(60);
    while count(&root.join("tmp")) + count(&root.join("trash")) > 0 || layer_dirs(&root) != layers {
        let seen = (count(&root.join("tmp")), count(&root.join("trash")), layer_dirs(&root));
        assert!(Instant::now() < until, "left: tmp, trash, layers {seen:?}, wanted {layers} layers");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn layer_dirs(root: &Path) -> usize {
    std::fs::read_dir(root.join("layers")).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count()
}

/// A TCP proxy on loopback that ends each connection after a number of bytes to the client.
pub struct Proxy {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub bytes: Arc<AtomicU64>,
}

impl Proxy {
    /// The n-th connection is cut after `cuts[n]` bytes; later ones are not.
    pub fn start(target: SocketAddr, cuts: Vec<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let (counter, total) = (connections.clone(), bytes.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let index = counter.fetch_add(1, Ordering::SeqCst);
                let cut = cuts.get(index).copied().unwrap_or(u64::MAX);
                let total = total.clone();
                std::thread::spawn(move || relay(client, target, cut, &total));
            }
        });
        Self { address, connections, bytes }
    }
}

fn relay(client: TcpStream, target: SocketAddr, cut: u64, total: &AtomicU64) {
    let Ok(server) = TcpStream::connect(target) else { return };
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
    let (mut server, mut client) = (server, client);
    let mut left = cut;
    let mut buffer = [0; 16 << 10];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match server.read(&mut buffer[..most]) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                left -= count as u64;
                total.fetch_add(count as u64, Ordering::SeqCst);
                if client.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = server.shutdown(std::net::Shutdown::Both);
}

/// What a tree holds, one line per file: kind, mode, owner, link count of files, times of files, link target, device,
/// and the content's sum.
const LISTING: &str = r#"set -e; cd "$1"
find . \( -type d -printf 'd %p %m %U %G\n' \) -o \( -type l -printf 'l %p %U %G %l %T@\n' \) \
  -o \( -type f -printf 'f %p %m %U %G %s %n %T@\n' \) -o -printf '%y %p %m %U %G %n %T@\n' | sort
find . -type f -print0 | sort -z | xargs -0 -r sha256sum
find . \( -type c -o -type b \) -print0 | sort -z | xargs -0 -r stat -c '%n %t %T'"#;

pub fn listing(path: &Path) -> String {
    shell(&["sh", "-c", LISTING, "sh", path.to_str().unwrap()])
}

/// The listing of an overlay, mounted in a mount namespace of its own that goes with the process.
pub fn mounted_listing(overlay: &slipway_runtime::rootfs::Overlay, at: &Path, before: &str) -> String {
    let lower: Vec<String> = overlay.lower.iter().map(|path| path.display().to_string()).collect();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let (Some(upper), Some(work)) = (&overlay.upper, &overlay.work) {
        options.push_str(&format!(",upperdir={},workdir={}", upper.display(), work.display()));
    }
    if overlay.volatile {
        options.push_str(",volatile");
    }
    let script =
        format!("set -e; mount -t overlay overlay -o '{options}' \"$1\"\n(cd \"$1\"; {before})\n{LISTING}");
    shell(&["unshare", "-m", "--propagation", "private", "sh", "-c", &script, "sh", at.to_str().unwrap()])
}

fn shell(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The oracle: the layers extracted one over the other by GNU tar, whiteouts applied by hand before each.
pub fn extract_by_tar(tars: &[Vec<u8>], root: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    for tar in tars {
        let file = scratch.path().join("layer.tar");
        std::fs::write(&file, tar).unwrap();
        let names = shell(&["tar", "-tf", file.to_str().unwrap()]);
        for name in names.lines() {
            let path = Path::new(name);
            let Some(last) = path.file_name().and_then(|n| n.to_str()) else { continue };
            let parent = root.join(path.parent().unwrap());
            if last == ".wh..wh..opq" {
                for entry in std::fs::read_dir(&parent).into_iter().flatten() {
                    remove(&entry.unwrap().path());
                }
            } else if let Some(gone) = last.strip_prefix(".wh.") {
                remove(&parent.join(gone));
            }
        }
        let (file, root) = (file.to_str().unwrap(), root.to_str().unwrap());
        shell(&[
            "tar",
            "-xpf",
            file,
            "--numeric-owner",
            "--same-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--exclude=.wh.*",
            "-C",
            root,
        ]);
    }
}

fn remove(path: &Path) {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}
