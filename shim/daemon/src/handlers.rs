//! Runtime handlers: one, under its name, as the default under the empty name (CRI-STA-07), and under the names of those that
//! it takes the place of on this node (`runtime_handlers`).

use cri_proto::v1;

const NAME: &str = "slipway";

/// All names; sorted, stable between calls.
pub(crate) fn names(configured: &[String]) -> Vec<String> {
    let mut names: Vec<String> = configured.iter().cloned().chain([NAME.to_owned(), String::new()]).collect();
    names.sort();
    names.dedup();
    names
}

/// For Status. `user_namespaces`: whether this host can (CRI-STA-09).
pub(crate) fn list(configured: &[String], user_namespaces: bool) -> Vec<v1::RuntimeHandler> {
    let recursive_read_only_mounts = slipway_runtime::sys::mount::has_attributes();
    let features = v1::RuntimeHandlerFeatures { recursive_read_only_mounts, user_namespaces };
    let names = names(configured).into_iter();
    names.map(|name| v1::RuntimeHandler { name, features: Some(features) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // CRI-STA-07
    #[test]
    fn each_name_once() {
        assert_eq!(names(&[]), ["", "slipway"]);
        assert_eq!(names(&["runc".into(), "slipway".into(), "crun".into()]), ["", "crun", "runc", "slipway"]);
    }
}
