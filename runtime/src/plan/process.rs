//! What a process of a container is: arguments, credentials, limits. The same for the first one and for exec.

use super::scheduling::Scheduling;
use super::{UserPlan, capabilities, clean, invalid, unsupported};
use crate::Result;
use crate::host::Host;
use crate::idmap::Setgroups;
use crate::sys::step::CapabilityMasks;
use oci_spec::runtime::{Box, PosixRlimitType, Process};
use std::ffi::CString;
use std::path::PathBuf;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// RLIMIT_* number.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// A process, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessPlan {
    pub terminal: bool,
    /// Columns and rows, if asked.
    pub window: Option<(u16, u16)>,
    pub cwd: PathBuf,
    pub args: Vec<CString>,
    pub env: Vec<CString>,
    /// Paths to try for the command, in order.
    pub candidates: Vec<CString>,
    pub uid: u32,
    pub gid: u32,
    /// None: they cannot be changed (an ordinary user's user namespace).
    pub groups: Option<Vec<u32>>,
    /// The host's id of `uid`, in a user namespace: whom the streams are given to.
    pub host_uid: Option<u32>,
    pub umask: u32,
    pub capabilities: CapabilityMasks,
    /// Capabilities that must stay effective until execve drops them.
    pub extra_capabilities: u64,
    pub limits: Vec<Limit>,
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i32>,
    pub filtered: bool,
    /// File below /proc/self/attr and what to write, for the next execve.
    pub label: Option<(String, String)>,
    pub scheduling: Scheduling,
}

pub(super) fn plan(
    process: &Process,
    filtered: bool,
    host: &Host,
    home: Option<&str>,
    user_namespace: Option<&UserPlan>,
    scheduling: Scheduling,
) -> Result<ProcessPlan> {
    user_namespace.map_or(Ok(()), |inside| inside.check_process(process))?;
    // Inside a user namespace of its own a process may have every capability; they mean nothing outside.
    let available = if user_namespace.is_some() { host.known_capabilities } else { host.capabilities };
    let args = strings(process.args().as_deref().unwrap_or_default(), "process.args")?;
    let command = args.first().ok_or_else(|| invalid("process.args", "no command"))?;
    if command.is_empty() {
        return Err(invalid("process.args", "the command is an empty string"));
    }
    let env = environment(process, home)?;
    let user = process.user();
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let needs_admin = filtered && !no_new_privileges;
    Ok(ProcessPlan {
        terminal: process.terminal().unwrap_or(false),
        window: process.console_size().map(window).transpose()?,
        cwd: clean(process.cwd(), "process.cwd")?,
        candidates: candidates(command, &env)?,
        args,
        env,
        uid: user.uid(),
        gid: user.gid(),
        groups: groups(user.additional_gids().as_deref(), user_namespace, host)?,
        host_uid: user_namespace.and_then(|inside| inside.host_uid(user.uid())),
        umask: user.umask().unwrap_or(0o022) & 0o777,
        capabilities: capabilities::masks(process.capabilities().as_ref(), available),
        extra_capabilities: if needs_admin { capabilities::SYS_ADMIN & available } else { 0 },
        limits: limits(process)?,
        no_new_privileges,
        oom_score_adj: score(process)?,
        filtered,
        label: label(process, host)?,
        scheduling: scheduling.with_process(
            process.scheduler().as_ref(),
            process.io_priority().as_ref(),
            process.exec_cpu_affinity().as_ref(),
        )?,
    })
}

/// struct winsize (ioctl_tty(2)) has 16 bits for each.
fn window(size: Box) -> Result<(u16, u16)> {
    let (width, height) = (size.width(), size.height());
    let fits = u16::try_from(width).and_then(|columns| Ok((columns, u16::try_from(height)?)));
    fits.map_err(|_| {
        invalid("process.consoleSize", format!("{width} x {height} is more than a terminal has"))
    })
}

/// None: they stay as they are, because they may not be changed.
fn groups(asked: Option<&[u32]>, user: Option<&UserPlan>, host: &Host) -> Result<Option<Vec<u32>>> {
    let asked = asked.unwrap_or_default();
    if user.map_or(!host.setgroups_denied, |inside| inside.setgroups == Setgroups::Allow) {
        return Ok(Some(asked.to_owned()));
    }
    if asked.is_empty() {
        return Ok(None);
    }
    Err(invalid("process.user.additionalGids", "an ordinary user cannot change supplementary groups")
        .hint("leave them out: those of the calling user stay"))
}

pub(super) fn strings(list: &[String], field: &str) -> Result<Vec<CString>> {
    let convert = |text: &String| CString::new(text.as_str());
    list.iter().map(convert).collect::<Result<_, _>>().map_err(|_| invalid(field, "contains a NUL byte"))
}

