//! CNI with the reference plugins of the distribution, and with plugins written here to misbehave.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Host, Pod, ask_tcp, ip, on_own_host, serve_tcp, sh};
use serde_json::{Value, json};
use slipway_network::{Network, PortMapping, Protocol};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

/// bridge, host-local and portmap, with host-local's leases in the test's directory.
fn real_network(host: &Host, name: &str, subnet: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": name,
        "plugins": [
            {"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "dataDir": host.path("ipam"), "ranges": [[{"subnet": subnet}]],
                      "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
        ]
    })
}

fn configure(host: &Host, file: &str, config: &Value) {
    std::fs::create_dir_all(host.path("net.d")).unwrap();
    std::fs::write(host.path("net.d").join(file), config.to_string()).unwrap();
}

/// Writes a shell plugin. It may use $CNI_COMMAND and the rest, `$DIR` (the test's directory) and `$input`; every call
/// is logged to calls as `type COMMAND containerid netns-or-dash`, its input to `input-<type>-<COMMAND>`.
fn plugin(host: &Host, name: &str, body: &str) {
    std::fs::create_dir_all(host.path("bin")).unwrap();
    let path = host.path("bin").join(name);
    let text = format!(
        "#!/bin/sh\nDIR={}\ninput=$(cat)\necho \"{name} $CNI_COMMAND $CNI_CONTAINERID ${{CNI_NETNS:--}}\" >> $DIR/calls\n\
         echo \"$input\" > $DIR/input-{name}-$CNI_COMMAND\n{body}\n",
        host.dir.path().display()
    );
    // Written elsewhere and renamed, so that no other test's fork holds it open for writing.
    let draft = host.path("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&draft, path).unwrap();
}

const RESULT: &str = r#"echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}'"#;

/// An ADD that works, and silence for the rest.
fn good(host: &Host, name: &str) {
    plugin(host, name, &format!("[ $CNI_COMMAND = ADD ] && {RESULT}; exit 0"));
}

fn list(version: &str, types: &[&str]) -> Value {
    let plugins: Vec<Value> = types.iter().map(|t| json!({"type": t})).collect();
    json!({"cniVersion": version, "name": "net", "plugins": plugins})
}

fn calls(host: &Host) -> Vec<String> {
    let text = std::fs::read_to_string(host.path("calls")).unwrap_or_default();
    let _ = std::fs::remove_file(host.path("calls"));
    text.lines().map(|l| l.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

fn input(host: &Host, plugin: &str, command: &str) -> Value {
    let text = std::fs::read_to_string(host.path(&format!("input-{plugin}-{command}"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn leases(host: &Host, network: &str) -> Vec<String> {
    let dir = host.path("ipam").join(network);
    let names =
        std::fs::read_dir(dir).map(|d| d.flatten().map(|e| e.file_name().into_string().unwrap()).collect());
    let names: Vec<String> = names.unwrap_or_default();
    names.into_iter().filter(|n| n.parse::<std::net::IpAddr>().is_ok()).collect()
}

#[test]
fn reference_plugins_give_pods_a_network() {
    on_own_host(async |host: Host| {
        configure(&host, "10-real.conflist", &real_network(&host, "real", "10.44.0.0/24"));
        let network = host.network();
        let outside = host.outside();
        let (mut a, b) = (host.pod("a"), host.pod("b"));
        a.net.ports =
            vec![PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None }];
        assert!(network.readiness().await.ready);
        let start = Instant::now();
        let in_a = network.setup(&a.net).await.unwrap();
        println!("reference plugins: setup {:?}", start.elapsed());
        let in_b = network.setup(&b.net).await.unwrap();
        assert_eq!((in_a.ips[0], in_b.ips[0]), (ip("10.44.0.2"), ip("10.44.0.3")));
        assert_eq!(in_a.result["interfaces"][2]["name"], "eth0");
        serve_tcp(&host, Some(&a.net.netns), 80, "a");
        serve_tcp(&host, Some(&outside.net.netns), 80, "outside");
        assert_eq!(host.enter(&b.net.netns, || ask_tcp((ip("10.44.0.2"), 80))).unwrap(), "a 10.44.0.3");
        assert_eq!(host.enter(&b.net.netns, || ask_tcp((ip("192.0.2.2"), 80))).unwrap(), "outside 192.0.2.1");
        assert_eq!(host.on_host(|| ask_tcp((ip("127.0.0.1"), 8080))).unwrap(), "a 10.44.0.1");
        assert!(
            host.enter(&outside.net.netns, || ask_tcp((ip("192.0.2.1"), 8080))).unwrap().starts_with("a ")
        );
        // Not pod a: portmap's own CHECK fails where it made no IPv6 chain.
        network.check(&b.net).await.unwrap();
        // After a restart and a change of the configuration, DEL still says what ADD said (CNI-27).
        drop(network);
        configure(&host, "10-real.conflist", &list("1.0.0", &["does-not-exist"]));
        let network = host.network();
        let not = network.readiness().await;
        assert!(!not.ready && not.message.contains("does-not-exist not found in"), "{not:?}");
        network.teardown(&a.net, Some(&a.net.netns)).await.unwrap();
        assert_eq!(leases(&host, "real"), ["10.44.0.3"]);
        // CRI-PSTOP-06, CNI-RT-12: the namespace is gone.
        let gone = b.net.clone();
        drop(b);
        network.teardown(&gone, None).await.unwrap();
        network.teardown(&gone, None).await.unwrap();
        assert_eq!(leases(&host, "real"), Vec::<String>::new());
        assert_eq!(host.state_files(), Vec::<String>::new());
        // Pod b's masquerade rule stays: the plugin looks its addresses up in the namespace, which was gone.
        assert!(!sh("nft list ruleset").contains("10.44.0.2"), "{}", sh("nft list ruleset"));
        // The plugin's own bridge stays, as it always does.
        host.wait_for_links(&["cni9"]);
    });
}

#[test]
fn plugins_run_in_order_and_back_with_what_they_may_know() {
    // CNI-08 to CNI-12, CNI-26, CNI-RT-05, CNI-RT-06
    on_own_host(async |host: Host| {
        let mut config = list("1.1.0", &["one", "two"]);
        config["plugins"][1]["capabilities"] = json!({"portMappings": true, "bandwidth": true, "dns": false});
        configure(&host, "a.conflist", &config);
        good(&host, "one");
        good(&host, "two");
        let network = host.network();
        let mut pod = host.pod("p");
        pod.net.ports =
            vec![PortMapping { protocol: Protocol::Udp, container_port: 53, host_port: 53, host_ip: None }];
        pod.net.annotations.insert("kubernetes.io/egress-bandwidth".into(), "1M".into());
        pod.net.dns_servers.push("1.1.1.1".into());
        let done = network.setup(&pod.net).await.unwrap();
        assert_eq!(done.ips, [ip("10.1.2.3")]);
        assert!(input(&host, "one", "ADD").get("prevResult").is_none());
        let second = input(&host, "two", "ADD");
        assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
        let runtime = second["runtimeConfig"].as_object().unwrap();
        assert_eq!(runtime.keys().collect::<Vec<_>>(), ["bandwidth", "portMappings"]);
        assert_eq!(runtime["bandwidth"]["egressRate"], 1_000_000);
        assert!(second.get("capabilities").is_none());
        network.check(&pod.net).await.unwrap();
        network.teardown(&pod.net, Some(&pod.net.netns)).await.unwrap();
        assert_eq!(calls(&host), ["one ADD", "two ADD", "one CHECK", "two CHECK", "two DEL", "one DEL"]);
        assert_eq!(input(&host, "one", "DEL")["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
        assert_eq!(input(&host, "two", "DEL")["runtimeConfig"], second["runtimeConfig"]);
        assert_eq!(host.state_files(), Vec::<String>::new());
    });
}

#[test]
fn a_failure_midway_is_explained_and_undone() {
    // CNI-12, CNI-13, CNI-19, CNI-RT-11
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one", "two", "three"]));
        good(&host, "one");
        good(&host, "three");
        plugin(
            &host,
            "two",
            r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":7,"msg":"no such vlan","details":"id 9"}'; exit 1; }; exit 0"#,
        );
        let network = host.network();
        let pod = host.pod("p");
        let e = network.setup(&pod.net).await.unwrap_err().to_string();
        for part in ["ns/pod-p", "plugin two", "net", "ADD", "no such vlan", "id 9", "code 7"] {
            assert!(e.contains(part), "{part} in {e}");
        }
        assert_eq!(calls(&host), ["one ADD", "two ADD", "three DEL", "two DEL", "one DEL"]);
        assert_eq!(host.state_files(), Vec::<String>::new());
        for (body, part) in [
            ("echo garbage", "not JSON"),
            ("exit 0", "no result"),
            ("echo oh dear >&2; exit 3", "oh dear"),
            (r#"echo '{"cniVersion":"1.0.0","ips":[]}'"#, "no address"),
            (r#"echo '{"cniVersion":"9.0.0"}'"#, "unknown cniVersion"),
            ("kill -9 $$", "signal: 9"),
            ("head -c 9000000 /dev/zero | tr '\\0' x", "not JSON"),
        ] {
            plugin(&host, "three", &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{body}"));
            good(&host, "two");
            let e = network.setup(&pod.net).await.unwrap_err().to_string();
            assert!(e.contains(part), "{part} in {e}");
            assert_eq!(host.state_files(), Vec::<String>::new(), "{body}");
        }
    });
}

#[test]
fn del_is_repeated_until_it_succeeds() {
    // CRI-PSTOP-05, CNI-21
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one", "two"]));
        good(&host, "two");
        let fails = format!("[ $CNI_COMMAND = ADD ] && {{ {RESULT}; exit 0; }}; echo busy >&2; exit 1");
        plugin(&host, "one", &fails);
        let network = host.network();
        let pod = host.pod("p");
        network.setup(&pod.net).await.unwrap();
        let e = network.teardown(&pod.net, Some(&pod.net.netns)).await.unwrap_err().to_string();
        assert!(e.contains("busy") && e.contains("DEL"), "{e}");
        assert_eq!(host.state_files().len(), 1, "the record stays");
        // Over a restart, and with the network uninstalled meanwhile, by collect.
        drop(network);
        std::fs::remove_dir_all(host.path("net.d")).unwrap();
        let network = host.network();
        assert!(network.collect(&[]).await.unwrap_err().to_string().contains("busy"));
        network.collect(&["p".into()]).await.unwrap();
        assert_eq!(host.state_files().len(), 1);
        // Code 3: the plugin knows nothing of it, which is what we want.
        plugin(&host, "one", r#"echo '{"code":3,"msg":"unknown container"}'; exit 1"#);
        network.collect(&[]).await.unwrap();
        assert_eq!(host.state_files(), Vec::<String>::new());
    });
}

#[test]
fn an_undo_that_fails_is_owed() {
    // CNI-RT-11, CRI-PSTOP-05
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one"]));
        plugin(&host, "one", "echo no $CNI_COMMAND today >&2; exit 1");
        let network = host.network();
        let pod = host.pod("p");
        let e = network.setup(&pod.net).await.unwrap_err().to_string();
        assert!(e.contains("no ADD today") && e.contains("no DEL today"), "{e}");
        assert_eq!(host.state_files().len(), 1);
        // A new attempt begins with the DEL that is owed, and without it does not begin at all.
        calls(&host);
        network.setup(&pod.net).await.unwrap_err();
        assert_eq!(calls(&host), ["one DEL"]);
        good(&host, "one");
        network.setup(&pod.net).await.unwrap();
        assert_eq!(calls(&host), ["one DEL", "one ADD"]);
        network.teardown(&pod.net, None).await.unwrap();
        assert_eq!(host.state_files(), Vec::<String>::new());
    });
}

#[test]
fn reference_plugins_side_by_side() {
    // CNI-14
    on_own_host(async |host: Host| {
        configure(&host, "10-real.conflist", &real_network(&host, "real", "10.44.0.0/24"));
        let network = std::sync::Arc::new(host.network());
        let pods: Vec<Pod> = (0..8).map(|n| host.pod(&format!("p{n}"))).collect();
        let mut running = tokio::task::JoinSet::new();
        for pod in &pods {
            let (network, pod) = (network.clone(), pod.net.clone());
            running.spawn(async move { network.setup(&pod).await.unwrap().ips[0] });
        }
        let ips: std::collections::BTreeSet<std::net::IpAddr> =
            running.join_all().await.into_iter().collect();
        assert_eq!(ips.len(), 8);
        let mut running = tokio::task::JoinSet::new();
        for pod in &pods {
            let (network, pod) = (network.clone(), pod.net.clone());
            running.spawn(async move { network.teardown(&pod, Some(&pod.netns)).await.unwrap() });
        }
        running.join_all().await;
        assert_eq!(leases(&host, "real"), Vec::<String>::new());
        assert_eq!(host.state_files(), Vec::<String>::new());
        assert_eq!(host.links(), ["cni9"]);
    });
}

#[test]
fn a_crash_between_intent_and_add_is_found() {
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one"]));
        // The record must be there before the plugin runs.
        plugin(
            &host,
            "one",
            &format!(
                "ls $DIR/state/pods > $DIR/seen-$CNI_COMMAND\n[ $CNI_COMMAND = ADD ] && {RESULT}; exit 0"
            ),
        );
        let network = host.network();
        let pod = host.pod("p");
        network.setup(&pod.net).await.unwrap();
        assert_eq!(std::fs::read_to_string(host.path("seen-ADD")).unwrap(), "p.json\n");
        // What a crash in the middle of ADD leaves: the intent, without a result.
        let record = host.path("state/pods/p.json");
        let mut value: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        value["made_by"]["cni"]["result"] = Value::Null;
        std::fs::write(&record, value.to_string()).unwrap();
        drop(network);
        calls(&host);
        let network = host.network();
        network.collect(&[]).await.unwrap();
        assert_eq!(calls(&host), ["one DEL"]);
        assert!(input(&host, "one", "DEL").get("prevResult").is_none());
        assert_eq!(host.state_files(), Vec::<String>::new());
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_and_undone() {
    // CNI-31
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one"]));
        plugin(&host, "one", "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! > $DIR/pid; wait");
        let network = host.network().with_plugin_timeout(Duration::from_secs(1));
        let pod = host.pod("p");
        let start = Instant::now();
        let e = network.setup(&pod.net).await.unwrap_err().to_string();
        assert!(e.contains("did not finish in time") && start.elapsed() < Duration::from_secs(90), "{e}");
        assert_eq!(calls(&host), ["one ADD", "one DEL"]);
        let child = std::fs::read_to_string(host.path("pid")).unwrap();
        let gone = || {
            let status =
                std::fs::read_to_string(format!("/proc/{}/status", child.trim())).unwrap_or_default();
            status.is_empty() || status.contains("State:\tZ")
        };
        for _ in 0..100 {
            if gone() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(gone(), "its children are killed with it");
        assert_eq!(host.state_files(), Vec::<String>::new());
    });
}

#[test]
fn try_again_later_is_tried_again_after_a_del() {
    // CNI-20
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one"]));
        plugin(
            &host,
            "one",
            &format!(
                "[ $CNI_COMMAND = ADD ] || exit 0\n\
                 [ -e $DIR/once ] || {{ touch $DIR/once; echo '{{\"code\":11,\"msg\":\"later\"}}'; exit 1; }}\n{RESULT}"
            ),
        );
        let network = host.network();
        let pod = host.pod("p");
        network.setup(&pod.net).await.unwrap();
        assert_eq!(calls(&host), ["one ADD", "one DEL", "one ADD"]);
        network.teardown(&pod.net, None).await.unwrap();
    });
}

#[test]
fn a_binary_being_replaced_is_waited_for() {
    // CNI-29
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one"]));
        good(&host, "one");
        let open = std::fs::OpenOptions::new().append(true).open(host.path("bin/one")).unwrap();
        let network = host.network();
        let pod = host.pod("p");
        let (done, ()) = tokio::join!(network.setup(&pod.net), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(open);
        });
        done.unwrap();
        network.teardown(&pod.net, None).await.unwrap();
    });
}

#[test]
fn old_versions_are_spoken() {
    // CNI-22, CNI-25
    on_own_host(async |host: Host| {
        let config = json!({"name": "old", "type": "one", "cniVersion": "0.2.0"});
        configure(&host, "a.conf", &config);
        let result = r#"{"ip4":{"ip":"10.5.0.9/16","gateway":"10.5.0.1"},"dns":{}}"#;
        plugin(&host, "one", &format!("[ $CNI_COMMAND = ADD ] && echo '{result}'; exit 0"));
        let network = host.network();
        let pod = host.pod("p");
        let done = network.setup(&pod.net).await.unwrap();
        assert_eq!(done.ips, [ip("10.5.0.9")]);
        assert_eq!(done.result["ips"][0]["gateway"], "10.5.0.1");
        network.check(&pod.net).await.unwrap();
        network.teardown(&pod.net, None).await.unwrap();
        assert_eq!(calls(&host), ["one ADD", "one DEL"]);
        assert!(input(&host, "one", "DEL").get("prevResult").is_none());
    });
}

#[test]
fn readiness_follows_directory_and_status() {
    // CRI-STA-03, CNI-18, CNI-RT-03, CNI-RT-20
    on_own_host(async |host: Host| {
        let mut options = host.options();
        options.builtin = None;
        let network = Network::open(options).unwrap();
        let not = network.readiness().await;
        assert!(!not.ready && not.message.contains("no CNI configuration in"), "{not:?}");
        let pod = host.pod("p");
        let e = network.setup(&pod.net).await.unwrap_err().to_string();
        assert!(e.contains("there is no file") && e.contains("hint"), "{e}");
        std::fs::create_dir_all(host.path("net.d")).unwrap();
        std::fs::write(host.path("net.d/00-bad.conflist"), "{").unwrap();
        let not = network.readiness().await;
        assert!(!not.ready && not.message.contains("00-bad.conflist: "), "{not:?}");
        assert!(network.setup(&pod.net).await.unwrap_err().to_string().contains("00-bad.conflist"));
        plugin(&host, "one", r#"[ -e $DIR/up ] || { echo '{"code":50,"msg":"agent down"}'; exit 1; }"#);
        configure(&host, "10.conflist", &list("1.1.0", &["one"]));
        let not = network.readiness().await;
        assert!(
            !not.ready && not.message.contains("agent down") && not.message.contains("10.conflist"),
            "{not:?}"
        );
        std::fs::write(host.path("up"), "").unwrap();
        let ready = network.readiness().await;
        assert!(ready.ready && ready.message.contains("00-bad.conflist"), "{ready:?}");
        assert_eq!(calls(&host), ["one STATUS", "one STATUS"]);
        std::fs::remove_dir_all(host.path("net.d")).unwrap();
        assert!(!network.readiness().await.ready);
        configure(&host, "10.conflist", &list("1.1.0", &["one"]));
        assert!(network.readiness().await.ready);
    });
}

#[test]
fn gc_names_everyone_alive() {
    // CNI-15 to CNI-17
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.1.0", &["one"]));
        good(&host, "one");
        let network = host.network();
        let pods: Vec<Pod> = ["dead", "live", "young"].into_iter().map(|id| host.pod(id)).collect();
        network.setup(&pods[0].net).await.unwrap();
        network.setup(&pods[1].net).await.unwrap();
        drop(network);
        let network = host.network();
        network.setup(&pods[2].net).await.unwrap();
        calls(&host);
        network.collect(&["live".into()]).await.unwrap();
        assert_eq!(calls(&host), ["one DEL", "one GC"], "DEL for the dead one, then GC");
        let request = input(&host, "one", "GC");
        let ids: Vec<&str> = request["cni.dev/valid-attachments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a["containerID"].as_str().unwrap())
            .collect();
        assert_eq!(ids, ["live", "young"], "the pod of this process lives, whatever the list says");
        assert_eq!(request["cni.dev/attachments"], request["cni.dev/valid-attachments"]);
        let mut config = list("1.1.0", &["one"]);
        config["disableGC"] = json!(true);
        configure(&host, "a.conflist", &config);
        network.collect(&["live".into()]).await.unwrap();
        assert_eq!(calls(&host), Vec::<String>::new());
    });
}

#[test]
fn cni_takes_over_from_the_built_in_network_and_leaves_its_pods_to_it() {
    on_own_host(async |host: Host| {
        let network = host.network();
        let (a, b) = (host.pod("a"), host.pod("b"));
        assert_eq!(network.setup(&a.net).await.unwrap().ips[0], ip("10.88.0.2"));
        configure(&host, "10-real.conflist", &real_network(&host, "real", "10.44.0.0/24"));
        assert_eq!(network.setup(&b.net).await.unwrap().ips[0], ip("10.44.0.2"));
        network.check(&a.net).await.unwrap();
        // The built-in bridge leaves with its last pod; what CNI made is not touched.
        network.teardown(&a.net, Some(&a.net.netns)).await.unwrap();
        assert!(!host.links().contains(&"slipway0".to_owned()), "{:?}", host.links());
        network.check(&b.net).await.unwrap();
        // And the other way round: a CNI pod is taken back by CNI although the built-in one is in force again.
        std::fs::remove_dir_all(host.path("net.d")).unwrap();
        assert_eq!(network.setup(&a.net).await.unwrap().ips[0], ip("10.88.0.3"));
        network.teardown(&b.net, Some(&b.net.netns)).await.unwrap();
        assert_eq!(leases(&host, "real"), Vec::<String>::new());
        network.teardown(&a.net, Some(&a.net.netns)).await.unwrap();
        network.close().await.unwrap();
        sh("ip link del cni9");
        host.assert_clean();
    });
}

#[test]
fn a_setup_nobody_waits_for_ends_in_a_del() {
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one"]));
        plugin(&host, "one", &format!("[ $CNI_COMMAND = ADD ] && {{ sleep 0.3; {RESULT}; }}; exit 0"));
        let network = host.network();
        let pod = host.pod("p");
        assert!(tokio::time::timeout(Duration::from_millis(100), network.setup(&pod.net)).await.is_err());
        // Stands in line behind the abandoned set-up; the record is gone when its turn comes.
        network.teardown(&pod.net, Some(&pod.net.netns)).await.unwrap();
        assert_eq!(calls(&host), ["one ADD", "one DEL"]);
        assert_eq!(host.state_files(), Vec::<String>::new());
    });
}

