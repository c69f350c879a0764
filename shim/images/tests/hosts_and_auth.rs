//! Credentials and mirrors against a gate before a real registry.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use slipway_images::{Auth, Kind, Registries};
use support::gate::{Gate, Way};
use support::tar::Tar;
use support::{Built, Packing, Registry, build, store, store_at};

fn image() -> Built {
    let layers: Vec<_> =
        (0..4).map(|n| (Tar::new().file(&format!("f{n}"), "x").end(), Packing::Gzip)).collect();
    build(&layers, "{}")
}

fn password() -> Auth {
    Auth { username: "me".into(), password: "secret".into(), ..Auth::default() }
}

// IMG-AUTH-01, -04 to -10, -14, -15, -16
#[tokio::test(flavor = "multi_thread")]
async fn ways_to_authorise() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let identity = Auth { identity_token: "idt".into(), ..Auth::default() };
    let encoded = Auth { auth: "bWU6c2VjcmV0".into(), ..Auth::default() };
    let bearer = Auth { registry_token: "good".into(), ..Auth::default() };
    let wrong = Auth { username: "me".into(), password: "hunter2".into(), ..Auth::default() };
    let elsewhere = Auth { server_address: "other.example".into(), ..password() };
    let cases: Vec<(Way, Option<Auth>, bool, usize)> = vec![
        (Way::Basic, Some(password()), true, 0),
        (Way::Basic, Some(encoded), true, 0),
        (Way::Basic, Some(wrong.clone()), false, 0),
        (Way::Basic, Some(elsewhere.clone()), false, 0),
        (Way::Basic, None, false, 0),
        (Way::Anonymous, None, true, 1),
        // One POST that is refused, one GET.
        (Way::Get, Some(password()), true, 2),
        (Way::Get, None, false, 1),
        (Way::Post, Some(password()), true, 1),
        (Way::Post, Some(identity), true, 1),
        (Way::Post, Some(bearer), true, 0),
        (Way::Post, Some(elsewhere), false, 1),
        (Way::Post, Some(wrong), false, 2),
    ];
    for (way, auth, works, tokens) in cases {
        let gate = Gate::start(registry.address, way);
        let (_dir, store) = store();
        let result = store.pull(&format!("{}/a:1", gate.address), auth.clone(), None).await;
        assert_eq!(gate.count("/token"), tokens, "{way:?}: token requests");
        match result {
            Ok(image) => assert!(works && image.id == built.id(), "{way:?}"),
            Err(error) => {
                assert!(!works && error.kind == Kind::Unauthorized, "{way:?}: {error}");
                assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
                assert!(gate.heard.lock().unwrap().len() < 8, "{way:?}");
            }
        }
    }
}

// The node's own credentials: for pulls that bring none, read per pull, and never for another registry.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_the_node() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let gate = Gate::start(registry.address, Way::Basic);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let write = |host: &str| {
        std::fs::write(&file, format!(r#"{{"auths": {{"{host}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#)).unwrap();
    };
    let (_store_dir, store) = store();
    store.set_registries(Registries {
        hosts_dirs: vec![],
        auth_file: Some(file.clone()),
        parallel_layers: 2,
    });
    let name = format!("{}/a:1", gate.address);
    let pull = || store.pull(&name, None, None);
    let error = pull().await.unwrap_err().to_string();
    assert!(error.contains("auth.json"), "the file that is not there is named: {error}");
    write("other.example");
    assert_eq!(pull().await.unwrap_err().kind, Kind::Unauthorized);
    write(&gate.address.to_string());
    assert_eq!(pull().await.unwrap().id, built.id());
}

