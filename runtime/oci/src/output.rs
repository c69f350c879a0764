//! Standard output of commands that answer.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write, stdout};

/// Writes it whole; whoever reads no further has had enough, and that is no error.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}

pub(crate) fn say_line(text: &str) -> Result<()> {
    say(&format!("{text}\n"))
}