#[test]
fn requests_that_could_not_be_passed_on_are_refused() {
    on_own_host(async |host: Host| {
        configure(&host, "a.conflist", &list("1.0.0", &["one"]));
        good(&host, "one");
        let network = host.network();
        let mut pod = host.pod("p");
        pod.net.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "lots".into());
        assert!(network.setup(&pod.net).await.unwrap_err().to_string().contains("lots"));
        pod.net.annotations.clear();
        pod.net.name = "x;K8S_POD_UID=0".into();
        assert!(network.setup(&pod.net).await.is_err());
        pod.net.id = "../../etc/x".into();
        assert!(network.setup(&pod.net).await.unwrap_err().to_string().contains("pod id"));
        std::fs::create_dir_all(host.path("etc")).unwrap();
        std::fs::write(host.path("etc/x.json"), "{}").unwrap();
        network.teardown(&pod.net, None).await.unwrap();
        assert!(host.path("etc/x.json").exists(), "an id is never a way out of the directory");
        pod.net.id = "q".into();
        pod.net.name = "q".into();
        let there = std::mem::replace(&mut pod.net.netns, host.path("nowhere"));
        assert!(network.setup(&pod.net).await.unwrap_err().to_string().contains("no network namespace"));
        pod.net.netns = there;
        assert_eq!(calls(&host), Vec::<String>::new(), "no plugin was bothered");
        assert_eq!(host.state_files(), Vec::<String>::new());
    });
}
