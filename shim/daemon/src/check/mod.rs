//! `slipway check`: is this host fit for the daemon, and if not, what to do about it.
//!
//! One file per theme, each a list of [`Finding`]s. A check tries the thing itself wherever that leaves nothing behind
//! (an overlay is mounted in a mount namespace of its own); it reads what the kernel says where trying would. Needs no
//! running daemon and the same rights as one.

mod cgroups;
mod clock;
mod kernel;
mod limits;
mod network;
mod security;
mod selinux;
mod storage;

use crate::cli::{self, Output};
use crate::config::{Config, ServeArgs};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// Pods run; something that some of them ask for does not.
    Warning,
    /// Pods will not run.
    Failure,
}

/// What was looked at, what was found, and the remedy where one is needed.
#[derive(Debug, Serialize)]
struct Finding {
    subject: String,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

impl Finding {
    fn ok(subject: &str, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }

    fn warning(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            verdict: Verdict::Warning,
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    fn failure(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failure, ..Self::warning(subject, found, remedy) }
    }
}

/// Prints all findings; fails if one of them is a [`Verdict::Failure`].
pub(crate) fn run(args: &ServeArgs, address: &Path, output: Output) -> Result<ExitCode> {
    let findings = findings(args, address)?;
    match output {
        Output::Json => cli::output::json(&findings)?,
        Output::Table => cli::output::print(&text(&findings))?,
    }
    let failed = findings.iter().any(|f| f.verdict == Verdict::Failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn findings(args: &ServeArgs, address: &Path) -> Result<Vec<Finding>> {
    let mut found = kernel::check();
    found.extend(cgroups::check());
    found.extend(security::check());
    found.extend(limits::check());
    found.extend(clock::check());
    match Config::load(args, address) {
        Ok(config) => {
            found.push(Finding::ok("configuration", "understood"));
            found.push(selinux::check(&config.file.selinux));
            let remedy = "images below it are refused until then";
            found.extend(
                config.faults.iter().map(|fault| Finding::failure("image policy", fault.clone(), remedy)),
            );
            found.extend(storage::check(&config));
            found.extend(network::check(&config)?);
        }
        Err(error) => {
            let remedy = "mend it; storage and network are checked once it can be read";
            found.push(Finding::failure("configuration", format!("{error:#}"), remedy));
        }
    }
    Ok(found)
}

/// A line per finding, its remedy on a line of its own, and a sum.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Failure => "FAILED ",
        };
        text += &format!("{mark}  {:<28}  {}\n", finding.subject, finding.found);
        if !finding.remedy.is_empty() {
            text += &format!("{:39}-> {}\n", "", finding.remedy);
        }
    }
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let (warnings, failures) = (count(Verdict::Warning), count(Verdict::Failure));
    let sum = match failures {
        0 => "this host is fit",
        _ => "this host is not fit yet",
    };
    text + &format!("{sum}: {} checks, {warnings} warnings, {failures} failures\n", findings.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_the_remedy_and_sums_up() {
        let findings = [Finding::ok("a", "fine"), Finding::failure("b", "broken", "mend it")];
        let text = text(&findings);
        assert!(text.contains("FAILED   b                             broken\n"), "{text}");
        assert!(text.contains("-> mend it\n"), "{text}");
        assert!(text.ends_with("this host is not fit yet: 2 checks, 0 warnings, 1 failures\n"), "{text}");
    }
}