/// What a pull would do, told without doing it, and without a secret.
#[tokio::test(flavor = "multi_thread")]
async fn explained() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let gate = Gate::start(registry.address, Way::Basic);
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("reg.example");
    std::fs::create_dir(&own).unwrap();
    let hosts = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\ncapabilities = [\"resolve\"]\n",
        gate.address
    );
    std::fs::write(own.join("hosts.toml"), hosts).unwrap();
    let file = dir.path().join("auth.json");
    std::fs::write(&file, format!(r#"{{"auths": {{"{}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#, gate.address))
        .unwrap();
    let elsewhere = dir.path().join("elsewhere");
    let registries = Registries {
        hosts_dirs: vec![elsewhere.clone(), dir.path().to_owned()],
        auth_file: Some(file.clone()),
        parallel_layers: 1,
    };
    let told = slipway_images::explain("reg.example/a:1", &registries, &Default::default()).await.unwrap();
    assert_eq!(told.reference, "reg.example/a:1");
    let looked: Vec<_> = told.files.iter().map(|f| (f.path.as_str(), f.outcome.as_str())).collect();
    let text = |path: &std::path::Path| path.display().to_string();
    let wanted = [
        (text(&elsewhere.join("reg.example")), "not there"),
        (text(&elsewhere.join("_default")), "not there"),
        (text(&own), "read: hosts.toml"),
        (text(&dir.path().join("_default")), "not looked at: an earlier one counts"),
        (text(&file), "read: credentials"),
    ];
    assert!(looked.iter().copied().eq(wanted.iter().map(|(p, o)| (p.as_str(), *o))), "{looked:?}");
    let [mirror, upstream] = told.endpoints.as_slice() else { panic!("{told:?}") };
    assert_eq!(
        (mirror.url.as_str(), mirror.role),
        (format!("http://{}/v2", gate.address).as_str(), "mirror")
    );
    assert_eq!(mirror.capabilities, ["resolve"]);
    assert_eq!(mirror.credentials, "of user me (password hidden)");
    assert!(mirror.answer.as_ref().is_ok_and(|digest| digest.starts_with("sha256:")), "{mirror:?}");
    assert!(upstream.answer.as_ref().is_err_and(|why| why.contains("127.0.0.1")), "{upstream:?}");
    assert!(!format!("{told:?}").contains("secret\"") && !format!("{told:?}").contains("bWU6"), "{told:?}");
    assert_eq!(gate.count("/blobs/"), 0, "only manifests are asked for");
}

/// Who has no credentials does not get an image because another pull of it is under way.
#[tokio::test(flavor = "multi_thread")]
async fn flights_are_not_shared_over_credentials() {
    let registry = Registry::start();
    registry.push("a", &image(), "1").await;
    let gate = Gate::start(registry.address, Way::Post);
    let (_dir, store) = store();
    let name = format!("{}/a:1", gate.address);
    let (good, bad) = tokio::join!(store.pull(&name, Some(password()), None), store.pull(&name, None, None));
    assert!(good.is_ok());
    assert_eq!(bad.unwrap_err().kind, Kind::Unauthorized);
}

// IMG-RES-05, IMG-AUTH-11, IMG-HOST-03, -04, -05, -07, -12
#[tokio::test(flavor = "multi_thread")]
async fn mirrors() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    let upstream = Gate::start(registry.address, Way::Basic);
    let down = Gate::start(registry.address, Way::Down);
    let mirror = Gate::start(registry.address, Way::Anonymous);
    let name = format!("{}/a:1", upstream.address);
    let own = hosts.join(format!("127.0.0.1_{}_", upstream.address.port()));
    std::fs::create_dir_all(&own).unwrap();
    let write = |text: String| std::fs::write(own.join("hosts.toml"), text).unwrap();
    let store = store_at(dir.path(), vec![hosts.clone()]);

    // A mirror that is down, one that works: the registry itself is not asked, and no secret goes to a mirror.
    write(format!("[host.\"http://{}\"]\n[host.\"http://{}\"]\n", down.address, mirror.address));
    let image = store.pull(&name, Some(password()), None).await.unwrap();
    assert_eq!(image.repo_tags, [name.as_str()]);
    assert!(down.count("HEAD") > 0 && upstream.heard.lock().unwrap().is_empty());
    let namespace = format!("?ns=127.0.0.1%3A{}", upstream.address.port());
    assert_eq!(mirror.count(&namespace), mirror.count("/v2/"));
    assert_eq!(mirror.count("bWU6c2VjcmV0") + down.count("bWU6c2VjcmV0") + mirror.count("secret"), 0);
    store.remove(&image.id).await.unwrap();

    // Read anew for each pull: a mirror that may not resolve, and the registry.
    write(format!("[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n", mirror.address));
    let before = mirror.count("/v2/a/manifests/1?");
    store.pull(&name, Some(password()), None).await.unwrap();
    assert_eq!(mirror.count("/v2/a/manifests/1?"), before);
    assert!(upstream.count("/v2/a/manifests/1 ") > 0 && upstream.count("/blobs/") == 0);
    store.remove(&built.id()).await.unwrap();

    // The upstream is forbidden by naming the mirror as server.
    write(format!("server = \"http://{}\"\n", down.address));
    let heard = upstream.heard.lock().unwrap().len();
    let error = store.pull(&name, Some(password()), None).await.unwrap_err();
    assert!(error.to_string().starts_with("RegistryUnavailable"), "{error}");
    assert_eq!(upstream.heard.lock().unwrap().len(), heard);

    // IMG-HOST-13
    write("server = [".to_owned());
    let error = store.pull(&name, None, None).await.unwrap_err();
    assert!(error.kind == Kind::Invalid && error.to_string().contains("hosts.toml"), "{error}");
}

// IMG-HOST-09: TLS settings for loopback: https first, then http.
#[tokio::test(flavor = "multi_thread")]
async fn loopback_falls_back_to_http() {
    let registry = Registry::start();
    let built = image();
    registry.push("a", &built, "1").await;
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("hosts").join(registry.address.to_string());
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("hosts.toml"), "skip_verify = true\n").unwrap();
    let store = store_at(dir.path(), vec![dir.path().join("hosts")]);
    assert_eq!(store.pull(&registry.name("a:1"), None, None).await.unwrap().id, built.id());
}
