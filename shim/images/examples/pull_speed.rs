//! Measures pull and unpack: `pull_speed IMAGE [ROUNDS]` prints MB/s of the compressed bytes for each round.
//!
//! `pull_speed --make DIR [gzip|zstd]` writes an OCI layout of some 300 MB in five layers to push (`skopeo copy`).

use sha2::{Digest, Sha256};
use slipway_images::{Options, Registries, Store};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

#[path = "../tests/support/tar.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests")]
mod tar;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--make", dir] => make(Path::new(dir), "gzip"),
        ["--make", dir, packing] => make(Path::new(dir), packing),
        [image] => measure(image, 3).await,
        [image, rounds] => measure(image, rounds.parse()?).await,
        _ => Err("usage: pull_speed IMAGE [ROUNDS] | --make DIR [gzip|zstd]".into()),
    }
}

async fn measure(image: &str, rounds: u32) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let store = Store::open(Options {
        root: dir.path().to_owned(),
        registries: Registries { hosts_dirs: Vec::new(), auth_file: None, parallel_layers: 3 },
        policy: Default::default(),
    })?;
    for _ in 0..rounds {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let pulled = store.pull(image, None, None).await?;
        let (took, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let info = store.fs_info()?;
        let (wire, disk) = (pulled.size as f64 / 1e6, info.used_bytes as f64 / 1e6);
        println!(
            "{wire:.0} MB compressed, {disk:.0} MB and {} inodes on disk: {took:.2} s, {:.0} MB/s compressed, {:.0} MB/s unpacked, {cpu:.2} s CPU",
            info.inodes_used,
            wire / took,
            disk / took
        );
        store.remove(&pulled.id).await?;
    }
    Ok(())
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat.split(' ').skip(13).take(2).filter_map(|field| field.parse().ok()).collect();
    fields.iter().sum::<f64>() / 100.0
}

/// Five layers of many small and some large files, half of whose bytes compress.
fn make(dir: &Path, packing: &str) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(dir.join("blobs/sha256"))?;
    let blob = |bytes: &[u8]| -> std::io::Result<(String, usize)> {
        let hex = hex::encode(Sha256::digest(bytes));
        std::fs::write(dir.join("blobs/sha256").join(&hex), bytes)?;
        Ok((hex, bytes.len()))
    };
    let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for layer in 0..5 {
        let mut tar = tar::Tar::new().dir(&format!("layer{layer}/"), 0o755, 0);
        for file in 0..1500 {
            let length = if file % 50 == 0 { 2_000_000 } else { 40_000 };
            let mut content = Vec::with_capacity(length + 16);
            while content.len() < length {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                content.extend_from_slice(&seed.to_le_bytes());
                content.extend_from_slice(b"as text.");
            }
            tar = tar.file(&format!("layer{layer}/file{file}"), content);
        }
        let tar = tar.end();
        diff_ids.push(format!("\"sha256:{}\"", hex::encode(Sha256::digest(&tar))));
        let packed = if packing == "zstd" {
            zstd::encode_all(&tar[..], 3)?
        } else {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&tar)?;
            encoder.finish()?
        };
        let (hex, size) = blob(&packed)?;
        layers.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+{packing}","digest":"sha256:{hex}","size":{size}}}"#
        ));
    }
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let (hex, size) = blob(config.as_bytes())?;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{hex}","size":{size}}},"layers":[{}]}}"#,
        layers.join(",")
    );
    let (hex, size) = blob(manifest.as_bytes())?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{hex}","size":{size},"annotations":{{"org.opencontainers.image.ref.name":"1"}}}}]}}"#
    );
    std::fs::write(dir.join("index.json"), index)?;
    Ok(())
}
