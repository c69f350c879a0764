//! Values that a configuration file spells as text, parsed where they are read: a wrong one has a file and a line.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A length of time as Go writes it: "500ms", "5s", "2m". Never zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct Time {
    text: String,
    length: Duration,
}

impl Time {
    pub(crate) fn length(&self) -> Duration {
        self.length
    }

    /// `milliseconds`, as text and number.
    pub(crate) fn of_milliseconds(milliseconds: u64) -> Self {
        let whole = milliseconds.is_multiple_of(1000);
        let text = if whole { format!("{}s", milliseconds / 1000) } else { format!("{milliseconds}ms") };
        Self { text, length: Duration::from_millis(milliseconds) }
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let example = "write a whole number and ms, s, m or h, such as \"5s\"";
        let number: u64 = text[..split].parse().map_err(|_| format!("{text:?} is no time: {example}"))?;
        let length = match &text[split..] {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.saturating_mul(60)),
            "h" => Duration::from_secs(number.saturating_mul(3600)),
            unit => return Err(format!("{text:?} has no unit of time ({unit:?}): {example}")),
        };
        if length.is_zero() {
            return Err(format!("{text:?} must be more than nothing"));
        }
        Ok(Self { text, length })
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.text
    }
}

/// What is logged: "error", "warn", "info", "debug", "trace", or tracing's filter syntax ("info,slipway_images=debug").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct Level(String);

impl Level {
    /// The filter that it stands for.
    pub(crate) fn filter(&self) -> tracing_subscriber::EnvFilter {
        // It was parsed once already: what cannot be parsed now would be logged as usual.
        tracing_subscriber::EnvFilter::try_new(&self.0).unwrap_or_default()
    }
}

impl Default for Level {
    fn default() -> Self {
        Self("info".into())
    }
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        // The syntax takes a lone word for a target: a mistyped level would log everything of nobody.
        let lone = !text.contains(['=', ',', '[']);
        if lone && !LEVELS.contains(&text.to_ascii_lowercase().as_str()) {
            return Err(format!("{text:?} is no log level: use one of {}", LEVELS.join(", ")));
        }
        match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(format!("{text:?} is no log filter: {error}")),
        }
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Level> for String {
    fn from(level: Level) -> Self {
        level.0
    }
}

/// Permissions of a socket in octal: "0600", "0660". Nobody may be given more than group and owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct Mode(u32);

impl Mode {
    pub(crate) fn bits(&self) -> u32 {
        self.0
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bits = u32::from_str_radix(text.trim_start_matches("0o"), 8);
        let bits = bits.map_err(|_| format!("{text:?} is no mode: write octal digits, such as \"0660\""))?;
        if bits & !0o770 != 0 {
            return Err(format!(
                "{text:?} gives the socket to everybody: whoever can connect is root on this node; at most \"0660\""
            ));
        }
        if bits & 0o600 != 0o600 {
            return Err(format!("{text:?} takes the socket from root itself: at least \"0600\""));
        }
        Ok(Self(bits))
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        format!("{:04o}", mode.0)
    }
}

/// Where traces go: "HOST:PORT", or with "http://" before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct Collector(String);

impl Collector {
    pub(crate) fn url(&self) -> String {
        if self.0.starts_with("http://") { self.0.clone() } else { format!("http://{}", self.0) }
    }
}

impl TryFrom<String> for Collector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.starts_with("https://") {
            return Err(format!("{text:?}: there is no TLS to collectors: name one on this node, by http"));
        }
        let collector = Self(text);
        let uri = collector.url().parse::<tonic::codegen::http::Uri>();
        let plain = uri.is_ok_and(|uri| {
            uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some() && uri.path() == "/"
        });
        if !plain {
            return Err(format!("{:?}: write HOST:PORT, such as \"127.0.0.1:4317\"", collector.0));
        }
        Ok(collector)
    }
}

impl From<Collector> for String {
    fn from(collector: Collector) -> Self {
        collector.0
    }
}

/// How many of a million.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u32", into = "u32")]
#[schemars(with = "u32")]
pub(crate) struct PerMillion(u32);

impl PerMillion {
    pub(crate) fn ratio(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl TryFrom<u32> for PerMillion {
    type Error = String;

    fn try_from(count: u32) -> Result<Self, String> {
        if count > 1_000_000 {
            return Err(format!("{count} of a million: 1000000 are all of them"));
        }
        Ok(Self(count))
    }
}

impl From<PerMillion> for u32 {
    fn from(rate: PerMillion) -> Self {
        rate.0
    }
}

/// How many categories of SELinux pods are told apart by: from 2, which is one pod, to the 1024 that policies have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u32", into = "u32")]
#[schemars(with = "u32")]
pub(crate) struct Categories(u32);

impl Categories {
    pub(crate) fn count(self) -> u32 {
        self.0
    }
}

impl Default for Categories {
    fn default() -> Self {
        Self(1024)
    }
}

impl TryFrom<u32> for Categories {
    type Error = String;

    fn try_from(count: u32) -> Result<Self, String> {
        if !(2..=1024).contains(&count) {
            return Err(format!("{count} categories: pods need pairs of 2 to 1024 of them"));
        }
        Ok(Self(count))
    }
}

impl From<Categories> for u32 {
    fn from(categories: Categories) -> Self {
        categories.0
    }
}

/// A number of bytes as Kubernetes writes it: "10Gi", "500M", "1e9".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct Bytes {
    text: String,
    count: u64,
}

impl Bytes {
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let count = u64::try_from(crate::quantity::Quantity::parse(&text)?.units());
        let count = count.map_err(|_| format!("{text:?} is no number of bytes"))?;
        Ok(Self { text, count })
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.text
    }
}

