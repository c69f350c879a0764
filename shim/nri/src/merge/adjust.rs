//! Adjustments of a container that is being created.

use super::items::{self, Claim, removal};
use super::{Updates, resources};
use crate::error::Result;
use cri_proto::nri::{
    Container, ContainerAdjustment, CreateContainerResponse, Field, Hooks, KeyValue, LinuxContainer,
    LinuxContainerAdjustment, LinuxRdt,
};

/// What has been asked for so far, and what the next plugin sees.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) container: Container,
    pub(crate) adjust: ContainerAdjustment,
    pub(crate) updates: Updates,
}

impl Creation {
    pub(crate) fn of(container: Container) -> Self {
        Self { container, adjust: ContainerAdjustment::new(), updates: Updates::default() }
    }

    /// Takes one plugin's answer.
    ///
    /// # Errors
    /// Conflict; then the request has failed as a whole.
    pub(crate) fn take(&mut self, answer: &CreateContainerResponse, plugin: &str) -> Result<()> {
        Updates::check_not(&answer.update, &self.container.id, plugin)?;
        if let Some(asked) = answer.adjust.as_ref() {
            self.top_level(asked, plugin)?;
            if let Some(linux) = asked.linux.as_ref() {
                self.linux_items(linux, plugin)?;
                self.linux_fields(linux, plugin)?;
                self.rdt(&linux.rdt, plugin)?;
            }
        }
        self.updates.take(&answer.update, plugin)?;
        self.updates.evict.extend(answer.evict.iter().cloned());
        Ok(())
    }

    fn top_level(&mut self, asked: &ContainerAdjustment, plugin: &str) -> Result<()> {
        let (container, adjust) = (&mut self.container, &mut self.adjust);
        let (id, owners) = (container.id.clone(), &mut self.updates.owners);
        let mut claim = Claim { owners, container: &id, plugin, field: Field::Annotations };
        items::map(&mut claim, &mut adjust.annotations, &asked.annotations)?;
        items::show_map(&mut container.annotations, &asked.annotations);
        claim.field = Field::Mounts;
        items::list(&mut claim, &mut adjust.mounts, &asked.mounts, |m| &m.destination)?;
        items::show_list(&mut container.mounts, &asked.mounts, |m| &m.destination);
        claim.field = Field::Env;
        items::list(&mut claim, &mut adjust.env, &asked.env, |e| &e.key)?;
        show_env(&mut container.env, &asked.env);
        for limit in &asked.rlimits {
            claim.owners.claim(&id, Field::Rlimits, &limit.type_, plugin)?;
            adjust.rlimits.push(limit.clone());
        }
        items::show_list(&mut container.rlimits, &asked.rlimits, |l| &l.type_);
        for device in &asked.CDI_devices {
            claim.owners.claim(&id, Field::CdiDevices, &device.name, plugin)?;
            adjust.CDI_devices.push(device.clone());
        }
        container.CDI_devices.extend(asked.CDI_devices.iter().cloned());
        self.args(&asked.args, plugin)?;
        self.hooks(&asked.hooks, plugin);
        Ok(())
    }

    /// An empty first element says that an earlier plugin's are overridden (NRI-24).
    fn args(&mut self, asked: &[String], plugin: &str) -> Result<()> {
        let Some(first) = asked.first() else { return Ok(()) };
        let (id, owners) = (&self.container.id, &mut self.updates.owners);
        if first.is_empty() {
            owners.clear(id, Field::Args, "");
        }
        let args = if first.is_empty() { &asked[1..] } else { asked };
        owners.claim(id, Field::Args, "", plugin)?;
        self.adjust.args = args.to_vec();
        self.container.args = args.to_vec();
        Ok(())
    }

    fn hooks(&mut self, asked: &Hooks, plugin: &str) {
        if *asked == Hooks::default() {
            return;
        }
        for into in [self.adjust.hooks.mut_or_insert_default(), self.container.hooks.mut_or_insert_default()]
        {
            into.prestart.extend(asked.prestart.iter().cloned());
            into.create_runtime.extend(asked.create_runtime.iter().cloned());
            into.create_container.extend(asked.create_container.iter().cloned());
            into.start_container.extend(asked.start_container.iter().cloned());
            into.poststart.extend(asked.poststart.iter().cloned());
            into.poststop.extend(asked.poststop.iter().cloned());
        }
        self.updates.owners.join(&self.container.id, Field::OciHooks, plugin);
    }

