use super::Id;
use super::list::Format;
use crate::cli::Global;
use crate::output::{say, say_line};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::process::Command;

#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[command(flatten)]
    id: Id,
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Options for ps(1) [default: -ef]
    #[arg(value_name = "PS_OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Ps {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = self.id.open(global)?;
        let mut pids = match container.record.own_group() {
            Err(error) if container.record.cgroup.is_empty() => return Err(error),
            group => group.and_then(|group| Ok(group.pids()?)).unwrap_or_default(),
        };
        pids.sort_unstable();
        match self.format {
            Format::Json => say_line(&serde_json::to_string(&pids)?),
            Format::Table => say(&table(&pids, &self.options)?),
        }
    }
}

/// ps(1)'s lines for these processes: its own columns, whatever was asked for, as long as PID is one of them.
fn table(pids: &[i32], options: &[String]) -> Result<String> {
    let options = if options.is_empty() { vec!["-ef".to_owned()] } else { options.to_vec() };
    let output = Command::new("ps")
        .args(&options)
        .output()
        .context("run ps (package procps); or use --format json")?;
    if !output.status.success() {
        bail!("ps {}: {}", options.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    filter(&String::from_utf8_lossy(&output.stdout), pids)
}

fn filter(text: &str, pids: &[i32]) -> Result<String> {
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.context("ps printed no column PID: choose options that show it")?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    Ok(std::iter::once(head).chain(lines.filter(ours)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn keeps_the_container_s_lines() {
        let text = "UID   PID CMD\nroot    1 init\nroot   77 sleep 7\nroot    7 other\n";
        assert_eq!(filter(text, &[77]).unwrap(), "UID   PID CMD\nroot   77 sleep 7\n");
        assert!(filter("CMD\nx\n", &[1]).is_err());
    }
}
