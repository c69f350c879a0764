//! User namespaces of pods: what the request may say (CRI-UNS-*), and whether this host can.

use super::PodRecord;
use crate::error::{Error, Result};
use cri_proto::v1::{self, NamespaceMode};
use slipway_runtime::idmap::{IdMap, IdMappings};
use std::path::Path;
use std::sync::OnceLock;
use tonic::Code;

/// The maps of `options`; none for the host's user namespace (CRI-UNS-01).
///
/// # Errors
/// InvalidArgument naming the field (CRI-UNS-02, CRI-UNS-03, CRI-UNS-04).
pub(crate) fn mappings(options: &v1::NamespaceOption) -> Result<Option<IdMappings>> {
    let Some(user) = &options.userns_options else { return Ok(None) };
    let invalid = |why: String| Err(Error::invalid(format!("namespace_options.userns_options: {why}")));
    match user.mode() {
        NamespaceMode::Node if user.uids.is_empty() && user.gids.is_empty() => return Ok(None),
        NamespaceMode::Node => return invalid("mappings without mode POD mean nothing".into()),
        NamespaceMode::Pod => {}
        mode => return invalid(format!("mode {} is not possible: POD or NODE", mode.as_str_name())),
    }
    for (field, list) in [("uids", &user.uids), ("gids", &user.gids)] {
        match list.as_slice() {
            [one] if one.container_id != 0 => {
                return invalid(format!(
                    "{field}: container_id {} must be 0: root is mapped",
                    one.container_id
                ));
            }
            [_] => {}
            list => return invalid(format!("{field}: exactly one mapping is possible, not {}", list.len())),
        }
    }
    if user.uids != user.gids {
        return invalid("uids and gids must be the same".into());
    }
    let maps = from_cri(&user.uids, &user.gids);
    maps.check("namespace_options.userns_options", "uids", "gids")?;
    Ok(Some(maps))
}

/// Maps as the runtime has them, not yet checked.
pub(crate) fn from_cri(uids: &[v1::IdMapping], gids: &[v1::IdMapping]) -> IdMappings {
    let line = |m: &v1::IdMapping| IdMap { container: m.container_id, host: m.host_id, size: m.length };
    IdMappings { uids: uids.iter().map(line).collect(), gids: gids.iter().map(line).collect() }
}

impl PodRecord {
    /// The maps of the pod's user namespace; checked when the request came in.
    pub(crate) fn user(&self) -> Option<IdMappings> {
        mappings(&self.namespaces()).ok().flatten()
    }
}

/// Whether pods of a daemon whose images lie in `root` can have user namespaces: tried once. Blocks.
///
/// # Errors
/// FailedPrecondition with the reason.
pub(crate) fn possible(root: &Path) -> Result<()> {
    static ANSWER: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let answer =
        ANSWER.get_or_init(|| slipway_runtime::rootfs::try_idmapped(root).map_err(|e| e.to_string()));
    answer.clone().map_err(|why| {
        let what =
            format!("this host cannot give pods user namespaces: {why}; run the pod with hostUsers: true");
        Error::new(Code::FailedPrecondition, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(
        mode: NamespaceMode,
        uids: &[(u32, u32, u32)],
        gids: &[(u32, u32, u32)],
    ) -> v1::NamespaceOption {
        let list = |maps: &[(u32, u32, u32)]| {
            let line = |&(container_id, host_id, length)| v1::IdMapping { host_id, container_id, length };
            maps.iter().map(line).collect()
        };
        let user = v1::UserNamespace { mode: mode.into(), uids: list(uids), gids: list(gids) };
        v1::NamespaceOption { userns_options: Some(user), ..Default::default() }
    }

    /// CRI-UNS-01 to CRI-UNS-04.
    #[test]
    fn only_one_full_mapping_is_possible() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let good = [(0, 65536, 65536)];
        let maps = mappings(&options(Pod, &good, &good)).expect("good").expect("a mapping");
        assert_eq!(maps.to_string(), "0:65536:65536");
        assert_eq!(mappings(&v1::NamespaceOption::default()), Ok(None));
        assert_eq!(mappings(&options(Node, &[], &[])), Ok(None));
        for (bad, word) in [
            (options(Container, &good, &good), "CONTAINER"),
            (options(Target, &good, &good), "TARGET"),
            (options(Node, &good, &good), "without mode POD"),
            (options(Pod, &[], &[]), "exactly one"),
            (options(Pod, &[(0, 1, 1), (1, 2, 1)], &good), "exactly one"),
            (options(Pod, &good, &[(0, 9, 65536)]), "the same"),
            (options(Pod, &[(1, 65536, 9)], &[(1, 65536, 9)]), "container_id 1"),
            (options(Pod, &[(0, 65536, 0)], &[(0, 65536, 0)]), "size 0"),
            (options(Pod, &[(0, u32::MAX, 9)], &[(0, u32::MAX, 9)]), "largest"),
        ] {
            let error = mappings(&bad).expect_err(word);
            assert!(error.code() == Code::InvalidArgument && error.to_string().contains(word), "{error}");
        }
    }
}
