//! Whether there is a CRIU, and whether it knows this kernel: told before anything is paused (CRI-CHK-04).

use crate::config::Checkpoints;
use crate::error::{Error, Result};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tonic::Code;

/// `criu check` looks at a few dozen kernel features.
const PATIENCE: Duration = Duration::from_secs(30);

/// # Errors
/// Unimplemented, with what to do about it.
pub(super) async fn usable(config: &Checkpoints) -> Result<()> {
    let unusable = |text: String| Err(Error::new(Code::Unimplemented, text));
    if !config.enabled {
        return unusable("checkpoints are switched off on this node: checkpoints.enabled = false".into());
    }
    let program = config.program();
    let check =
        tokio::process::Command::new(program).arg("check").stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(PATIENCE, check).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => unusable(unfit(program, &output)),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => unusable(format!(
            "checkpoints need CRIU, and {} is not installed: install it (Debian and others: package criu), or name its \
             program by the key checkpoints.criu",
            program.display()
        )),
        Ok(Err(e)) => unusable(format!("checkpoints need CRIU: run {}: {e}", program.display())),
        Err(_) => unusable(format!(
            "checkpoints need CRIU: {} check has not ended for {PATIENCE:?}",
            program.display()
        )),
    }
}

fn unfit(program: &Path, output: &Output) -> String {
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    let said = text.lines().rev().find(|line| line.contains("Error")).or_else(|| text.lines().next_back());
    format!(
        "checkpoints need a CRIU that knows this kernel: {} check ended with {}: {}; hint: install a newer one and name its \
         program by the key checkpoints.criu",
        program.display(),
        output.status,
        said.unwrap_or("it said nothing").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::script;

    /// CRI-CHK-04.
    #[tokio::test]
    async fn what_is_missing_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        let told = async |config: Checkpoints| {
            let error = usable(&config).await.expect_err("it must be refused");
            assert_eq!(error.code(), Code::Unimplemented, "{error}");
            error.to_string()
        };
        let named = |program: &Path| Checkpoints { criu: Some(program.into()), ..Checkpoints::default() };
        assert!(
            told(Checkpoints { enabled: false, ..Checkpoints::default() }).await.contains("switched off")
        );
        assert!(told(named(Path::new("/no/criu"))).await.contains("/no/criu is not installed"));
        let old = dir.path().join("criu");
        script(&old, "echo 'Warn  (x.c:1): odd' >&2\necho 'Error (y.c:2): no such feature' >&2\nexit 1");
        let said = told(named(&old)).await;
        assert!(said.contains("no such feature") && said.contains("install a newer one"), "{said}");
        script(&old, "exit 0");
        assert_eq!(usable(&named(&old)).await, Ok(()));
    }
}
