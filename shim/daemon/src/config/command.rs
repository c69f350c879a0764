//! `slipway config …`: what may be written, what is written, what is in force. Talks to no daemon.

use super::keys::{self, Keys};
use super::sources::Sources;
use super::{Config, ServeArgs};
use crate::cli::{self, Output, snippet::Snippet};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// `slipway config`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print a configuration file with every key and its default
    Default,
    /// Say what is wrong with the configuration files, if anything
    Check(ServeArgs),
    /// Print what is in force, and which file and line says so
    Show(ServeArgs),
    /// Print the reference of all keys (docs/configuration.md)
    Reference,
    /// Translate another runtime's configuration, and name what cannot be translated
    #[command(subcommand)]
    Import(super::import::From),
    /// Print what another program's configuration needs to use Slipway
    Snippet {
        #[command(subcommand)]
        of: Snippet,
    },
}

impl Command {
    pub(crate) fn run(&self, address: &Path, output: Output) -> Result<ExitCode> {
        match self {
            Self::Default => cli::output::print(&keys::default_file())?,
            Self::Reference => cli::output::print(&keys::reference())?,
            Self::Import(from) => from.run()?,
            Self::Snippet { of } => of.run(),
            Self::Check(args) => check(args, address)?,
            Self::Show(args) => show(args, address, output)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn check(args: &ServeArgs, address: &Path) -> Result<()> {
    let sources = Sources::read(args.config.as_deref())?;
    Config::decide(&sources, args, address)?.sound()?;
    let files = sources.files.iter().map(|file| format!("{}: understood\n", file.display()));
    let files: String = files.collect();
    cli::output::print(if files.is_empty() {
        "no configuration file: the defaults are in force\n"
    } else {
        &files
    })
}

/// One key as it is in force.
#[derive(Debug, Serialize)]
struct Shown {
    key: String,
    /// Absent: it has none.
    value: Option<toml::Value>,
    /// `FILE:LINE`, `default`, `this host`, `flag`.
    from: String,
}

fn show(args: &ServeArgs, address: &Path, output: Output) -> Result<()> {
    let sources = Sources::read(args.config.as_deref())?;
    let config = Config::decide(&sources, args, address)?;
    let shown = shown(&sources, &config, args);
    if output == Output::Json {
        return cli::output::json(&shown);
    }
    cli::output::print(&text(&shown))
}

fn shown(sources: &Sources, config: &Config, args: &ServeArgs) -> Vec<Shown> {
    let values = keys::flat(&config.file);
    let line = |key: &keys::Key, path: String| {
        let value = values.get(&path).cloned();
        let from = match sources.origins.get(&path) {
            _ if path == "log_level" && args.log_level.is_some() => "flag --log-level".to_owned(),
            Some(origin) => origin.to_string(),
            None if key.default.is_none() && value.is_some() => "this host".into(),
            None => "default".into(),
        };
        Shown { key: path, value, from }
    };
    let keys = Keys::all().keys;
    let mut shown = Vec::new();
    for key in &keys {
        shown.extend(key.instances(values.keys()).into_iter().map(|path| line(key, path)));
    }
    // Tables as wholes, the keys above all of them first.
    shown.sort_by(|a: &Shown, b| {
        let table = |key: &str| key.rsplit_once('.').map_or(String::new(), |(table, _)| table.to_owned());
        table(&a.key).cmp(&table(&b.key)).then_with(|| a.key.cmp(&b.key))
    });
    shown
}

/// TOML, with the origin behind each line.
fn text(shown: &[Shown]) -> String {
    let mut text = String::new();
    let mut table = "";
    for line in shown {
        let (of, name) = line.key.rsplit_once('.').unwrap_or(("", &line.key));
        if table != of {
            table = of;
            text += &format!("\n[{table}]\n");
        }
        let assignment = match &line.value {
            Some(value) => format!("{name} = {value}"),
            None => format!("#{name} ="),
        };
        text += &format!("{assignment:<50}  # {}\n", line.from);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration with the keeper at a place that exists.
    fn loaded(text: &str, level: Option<&str>) -> (tempfile::TempDir, ServeArgs) {
        let dir = tempfile::tempdir().expect("dir");
        let keeper = dir.path().join("keeper");
        std::fs::write(&keeper, "").expect("keeper");
        let file = dir.path().join("config.toml");
        std::fs::write(&file, format!("{text}\n[keeper]\npath = {keeper:?}\n")).expect("config");
        let args = ServeArgs {
            root: dir.path().join("root"),
            state: dir.path().join("state"),
            config: Some(file),
            log_level: level.map(|level| level.parse().expect("level")),
        };
        (dir, args)
    }

    #[test]
    fn show_tells_the_line_of_each_value() {
        let written = "log_level = \"warn\"\n[logs]\nmax_line = 9\n[handlers.sh]\nruntime_path = \"/bin/sh\"";
        let (dir, args) = loaded(written, Some("debug"));
        let sources = Sources::read(args.config.as_deref()).expect("read");
        let config = Config::decide(&sources, &args, Path::new("/run/x.sock")).expect("decide");
        let shown = shown(&sources, &config, &args);
        let of = |key: &str| shown.iter().find(|s| s.key == key).expect(key);
        let file = dir.path().join("config.toml");
        assert_eq!(of("logs.max_line").from, format!("{}:3", file.display()));
        assert_eq!(of("log_level").from, "flag --log-level");
        assert_eq!(of("handlers.sh.runtime_path").from, format!("{}:5", file.display()));
        assert_eq!(of("handlers.sh.create_timeout").from, "default");
        assert_eq!(of("log_level").value, Some("debug".into()));
        assert_eq!(of("network.bridge").from, "default");
        assert_eq!(of("cgroup_driver").from, "this host");
        assert_eq!(
            of("nri.socket_path").value,
            Some(format!("{}/state/nri.sock", dir.path().display()).into())
        );
        assert_eq!(of("metrics.address").value, None);
        // What is shown can be a configuration itself.
        let again: super::super::File = toml::from_str(&text(&shown)).expect("TOML");
        assert_eq!(again, config.file);
    }

    #[test]
    fn decisions_that_fail_name_their_line() {
        for (text, wanted) in [
            ("cgroup_root = \"relative\"", "config.toml:1: cgroup_root = \"relative\""),
            ("[network]\npool = \"10.0.0.1/16\"", "config.toml:2: "),
            ("[network]\nbridge = \"much-too-long-for-a-link\"", "config.toml:2: "),
            (
                "[socket]\ngroup = \"no-such-group\"",
                "config.toml:2: socket.group = \"no-such-group\": no such group",
            ),
            (
                "[streaming]\n\ntls_key = \"/k\"",
                "config.toml:3: streaming.tls_certificate and streaming.tls_key",
            ),
            ("[streaming]\ntls_client_ca = \"/c\"", "config.toml:2: streaming.tls_client_ca needs"),
            (
                "[handlers.x]\nruntime_path = \"runc\"",
                "config.toml:2: handlers.x.runtime_path: runc must be an absolute path",
            ),
            (
                "[handlers.x]\nruntime_path = \"/no/runc\"",
                "config.toml:2: handlers.x.runtime_path: /no/runc: No such file",
            ),
            (
                "[handlers.x]\nruntime_path = \"/etc/passwd\"",
                "config.toml:2: handlers.x.runtime_path: /etc/passwd is not executable",
            ),
            (
                "[handlers.x]\nruntime_path = \"/etc\"",
                "config.toml:2: handlers.x.runtime_path: /etc is no file",
            ),
            (
                "[handlers.x]\nruntime_root = \"state\"",
                "config.toml:2: handlers.x.runtime_root = state: must be an absolute",
            ),
            (
                "[handlers.slipway]\nruntime_path = \"/bin/sh\"",
                "config.toml:2: handlers.slipway is Slipway itself",
            ),
            (
                "runtime_handlers = [\"x\"]\n[handlers.x]\nruntime_path = \"/bin/sh\"",
                "config.toml:3: handlers.x has a runtime_path, and",
            ),
            ("[handlers.Runc]\n", "[handlers.\"Runc\"]: a handler's name is"),
            ("[handlers.x]\nruntime_pth = \"/bin/sh\"", "did you mean \"handlers.*.runtime_path\"?"),
            (
                "[handlers.x]\nshim = \"containerd-shim-kata-v2\"",
                "config.toml:2: handlers.x.shim: containerd-shim-kata-v2 must be an absolute path",
            ),
            ("[handlers.x]\nshim = \"/no/kata\"", "config.toml:2: handlers.x.shim: /no/kata: No such file"),
            (
                "[handlers.x]\nruntime_path = \"/bin/sh\"\nshim = \"/bin/sh\"",
                "config.toml:2: handlers.x.runtime_path: the handler has a shim",
            ),
            (
                "[handlers.x]\nshim = \"/bin/sh\"\nruntime_args = [\"-x\"]",
                "config.toml:3: handlers.x.runtime_args: the handler has a shim",
            ),
            (
                "[handlers.x]\nshim = \"/bin/sh\"\nruntime_root = \"/r\"",
                "config.toml:3: handlers.x.runtime_root: the handler has a shim",
            ),
            (
                "[handlers.x]\nruntime_path = \"/bin/sh\"\nconfig_path = \"/etc/passwd\"",
                "config.toml:3: handlers.x.config_path: it is for a shim",
            ),
            (
                "[handlers.x]\nshim = \"/bin/sh\"\nconfig_path = \"kata.toml\"",
                "config.toml:3: handlers.x.config_path = kata.toml: must be an absolute",
            ),
            (
                "[handlers.x]\nshim = \"/bin/sh\"\nconfig_path = \"/no/kata.toml\"",
                "config.toml:3: handlers.x.config_path: /no/kata.toml: No such file",
            ),
            (
                "runtime_handlers = [\"x\"]\n[handlers.x]\nshim = \"/bin/sh\"",
                "config.toml:3: handlers.x has a shim, and",
            ),
            (
                "[handlers.x]\ncreate_timeout = \"5\"",
                "config.toml:2: handlers.x.create_timeout: \"5\" has no unit",
            ),
        ] {
            let (_dir, args) = loaded(text, None);
            let loaded = Config::load(&args, Path::new("/run/x.sock")).and_then(Config::sound);
            let error = format!("{:#}", loaded.expect_err(text));
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
