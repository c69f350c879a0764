//! Our `cri.proto` against k8s.io/cri-api, as pinned by `hack/go/go.mod`: message by message, enum by enum, method by
//! method. The other side is read from the Go module by `hack/go/cmd/cridescriptor`; nothing of it is copied here.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};

/// Facts of one file: a full name ("PodSandboxConfig.metadata") and what the wire needs to know about it.
type Facts = BTreeMap<String, String>;

#[test]
fn cri_proto_is_what_cri_api_says() {
    let ours = facts(&decode(cri_proto::CRI_FILE_DESCRIPTOR_SET, "our"));
    let theirs = facts(&decode(&cri_api_descriptor_set(), "k8s.io/cri-api's"));
    let methods = theirs.keys().filter(|name| name.contains('/')).count();
    assert!(methods >= 43, "k8s.io/cri-api gave only {methods} methods: was the right file printed?");

    for (name, fact) in &theirs {
        match ours.get(name) {
            None => panic!("cri.proto lacks {name}: k8s.io/cri-api has it as: {fact}"),
            Some(own) => assert_eq!(own, fact, "{name}: left is cri.proto, right is k8s.io/cri-api"),
        }
    }
    for (name, fact) in &ours {
        assert!(theirs.contains_key(name), "cri.proto has {name} ({fact}), k8s.io/cri-api has not");
    }
}

#[test]
fn a_changed_number_label_value_or_stream_is_seen() {
    let set = decode(cri_proto::CRI_FILE_DESCRIPTOR_SET, "our");
    let before = facts(&set);

    let mut number = set.clone();
    number.file[0].message_type[0].field[0].number = Some(99);
    let mut label = set.clone();
    label.file[0].message_type[0].field[0].set_label(prost_types::field_descriptor_proto::Label::Repeated);
    let mut value = set.clone();
    value.file[0].enum_type[0].value[0].number = Some(7);
    let mut stream = set.clone();
    stream.file[0].service[0].method[0].server_streaming = Some(true);
    for changed in [number, label, value, stream] {
        let after = facts(&changed);
        assert_eq!(before.iter().filter(|(name, fact)| after.get(*name) != Some(fact)).count(), 1);
    }
}

/// Secrets are marked in both, and all are in the one message whose Debug this crate writes by hand.
#[test]
fn secret_fields_are_the_same_and_all_in_auth_config() {
    let ours = secret::fields(cri_proto::CRI_FILE_DESCRIPTOR_SET);
    assert_eq!(ours, secret::fields(&cri_api_descriptor_set()), "left is cri.proto, right is k8s.io/cri-api");
    assert_eq!(ours.len(), 4, "{ours:?}");
    assert!(ours.iter().all(|name| name.starts_with("AuthConfig.")), "{ours:?}");
}

/// Just enough of descriptor.proto to see `debug_redact`, which prost-types does not know.
mod secret {
    use prost::Message as _;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Set {
        #[prost(message, repeated, tag = "1")]
        file: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct File {
        #[prost(message, repeated, tag = "4")]
        message_type: Vec<Descriptor>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Descriptor {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, repeated, tag = "2")]
        field: Vec<Field>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Field {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "8")]
        options: Option<Options>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Options {
        #[prost(bool, tag = "16")]
        debug_redact: bool,
    }

    pub(super) fn fields(set: &[u8]) -> Vec<String> {
        let set = Set::decode(set).expect("a descriptor set");
        let messages = set.file.iter().flat_map(|file| &file.message_type);
        let all = messages.flat_map(|message| message.field.iter().map(move |field| (message, field)));
        let secret =
            all.filter(|(_, field)| field.options.as_ref().is_some_and(|options| options.debug_redact));
        secret.map(|(message, field)| format!("{}.{}", message.name, field.name)).collect()
    }
}

