//! `slipway explain POD.yaml`: what a pod would make the kernel do. Needs no daemon, no image and no root; makes nothing.
//!
//! What only an image could tell (its command, its user by name, its volumes) is assumed, and said.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;
use slipway_images::ImageConfig;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::host::Host;
use slipway_runtime::plan::{self, Plan};
use slipway_runtime::program::{Explanation, Parking, Program};
use slipway_runtime::rootfs::{Overlay, Rootfs};

use super::facts;
use super::manifest::{Container, Pod, parse};
use super::output::{Output, json, print};
use super::run::{described, read};
use super::translate::{self, Facts};
use crate::cgroups::{Cgroups, PodGroup};
use crate::config::{File, ServeArgs};
use crate::containers::{ContainerRecord, Phase};
use crate::pods::PodRecord;
use crate::pods::files::PodDir;
use crate::spec::{self, Inputs};
use crate::user::Identity;

/// `slipway explain`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kubernetes v1 Pod manifest (YAML or JSON); "-": standard input
    file: PathBuf,
    #[command(flatten)]
    serve: ServeArgs,
}

/// One container's program.
#[derive(Debug, Serialize)]
struct Explained {
    pod: String,
    container: String,
    /// What had to be assumed.
    assumed: Vec<String>,
    #[serde(flatten)]
    program: Explanation,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let parsed = parse(&read(&args.file)?).with_context(|| described(&args.file))?;
    for warning in &parsed.warnings {
        eprintln!("warning: {warning}");
    }
    let host = facts::offline(&args.file, &args.serve.root)?;
    let (file, cgroups) = crate::config::look(&args.serve)?;
    // The daemon's rights, whoever asks.
    let current = Host::current().clone();
    let kernel = Host { capabilities: current.known_capabilities, setgroups_denied: false, ..current };
    let mut all = Vec::new();
    for pod in &parsed.pods {
        // Those of this host would be asked of the daemon: any range explains the same steps.
        let facts = host.for_pod(Some(1 << 16));
        let name = &pod.metadata.name;
        translate::check(pod, &facts).with_context(|| format!("pod {name}"))?;
        let state = &args.serve.state;
        let root = &args.serve.root;
        let node = Node { pod, facts: &facts, file: &file, cgroups: &cgroups, host: &kernel, root, state };
        all.extend(node.explain().with_context(|| format!("pod {name}"))?);
    }
    match output {
        Output::Json => json(&all),
        Output::Table => all.iter().try_for_each(|one| print(&text(one))),
    }
}

/// A pod on a node as the configuration describes it.
struct Node<'a> {
    pod: &'a Pod,
    facts: &'a Facts,
    file: &'a File,
    cgroups: &'a Cgroups,
    host: &'a Host,
    root: &'a Path,
    state: &'a Path,
}

