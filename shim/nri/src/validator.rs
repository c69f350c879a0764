//! The built-in validator: what plugins may not change on this node, and which plugins must have had their say (NRI-27).

use crate::error::{Error, Kind, Result};
use crate::owners::Owners;
use cri_proto::nri::{Container, Field, PluginInstance, PodSandbox};

/// Pod annotation with a YAML list of plugins without which a container must not be made. As a key of its own or with
/// `/pod` for all of a pod, with `/container.NAME` for one container, which counts more.
const REQUIRED: &str = "required-plugins.noderesource.dev";

/// What is refused; nothing by default.
#[derive(Debug, Clone, Default)]
pub struct Validator {
    pub reject_oci_hook_adjustment: bool,
    pub reject_runtime_default_seccomp_adjustment: bool,
    pub reject_unconfined_seccomp_adjustment: bool,
    pub reject_custom_seccomp_adjustment: bool,
    pub reject_namespace_adjustment: bool,
    pub reject_sysctl_adjustment: bool,
    /// For every container of this node.
    pub required_plugins: Vec<String>,
    /// Pod annotation that, when "true", lets containers be made without them. Empty: none does.
    pub tolerate_missing_plugins_annotation: String,
}

impl Validator {
    /// `answered` are the plugins that have had their say about this container: one that was dropped has not.
    ///
    /// # Errors
    /// Rejected, naming plugin and field, or the plugins that are missing.
    pub(crate) fn check(
        &self,
        pod: &PodSandbox,
        container: &Container,
        owners: &Owners,
        answered: &[PluginInstance],
    ) -> Result<()> {
        self.check_fields(container, owners)?;
        let missing = self.missing(pod, &container.name, answered)?;
        if missing.is_empty() {
            return Ok(());
        }
        Err(rejected(format!(
            "required NRI plugins have not answered: {}; start them, or see required_plugins and the pod's annotations",
            missing.join(", ")
        )))
    }

    fn check_fields(&self, container: &Container, owners: &Owners) -> Result<()> {
        use cri_proto::nri::security_profile::ProfileType;
        let id = &container.id;
        if let Some(owner) = owners.owner(id, Field::OciHooks).filter(|_| self.reject_oci_hook_adjustment) {
            return Err(not_allowed(owner, "OCI hooks"));
        }
        if let Some(owner) = owners.owner(id, Field::SeccompPolicy) {
            let profile = container.linux.seccomp_profile.as_ref();
            let (refused, what) = match profile.map(|p| p.profile_type.enum_value_or_default()) {
                None | Some(ProfileType::UNCONFINED) => {
                    (self.reject_unconfined_seccomp_adjustment, "an unconfined seccomp policy")
                }
                Some(ProfileType::RUNTIME_DEFAULT) => {
                    (self.reject_runtime_default_seccomp_adjustment, "the runtime's default seccomp policy")
                }
                Some(ProfileType::LOCALHOST) => {
                    (self.reject_custom_seccomp_adjustment, "a custom seccomp policy")
                }
            };
            if refused {
                return Err(not_allowed(owner, what));
            }
        }
        for (refused, field, what) in [
            (self.reject_namespace_adjustment, Field::Namespace, "namespaces"),
            (self.reject_sysctl_adjustment, Field::Sysctl, "sysctls"),
        ] {
            if let Some((key, owner)) = owners.items(id, field).next().filter(|_| refused) {
                return Err(not_allowed(owner, &format!("{what} ({key})")));
            }
        }
        Ok(())
    }

    fn missing(&self, pod: &PodSandbox, container: &str, answered: &[PluginInstance]) -> Result<Vec<String>> {
        let tolerate = &self.tolerate_missing_plugins_annotation;
        if let Some(value) = annotation(pod, tolerate, container).filter(|_| !tolerate.is_empty()) {
            match value {
                "true" => return Ok(Vec::new()),
                "false" => {}
                other => {
                    return Err(rejected(format!("annotation {tolerate} = {other:?} is not true or false")));
                }
            }
        }
        let mut required = self.required_plugins.clone();
        if let Some(value) = annotation(pod, REQUIRED, container) {
            let more: Vec<String> = serde_saphyr::from_str(value).map_err(|e| {
                rejected(format!("annotation {REQUIRED} = {value:?} is no list of plugins: {e}"))
            })?;
            required.extend(more);
        }
        required.retain(|name| {
            !answered.iter().any(|p| p.name == *name || format!("{}-{}", p.index, p.name) == *name)
        });
        Ok(required)
    }
}

