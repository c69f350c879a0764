//! The part of CRIU's rpc.proto that we speak: one request, and its answers.

use prost::{Enumeration, Message};

/// `criu_req`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) options: Option<Options>,
    /// The answer to a notification.
    #[prost(bool, optional, tag = "3")]
    pub(crate) notify_success: Option<bool>,
    /// What a feature check asks for.
    #[prost(message, optional, tag = "5")]
    pub(crate) features: Option<Features>,
}

/// `criu_features`: what is asked for, and then what is there.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Features {
    #[prost(bool, optional, tag = "1")]
    pub(crate) mem_track: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub(crate) lazy_pages: Option<bool>,
}

impl Request {
    pub(crate) fn new(kind: Kind, options: Options) -> Self {
        Self { kind: kind.into(), options: Some(options), ..Self::default() }
    }
}

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    Notify = 6,
    FeatureCheck = 9,
}

/// `criu_opts`; a descriptor is one of ours, but in `inherit_fd`, where it is criu's own.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Options {
    #[prost(int32, required, tag = "1")]
    pub(crate) images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) leave_running: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(crate) ext_unix_sk: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(crate) tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    pub(crate) evasive_devices: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub(crate) shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub(crate) file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub(crate) log_level: Option<i32>,
    /// A name in the work directory.
    #[prost(string, optional, tag = "10")]
    pub(crate) log_file: Option<String>,
    #[prost(message, optional, tag = "11")]
    pub(crate) page_server: Option<PageServer>,
    #[prost(bool, optional, tag = "12")]
    pub(crate) notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub(crate) root: Option<String>,
    /// From the image directory on.
    #[prost(string, optional, tag = "14")]
    pub(crate) parent_img: Option<String>,
    #[prost(bool, optional, tag = "15")]
    pub(crate) track_mem: Option<bool>,
    #[prost(bool, optional, tag = "16")]
    pub(crate) auto_dedup: Option<bool>,
    #[prost(int32, optional, tag = "17")]
    pub(crate) work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    pub(crate) link_remap: Option<bool>,
    #[prost(message, repeated, tag = "23")]
    pub(crate) ext_mnt: Vec<ExternalMount>,
    #[prost(bool, optional, tag = "24")]
    pub(crate) manage_cgroups: Option<bool>,
    #[prost(message, repeated, tag = "25")]
    pub(crate) cg_root: Vec<CgroupRoot>,
    #[prost(bool, optional, tag = "26")]
    pub(crate) rst_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    pub(crate) inherit_fd: Vec<InheritedFd>,
    #[prost(enumeration = "CgroupMode", optional, tag = "34")]
    pub(crate) manage_cgroups_mode: Option<i32>,
    /// `--external`: `net[inode]:key`.
    #[prost(string, repeated, tag = "37")]
    pub(crate) external: Vec<String>,
    /// CLONE_NEW* of namespaces that are made empty.
    #[prost(uint32, optional, tag = "38")]
    pub(crate) empty_ns: Option<u32>,
    #[prost(message, repeated, tag = "39")]
    pub(crate) join_ns: Vec<JoinedNamespace>,
    /// A directory of the freezer.
    #[prost(string, optional, tag = "44")]
    pub(crate) freeze_cgroup: Option<String>,
    #[prost(bool, optional, tag = "46")]
    pub(crate) tcp_skip_in_flight: Option<bool>,
    #[prost(bool, optional, tag = "48")]
    pub(crate) lazy_pages: Option<bool>,
    #[prost(bool, optional, tag = "50")]
    pub(crate) orphan_pts_master: Option<bool>,
    #[prost(string, optional, tag = "51")]
    pub(crate) config_file: Option<String>,
    #[prost(string, optional, tag = "53")]
    pub(crate) lsm_profile: Option<String>,
    #[prost(string, optional, tag = "63")]
    pub(crate) lsm_mount_context: Option<String>,
}

/// `criu_page_server_info`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PageServer {
    #[prost(string, optional, tag = "1")]
    pub(crate) address: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(crate) port: Option<i32>,
}

/// `ext_mount_map`: at a dump mount point and name, at a restore name and source.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ExternalMount {
    #[prost(string, required, tag = "1")]
    pub(crate) key: String,
    #[prost(string, required, tag = "2")]
    pub(crate) val: String,
}

/// `cgroup_root`: below which group of a hierarchy the dumped groups are made again.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CgroupRoot {
    #[prost(string, optional, tag = "1")]
    pub(crate) ctrl: Option<String>,
    #[prost(string, required, tag = "2")]
    pub(crate) path: String,
}

/// `inherit_fd`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InheritedFd {
    #[prost(string, required, tag = "1")]
    pub(crate) key: String,
    #[prost(int32, required, tag = "2")]
    pub(crate) fd: i32,
}

/// `join_namespace`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JoinedNamespace {
    #[prost(string, required, tag = "1")]
    pub(crate) ns: String,
    #[prost(string, required, tag = "2")]
    pub(crate) ns_file: String,
}

/// `criu_cg_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration, clap::ValueEnum)]
#[repr(i32)]
pub(crate) enum CgroupMode {
    Ignore = 0,
    Soft = 3,
    Full = 4,
    Strict = 5,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(bool, required, tag = "2")]
    pub(crate) success: bool,
    #[prost(message, optional, tag = "4")]
    pub(crate) restore: Option<Restored>,
    #[prost(message, optional, tag = "5")]
    pub(crate) notify: Option<Notification>,
    #[prost(int32, optional, tag = "7")]
    pub(crate) errno: Option<i32>,
    #[prost(message, optional, tag = "8")]
    pub(crate) features: Option<Features>,
    #[prost(string, optional, tag = "9")]
    pub(crate) message: Option<String>,
}

/// `criu_restore_resp`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Restored {
    #[prost(int32, required, tag = "1")]
    pub(crate) pid: i32,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Notification {
    #[prost(string, optional, tag = "1")]
    pub(crate) script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes by hand, from the wire format: field << 3 | type, then the value.
    #[test]
    fn a_request_is_what_criu_reads() {
        let options =
            Options { images_dir_fd: 5, pid: Some(300), root: Some("/r".into()), ..Options::default() };
        let request = Request::new(Kind::Dump, options);
        let bytes = [0x08, 1, 0x12, 9, 0x08, 5, 0x10, 0xac, 2, 0x6a, 2, b'/', b'r'];
        assert_eq!(request.encode_to_vec(), bytes);
        let answer = Response::decode(&[0x08, 2, 0x10, 1, 0x22, 2, 0x08, 42][..]).unwrap();
        assert_eq!((answer.kind(), answer.success), (Kind::Restore, true));
        assert_eq!(answer.restore.unwrap().pid, 42);
    }
}
