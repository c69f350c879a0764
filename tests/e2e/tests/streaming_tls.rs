//! The streaming server over TLS, with certificates of both sides: crictl over both transports, and our own command line.

use anyhow::{Context as _, Result, ensure};
use e2e::certificates::{Authority, MONTH};
use e2e::requests::{pod, shell};
use e2e::streams::{texts, type_into};
use e2e::{Node, Setup, on_a_node};
use std::path::Path;

/// STR-TLS-01, STR-TLS-02, STR-URL-03.
#[test]
fn streams_over_tls_are_for_those_with_a_certificate() {
    on_a_node(Setup::default(), |node| Box::pin(tls(node)));
}

async fn tls(node: &mut Node) -> Result<()> {
    let (ours, other) = (Authority::new(), Authority::new());
    let server = ours.issue("server", "IP:127.0.0.1,DNS:localhost", MONTH);
    let good = ours.issue("client", "DNS:client", MONTH);
    let foreign = other.issue("stranger", "DNS:client", MONTH);
    let text = format!(
        "[streaming]\ntls_certificate = \"{0}.crt\"\ntls_key = \"{0}.key\"\ntls_client_ca = \"{1}\"\n",
        server.display(),
        ours.ca().display()
    );
    std::fs::write(node.path("config.d/10-tls.toml"), text)?;
    node.kill_daemon().await?;
    node.start_daemon().await?;

    let image = node.import("busybox").await?;
    let config = pod(node, "tls");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let url = node.exec_url(&id, &["true"], false, false).await?;
    ensure!(url.starts_with("https://127.0.0.1:"), "{url}");
    let shown = |stem: &Path| ["crt", "key"].map(|ending| stem.with_extension(ending).display().to_string());
    let authority = ours.ca().display().to_string();
    for transport in ["spdy", "websocket"] {
        let exec = |own: Option<&Path>| {
            let mut args: Vec<String> =
                ["exec", "-i", "--transport", transport, "--tls-ca", &authority].map(Into::into).into();
            if let Some([certificate, key]) = own.map(shown) {
                args.extend(["--tls-cert".into(), certificate, "--tls-key".into(), key]);
            }
            args.extend([id.clone(), "sh".into(), "-c".into(), "cat; exit 7".into()]);
            node.crictl_command(&args.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let output = type_into(exec(Some(&good)), b"there and back\n").await?;
        let (_, said) = texts(&output);
        ensure!(output.stdout == b"there and back\n" && said.contains('7'), "{transport}: {output:?}");
        for stranger in [None, Some(foreign.as_path())] {
            let output = type_into(exec(stranger), b"nothing\n").await?;
            ensure!(!output.status.success() && output.stdout.is_empty(), "{transport}: {output:?}");
        }
    }

    let [certificate, key] = shown(&good);
    let own = ["--tls-cert", &certificate, "--tls-key", &key];
    let command = ["--", "sh", "-c", "echo inside; exit 7"];
    let output = node.slipway_command(&[&["exec"], &own[..], &[&id], &command].concat()).output().await?;
    ensure!(output.stdout == b"inside\n" && output.status.code() == Some(7), "{output:?}");
    let output = node.slipway_command(&[&["exec", &id], &command[..]].concat()).output().await?;
    let (_, said) = texts(&output);
    ensure!(output.stdout.is_empty() && said.contains("--tls-cert"), "it is told what is missing: {said}");

    // Files that cannot be used: the daemon says so before it serves.
    std::fs::write(node.path("config.d/20-bad.toml"), "[streaming]\ntls_key = \"/no/such/key\"\n")?;
    node.kill_daemon().await?;
    let error = node.start_daemon().await.err().context("it starts without its key")?;
    ensure!(format!("{error:#}").contains("/no/such/key"), "{error:#}");
    node.daemon_ended().await?;
    std::fs::remove_file(node.path("config.d/20-bad.toml"))?;
    node.start_daemon().await
}
