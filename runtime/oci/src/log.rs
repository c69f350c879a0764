//! The log file that engines read back for the cause of a failure: one line per message, text or JSON as runc writes them.

use crate::cli::{Global, LogFormat};
use std::fs::File;
use std::io::Write;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Where messages go.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// None: standard error.
    file: Option<File>,
    format: LogFormat,
}

impl Log {
    /// A log file that cannot be opened is told on standard error, where messages then go.
    pub(crate) fn new(global: &Global) -> Self {
        let open = |path: &std::path::PathBuf| {
            let opened = File::options().create(true).append(true).open(path);
            opened.map_err(|e| eprintln!("cannot open the log {}: {e}", path.display())).ok()
        };
        Self { file: global.log.as_ref().and_then(open), format: global.log_format }
    }

    /// An error; on standard error too when the log is a file.
    pub(crate) fn error(&self, message: &str) {
        let Some(mut file) = self.file.as_ref() else {
            eprintln!("{}", self.line("error", message));
            return;
        };
        // The log may be on a full disk: standard error has the message then.
        let _ = file.write_all(format!("{}\n", self.line("error", message)).as_bytes());
        eprintln!("{message}");
    }

    /// What went wrong without keeping the command from its end.
    pub(crate) fn warn(&self, message: &str) {
        let line = self.line("warning", message) + "\n";
        if self.file.as_ref().is_none_or(|mut file| file.write_all(line.as_bytes()).is_err()) {
            eprint!("{line}");
        }
    }

    fn line(&self, level: &str, message: &str) -> String {
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        match self.format {
            LogFormat::Json => serde_json::json!({"level": level, "msg": message, "time": now}).to_string(),
            LogFormat::Text => format!("time={now:?} level={level} msg={message:?}"),
        }
    }
}