/// Runs the Go program. Fails loudly without Go: a comparison that is skipped proves nothing.
fn cri_api_descriptor_set() -> Vec<u8> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/go");
    let output = match Command::new("go").args(["run", "./cmd/cridescriptor"]).current_dir(&module).output() {
        Ok(output) => output,
        Err(error) => panic!(
            "cannot run `go`: {error}. This test reads k8s.io/cri-api through the Go tool chain: install Go 1.26 or \
             newer (https://go.dev/dl, or Debian's golang-go: from 1.21 on Go fetches the newer one itself)"
        ),
    };
    assert!(
        output.status.success(),
        "`go run ./cmd/cridescriptor` in {} failed: {}",
        module.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn decode(bytes: &[u8], whose: &str) -> FileDescriptorSet {
    let set = FileDescriptorSet::decode(bytes).unwrap_or_else(|e| panic!("{whose} descriptor set: {e}"));
    assert_eq!(set.file.len(), 1, "{whose} set has one file");
    set
}

fn facts(set: &FileDescriptorSet) -> Facts {
    let mut facts = Facts::new();
    for file in &set.file {
        file_facts(file, &mut facts);
    }
    facts
}

fn file_facts(file: &FileDescriptorProto, facts: &mut Facts) {
    note(facts, "package", format!("{} {}", file.package(), file.syntax()));
    for message in &file.message_type {
        message_facts("", message, facts);
    }
    for item in &file.enum_type {
        enum_facts("", item, facts);
    }
    for service in &file.service {
        note(facts, &format!("service {}", service.name()), "service".into());
        for method in &service.method {
            let stream = |is: bool| if is { "stream " } else { "" };
            let fact = format!(
                "({}{}) returns ({}{})",
                stream(method.client_streaming()),
                method.input_type(),
                stream(method.server_streaming()),
                method.output_type()
            );
            note(facts, &format!("{}/{}", service.name(), method.name()), fact);
        }
    }
}

fn message_facts(outer: &str, message: &DescriptorProto, facts: &mut Facts) {
    let name = format!("{outer}{}", message.name());
    let map_entry = message.options.as_ref().is_some_and(|o| o.map_entry());
    let ranges: Vec<_> = message.reserved_range.iter().map(|r| (r.start(), r.end())).collect();
    let fact = format!("message map_entry={map_entry} reserved={ranges:?} {:?}", message.reserved_name);
    note(facts, &name, fact);
    for field in &message.field {
        note(facts, &format!("{name}.{}", field.name()), field_fact(message, field));
    }
    let prefix = format!("{name}.");
    message.nested_type.iter().for_each(|m| message_facts(&prefix, m, facts));
    message.enum_type.iter().for_each(|e| enum_facts(&prefix, e, facts));
}

fn field_fact(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let oneof = field.oneof_index.map_or("-", |i| message.oneof_decl[i as usize].name());
    format!(
        "= {} {:?} {:?} {} oneof={oneof} optional={} json={} deprecated={}",
        field.number(),
        field.label(),
        field.r#type(),
        field.type_name(),
        field.proto3_optional(),
        field.json_name(),
        field.options.as_ref().is_some_and(|o| o.deprecated()),
    )
}

fn enum_facts(outer: &str, item: &EnumDescriptorProto, facts: &mut Facts) {
    let name = format!("{outer}{}", item.name());
    note(facts, &name, "enum".into());
    for value in &item.value {
        note(facts, &format!("{name}::{}", value.name()), format!("= {}", value.number()));
    }
}

fn note(facts: &mut Facts, name: &str, fact: String) {
    let twice = facts.insert(name.to_owned(), fact);
    assert!(twice.is_none(), "{name} is described twice");
}

/// CRI-GEN-14: what a newer kubelet says besides, at any depth, is left out and the rest is understood.
#[test]
fn unknown_fields_are_ignored() {
    use cri_proto::v1;
    // Field 15999: a length-delimited "new", and a number as field 15998.
    let unknown: Vec<u8> = [&[0xfa, 0xe7, 0x07, 3][..], b"new", &[0xf0, 0xe7, 0x07, 42]].concat();
    let linux = v1::LinuxPodSandboxConfig { cgroup_parent: "/x".into(), ..Default::default() };
    let nested = [linux.encode_to_vec(), unknown.clone()].concat();
    let named = v1::PodSandboxConfig { hostname: "h".into(), ..Default::default() };
    // `linux` is field 8: by hand, as the type has no room for what it does not know.
    let length = u8::try_from(nested.len()).expect("short");
    let config = [named.encode_to_vec(), vec![8 << 3 | 2, length], nested, unknown.clone()].concat();
    let length = u8::try_from(config.len()).expect("short");
    let request = [vec![1 << 3 | 2, length], config, unknown].concat();
    let request = v1::RunPodSandboxRequest::decode(request.as_slice()).expect("understood");
    let expected = v1::PodSandboxConfig { linux: Some(linux), ..named };
    assert_eq!(request, v1::RunPodSandboxRequest { config: Some(expected), ..Default::default() });
}
