//! Where traces go, and how many: what containerd and CRI-O say of it.

use super::Import;
use super::leaves::Leaf;

/// containerd's plugin that sends them.
const OTLP: &str = "io.containerd.tracing.processor.v1.otlp";

type Outcome = Result<(), String>;

/// A collector that is spoken to over gRPC, without TLS.
pub(super) fn collector(import: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    let text = leaf.text();
    if text.starts_with("https://") {
        return Err("there is no TLS to collectors: name one on this node, by http".into());
    }
    if text.trim_end_matches('/').ends_with(":4318") {
        let why =
            "4318 is OTLP over HTTP, traces go over gRPC: name the collector's port for that, mostly 4317";
        return Err(why.into());
    }
    import.set("tracing.endpoint", text.into());
    Ok(())
}

pub(super) fn protocol(_: &mut Import, leaf: &Leaf, _: &[&str]) -> Outcome {
    match leaf.text() {
        "grpc" => Ok(()),
        other => {
            Err(format!("{other:?}: traces go over gRPC; the endpoint must be the collector's port for that"))
        }
    }
}

/// containerd traces every request unless told otherwise; here nothing is sent but what a client traces, unless told.
pub(super) fn sampling(import: &mut Import, leaves: &[Leaf]) {
    let find = |plugin: &str, key: &str| {
        leaves.iter().rfind(|leaf| leaf.path.iter().map(String::as_str).eq(["plugins", plugin, key]))
    };
    if find(OTLP, "endpoint").is_none_or(Leaf::is_nothing) {
        return;
    }
    let ratio = ["io.containerd.internal.v1.tracing", OTLP].iter().find_map(|p| find(p, "sampling_ratio"));
    let ratio = ratio.and_then(|leaf| leaf.value.as_float().or(leaf.value.as_integer().map(|i| i as f64)));
    let per_million = (ratio.unwrap_or(1.0).clamp(0.0, 1.0) * 1e6).round();
    import.set("tracing.sampling_rate_per_million", toml::Value::Integer(per_million as i64));
}

#[cfg(test)]
mod tests {
    use super::super::leaves;
    use super::*;
    use std::path::Path;

    fn written(text: &str) -> Vec<Leaf> {
        let text = format!("[plugins.\"{OTLP}\"]\n{text}\n");
        leaves::of(Path::new("config.toml"), &text).expect("ours")
    }

    #[test]
    fn collectors_that_cannot_be_spoken_to_are_named() {
        for (text, word) in [
            ("endpoint = \"https://c:4317\"", "TLS"),
            ("endpoint = \"http://c:4318\"", "4317"),
            ("endpoint = \"http://c:4317\"", ""),
        ] {
            let outcome = collector(&mut Import::default(), &written(text)[0], &[]);
            assert_eq!(outcome.is_ok(), word.is_empty(), "{text}");
            assert!(outcome.err().unwrap_or_default().contains(word), "{text}");
        }
        let spoken = |text: &str| protocol(&mut Import::default(), &written(text)[0], &[]);
        assert!(spoken("protocol = \"http/protobuf\"").is_err());
        assert!(spoken("protocol = \"grpc\"").is_ok());
    }

    #[test]
    fn as_many_are_traced_as_before() {
        let rate = |text: &str| {
            let mut import = Import::default();
            sampling(&mut import, &written(text));
            import.config["tracing"]["sampling_rate_per_million"].as_integer()
        };
        assert_eq!(rate("endpoint = \"http://c:4317\""), Some(1_000_000), "containerd's default");
        assert_eq!(rate("endpoint = \"http://c:4317\"\nsampling_ratio = 0.25"), Some(250_000));
        let mut import = Import::default();
        sampling(&mut import, &written("endpoint = \"\""));
        assert!(import.config.is_empty(), "no collector, no traces");
    }
}
