//! What a translation is printed or written as.

use super::{Import, registries};
use crate::cli::output;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// On standard output the configuration; on standard error what is not in it.
pub(super) fn print(import: &Import, from: &Path) -> Result<()> {
    output::print(&config(import, from, None))?;
    for line in left(import) {
        eprintln!("{line}");
    }
    let mut more = Vec::new();
    if !import.hosts.is_empty() {
        more.push(format!("mirrors and certificates of {} registries", import.hosts.len()));
    }
    if !import.auths.is_empty() {
        more.push(format!("credentials of {} registries", import.auths.len()));
    }
    if !more.is_empty() {
        eprintln!("not printed: {}: --into DIR writes them", more.join(", "));
    }
    Ok(())
}

/// Everything as files; all or, when one is there already, none.
pub(super) fn write(import: &Import, from: &Path, dir: &Path) -> Result<()> {
    let dir = std::path::absolute(dir).with_context(|| format!("directory {}", dir.display()))?;
    let files = files(import, from, &dir);
    for (path, _, _) in &files {
        if path.symlink_metadata().is_ok() {
            bail!("{} is there already: move it away, or choose another directory", path.display());
        }
    }
    for (path, mode, text) in &files {
        let parent = path.parent().unwrap_or(&dir);
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(*mode).open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("write {}", path.display()))?;
        output::print(&format!("{}\n", path.display()))?;
    }
    for line in left(import) {
        eprintln!("{line}");
    }
    Ok(())
}

/// Path, mode and content of each file.
fn files(import: &Import, from: &Path, dir: &Path) -> Vec<(PathBuf, u32, String)> {
    let mut files = vec![(dir.join("config.toml"), 0o644, config(import, from, Some(dir)))];
    for (registry, hosts) in &import.hosts {
        let path = dir.join("certs.d").join(registries::directory(registry)).join("hosts.toml");
        files.push((path, 0o644, hosts.text()));
    }
    // Nobody's but root's.
    files.extend(import.auth_file().map(|text| (dir.join("auth.json"), 0o600, text)));
    files
}

/// The configuration, with what it lacks as comments.
fn config(import: &Import, from: &Path, dir: Option<&Path>) -> String {
    let mut text = format!("# Translated from {} by slipway config import.\n", from.display());
    for line in left(import) {
        text += &format!("# {line}\n");
    }
    let mut table = Import { config: import.config.clone(), ..Import::default() };
    if let Some(dir) = dir {
        if !import.hosts.is_empty() {
            // Before what was there: the first directory that knows a registry counts.
            let dirs = table
                .config
                .get("images")
                .and_then(|i| i.get("hosts_dirs"))
                .and_then(|d| d.as_array())
                .cloned();
            let own = toml::Value::String(dir.join("certs.d").display().to_string());
            let dirs = std::iter::once(own).chain(dirs.unwrap_or_default()).collect();
            table.set("images.hosts_dirs", toml::Value::Array(dirs));
        }
        if !import.auths.is_empty() {
            table.set("images.auth_file", dir.join("auth.json").display().to_string().into());
        }
    }
    // A table of plain values: there is nothing that TOML could not hold.
    text + &toml::to_string(&table.config).unwrap_or_default()
}

fn left(import: &Import) -> Vec<String> {
    import
        .left
        .iter()
        .map(|left| format!("not translated: {}: {}: {}", left.at, left.key, left.why))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_written_once_and_secrets_are_roots() {
        let dir = tempfile::tempdir().expect("dir");
        let into = dir.path().join("slipway");
        let mut import = Import::default();
        import.set("log_level", "warn".into());
        import.add("images.hosts_dirs", "/etc/containerd/certs.d");
        import
            .hosts
            .entry("reg.example:5000".into())
            .or_default()
            .mirrors
            .push(registries::Server::new("m.example"));
        import.auths.entry("reg.example:5000".into()).or_default().insert("auth".into(), "c2VjcmV0".into());
        write(&import, Path::new("/c.toml"), &into).expect("written");
        let sources = crate::config::sources::Sources::read(Some(&into.join("config.toml"))).expect("ours");
        assert_eq!(sources.file.images.hosts_dirs, [into.join("certs.d"), "/etc/containerd/certs.d".into()]);
        assert_eq!(sources.file.images.auth_file, Some(into.join("auth.json")));
        let mode = fs::metadata(into.join("auth.json")).expect("credentials").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(into.join("certs.d/reg.example_5000_/hosts.toml").is_file());
        let text = fs::read_to_string(into.join("config.toml")).expect("config");
        assert!(!text.contains("c2VjcmV0"), "{text}");
        let again = write(&import, Path::new("/c.toml"), &into).expect_err("there already").to_string();
        assert!(again.contains("config.toml is there already"), "{again}");
    }
}
