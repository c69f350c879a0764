//! What a client says when it calls us, in all its historic forms, and the form in which it wants its answer
//! (SHIM-BOOT-01, SHIM-BOOT-02, SHIM-BOOT-03, SHIM-BOOT-04, SHIM-BOOT-05, SHIM-BOOT-06, SHIM-BOOT-07,
//! SHIM-BOOT-08, SHIM-BOOT-09, SHIM-OUT-01, SHIM-OUT-02, SHIM-OUT-03, SHIM-OUT-04, SHIM-OUT-05).
//!
//! | containerd | standard input of `start` | answer |
//! |---|---|---|
//! | 1.6 | runtime options (an Any), or nothing | the address as text; Task v2 |
//! | 1.7 to 2.2 | runtime options (an Any), or nothing | JSON |
//! | from 2.3 | BootstrapParams | BootstrapResult |

use containerd_shim::Flags;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use std::error::Error;
use std::io::{self, IsTerminal as _, Read as _};

/// A client's message is never longer (SHIM-BOOT-05).
const STDIN_LIMIT: u64 = 10 * 1024 * 1024;
/// Task v3, and v2 beside it.
const TASK_API: i32 = 3;
/// LogLevel DEBUG of bootstrap.proto; what is more verbose is lower (SHIM-BOOT-07).
const DEBUG: i32 = -4;

/// How the answer to `start` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
    Protobuf,
}

/// What `start` was told.
#[derive(Debug, PartialEq)]
pub(crate) struct Bootstrap {
    /// Where events go; empty for clients that want none, as our own daemon.
    pub(crate) events: String,
    /// The runtime's options.
    pub(crate) options: Option<Any>,
    pub(crate) debug: bool,
    pub(crate) form: Form,
}

/// The part of the environment that matters.
#[derive(Debug, Default)]
struct Environment {
    ttrpc_address: String,
    /// Set from containerd 1.7 on (SHIM-CMD-07).
    knows_json: bool,
}

impl Bootstrap {
    /// Reads standard input to its end.
    pub(crate) fn read(flags: &Flags) -> Result<Self, Box<dyn Error>> {
        let environment = Environment {
            ttrpc_address: std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
            knows_json: std::env::var_os("MAX_SHIM_VERSION").is_some(),
        };
        Self::parse(&read_stdin()?, flags, environment)
    }

    fn parse(input: &[u8], flags: &Flags, environment: Environment) -> Result<Self, Box<dyn Error>> {
        if let Some(params) = params(input, flags)? {
            let options = params.extensions.into_iter().filter_map(|extension| extension.value.into_option());
            return Ok(Self {
                events: params.containerd_ttrpc_address,
                options: options.into_iter().find(crate::options::is_options),
                debug: flags.debug || params.log_level.value() <= DEBUG,
                form: Form::Protobuf,
            });
        }
        // Only containerd sets an address for events; whoever else calls reads JSON.
        let old = !environment.knows_json && !environment.ttrpc_address.is_empty();
        Ok(Self {
            events: environment.ttrpc_address,
            options: any(input)?,
            debug: flags.debug,
            form: if old { Form::Text } else { Form::Json },
        })
    }

    /// The answer: where our server is.
    pub(crate) fn answer(&self, address: &str) -> protobuf::Result<Vec<u8>> {
        let protocol = "ttrpc";
        match self.form {
            Form::Text => Ok(address.into()),
            Form::Json => {
                let json = serde_json::json!({"version": TASK_API, "address": address, "protocol": protocol});
                Ok(json.to_string().into_bytes())
            }
            Form::Protobuf => BootstrapResult {
                version: TASK_API,
                address: address.into(),
                protocol: protocol.into(),
                ..Default::default()
            }
            .write_to_bytes(),
        }
    }
}

/// The options that `-info` gets (SHIM-BOOT-09).
pub(crate) fn info_options() -> Result<Option<Any>, Box<dyn Error>> {
    any(&read_stdin()?)
}

fn read_stdin() -> io::Result<Vec<u8>> {
    let mut input = Vec::new();
    if !io::stdin().is_terminal() {
        io::stdin().lock().take(STDIN_LIMIT).read_to_end(&mut input)?;
    }
    Ok(input)
}

