//! Runtime handlers: what a RuntimeClass's name means on this node.
//!
//! Slipway itself under its own name, as the default under the empty one (CRI-STA-07), and under the names of those that it
//! takes the place of (`runtime_handlers`); and other OCI runtimes and shims (`[handlers.NAME]`), which the keeper calls.

mod features;

pub(crate) use features::Features;

use crate::config::{File, Handler};
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::pods;
use cri_proto::v1;
use features::Able;
use tonic::Code;

const NAME: &str = "slipway";

/// All names; sorted, stable between calls.
pub(crate) fn names(file: &File) -> Vec<String> {
    let own = [NAME.to_owned(), String::new()];
    let configured = file.runtime_handlers.iter().chain(file.handlers.keys()).cloned();
    let mut names: Vec<String> = configured.chain(own).collect();
    names.sort();
    names.dedup();
    names
}

/// What `name` stands for; none if it is unknown (CRI-RUN-04). The default one has the settings of `[handlers.slipway]`.
pub(crate) fn find(file: &File, name: &str) -> Option<Handler> {
    let settings = file.handlers.get(if name.is_empty() { NAME } else { name }).cloned();
    settings.or_else(|| names(file).iter().any(|known| known == name).then(Handler::default))
}

/// For Status (CRI-STA-07, CRI-STA-08, CRI-STA-09).
pub(crate) async fn list(daemon: &Daemon) -> Vec<v1::RuntimeHandler> {
    let live = daemon.live();
    let here = of_this_host(daemon).await;
    let mut list = Vec::new();
    for name in names(&live) {
        let able = match find(&live, &name) {
            Some(handler) => able(daemon, &handler).await,
            None => Able::default(),
        };
        let features = v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: here.recursive_read_only_mounts && able.recursive_read_only_mounts,
            user_namespaces: here.user_namespaces && able.user_namespaces,
        };
        list.push(v1::RuntimeHandler { name, features: Some(features) });
    }
    list
}

/// What kernel and storage allow, whatever runs the containers.
async fn of_this_host(daemon: &Daemon) -> Able {
    let root = daemon.config.root.clone();
    Able {
        recursive_read_only_mounts: slipway_runtime::sys::mount::has_attributes(),
        user_namespaces: blocking(move || pods::user::possible(&root)).await.is_ok(),
    }
}

/// What its runtime is able to do on a host that allows everything.
async fn able(daemon: &Daemon, handler: &Handler) -> Able {
    match (&handler.runtime_path, &handler.shim) {
        (Some(path), _) => daemon.features.of(path, &handler.runtime_args).await,
        // What is behind it may have other file systems and users than this host.
        (None, Some(_)) => Able::default(),
        (None, None) => Able { recursive_read_only_mounts: true, user_namespaces: true },
    }
}

/// Refuses a pod that its handler's runtime could not run.
///
/// # Errors
/// FailedPrecondition, naming handler and runtime.
pub(crate) async fn check_pod(daemon: &Daemon, name: &str, handler: &Handler, users: bool) -> Result<()> {
    if users && !able(daemon, handler).await.user_namespaces {
        return Err(lacks(name, handler, "user namespaces", "run the pod with hostUsers: true"));
    }
    Ok(())
}

/// The same for a container.
///
/// # Errors
/// As [`check_pod`].
pub(crate) async fn check_container(
    daemon: &Daemon,
    name: &str,
    handler: &Handler,
    config: &v1::ContainerConfig,
) -> Result<()> {
    let recursive = config.mounts.iter().any(|mount| mount.recursive_read_only);
    if recursive && !able(daemon, handler).await.recursive_read_only_mounts {
        let hint = "ask for recursiveReadOnly: IfPossible";
        return Err(lacks(name, handler, "recursive read-only mounts", hint));
    }
    Ok(())
}

fn lacks(name: &str, handler: &Handler, what: &str, hint: &str) -> Error {
    let path = handler.program().unwrap_or(std::path::Path::new(NAME)).display();
    let text = match handler.shim {
        Some(_) => format!("runtime_handler {name:?}: pods run by a shim ({path}) have no {what}; {hint}"),
        None => format!(
            "runtime_handler {name:?}: {path} says (by its command features) that it has no {what}; {hint}"
        ),
    };
    Error::new(Code::FailedPrecondition, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        toml::from_str(text).expect("a file")
    }

    // CRI-STA-07
    #[test]
    fn each_name_once() {
        assert_eq!(names(&file("")), ["", "slipway"]);
        let file = file(
            "runtime_handlers = [\"runc\", \"slipway\", \"crun\"]\n[handlers.gvisor]\nruntime_path = \"/g\"\n[handlers.runc]\n",
        );
        assert_eq!(names(&file), ["", "crun", "gvisor", "runc", "slipway"]);
    }

    // CRI-RUN-04
    #[test]
    fn a_name_means_what_the_configuration_says() {
        let file = file(
            "runtime_handlers = [\"crun\"]\n[handlers.runc]\nruntime_path = \"/r\"\n[handlers.slipway]\nprivileged_without_host_devices = true\n",
        );
        assert_eq!(find(&file, "runc").and_then(|h| h.runtime_path), Some("/r".into()));
        assert_eq!(find(&file, "crun"), Some(Handler::default()));
        assert!(
            find(&file, "").is_some_and(|h| h.privileged_without_host_devices && h.runtime_path.is_none())
        );
        assert_eq!(find(&file, "kata"), None);
    }
}
