//! What a PodSandboxConfig must satisfy before anything is made; past this nobody checks again.

use crate::config::Sysctl;
use crate::error::{Error, Result};
use cri_proto::v1;

/// # Errors
/// InvalidArgument that names the field (CRI-RUN-01, CRI-NS-01).
pub(crate) fn check(config: &v1::PodSandboxConfig) -> Result<()> {
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    for (field, value) in
        [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)]
    {
        if value.is_empty() {
            return Err(Error::invalid(format!(
                "config.metadata.{field} is empty: it identifies the sandbox"
            )));
        }
        if value.contains(['/', '\0']) {
            return Err(Error::invalid(format!("config.metadata.{field} = {value:?} holds a '/' or NUL")));
        }
    }
    texts(config).try_for_each(|(field, text)| without_nul(field, text))?;
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return Err(Error::invalid(format!(
            "log_directory {:?} is not an absolute path",
            config.log_directory
        )));
    }
    config.port_mappings.iter().try_for_each(check_port)?;
    if config.hostname.len() > 64 {
        return Err(Error::invalid(format!("hostname {:?} is longer than 64 bytes", config.hostname)));
    }
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    if let Some(options) = security.and_then(|s| s.namespace_options.as_ref()) {
        check_namespaces(options)?;
    }
    Ok(())
}

/// Gives the pod the node's own kernel settings, but those that it asks for itself, and those of a namespace that is not its
/// own or whose values its users cannot have.
pub(crate) fn add_sysctls(config: &mut v1::PodSandboxConfig, defaults: &[Sysctl]) {
    if defaults.is_empty() {
        return;
    }
    let linux = config.linux.get_or_insert_default();
    let options = linux.security_context.as_ref().and_then(|s| s.namespace_options.as_ref());
    let host = |mode: Option<v1::NamespaceMode>| mode == Some(v1::NamespaceMode::Node);
    let host_network = host(options.map(v1::NamespaceOption::network));
    let host_ipc = host(options.map(v1::NamespaceOption::ipc));
    let of_users = options.and_then(|o| o.userns_options.as_ref()).map(v1::UserNamespace::mode);
    let own_users = of_users == Some(v1::NamespaceMode::Pod);
    for Sysctl { name, value } in defaults {
        let foreign = if name.starts_with("net.") { host_network } else { host_ipc };
        if foreign || (own_users && name == "net.ipv4.ping_group_range") {
            continue;
        }
        linux.sysctls.entry(name.clone()).or_insert_with(|| value.clone());
    }
}

/// What the kernel gets as a path, a name or a value.
fn texts(config: &v1::PodSandboxConfig) -> impl Iterator<Item = (&'static str, &str)> {
    let linux = config.linux.iter();
    let sysctls = config.linux.iter().flat_map(|linux| &linux.sysctls);
    let dns =
        config.dns_config.iter().flat_map(|dns| dns.servers.iter().chain(&dns.searches).chain(&dns.options));
    [("log_directory", config.log_directory.as_str()), ("hostname", config.hostname.as_str())]
        .into_iter()
        .chain(linux.map(|linux| ("linux.cgroup_parent", linux.cgroup_parent.as_str())))
        .chain(sysctls.flat_map(|(key, value)| [key, value]).map(|text| ("linux.sysctls", text.as_str())))
        .chain(dns.map(|text| ("dns_config", text.as_str())))
}

/// # Errors
/// InvalidArgument: no C string can hold it, so the kernel would see something else.
pub(crate) fn without_nul(field: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::invalid(format!("{field} {text:?} holds a NUL byte")));
    }
    Ok(())
}

fn check_port(mapping: &v1::PortMapping) -> Result<()> {
    if mapping.host_port <= 0 {
        return Ok(());
    }
    for (field, port) in [("container_port", mapping.container_port), ("host_port", mapping.host_port)] {
        if !(1..=65535).contains(&port) {
            return Err(Error::invalid(format!("port_mappings.{field} = {port} is not between 1 and 65535")));
        }
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(Error::invalid(format!("port_mappings.host_ip {:?} is not an address", mapping.host_ip)));
    }
    Ok(())
}

