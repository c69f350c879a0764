//! Certificates of an authority of one's own, made by openssl. Other rooms' tests have this file by its path.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// Days that a certificate is good for.
pub const MONTH: &str = "30";
/// It ends with the second it was made in.
pub const NONE: &str = "0";

/// A certificate authority whose files lie in a directory.
#[derive(Debug)]
pub struct Authority {
    pub dir: tempfile::TempDir,
}

impl Authority {
    /// # Panics
    /// Without openssl.
    #[allow(clippy::new_without_default, reason = "a default runs no programs")]
    pub fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        let out = ["-subj", "/CN=authority", "-days", MONTH, "-keyout", "ca.key", "-out", "ca.crt"];
        this.openssl(&[&["req", "-x509"][..], &KEY, &out].concat());
        this
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.path()).output().expect("openssl");
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.path().join("ca.crt")
    }

    /// Writes NAME.crt and NAME.key and returns their path without ending. `host`: `IP:…` or `DNS:…`.
    ///
    /// # Panics
    /// Without openssl.
    pub fn issue(&self, name: &str, host: &str, days: &str) -> PathBuf {
        let stem = self.path().join(name);
        let file = |ending: &str| format!("{name}.{ending}");
        let (key, request, certificate, extensions) = (file("key"), file("csr"), file("crt"), file("ext"));
        let text = format!(
            "subjectAltName={host}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
        );
        std::fs::write(self.path().join(&extensions), text).expect("extensions");
        let out = ["-subj", "/CN=leaf", "-keyout", &key, "-out", &request];
        self.openssl(&[&["req", "-new"][..], &KEY, &out].concat());
        let authority = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        let sign = ["-in", &request, "-days", days, "-extfile", &extensions, "-out", &certificate];
        self.openssl(&[&["x509", "-req"][..], &authority, &sign].concat());
        if days == NONE {
            std::thread::sleep(Duration::from_millis(1100));
        }
        stem
    }
}
