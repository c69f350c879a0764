//! Programs of pods: the reaper of a shared PID namespace, and namespaces made inside a user namespace.

use super::{Builder, PidNamespace, Prepare, Program, text};
use crate::namespace::NamespaceKind;
use crate::sys::step::{CapabilityMasks, Step, StringTable};

/// What a pod with a user namespace is made of.
#[derive(Debug, Clone, Default)]
pub struct PodPlan {
    /// A network namespace is given beside the user namespace.
    pub network: bool,
    /// A network namespace is made.
    pub new_network: bool,
    pub ipc: bool,
    /// With this host name.
    pub uts: Option<String>,
    /// Files below /proc/sys and values.
    pub sysctls: Vec<(String, String)>,
    /// A PID namespace with our reaper as its first process.
    pub reaper: bool,
}

impl Program {
    /// The program that becomes the first process of a shared PID namespace: nothing to see, nothing to do, no rights.
    pub fn reaper() -> Self {
        const NOBODY: u32 = 65535;
        let mut builder = Builder::default();
        builder.push(Step::CloseForeign);
        builder.push(Step::ResetSignals);
        builder.push(Step::NewSession);
        builder.reaper(NOBODY);
        let new_namespaces = NamespaceKind::Pid.clone_flag() | NamespaceKind::Mount.clone_flag();
        builder.program(new_namespaces, PidNamespace::Inherited)
    }

    /// Parks when the namespaces are there to be opened. `given`: the user namespace, then the network namespace if there
    /// is one. With a reaper the start byte makes it; without, the process has done its work.
    pub fn pod(plan: &PodPlan) -> Self {
        let mut builder = Builder::default();
        builder.push(Step::CloseForeign);
        builder.push(Step::ResetSignals);
        builder.push(Step::NewSession);
        let user = builder.handle(Prepare::Given { kind: NamespaceKind::User, index: 0 });
        if plan.network {
            let kind = NamespaceKind::Network;
            let from = builder.handle(Prepare::Given { kind, index: 1 });
            builder.push(Step::JoinNamespace { from, kind: kind.clone_flag() });
        }
        builder.enter_user_namespace(user);
        let asked = [
            (NamespaceKind::Ipc, plan.ipc),
            (NamespaceKind::Uts, plan.uts.is_some()),
            (NamespaceKind::Network, plan.new_network),
            (NamespaceKind::Pid, plan.reaper),
            (NamespaceKind::Mount, plan.reaper),
        ];
        let kinds = asked.iter().filter(|(_, asked)| *asked).fold(0, |kinds, (k, _)| kinds | k.clone_flag());
        if kinds != 0 {
            builder.push(Step::Unshare(kinds));
        }
        if plan.reaper {
            builder.again(Vec::new());
        }
        builder.push(Step::BecomeNamespaceRoot { groups: true });
        if let Some(name) = &plan.uts {
            builder.push(Step::SetHostName(text(name)));
        }
        for (file, value) in &plan.sysctls {
            let path = text(&format!("/proc/sys/{file}"));
            builder.push(Step::WriteProc { path, value: text(value), forgive: 0 });
        }
        builder.push(Step::Park);
        if plan.reaper {
            // Root of the namespace, since nobody else is sure to be mapped; without any right.
            builder.reaper(0);
        }
        builder.program(0, PidNamespace::Inherited)
    }
}

impl Builder {
    fn reaper(&mut self, id: u32) {
        let (empty, reaper) = (self.handle(Prepare::Empty), self.handle(Prepare::Reaper));
        let steps = [
            Step::DetachPropagation,
            Step::EnterRoot(empty),
            Step::StandardStreams { uid: 0 },
            Step::BoundingSet(0),
            Step::Credentials { uid: id, gid: id, groups: Some(Vec::new()) },
            Step::Capabilities { masks: CapabilityMasks::default(), extra: 0 },
            Step::NoNewPrivileges,
            Step::UnblockSignals,
            Step::ExecuteDescriptor { from: reaper, argv: StringTable::new(vec![text("slipway-reaper")]) },
        ];
        self.steps.extend(steps);
    }
}