/// The annotation in force for a container.
fn annotation<'a>(pod: &'a PodSandbox, key: &str, container: &str) -> Option<&'a str> {
    let keys = [format!("{key}/container.{container}"), format!("{key}/pod"), key.to_owned()];
    keys.iter().find_map(|key| pod.annotations.get(key)).map(String::as_str)
}

fn rejected(why: String) -> Error {
    Error::new(Kind::Rejected, why)
}

fn not_allowed(plugin: &str, what: &str) -> Error {
    rejected(format!(
        "NRI plugin {plugin} changed {what}, which this node's default validator does not allow"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> (PodSandbox, Container) {
        let mut pod = PodSandbox::new();
        pod.annotations.insert(format!("{REQUIRED}/container.special"), "[ gpu, net ]".into());
        (pod, Container { id: "c".into(), name: "main".into(), ..Default::default() })
    }

    fn plugin(name: &str) -> PluginInstance {
        PluginInstance { name: name.into(), index: "10".into(), ..Default::default() }
    }

    /// NRI-27.
    #[test]
    fn required_plugins_must_have_answered() {
        let (mut pod, mut container) = subject();
        let owners = Owners::default();
        let node = Validator { required_plugins: vec!["policy".into()], ..Default::default() };
        let error = node.check(&pod, &container, &owners, &[plugin("other")]).expect_err("missing");
        assert!(error.kind == Kind::Rejected && error.to_string().contains("policy"), "{error}");
        assert_eq!(node.check(&pod, &container, &owners, &[plugin("policy")]), Ok(()));
        let indexed = Validator { required_plugins: vec!["10-policy".into()], ..Default::default() };
        assert_eq!(indexed.check(&pod, &container, &owners, &[plugin("policy")]), Ok(()));
        container.name = "special".into();
        let error =
            node.check(&pod, &container, &owners, &[plugin("policy"), plugin("net")]).expect_err("annotated");
        assert!(error.to_string().contains("gpu") && !error.to_string().contains("net,"), "{error}");
        pod.annotations.insert(REQUIRED.into(), "nonsense: [".into());
        container.name = "third".into();
        assert!(node.check(&pod, &container, &owners, &[]).is_err_and(|e| e.to_string().contains("no list")));
    }

    #[test]
    fn missing_plugins_can_be_tolerated() {
        let (mut pod, container) = subject();
        let node = Validator {
            required_plugins: vec!["policy".into()],
            tolerate_missing_plugins_annotation: "tolerate".into(),
            ..Default::default()
        };
        pod.annotations.insert("tolerate".into(), "true".into());
        assert_eq!(node.check(&pod, &container, &Owners::default(), &[]), Ok(()));
        pod.annotations.insert("tolerate/container.main".into(), "false".into());
        assert!(node.check(&pod, &container, &Owners::default(), &[]).is_err());
        pod.annotations.insert("tolerate/container.main".into(), "yes!".into());
        assert!(
            node.check(&pod, &container, &Owners::default(), &[])
                .is_err_and(|e| e.to_string().contains("yes!"))
        );
    }

    /// NRI-27.
    #[test]
    fn fields_can_be_closed() {
        let (pod, container) = subject();
        let strict = Validator {
            reject_oci_hook_adjustment: true,
            reject_namespace_adjustment: true,
            reject_sysctl_adjustment: true,
            reject_unconfined_seccomp_adjustment: true,
            ..Default::default()
        };
        for (field, key, what) in [
            (Field::OciHooks, "", "hooks"),
            (Field::Namespace, "network", "network"),
            (Field::Sysctl, "kernel.shmmax", "kernel.shmmax"),
            (Field::SeccompPolicy, "", "unconfined"),
        ] {
            let mut owners = Owners::default();
            owners.claim("c", field, key, "10-evil").expect("first");
            let error = strict.check(&pod, &container, &owners, &[]).expect_err("refused").to_string();
            assert!(error.contains("10-evil") && error.contains(what), "{error}");
            assert_eq!(Validator::default().check(&pod, &container, &owners, &[]), Ok(()));
        }
    }
}
