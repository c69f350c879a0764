//! `process`: command, environment, directory, user, limits.

use super::{Inputs, apparmor, capabilities};
use crate::error::{Error, Result};
use cri_proto::v1;
use serde_json::{Value, json};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn build(inputs: &Inputs<'_>) -> Result<Value> {
    let config = &inputs.container.config;
    let security = inputs.security();
    let cwd = [&config.working_dir, &inputs.image.working_dir].into_iter().find(|d| !d.is_empty());
    let cwd = cwd.map_or("/", String::as_str);
    if !cwd.starts_with('/') {
        return Err(Error::invalid(format!("working_dir {cwd:?} is not absolute")));
    }
    let mut process = json!({
        "terminal": config.tty,
        "user": {
            "uid": inputs.identity.uid,
            "gid": inputs.identity.gid,
            "additionalGids": inputs.identity.groups,
        },
        "args": args(inputs)?,
        "env": env(inputs)?,
        "cwd": cwd,
        "capabilities": capabilities::build(&security)?,
        "noNewPrivileges": security.no_new_privs,
    });
    if let Some(profile) = apparmor::profile(&security)? {
        process["apparmorProfile"] = profile.into();
    }
    // Empty: the daemon's own domain, which nobody needs to ask for.
    if let Some(labels) = inputs.container.selinux.as_ref().filter(|labels| !labels.process.is_empty()) {
        process["selinuxLabel"] = labels.process.clone().into();
    }
    let adjust = inputs.linux().resources.map_or(0, |r| r.oom_score_adj);
    if !(-1000..=1000).contains(&adjust) {
        return Err(Error::invalid(format!("oom_score_adj {adjust} is not between -1000 and 1000")));
    }
    process["oomScoreAdj"] = adjust.into();
    if !inputs.defaults.default_ulimits.is_empty() {
        process["rlimits"] =
            inputs.defaults.default_ulimits.iter().map(crate::config::Ulimit::to_oci).collect();
    }
    Ok(process)
}

/// CRI-CC-06, CRI-CC-07.
fn args(inputs: &Inputs<'_>) -> Result<Vec<String>> {
    let (config, image) = (&inputs.container.config, inputs.image);
    let entrypoint = if image.entrypoint == [""] { &[][..] } else { &image.entrypoint[..] };
    let mut args = if config.command.is_empty() { entrypoint.to_vec() } else { config.command.clone() };
    if config.command.is_empty() && config.args.is_empty() {
        args.extend(image.cmd.iter().cloned());
    } else {
        args.extend(config.args.iter().cloned());
    }
    if args.is_empty() {
        let image = &inputs.container.image_name;
        return Err(Error::invalid(format!(
            "no command specified: neither the request nor image {image} names one; set command"
        )));
    }
    let nul = args.iter().find(|a| a.contains('\0'));
    nul.map_or(Ok(args.clone()), |bad| Err(Error::invalid(format!("argument {bad:?} holds a NUL byte"))))
}

/// HOSTNAME and PATH, then the image's, then the request's; later ones replace earlier ones (CRI-CC-08, CRI-XS-09).
fn env(inputs: &Inputs<'_>) -> Result<Vec<String>> {
    let mut env =
        vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", crate::pods::files::hostname(inputs.pod))];
    if inputs.container.config.tty {
        env.push("TERM=xterm".into());
    }
    let request = inputs.container.config.envs.iter().map(variable).collect::<Result<Vec<_>>>()?;
    for variable in inputs.image.env.iter().cloned().chain(request) {
        let key = variable.split('=').next().unwrap_or_default().to_owned() + "=";
        match env.iter_mut().find(|e| e.starts_with(&key)) {
            Some(old) => *old = variable,
            None => env.push(variable),
        }
    }
    Ok(env)
}

/// CRI carries bytes, config.json is UTF-8 text (OCI config.md): what does not fit is refused, not changed.
fn variable(pair: &v1::KeyValue) -> Result<String> {
    let value = std::str::from_utf8(&pair.value);
    let value =
        value.map_err(|e| Error::invalid(format!("envs: the value of {} is not UTF-8: {e}", pair.key)))?;
    if pair.key.is_empty() || pair.key.contains(['=', '\0']) || value.contains('\0') {
        return Err(Error::invalid(format!(
            "envs: {:?} is not a variable: '=' or NUL in it, or empty",
            pair.key
        )));
    }
    Ok(format!("{}={value}", pair.key))
}

#[cfg(test)]
mod tests {
    use crate::spec::tests::spec_of;
    use cri_proto::v1;
    use serde_json::json;

    /// CRI-CC-06.
    #[test]
    fn command_and_args() {
        let args = |command: &[&str], args: &[&str]| {
            let spec = spec_of(|c, _| {
                c.command = command.iter().map(|&s| s.into()).collect();
                c.args = args.iter().map(|&s| s.into()).collect();
            });
            spec.expect("spec")["process"]["args"].clone()
        };
        assert_eq!(args(&[], &[]), json!(["/entry", "arg"]));
        assert_eq!(args(&["cmd"], &[]), json!(["cmd"]), "a command also drops Cmd");
        assert_eq!(args(&[], &["x"]), json!(["/entry", "x"]));
        assert_eq!(args(&["cmd"], &["x"]), json!(["cmd", "x"]));
    }

    #[test]
    fn limits_of_the_configuration() {
        let spec = spec_of(|_, _| {}).expect("spec");
        assert_eq!(spec["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]));
    }

    /// CRI-SEC-10.
    #[test]
    fn labels_of_selinux() {
        let of = |process: &str| {
            let mut container = crate::spec::tests::container();
            let (process, file) = (process.into(), "u:r:f:s0:c1,c2".into());
            container.selinux = Some(crate::selinux::Labels { process, file });
            crate::spec::tests::spec_of_container(&container).expect("spec")
        };
        let spec = of("u:r:t:s0:c1,c2");
        assert_eq!(spec["process"]["selinuxLabel"], "u:r:t:s0:c1,c2");
        assert_eq!(spec["linux"]["mountLabel"], "u:r:f:s0:c1,c2");
        assert_eq!(of("")["process"].get("selinuxLabel"), None);
        let without = spec_of(|_, _| {}).expect("spec");
        assert_eq!(without["process"].get("selinuxLabel").or(without["linux"].get("mountLabel")), None);
    }

    /// CRI-CC-08, CRI-CC-09.
    #[test]
    fn environment_is_replaced_in_order() {
        let spec = spec_of(|c, _| c.envs = vec![v1::KeyValue { key: "A".into(), value: "request".into() }]);
        let process = spec.expect("spec")["process"].clone();
        assert_eq!(process["env"], json!(["PATH=/bin", "HOSTNAME=web", "A=request"]));
        assert_eq!(process["cwd"], "/");
        assert!(spec_of(|c, _| c.working_dir = "rel".into()).is_err());
    }
}