fn environment(process: &Process, home: Option<&str>) -> Result<Vec<CString>> {
    let mut env = strings(process.env().as_deref().unwrap_or_default(), "process.env")?;
    if !env.iter().any(|entry| entry.to_bytes().starts_with(b"HOME=")) {
        let home = CString::new(format!("HOME={}", home.unwrap_or("/")));
        env.push(home.map_err(|_| invalid("process.env", "HOME contains a NUL byte"))?);
    }
    Ok(env)
}

/// A command with a slash is itself; one without is looked for in the container's PATH, as execvp(3) does.
fn candidates(command: &CString, env: &[CString]) -> Result<Vec<CString>> {
    if command.to_bytes().contains(&b'/') {
        return Ok(vec![command.clone()]);
    }
    let path = env.iter().rev().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(DEFAULT_PATH.as_bytes());
    let join = |directory: &[u8]| {
        let directory: &[u8] = if directory.is_empty() { b"." } else { directory };
        CString::new([directory, b"/", command.to_bytes()].concat())
    };
    let joined = path.split(|&byte| byte == b':').map(join).collect::<Result<_, _>>();
    joined.map_err(|_| invalid("process.env", "PATH contains a NUL byte"))
}

fn limits(process: &Process) -> Result<Vec<Limit>> {
    let mut limits: Vec<Limit> = Vec::new();
    for asked in process.rlimits().iter().flatten() {
        let resource = resource_number(asked.typ());
        if limits.iter().any(|known| known.resource == resource) {
            return Err(invalid("process.rlimits", format!("{} is listed twice", asked.typ())));
        }
        if asked.soft() > asked.hard() {
            return Err(invalid("process.rlimits", format!("{}: soft is above hard", asked.typ())));
        }
        limits.push(Limit { resource, soft: asked.soft(), hard: asked.hard() });
    }
    Ok(limits)
}

#[allow(clippy::unnecessary_cast, reason = "musl's constants are signed")]
fn resource_number(kind: PosixRlimitType) -> u32 {
    use PosixRlimitType as R;
    let number = match kind {
        R::RlimitCpu => libc::RLIMIT_CPU,
        R::RlimitFsize => libc::RLIMIT_FSIZE,
        R::RlimitData => libc::RLIMIT_DATA,
        R::RlimitStack => libc::RLIMIT_STACK,
        R::RlimitCore => libc::RLIMIT_CORE,
        R::RlimitRss => libc::RLIMIT_RSS,
        R::RlimitNproc => libc::RLIMIT_NPROC,
        R::RlimitNofile => libc::RLIMIT_NOFILE,
        R::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        R::RlimitAs => libc::RLIMIT_AS,
        R::RlimitLocks => libc::RLIMIT_LOCKS,
        R::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        R::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        R::RlimitNice => libc::RLIMIT_NICE,
        R::RlimitRtprio => libc::RLIMIT_RTPRIO,
        R::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    number as u32
}

fn score(process: &Process) -> Result<Option<i32>> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(invalid("process.oomScoreAdj", format!("{score} is not within -1000 and 1000")))
        }
        score => Ok(score),
    }
}

fn label(process: &Process, host: &Host) -> Result<Option<(String, String)>> {
    for (name, label) in [
        ("process.apparmorProfile", process.apparmor_profile()),
        ("process.selinuxLabel", process.selinux_label()),
    ] {
        if label.as_ref().is_some_and(|label| label.contains('\0')) {
            return Err(invalid(name, "contains a NUL byte"));
        }
    }
    if let Some(profile) = process.apparmor_profile().as_ref().filter(|p| !p.is_empty() && *p != "unconfined")
    {
        return if host.apparmor {
            Ok(Some(("apparmor/exec".into(), format!("exec {profile}"))))
        } else {
            Err(unsupported("process.apparmorProfile", &format!("{profile}: this host has no AppArmor")))
        };
    }
    if let Some(label) = process.selinux_label().as_ref().filter(|label| !label.is_empty()) {
        return if host.selinux {
            Ok(Some(("exec".into(), label.clone())))
        } else {
            Err(unsupported("process.selinuxLabel", &format!("{label}: this host has no SELinux")))
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(text: &str) -> CString {
        CString::new(text).unwrap()
    }

    #[test]
    fn looks_commands_up_in_the_container_s_path() {
        let env = [c("PATH=/a::/b")];
        assert_eq!(candidates(&c("sh"), &env).unwrap(), [c("/a/sh"), c("./sh"), c("/b/sh")]);
        assert_eq!(candidates(&c("./sh"), &env).unwrap(), [c("./sh")]);
        assert_eq!(candidates(&c("sh"), &[]).unwrap().last(), Some(&c("/bin/sh")));
    }
}
