//! Images as nobody would build them in good faith, made by hand: what is looked up in them stays in them.

use anyhow::{Context as _, Result, ensure};
use e2e::requests::{pod, security, shell};
use e2e::{Node, Setup, on_a_node};
use std::path::Path;

async fn run(dir: &Path, program: &str, args: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(program).args(args).current_dir(dir).output().await;
    let output = output.with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Packs a directory as the only layer of an image that says `run` in its config, and imports that.
async fn image_of(node: &Node, name: &str, tree: &Path, run_as: serde_json::Value) -> Result<String> {
    let dir = node.path(&format!("image-{name}"));
    std::fs::create_dir(&dir)?;
    run(tree, "tar", &["-cf", &dir.join("layer.tar").display().to_string(), "."]).await?;
    let sum = run(&dir, "sha256sum", &["layer.tar"]).await?;
    let diff_id = sum.split(' ').next().context("a digest")?;
    let config = serde_json::json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"), "os": "linux",
        "config": run_as, "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let reference = format!("test.local/{name}:1");
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]);
    std::fs::write(dir.join("manifest.json"), manifest.to_string())?;
    run(&dir, "tar", &["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"]).await?;
    node.slipway(&["import", &dir.join("image.tar").display().to_string()]).await?;
    Ok(reference)
}

/// CRI-USR-07: also where /etc and what is in it are links that would lead to the host's.
#[test]
fn users_are_looked_up_inside_the_image() {
    on_a_node(Setup::default(), |node| Box::pin(users(node)));
}

async fn users(node: &mut Node) -> Result<()> {
    // The host has these files, too, with somebody else in them.
    let host = node.path("host-accounts");
    std::fs::create_dir(&host)?;
    std::fs::write(host.join("passwd"), "clerk:x:666:666::/:/bin/sh\nhosts-own:x:667:667::/:/bin/sh\n")?;
    std::fs::write(host.join("group"), "staff:x:668:clerk\n")?;
    let tree = node.path("tree");
    let inside = tree.join(host.strip_prefix("/")?);
    std::fs::create_dir_all(&inside)?;
    std::fs::write(inside.join("passwd"), "clerk:x:1234:1234::/:/bin/sh\n")?;
    std::os::unix::fs::symlink(&host, tree.join("etc"))?;
    std::os::unix::fs::symlink("../../../../../../group-of-image", inside.join("group"))?;
    std::fs::write(tree.join("group-of-image"), "clerk:x:1234:\nstaff:x:4321:clerk\n")?;
    let image = image_of(node, "odd", &tree, serde_json::json!({})).await?;

    let config = pod(node, "odd");
    let sandbox = node.run_pod(&config).await?;
    let named = |name: &str, user: &str| {
        let mut container = shell(name, &image, "never");
        security(&mut container).run_as_username = user.into();
        container
    };
    let id = node.create(&sandbox, &config, named("clerk", "clerk")).await?;
    let user = node.container_status(&id).await?.user.and_then(|user| user.linux).context("its user")?;
    ensure!((user.uid, user.gid) == (1234, 1234), "{user:?}");
    ensure!(user.supplemental_groups.contains(&4321), "{user:?}");
    let nobody = node.create(&sandbox, &config, named("strange", "hosts-own")).await;
    let error = nobody.err().context("that one is the host's")?;
    ensure!(format!("{error:#}").contains("hosts-own"), "{error:#}");
    Ok(())
}

/// An image may say anything at any length: an error that quotes it is still one that clients can read.
#[test]
fn errors_quote_no_more_of_an_image_than_clients_take() {
    on_a_node(Setup::default(), |node| Box::pin(long_words(node)));
}

async fn long_words(node: &mut Node) -> Result<()> {
    let tree = node.path("tree");
    std::fs::create_dir_all(tree.join("etc"))?;
    std::fs::write(tree.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    let config = pod(node, "long");
    let sandbox = node.run_pod(&config).await?;
    // Each byte of the second becomes three on its way.
    for (name, word) in [("ascii", "u".repeat(100_000)), ("wide", "\u{20ac}".repeat(40_000))] {
        let image = image_of(node, name, &tree, serde_json::json!({"User": word})).await?;
        let error = node.create(&sandbox, &config, shell(name, &image, "never")).await.err();
        let error = error.context("nobody is called so")?;
        let status = error.downcast_ref::<tonic::Status>().context("a status")?;
        let (code, message) = (status.code(), status.message());
        ensure!(matches!(code, tonic::Code::InvalidArgument | tonic::Code::NotFound), "{name}: {status:?}");
        ensure!((1000..4000).contains(&message.len()), "{name}: {} bytes", message.len());
        ensure!(
            message.contains(&format!("long/{name}")) || message.contains("long"),
            "{name}: of what: {message}"
        );
        ensure!(
            message.contains(" bytes left out ...] "),
            "{name}: it says that something is missing: {message}"
        );
        // A Go client, too.
        let request = serde_json::json!({
            "metadata": {"name": name}, "image": {"image": image}, "command": ["never"], "linux": {},
        });
        let (container, of_pod) = (node.path("container.json"), node.path("pod.json"));
        std::fs::write(&container, request.to_string())?;
        let metadata = serde_json::json!({"metadata": {"name": "long", "uid": "u", "namespace": "default"}});
        std::fs::write(&of_pod, metadata.to_string())?;
        let args = [
            "create",
            "--no-pull",
            &sandbox,
            container.to_str().context("a path")?,
            of_pod.to_str().context("a path")?,
        ];
        let told = node.crictl(&args).await.err().context("refused")?.to_string();
        ensure!(told.contains(" bytes left out ...] "), "{name}: crictl: {told}");
    }
    Ok(())
}
