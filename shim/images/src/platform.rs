//! Which entry of an index is for this machine (IMG-MT-09).

/// `os`, `architecture` and `variant` in Go's words (OCI image-spec image-index.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: String,
}

impl Platform {
    /// The machine this runs on.
    pub(crate) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: host_variant().to_owned(),
        }
    }

    /// How well an image for `entry` suits `self`; None if it cannot run. Higher is better.
    pub(crate) fn rank(&self, entry: &Platform) -> Option<u32> {
        if self.os != entry.os || self.architecture != entry.architecture {
            return None;
        }
        let level = level(&entry.architecture, &entry.variant)?;
        (level <= level_of_host(self)?).then_some(level)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

fn level_of_host(host: &Platform) -> Option<u32> {
    level(&host.architecture, &host.variant)
}

/// A variant as a number, with the architecture's default filled in: amd64 = v1, arm64 = v8, arm = v7. `v8.2` is 802.
fn level(architecture: &str, variant: &str) -> Option<u32> {
    let default = match architecture {
        "arm64" => "v8",
        "arm" => "v7",
        _ => "v1",
    };
    let text = if variant.is_empty() { default } else { variant };
    let (major, minor) =
        text.strip_prefix('v').unwrap_or(text).split_once('.').unwrap_or((text.trim_start_matches('v'), "0"));
    let major: u32 = major.parse().ok().filter(|n| *n < 1000)?;
    let minor: u32 = minor.parse().ok().filter(|n| *n < 100)?;
    Some(major * 100 + minor)
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> &'static str {
    macro_rules! all {
        ($($name:tt),*) => { $(std::is_x86_feature_detected!($name))&&* };
    }
    // The x86-64 psABI micro-architecture levels.
    if !all!("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt") {
        "v1"
    } else if !all!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe") {
        "v2"
    } else if !all!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl") {
        "v3"
    } else {
        "v4"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> &'static str {
    if cfg!(target_arch = "aarch64") { "v8" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next().unwrap_or_default(),
        }
    }

    // IMG-MT-09, -10
    #[test]
    fn variants() {
        let rank = |host: &str, entry: &str| platform(host).rank(&platform(entry));
        assert_eq!(rank("linux/arm64/v8", "linux/arm64"), rank("linux/arm64/v8", "linux/arm64/v8"));
        assert!(rank("linux/arm/v7", "linux/arm/v7") > rank("linux/arm/v7", "linux/arm/v6"));
        assert!(rank("linux/arm/v7", "linux/arm/v6") > rank("linux/arm/v7", "linux/arm/v5"));
        assert!(rank("linux/arm/v6", "linux/arm/v7").is_none());
        assert!(rank("linux/amd64/v3", "linux/amd64/v2") > rank("linux/amd64/v3", "linux/amd64"));
        assert!(rank("linux/amd64/v2", "linux/amd64/v3").is_none());
        assert!(rank("linux/arm64/v8", "linux/arm64/v8.2").is_none());
        assert!(rank("linux/amd64", "windows/amd64").is_none());
        assert!(rank("linux/amd64", "linux/386").is_none());
        assert!(rank("linux/amd64", "unknown/unknown").is_none());
        assert!(rank("linux/amd64", "linux/amd64/nonsense").is_none());
        let host = Platform::host();
        assert!(host.rank(&host).is_some());
    }
}
