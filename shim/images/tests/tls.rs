//! Registries over HTTPS: an authority of one's own, client certificates, and what a user reads when a certificate is wrong.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

#[allow(dead_code, unreachable_pub, reason = "each room's tests use a part of it")]
#[path = "../../../tests/e2e/src/certificates.rs"]
mod certificates;
mod support;

use certificates::{Authority, MONTH, NONE};
use slipway_images::{Error, Image, Kind, Store};
use std::path::Path;
use std::sync::Arc;
use support::tar::Tar;
use support::{Packing, Registry, assert_layers, build, store_at};
use tempfile::TempDir;

/// The `tls` part of docker-registry's configuration.
fn tls(server: &Path, clients: Option<&Authority>) -> String {
    let clients =
        clients.map(|ca| format!("    clientcas:\n      - {}\n", ca.ca().display())).unwrap_or_default();
    format!("  tls:\n    certificate: {0}.crt\n    key: {0}.key\n{clients}", server.display())
}

/// One client's store, and the hosts.toml it has for one registry.
struct Client {
    dir: TempDir,
    store: Store,
    name: String,
}

impl Client {
    fn new(registry: &Registry, hosts_toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("hosts").join(registry.address.to_string());
        std::fs::create_dir_all(&own).unwrap();
        let server = format!("server = \"https://{}\"\n", registry.address);
        std::fs::write(own.join("hosts.toml"), server + hosts_toml).unwrap();
        let store = store_at(dir.path(), vec![dir.path().join("hosts")]);
        Self { dir, store, name: registry.name("a:1") }
    }

    async fn pull(&self) -> Result<Arc<Image>, Error> {
        self.store.pull(&self.name, None, None).await
    }

    /// The pull fails with one line that holds all of `words`, and leaves nothing.
    async fn refused(&self, words: &[&str]) {
        let error = self.pull().await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind, Kind::Unavailable, "{text}");
        assert!(text.starts_with("RegistryUnavailable: ") && !text.contains('\n'), "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
        assert!(self.store.list().is_empty());
        assert_layers(&self.dir, 0);
    }
}

/// A registry with an image `a:1`, by plain HTTP.
async fn content() -> (Registry, String) {
    let registry = Registry::start();
    let layers =
        [(Tar::new().file("f", "x").end(), Packing::Gzip), (Tar::new().file("g", "y").end(), Packing::Zstd)];
    let built = build(&layers, "{}");
    registry.push("a", &built, "1").await;
    (registry, built.id())
}

fn ca_line(authority: &Authority) -> String {
    format!("ca = \"{}\"\n", authority.ca().display())
}

fn client_line(stem: &Path) -> String {
    format!("client = [[\"{0}.crt\", \"{0}.key\"]]\n", stem.display())
}

// IMG-HOST-02, IMG-HOST-10, IMG-HOST-11
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own() {
    let (plain, id) = content().await;
    let (ours, other) = (Authority::new(), Authority::new());
    let registry = plain.behind(&tls(&ours.issue("server", "IP:127.0.0.1", MONTH), None));

    let client = Client::new(&registry, &ca_line(&ours));
    assert_eq!(client.pull().await.unwrap().id, id);
    assert_layers(&client.dir, 2);
    let client = Client::new(&registry, "skip_verify = true\n");
    assert_eq!(client.pull().await.unwrap().id, id);
    // The older form of the directory: certificates without a hosts.toml; loopback is asked by https first.
    let client = Client::new(&registry, "");
    let own = client.dir.path().join("hosts").join(registry.address.to_string());
    std::fs::remove_file(own.join("hosts.toml")).unwrap();
    std::fs::copy(ours.ca(), own.join("any.crt")).unwrap();
    assert_eq!(client.pull().await.unwrap().id, id);

    for hosts_toml in ["", &ca_line(&other)] {
        Client::new(&registry, hosts_toml).refused(&["signed by no authority", "`ca`", "hosts.toml"]).await;
    }
    // A file that is none is named before anybody is asked.
    let client = Client::new(&registry, "ca = \"/no/such/ca.crt\"\n");
    let error = client.pull().await.unwrap_err();
    assert!(error.kind == Kind::Invalid && error.to_string().contains("/no/such/ca.crt"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_cannot_be_used() {
    let (plain, _) = content().await;
    let ours = Authority::new();
    let registry = plain.behind(&tls(&ours.issue("expired", "IP:127.0.0.1", NONE), None));
    Client::new(&registry, &ca_line(&ours)).refused(&["expired", "renew it"]).await;
    // Also where plain HTTP is tried afterwards: what TLS said is the better answer.
    let client = Client::new(&registry, "");
    let own = client.dir.path().join("hosts").join(registry.address.to_string());
    std::fs::write(own.join("hosts.toml"), ca_line(&ours)).unwrap();
    client.refused(&["expired", "renew it"]).await;

    let registry = plain.behind(&tls(&ours.issue("elsewhere", "DNS:registry.example", MONTH), None));
    Client::new(&registry, &ca_line(&ours)).refused(&["registry.example", "by a name that is in it"]).await;
    // https to a server that knows only http.
    Client::new(&plain, "").refused(&["does not speak TLS", "http://"]).await;
}

// IMG-HOST-02: client certificates, both files in one or two.
#[tokio::test(flavor = "multi_thread")]
async fn client_certificates() {
    let (plain, id) = content().await;
    let (ours, other) = (Authority::new(), Authority::new());
    let registry = plain.behind(&tls(&ours.issue("server", "IP:127.0.0.1", MONTH), Some(&ours)));
    let good = ours.issue("client", "DNS:client", MONTH);
    let both = ours.dir.path().join("both.pem");
    let read = |ending: &str| std::fs::read_to_string(good.with_extension(ending)).unwrap();
    std::fs::write(&both, read("crt") + &read("key")).unwrap();
    let ca = ca_line(&ours);
    for line in [client_line(&good), format!("client = \"{}\"\n", both.display())] {
        let client = Client::new(&registry, &(ca.clone() + &line));
        assert_eq!(client.pull().await.unwrap().id, id, "{line}");
    }
    Client::new(&registry, &ca).refused(&["client certificate", "`client`", "hosts.toml"]).await;
    for wrong in [other.issue("stranger", "DNS:client", MONTH), ours.issue("old", "DNS:client", NONE)] {
        let client = Client::new(&registry, &(ca.clone() + &client_line(&wrong)));
        client.refused(&["client certificate", "`client`", "hosts.toml"]).await;
    }
}
