//! Runtime handlers: one, under its name and as the default under the empty name (CRI-STA-07).

use cri_proto::v1;

/// Handler names besides the empty one.
pub(crate) const NAMES: [&str; 1] = ["slipway"];

pub(crate) fn known(handler: &str) -> bool {
    handler.is_empty() || NAMES.contains(&handler)
}

/// For Status; sorted, stable between calls. `user_namespaces`: whether this host can (CRI-STA-09).
pub(crate) fn list(user_namespaces: bool) -> Vec<v1::RuntimeHandler> {
    let recursive_read_only_mounts = slipway_runtime::sys::mount::has_attributes();
    let features = v1::RuntimeHandlerFeatures { recursive_read_only_mounts, user_namespaces };
    let names = std::iter::once("").chain(NAMES);
    names.map(|name| v1::RuntimeHandler { name: name.into(), features: Some(features) }).collect()
}
