//! A conversation with a `criu swrk` of our own: the request, the notifications on the way, the answer.

use crate::rpc::{Kind, Notification, Request, Response};
use crate::streams::Streams;
use anyhow::{Context, Result, bail};
use prost::Message;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
    recvmsg, send, socketpair,
};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// More than any message has.
const LARGEST: usize = 64 << 10;

/// A criu that waits for its request. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Talk {
    criu: Child,
    socket: OwnedFd,
}

/// What criu tells on its way; an error makes it give up.
pub(crate) type Listen<'a> = &'a mut dyn FnMut(&Notification, Option<OwnedFd>) -> Result<()>;

impl Talk {
    /// Starts criu with these descriptors of ours and these standard streams, which a restored process may be given.
    pub(crate) fn start(program: &Path, keep: &[OwnedFd], streams: Streams) -> Result<Self> {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.context("make a socket for criu")?;
        for fd in keep.iter().chain([&theirs]) {
            fcntl_setfd(fd, FdFlags::empty()).context("hand a descriptor to criu")?;
        }
        let mut command = Command::new(program);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        let given = match streams {
            Streams::Ours => None,
            Streams::None => Some([None, None, None]),
            Streams::Given(given) => Some(given),
        };
        if let Some(given) = given {
            let [stdin, stdout, stderr] = given.map(|fd| fd.map_or_else(Stdio::null, Stdio::from));
            command.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        let criu = command.spawn().map_err(|error| missing(program, error))?;
        Ok(Self { criu, socket: ours })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.criu.id()
    }

    /// One request to its answer.
    pub(crate) fn ask(&mut self, request: &Request, listen: Listen<'_>) -> Result<Response> {
        self.say(request)?;
        loop {
            let (answer, descriptor) = self.hear()?;
            if answer.kind() == Kind::Notify && answer.success {
                let heard = answer.notify.map_or(Ok(()), |notification| listen(&notification, descriptor));
                let success = Some(heard.is_ok());
                self.say(&Request {
                    kind: Kind::Notify.into(),
                    notify_success: success,
                    ..Request::default()
                })?;
                heard?;
            } else if answer.success {
                return Ok(answer);
            } else {
                bail!(refused(&answer));
            }
        }
    }

    /// To one that has ended nothing is said: listening tells how it ended.
    fn say(&self, request: &Request) -> Result<()> {
        match send(&self.socket, &request.encode_to_vec(), SendFlags::NOSIGNAL) {
            Err(Errno::PIPE) => Ok(()),
            sent => sent.map(drop).context("talk to criu"),
        }
    }

    fn hear(&mut self) -> Result<(Response, Option<OwnedFd>)> {
        let mut bytes = vec![0u8; LARGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut vectors = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, &mut vectors, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => break 0,
                other => break other.context("listen to criu")?.bytes,
            }
        };
        if received == 0 {
            let status = self.criu.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            bail!("criu ended without an answer ({status})");
        }
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok((Response::decode(&bytes[..received]).context("criu's answer cannot be read")?, descriptor))
    }
}

impl Drop for Talk {
    /// Without its socket criu ends by itself, but maybe in the middle of a wait.
    fn drop(&mut self) {
        if !matches!(self.criu.try_wait(), Ok(Some(_))) {
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
            let _ = self.criu.wait();
        }
    }
}

/// There is no such program.
#[derive(Debug)]
pub struct NotInstalled(String);

impl fmt::Display for NotInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotInstalled {}

fn missing(program: &Path, error: io::Error) -> anyhow::Error {
    let shown = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        return anyhow::Error::new(NotInstalled(format!(
            "{shown} is not installed: checkpoint and restore need CRIU (Debian and others: package criu), in PATH or \
             named by --criu or the option CriuPath"
        )));
    }
    anyhow::Error::new(error).context(format!("run {shown}"))
}

fn refused(answer: &Response) -> String {
    let kind = match answer.kind() {
        Kind::Restore => "restore",
        Kind::PreDump => "pre-dump",
        Kind::FeatureCheck => "feature check",
        Kind::Notify | Kind::Empty => "criu",
        Kind::Dump => "dump",
    };
    let errno =
        answer.errno.filter(|errno| *errno != 0).map(|errno| io::Error::from_raw_os_error(errno).to_string());
    let message = answer.message.as_deref().map(|text| text.trim().to_owned());
    let reasons = [message.filter(|text| !text.is_empty()), errno];
    let reasons: Vec<String> = reasons.into_iter().flatten().collect();
    if reasons.is_empty() {
        format!("criu: {kind} failed")
    } else {
        format!("criu: {kind} failed: {}", reasons.join(": "))
    }
}
