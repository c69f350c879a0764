//! A session at this terminal: raw mode, window size, keys in, bytes out, the exit code at the end.
//!
//! ```text
//!  keyboard ──thread──▶ stdin ─┐                    ┌─▶ stdout ──▶ our stdout
//!  SIGWINCH ─────────▶ size ───┴─▶ streaming server ┴─▶ stderr ──▶ our stderr     status: the exit code
//! ```

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use slipway_streaming::client::Command;
use slipway_streaming::{Gone, Identity, Input, Output, Size};
use tokio::io::AsyncWriteExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What ends an attachment from a terminal: Ctrl-P, Ctrl-Q, as elsewhere.
const DETACH: [u8; 2] = [0x10, 0x11];

/// What a session has on this side.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Console {
    pub(crate) stdin: bool,
    pub(crate) terminal: bool,
    /// The keys of [`DETACH`] leave the session.
    pub(crate) detaches: bool,
}

/// Our terminal in raw mode; as it was before when dropped.
struct Raw(Termios);

impl Raw {
    /// `None`: standard input is no terminal.
    fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("put the terminal into raw mode")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// What the keyboard says.
enum Key {
    Bytes(Vec<u8>),
    Detach,
}

/// Runs the session behind `url` to its end; the exit code is the command's own.
pub(crate) async fn run(url: &str, identity: Option<&Identity>, console: Console) -> Result<ExitCode> {
    let mut session = Command::open(url, identity).await?;
    let raw = if console.terminal { Raw::enter()? } else { None };
    let (stdin, stdout, stderr) = (session.stdin.take(), session.stdout.take(), session.stderr.take());
    let (left, mut leave) = mpsc::channel(1);
    if let Some(stdin) = stdin.filter(|_| console.stdin) {
        let detaches = console.detaches && raw.is_some();
        tokio::spawn(type_in(stdin, detaches, left.clone()));
    }
    let ended = {
        let work = async {
            let out = copy(stdout, tokio::io::stdout());
            let err = copy(stderr, tokio::io::stderr());
            let follow = async {
                if console.terminal {
                    follow_size(&session).await;
                }
                std::future::pending::<()>().await
            };
            let all = async { tokio::join!(out, err) };
            tokio::select! { all = all => all.0.and(all.1), () = follow => Ok(()) }
        };
        // `left` lives on here: without a typist nothing comes.
        tokio::select! { done = work => Some(done), _ = leave.recv() => None }
    };
    let Some(copied) = ended else {
        drop(raw);
        session.leave().await;
        super::output::eprintln_quietly("detached; the container runs on");
        return Ok(ExitCode::SUCCESS);
    };
    copied.context("write what the session printed")?;
    let status = session.status().await;
    drop(raw);
    status.map(ExitCode::from).map_err(|error| anyhow!("{error}"))
}

/// Prints a stream to its end.
async fn copy(input: Option<Input>, mut to: impl tokio::io::AsyncWrite + Unpin) -> std::io::Result<()> {
    let Some(mut input) = input else { return Ok(()) };
    while let Ok(Some(bytes)) = input.next().await {
        to.write_all(&bytes).await?;
        to.flush().await?;
    }
    Ok(())
}

/// Our terminal's size, now and whenever it changes.
async fn follow_size(session: &Command) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        // Whichever of the three is a terminal.
        let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin()));
        if let Ok(size) = size {
            session.resize(Size { width: size.ws_col, height: size.ws_row }).await;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// Passes our standard input on, to its end.
async fn type_in(to: Output, detaches: bool, left: mpsc::Sender<()>) {
    let (sender, mut keys) = mpsc::channel(4);
    // A thread of its own: a read of a terminal cannot be taken back, and must not hold up our end.
    std::thread::spawn(move || read_keys(detaches, &sender));
    while let Some(key) = keys.recv().await {
        match key {
            Key::Bytes(bytes) => {
                if let Err(Gone) = to.send(bytes.into()).await {
                    return;
                }
            }
            Key::Detach => {
                let _ = left.send(()).await;
                return std::future::pending().await;
            }
        }
    }
    to.finish().await;
}

fn read_keys(detaches: bool, keys: &mpsc::Sender<Key>) {
    let mut buffer = [0; 32 << 10];
    let mut held = false;
    loop {
        let count = match std::io::stdin().lock().read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let (bytes, detach) = if detaches {
            without_detach(&buffer[..count], &mut held)
        } else {
            (buffer[..count].to_vec(), false)
        };
        if !bytes.is_empty() && keys.blocking_send(Key::Bytes(bytes)).is_err() {
            return;
        }
        if detach {
            let _ = keys.blocking_send(Key::Detach);
            return;
        }
    }
}

/// Holds the first of the detach keys back until the next one shows what it was. True: both came.
fn without_detach(typed: &[u8], held: &mut bool) -> (Vec<u8>, bool) {
    let mut bytes = Vec::with_capacity(typed.len() + 1);
    for &byte in typed {
        if std::mem::take(held) {
            if byte == DETACH[1] {
                return (bytes, true);
            }
            bytes.push(DETACH[0]);
        }
        if byte == DETACH[0] {
            *held = true;
        } else {
            bytes.push(byte);
        }
    }
    (bytes, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_and_others_pass() {
        let mut held = false;
        assert_eq!(without_detach(b"ab\x10c", &mut held), (b"ab\x10c".to_vec(), false));
        assert_eq!(without_detach(b"x\x10", &mut held), (b"x".to_vec(), false));
        assert_eq!(without_detach(b"\x10", &mut held), (b"\x10".to_vec(), false), "pressed twice");
        assert_eq!(without_detach(b"\x11rest", &mut held), (Vec::new(), true));
        let mut held = false;
        assert_eq!(without_detach(b"\x11", &mut held), (b"\x11".to_vec(), false));
    }
}