impl Node<'_> {
    fn explain(&self) -> Result<Vec<Explained>> {
        let mut config = translate::sandbox_config(self.pod, self.facts)?;
        crate::pods::add_sysctls(&mut config, &self.file.pods.default_sysctls);
        let group = self.cgroups.pod("", "POD")?;
        let handler = self.pod.spec.runtime_class_name.clone();
        let mut record = PodRecord::intent("POD".into(), config, handler, group.path.clone(), true);
        record.netns = (!record.host_network()).then(|| self.state.join("netns/POD"));
        let containers = self.pod.spec.init_containers.iter().chain(&self.pod.spec.containers);
        let explained = containers.map(|container| {
            let of = self.container(container, &record, &group);
            of.with_context(|| format!("container {}", container.name))
        });
        explained.collect()
    }

    fn container(&self, asked: &Container, pod: &PodRecord, group: &PodGroup) -> Result<Explained> {
        let config = translate::container_config(self.pod, asked, self.facts, None)?.config;
        let mut assumed = Vec::new();
        let mut image = ImageConfig::default();
        if config.command.is_empty() {
            assumed.push("the command is the image's ENTRYPOINT".to_owned());
            image.entrypoint = vec!["/ENTRYPOINT".to_owned()];
        }
        let security = config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
        let user = security.run_as_user.map(|user| user.value);
        if user.is_none() {
            assumed.push("the image's USER is root".to_owned());
        }
        let mut pod = pod.clone();
        let selinux = crate::selinux::example(&self.file.selinux, &mut pod, &security)?;
        if selinux.is_some() {
            assumed.push("its categories of SELinux are s0:c0,c1".to_owned());
        }
        let pod = &pod;
        let uid = u32::try_from(user.unwrap_or(0)).context("runAsUser")?;
        let gid =
            u32::try_from(security.run_as_group.map_or(0, |group| group.value)).context("runAsGroup")?;
        let groups = security.supplemental_groups.iter().filter_map(|g| u32::try_from(*g).ok()).collect();
        let identity = Identity { uid, gid, groups };
        let id = asked.name.clone();
        let sources: Vec<PathBuf> =
            config.mounts.iter().map(|mount| mount.host_path.clone().into()).collect();
        let container = ContainerRecord {
            pod_id: pod.id.clone(),
            created_at: 0,
            image_id: String::new(),
            image_name: asked.image.clone(),
            image_ref: String::new(),
            log_path: String::new(),
            user: identity.to_cri(),
            stop_signal: 15,
            stop_signal_name: 0,
            cgroup: self.cgroups.container(&group.path, &id),
            bundle: self.state.join("containers").join(&id),
            nri: serde_json::Value::Null,
            restored: false,
            selinux,
            phase: Phase::Creating,
            id,
            config,
        };
        let label = container.selinux.as_ref().map(|labels| labels.file.clone());
        let handler = crate::handlers::find(self.file, &pod.handler).unwrap_or_default();
        if let Some(runtime) = handler.program() {
            anyhow::bail!(
                "runtimeClassName {:?} is run by {}: what that does, only it can tell",
                pod.handler,
                runtime.display()
            );
        }
        let spec = spec::build(&Inputs {
            pod,
            container: &container,
            image: &image,
            identity: &identity,
            pod_dir: &PodDir::at(self.root, self.state, "POD"),
            sources: &sources,
            volumes: &[],
            cdi: &[],
            defaults: &self.file.containers,
            handler: &handler,
            target_pid: None,
        })?;
        let layer = |name: &str| PathBuf::from("/LAYERS").join(name);
        let overlay = Overlay {
            lower: vec![layer("IMAGE")],
            upper: Some(layer("UPPER")),
            work: Some(layer("WORK")),
            label,
            ..Overlay::default()
        };
        let rootfs = Rootfs::Overlay(overlay);
        let bundle = &container.bundle;
        let facts = plan::Facts { host: self.host, bundle, rootfs: &rootfs, given: &[], home: None };
        let plan = Plan::new(&container.id, &spec, &facts)?;
        let limits = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let groups = Cgroup::explain(&plan.cgroup_path, limits)?;
        let program = Program::create(&plan, Parking::CommandOpen)?;
        let program = Explanation { groups, ..program.explanation() };
        Ok(Explained { pod: pod.label(), container: container.id, assumed, program })
    }
}

/// The child's steps are numbered as a failed start numbers them.
fn text(one: &Explained) -> String {
    let mut text = format!("pod {}, container {}", one.pod, one.container);
    if !one.assumed.is_empty() {
        text += &format!(" (assumed: {})", one.assumed.join(", "));
    }
    text.push('\n');
    let program = &one.program;
    text.extend(program.groups.iter().map(|line| format!("      {line}\n")));
    text.extend(program.prepare.iter().map(|line| format!("      prepare {line}\n")));
    text += &format!("      {}\n", program.clone);
    text.extend(program.steps.iter().enumerate().map(|(n, line)| format!("{:>4}  {line}\n", n + 1)));
    text
}