/// A kernel setting of a pod: "net.ipv4.ping_group_range=0 2147483647".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct Sysctl {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl TryFrom<String> for Sysctl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?}: write NAME=VALUE"))?;
        let (name, value) = (name.trim().replace('/', "."), value.trim().to_owned());
        // Those that a namespace of the pod has for itself; any other is the node's.
        let namespaced =
            ["net.", "kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|own| name.starts_with(own))
                || name == "kernel.sem";
        if !namespaced || name.split('.').any(|part| part.is_empty() || part == "..") {
            return Err(format!(
                "{name:?} is no setting of a pod's own namespaces: net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*"
            ));
        }
        Ok(Self { name, value })
    }
}

impl From<Sysctl> for String {
    fn from(sysctl: Sysctl) -> Self {
        format!("{}={}", sysctl.name, sysctl.value)
    }
}

/// A limit of getrlimit(2): "nofile=1024:4096", soft and hard, or one number for both; -1 is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct Ulimit {
    text: String,
    name: String,
    soft: u64,
    hard: u64,
}

/// As OCI's config.md spells them (`process.rlimits`).
const ULIMITS: [&str; 16] = [
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];

impl Ulimit {
    /// For `process.rlimits` of an OCI spec.
    pub(crate) fn to_oci(&self) -> serde_json::Value {
        serde_json::json!({"type": self.name, "soft": self.soft, "hard": self.hard})
    }
}

impl TryFrom<String> for Ulimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("{text:?}: {why}; write NAME=SOFT:HARD, such as \"nofile=1024:4096\"");
        let (name, values) = text.split_once('=').ok_or_else(|| wrong("there is no ="))?;
        let full = name.trim().to_ascii_uppercase();
        let full = if full.starts_with("RLIMIT_") { full } else { format!("RLIMIT_{full}") };
        let known = ULIMITS.iter().find(|known| **known == full);
        let name = (*known.ok_or_else(|| wrong("there is no such limit"))?).to_owned();
        let number = |text: &str| match text.trim() {
            "-1" | "unlimited" => Ok(u64::MAX),
            number => number.parse::<u64>().map_err(|_| wrong("a limit is a number, or -1 for none")),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err(wrong("the soft limit is above the hard one"));
        }
        Ok(Self { text, name, soft, hard })
    }
}

impl From<Ulimit> for String {
    fn from(ulimit: Ulimit) -> Self {
        ulimit.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Result<Duration, String> {
        Time::try_from(text.to_owned()).map(|t| t.length())
    }

    #[test]
    fn times() {
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(String::from(Time::of_milliseconds(5000)), "5s");
        assert_eq!(String::from(Time::of_milliseconds(1500)), "1500ms");
        for (text, word) in [("5", "unit"), ("0s", "more than nothing"), ("s", "no time"), ("-1s", "no time")]
        {
            let error = time(text).expect_err(text);
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn limits_and_settings_of_pods() {
        let ulimit = |text: &str| Ulimit::try_from(text.to_owned());
        let nofile = ulimit("nofile=1024:4096").expect("a limit").to_oci();
        assert_eq!(nofile, serde_json::json!({"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}));
        assert_eq!(ulimit("core=-1").expect("none").to_oci()["soft"], u64::MAX);
        for bad in ["nofile", "files=1", "nofile=2:1", "nofile=many", "nofile=1:"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
        let sysctl = |text: &str| Sysctl::try_from(text.to_owned());
        let range = sysctl("net/ipv4/ping_group_range = 0 1").expect("a setting");
        assert_eq!((range.name.as_str(), range.value.as_str()), ("net.ipv4.ping_group_range", "0 1"));
        for bad in ["kernel.core_pattern=|x", "net.ipv4", "net..x=1", "vm.swappiness=1"] {
            assert!(sysctl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes() {
        let count = |text: &str| Bytes::try_from(text.to_owned()).map(|b| b.count());
        assert_eq!((count("10Gi"), count("500M"), count("0")), (Ok(10 << 30), Ok(500_000_000), Ok(0)));
        for bad in ["", "-1", "10GB", "much"] {
            assert!(count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn categories() {
        assert_eq!(Categories::try_from(2).map(Categories::count), Ok(2));
        for bad in [0, 1, 1025] {
            assert!(Categories::try_from(bad).is_err_and(|e| e.contains("2 to 1024")), "{bad}");
        }
    }

    #[test]
    fn collectors() {
        let url = |text: &str| Collector::try_from(text.to_owned()).map(|c| c.url());
        assert_eq!(url("127.0.0.1:4317").as_deref(), Ok("http://127.0.0.1:4317"));
        assert_eq!(url("http://[::1]:4317/").as_deref(), Ok("http://[::1]:4317/"));
        for bad in ["https://x:1", "localhost", "grpc://x:1", "x:99999", ":1", "::1:4317", "a b:1", "x:1/y"] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mistyped_level_is_no_filter() {
        for good in ["info", "DEBUG", "info,slipway=debug", "slipway_images=trace"] {
            assert!(good.parse::<Level>().is_ok(), "{good}");
        }
        for bad in ["inof", "", "slipway=loud"] {
            assert!(bad.parse::<Level>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sockets_are_never_everybodys() {
        let mode = |text: &str| Mode::try_from(text.to_owned()).map(|m| m.bits());
        assert_eq!((mode("0660"), mode("600")), (Ok(0o660), Ok(0o600)));
        for bad in ["0666", "0604", "0060", "rw", "7777"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
