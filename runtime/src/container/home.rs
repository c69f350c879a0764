//! `HOME` from the image's own passwd file, for processes that set none.

use crate::rootfs::open_in_root;
use oci_spec::runtime::Process;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

/// A passwd file larger than this is not one.
const LARGEST: u64 = 1 << 20;

/// The home directory of the process's user below `root`, if the process does not set `HOME` itself.
pub(super) fn find(root: &impl AsFd, process: &Process) -> Option<String> {
    let set = process.env().iter().flatten().any(|entry| entry.starts_with("HOME="));
    if set {
        return None;
    }
    let mut text = Vec::new();
    let file = open_in_root(root, Path::new("etc/passwd")).ok()?;
    file.take(LARGEST).read_to_end(&mut text).ok()?;
    home(&String::from_utf8_lossy(&text), process.user().uid())
}

/// The same through a running process's root.
pub(super) fn find_in_process(pid: i32, process: &Process) -> Option<String> {
    let root = File::open(format!("/proc/{pid}/root")).ok()?;
    find(&root, process)
}

/// passwd(5): the sixth field of the first line with this uid.
fn home(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let number: u32 = fields.next()?.parse().ok()?;
        let home = fields.nth(2)?;
        (number == uid && !home.is_empty()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::home;

    #[test]
    fn takes_the_first_line_of_the_uid() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:7::\nweb:x:33:33:web:/srv/www:/bin/false\n";
        assert_eq!(home(text, 0).as_deref(), Some("/root"));
        assert_eq!(home(text, 33).as_deref(), Some("/srv/www"));
        assert_eq!(home(text, 7), None);
        assert_eq!(home(text, 1), None);
    }
}