/// An old client's Any decodes as BootstrapParams too: only who names this id and namespace means it (SHIM-BOOT-04).
fn params(input: &[u8], flags: &Flags) -> Result<Option<BootstrapParams>, Box<dyn Error>> {
    let Ok(params) = BootstrapParams::parse_from_bytes(input) else { return Ok(None) };
    if params.instance_id == flags.id && params.namespace == flags.namespace {
        return Ok(Some(params).filter(|_| !input.is_empty()));
    }
    if params.containerd_grpc_address.is_empty() && params.containerd_ttrpc_address.is_empty() {
        return Ok(None);
    }
    Err(format!(
        "standard input is for {}/{}, the command line for {}/{}",
        params.namespace, params.instance_id, flags.namespace, flags.id
    )
    .into())
}

fn any(input: &[u8]) -> Result<Option<Any>, Box<dyn Error>> {
    let any = Any::parse_from_bytes(input)
        .map_err(|error| format!("standard input is neither options nor bootstrap parameters: {error}"))?;
    Ok(Some(any).filter(|any| !any.type_url.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::shim::oci::Options;

    fn flags() -> Flags {
        Flags { id: "c1".into(), namespace: "k8s.io".into(), ..Flags::default() }
    }

    fn options() -> Any {
        let value = Options { shim_cgroup: "/shims".into(), ..Default::default() }.write_to_bytes().unwrap();
        Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() }
    }

    fn of(input: &[u8], address: &str, knows_json: bool) -> Bootstrap {
        let environment = Environment { ttrpc_address: address.into(), knows_json };
        Bootstrap::parse(input, &flags(), environment).unwrap()
    }

    #[test]
    fn options_are_seen_in_every_form() {
        // SHIM-TST-07, SHIM-BOOT-01, SHIM-BOOT-02, SHIM-BOOT-03, SHIM-BOOT-04, SHIM-BOOT-06, SHIM-VER-01,
        // SHIM-VER-02, SHIM-VER-03, SHIM-VER-04, SHIM-VER-05
        let old = options().write_to_bytes().unwrap();
        let from_1_6 = of(&old, "/run/c.ttrpc", false);
        assert_eq!((from_1_6.form, from_1_6.options), (Form::Text, Some(options())));
        let from_2_0 = of(&old, "/run/c.ttrpc", true);
        assert_eq!((from_2_0.form, from_2_0.options), (Form::Json, Some(options())));
        let unknown = Any { type_url: "example.com/Unknown".into(), value: vec![1], ..Any::default() };
        let extension = |value| Extension { value: Some(value).into(), ..Default::default() };
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            log_level: protobuf::EnumOrUnknown::from_i32(-7),
            containerd_ttrpc_address: "/new.ttrpc".into(),
            containerd_grpc_address: "/new".into(),
            extensions: vec![extension(unknown), extension(options())],
            ..Default::default()
        };
        let from_2_3 = of(&params.write_to_bytes().unwrap(), "/old", true);
        let expected = Bootstrap {
            events: "/new.ttrpc".into(),
            options: Some(options()),
            debug: true,
            form: Form::Protobuf,
        };
        assert_eq!(from_2_3, expected);
        let none = of(b"", "", false);
        assert_eq!((none.form, none.options, none.events.as_str()), (Form::Json, None, ""));
    }

    #[test]
    fn answers() {
        // SHIM-OUT-01, SHIM-OUT-02, SHIM-OUT-03
        let answer = |form| {
            Bootstrap { events: String::new(), options: None, debug: false, form }
                .answer("unix:///s")
                .unwrap()
        };
        assert_eq!(answer(Form::Text), b"unix:///s");
        let json: serde_json::Value = serde_json::from_slice(&answer(Form::Json)).unwrap();
        assert_eq!(json, serde_json::json!({"version": 3, "address": "unix:///s", "protocol": "ttrpc"}));
        let result = BootstrapResult::parse_from_bytes(&answer(Form::Protobuf)).unwrap();
        assert_eq!((result.version, &*result.address, &*result.protocol), (3, "unix:///s", "ttrpc"));
        assert!(
            BootstrapResult::parse_from_bytes(&answer(Form::Json)).is_err(),
            "containerd tries protobuf first (SHIM-OUT-04)"
        );
    }

    #[test]
    fn parameters_of_another_are_refused() {
        let params = BootstrapParams {
            instance_id: "other".into(),
            namespace: "k8s.io".into(),
            containerd_grpc_address: "/c".into(),
            ..Default::default()
        };
        let bytes = params.write_to_bytes().unwrap();
        assert!(Bootstrap::parse(&bytes, &flags(), Environment::default()).is_err());
        assert!(Bootstrap::parse(b"\xff\xff\xff", &flags(), Environment::default()).is_err());
    }
}