fn check_namespaces(options: &v1::NamespaceOption) -> Result<()> {
    use v1::NamespaceMode::{Container, Node, Pod};
    for (name, mode, allowed) in [
        ("network", options.network(), &[Pod, Node][..]),
        ("ipc", options.ipc(), &[Pod, Node][..]),
        ("pid", options.pid(), &[Pod, Container, Node][..]),
    ] {
        if !allowed.contains(&mode) {
            let mode = mode.as_str_name();
            return Err(Error::invalid(format!(
                "namespace_options.{name} = {mode} is not possible for a sandbox"
            )));
        }
    }
    super::user::mappings(options).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_node_where_the_pod_has_the_namespace_and_says_nothing() {
        let sysctl = |text: &str| Sysctl::try_from(text.to_owned()).expect("a setting");
        let defaults = [sysctl("net.ipv4.ip_unprivileged_port_start=0"), sysctl("kernel.shmmni=7")];
        let of = |network: v1::NamespaceMode, asked: &[(&str, &str)]| {
            let namespaces = v1::NamespaceOption { network: network.into(), ..Default::default() };
            let security =
                v1::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
            let sysctls = asked.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let linux =
                v1::LinuxPodSandboxConfig { sysctls, security_context: Some(security), ..Default::default() };
            let mut config = v1::PodSandboxConfig { linux: Some(linux), ..Default::default() };
            add_sysctls(&mut config, &defaults);
            let mut sysctls: Vec<_> = config.linux.expect("linux").sysctls.into_iter().collect();
            sysctls.sort();
            sysctls.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()
        };
        let both = ["kernel.shmmni=7", "net.ipv4.ip_unprivileged_port_start=0"];
        assert_eq!(of(v1::NamespaceMode::Pod, &[]), both);
        assert_eq!(of(v1::NamespaceMode::Node, &[]), both[..1]);
        assert_eq!(of(v1::NamespaceMode::Node, &[("kernel.shmmni", "1")]), ["kernel.shmmni=1"]);
    }

    fn good() -> v1::PodSandboxConfig {
        let (name, uid, namespace) = ("n".into(), "u".into(), "ns".into());
        let metadata = Some(v1::PodSandboxMetadata { name, uid, namespace, attempt: 0 });
        v1::PodSandboxConfig { metadata, ..Default::default() }
    }

    /// CRI-RUN-01, CRI-RUN-03.
    #[test]
    fn metadata_is_needed_and_the_rest_is_not() {
        assert!(check(&good()).is_ok());
        let mut bad = good();
        bad.metadata.get_or_insert_default().uid.clear();
        assert!(check(&bad).is_err_and(|e| e.to_string().contains("uid")));
        let mut bad = good();
        bad.port_mappings.push(v1::PortMapping {
            host_port: 70000,
            container_port: 80,
            ..Default::default()
        });
        assert!(check(&bad).is_err_and(|e| e.to_string().contains("70000")));
    }

    #[test]
    fn no_text_holds_a_nul() {
        for (field, spoil) in [
            ("log_directory", (|c| c.log_directory = "/a\0b".into()) as fn(&mut v1::PodSandboxConfig)),
            ("hostname", |c| c.hostname = "a\0".into()),
            ("dns_config", |c| c.dns_config.get_or_insert_default().searches.push("\0".into())),
            ("linux.sysctls", |c| {
                c.linux.get_or_insert_default().sysctls.insert("kernel.msgmax".into(), "1\0".into());
            }),
            ("linux.cgroup_parent", |c| c.linux.get_or_insert_default().cgroup_parent = "/a\0".into()),
        ] {
            let mut bad = good();
            spoil(&mut bad);
            let error = check(&bad).expect_err(field);
            assert!(
                error.code() == tonic::Code::InvalidArgument && error.to_string().contains(field),
                "{error}"
            );
        }
    }
}