    fn linux_items(&mut self, asked: &LinuxContainerAdjustment, plugin: &str) -> Result<()> {
        let id = self.container.id.clone();
        let (seen, adjust) =
            (self.container.linux.mut_or_insert_default(), self.adjust.linux.mut_or_insert_default());
        let owners = &mut self.updates.owners;
        let mut claim = Claim { owners, container: &id, plugin, field: Field::Devices };
        items::list(&mut claim, &mut adjust.devices, &asked.devices, |d| &d.path)?;
        items::show_list(&mut seen.devices, &asked.devices, |d| &d.path);
        claim.field = Field::Namespace;
        items::list(&mut claim, &mut adjust.namespaces, &asked.namespaces, |n| &n.type_)?;
        items::show_list(&mut seen.namespaces, &asked.namespaces, |n| &n.type_);
        claim.field = Field::Sysctl;
        items::map(&mut claim, &mut adjust.sysctl, &asked.sysctl)?;
        items::show_map(&mut seen.sysctl, &asked.sysctl);
        claim.field = Field::LinuxNetDevices;
        items::map(&mut claim, &mut adjust.net_devices, &asked.net_devices)?;
        items::show_map(&mut seen.net_devices, &asked.net_devices);
        let into = &mut [seen.resources.mut_or_insert_default(), adjust.resources.mut_or_insert_default()];
        resources::merge(claim.owners, &id, plugin, &asked.resources, into)
    }

    fn linux_fields(&mut self, asked: &LinuxContainerAdjustment, plugin: &str) -> Result<()> {
        let id = self.container.id.clone();
        let seen: &mut LinuxContainer = self.container.linux.mut_or_insert_default();
        let adjust = self.adjust.linux.mut_or_insert_default();
        let mut claim = |field| self.updates.owners.claim(&id, field, "", plugin);
        if !asked.cgroups_path.is_empty() {
            claim(Field::CgroupsPath)?;
            adjust.cgroups_path.clone_from(&asked.cgroups_path);
            seen.cgroups_path.clone_from(&asked.cgroups_path);
        }
        if asked.oom_score_adj.is_some() {
            claim(Field::OomScoreAdj)?;
            adjust.oom_score_adj.clone_from(&asked.oom_score_adj);
            seen.oom_score_adj.clone_from(&asked.oom_score_adj);
        }
        if asked.io_priority.is_some() {
            claim(Field::IoPriority)?;
            adjust.io_priority.clone_from(&asked.io_priority);
            seen.io_priority.clone_from(&asked.io_priority);
        }
        if asked.seccomp_policy.is_some() {
            claim(Field::SeccompPolicy)?;
            adjust.seccomp_policy.clone_from(&asked.seccomp_policy);
            seen.seccomp_policy.clone_from(&asked.seccomp_policy);
        }
        if asked.scheduler.is_some() {
            claim(Field::LinuxSched)?;
            adjust.scheduler.clone_from(&asked.scheduler);
            seen.scheduler.clone_from(&asked.scheduler);
        }
        if asked.memory_policy.is_some() {
            claim(Field::MemoryPolicy)?;
            adjust.memory_policy.clone_from(&asked.memory_policy);
        }
        Ok(())
    }

    fn rdt(&mut self, asked: &LinuxRdt, plugin: &str) -> Result<()> {
        if *asked == LinuxRdt::default() {
            return Ok(());
        }
        let id = self.container.id.clone();
        let owners = &mut self.updates.owners;
        let adjust = self.adjust.linux.mut_or_insert_default().rdt.mut_or_insert_default();
        if asked.remove {
            for field in [Field::RdtClosID, Field::RdtSchemata, Field::RdtEnableMonitoring] {
                owners.clear(&id, field, "");
            }
            *adjust = LinuxRdt { remove: true, ..Default::default() };
        }
        if asked.clos_id.is_some() {
            owners.claim(&id, Field::RdtClosID, "", plugin)?;
            adjust.clos_id.clone_from(&asked.clos_id);
        }
        if asked.schemata.is_some() {
            owners.claim(&id, Field::RdtSchemata, "", plugin)?;
            adjust.schemata.clone_from(&asked.schemata);
        }
        if asked.enable_monitoring.is_some() {
            owners.claim(&id, Field::RdtEnableMonitoring, "", plugin)?;
            adjust.enable_monitoring.clone_from(&asked.enable_monitoring);
        }
        self.container.linux.mut_or_insert_default().rdt = Some(adjust.clone()).into();
        Ok(())
    }
}

fn show_env(env: &mut Vec<String>, asked: &[KeyValue]) {
    for variable in asked {
        let name = removal(&variable.key).unwrap_or(&variable.key);
        env.retain(|old| old.split('=').next() != Some(name));
    }
    let added = asked.iter().filter(|v| removal(&v.key).is_none());
    env.extend(added.map(|v| format!("{}={}", v.key, v.value)));
}
