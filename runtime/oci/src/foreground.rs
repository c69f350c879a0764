//! Staying until a process of ours ends: signals go on to it, its terminal to ours, its exit code becomes ours.

use crate::console::{self, Proxy};
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use slipway_runtime::sys::{process, signal};
use std::os::fd::{AsFd, OwnedFd};

/// Signals caught from before the process is made on, so that none is lost.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

/// What a terminal's own driver or the kernel sends to us, not to the container.
const OURS: [Signal; 8] = [
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGURG,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
];

impl Signals {
    pub(crate) fn catch() -> Result<Self> {
        let mut set = SigSet::all();
        OURS.iter().for_each(|signal| set.remove(*signal));
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        SignalFd::with_flags(&set, flags).map(Self).context("signalfd")
    }

    /// Acts on all signals that wait: a new window size is copied, anything else goes to the process.
    fn forward(&self, pidfd: &OwnedFd, master: Option<&OwnedFd>) -> Result<()> {
        while let Some(info) = self.0.read_signal().context("read a signal")? {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            match master {
                Some(master) if number == libc::SIGWINCH => console::copy_size(master),
                // A process that ended meanwhile is seen by its descriptor.
                _ => drop(signal::send(pidfd.as_fd(), number)),
            }
        }
        Ok(())
    }
}

/// Waits for our child; its exit code, or 128 and the signal that ended it.
pub(crate) fn wait(signals: &Signals, pidfd: &OwnedFd, master: Option<&OwnedFd>) -> Result<u8> {
    let mut proxy = master.map(Proxy::new);
    loop {
        let mut watched = vec![PollFd::new(pidfd, PollFlags::IN), PollFd::new(&signals.0, PollFlags::IN)];
        watched.extend(proxy.iter().flat_map(Proxy::watched));
        match poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            ready => ready.context("poll")?,
        };
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(watched);
        if ready[1] {
            signals.forward(pidfd, master)?;
        }
        if let Some(proxy) = &mut proxy {
            proxy.pump(&ready[2..]).context("copy the terminal")?;
        }
        if ready[0] {
            break;
        }
    }
    if let Some(proxy) = &mut proxy {
        proxy.drain().context("copy the terminal")?;
    }
    let status = process::reap(pidfd).context("wait for the process")?;
    Ok(if status < 0 { 128u8.wrapping_add((-status) as u8) } else { status as u8 })
}
