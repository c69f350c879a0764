//! How a container's first process comes into its namespaces: which it joins, which it makes, and as whom.
//!
//! On the host's user namespace one clone3 makes all that is new. In a user namespace everything new must belong to it, so
//! the child joins it first and then makes the rest; a new PID namespace then needs the extra clone (`sys::rebirth`).
//! What needs the host's rights comes before: joining what may belong to others, raising limits and priorities, giving streams away.

use super::{Builder, PidNamespace, Prepare, path_text, priorities, text};
use crate::Result;
use crate::host::CgroupLayout;
use crate::idmap::Setgroups;
use crate::namespace::NamespaceKind;
use crate::plan::{self, NamespacePlan, NamespaceSource, Plan, ProcessPlan, UserPlan};
use crate::sys::step::{Handle, Step};

/// What clone3 is told.
pub(super) struct Birth {
    /// CLONE_NEW*.
    pub(super) new_namespaces: u32,
    pub(super) pid_namespace: PidNamespace,
}

impl Builder {
    /// Namespaces, and what is said about them while the host's procfs is in reach.
    pub(super) fn birth(&mut self, plan: &Plan) -> Result<Birth> {
        self.begin(&plan.process);
        let birth = match &plan.user {
            None => self.on_the_host(plan),
            Some(user) => {
                self.in_user_namespace(plan, user)?;
                let pid_namespace = self.joined_pid.map_or(PidNamespace::Inherited, PidNamespace::Joined);
                Birth { new_namespaces: 0, pid_namespace }
            }
        };
        // On version 2 clone3 has put us into the group already, and the mount of cgroup2 below needs the namespace.
        if plan.new_cgroup_namespace() && plan.cgroup_layout == CgroupLayout::V2 {
            self.push(Step::NewCgroupNamespace);
        }
        Ok(birth)
    }

    fn on_the_host(&mut self, plan: &Plan) -> Birth {
        self.join_all(plan, false);
        self.settings(plan, |_| true);
        let pid_namespace = self.joined_pid.map_or(PidNamespace::Inherited, PidNamespace::Joined);
        Birth { new_namespaces: new_kinds(plan), pid_namespace }
    }

    fn in_user_namespace(&mut self, plan: &Plan, user: &UserPlan) -> Result<()> {
        let prepare = match &user.source {
            NamespaceSource::New => Prepare::NewUser {
                mappings: user.mappings.clone().unwrap_or_default(),
                setgroups: user.setgroups,
            },
            NamespaceSource::Path(path) => {
                Prepare::Namespace { kind: NamespaceKind::User, path: path.clone() }
            }
            NamespaceSource::Given(index) => Prepare::Given { kind: NamespaceKind::User, index: *index },
        };
        let from = self.handle(prepare);
        self.early = Some(Vec::new());
        self.user = user.mappings.clone().map(|mappings| (from, mappings));
        // The kernel asks for rights on the host whatever a process may do inside.
        self.hard_limits(&plan.process);
        if let Some(uid) = plan.process.host_uid {
            self.push(Step::GiveStreams { uid });
        }
        if let Some(place) = &plan.root_place {
            self.push(Step::GoToPlace(path_text(place)?));
        }
        self.root = user.host_root();
        let new = new_kinds(plan);
        let joins_pid = plan.namespaces.iter().any(|n| n.kind == NamespaceKind::Pid);
        let again = new & NamespaceKind::Pid.clone_flag() != 0 || user.ordinary && joins_pid;
        if !again {
            self.steps.extend(priorities(&plan.process));
        }
        // Who is root of the host may join everything now. Who is nobody there has rights inside only.
        if !user.ordinary {
            self.join_all(plan, false);
            self.settings(plan, |kind| before(plan, kind));
        }
        self.enter_user_namespace(from);
        if user.ordinary {
            self.join_all(plan, true);
        }
        if new != 0 {
            self.push(Step::Unshare(new));
        }
        if again {
            self.again(priorities(&plan.process));
        }
        self.push(Step::BecomeNamespaceRoot { groups: user.setgroups == Setgroups::Allow });
        self.settings(plan, |kind| user.ordinary || !before(plan, kind));
        Ok(())
    }

    /// The same for a process beside the first one. Answers whose PID namespace clone3 is to use.
    pub(super) fn enter_user_namespace_of(
        &mut self,
        target: Handle,
        process: &ProcessPlan,
        user: &UserPlan,
        kinds: u32,
        root: Option<Handle>,
    ) -> PidNamespace {
        self.hard_limits(process);
        if let Some(uid) = process.host_uid {
            self.push(Step::GiveStreams { uid });
        }
        let kinds = kinds | NamespaceKind::User.clone_flag();
        let groups = user.setgroups == Setgroups::Allow;
        let pid_namespace = if user.ordinary {
            let kinds = (kinds | NamespaceKind::Pid.clone_flag()) & !user.shared;
            self.join_and_go_on(target, kinds, root, priorities(process))
        } else {
            self.steps.extend(priorities(process));
            self.push(Step::JoinProcess { pidfd: target, kinds });
            self.steps.extend(root.map(Step::ChangeRoot));
            PidNamespace::OfProcess(target)
        };
        self.push(Step::BecomeNamespaceRoot { groups });
        pid_namespace
    }

    /// Joins these kinds of the process behind `target`, and its PID namespace by the extra clone. The new process is seen
    /// inside only once it has the container's tree: whoever may trace there would find the host's behind /proc/PID/root
    /// before. (With a user namespace between, nobody inside may trace who was born outside.)
    pub(super) fn join_and_go_on(
        &mut self,
        target: Handle,
        kinds: u32,
        root: Option<Handle>,
        outside: Vec<Step>,
    ) -> PidNamespace {
        let cgroup = NamespaceKind::Cgroup.clone_flag();
        self.push(Step::JoinProcess { pidfd: target, kinds: kinds & !cgroup });
        self.steps.extend(root.map(Step::ChangeRoot));
        self.again(outside);
        // Not before: whoever is in a cgroup namespace can go into no group that is not below its root, nor come from one,
        // and the clone goes from ours into the container's (cgroup_namespaces(7); nsdelegate).
        if kinds & cgroup != 0 {
            self.push(Step::JoinProcess { pidfd: target, kinds: cgroup });
        }
        PidNamespace::Inherited
    }

    pub(super) fn enter_user_namespace(&mut self, from: Handle) {
        self.push(Step::JoinNamespace { from, kind: NamespaceKind::User.clone_flag() });
    }

    /// The extra clone; the session stays behind with the process that made it.
    pub(super) fn again(&mut self, outside: Vec<Step>) {
        self.push(Step::Rebirth { outside });
        self.push(Step::NewSession);
    }

    /// Joins what exists. The PID namespace is the launching thread's to join, unless `all` is the child's.
    fn join_all(&mut self, plan: &Plan, all: bool) {
        for namespace in &plan.namespaces {
            let kind = namespace.kind;
            let prepare = match &namespace.source {
                NamespaceSource::New if kind == NamespaceKind::Time => {
                    Prepare::NewTime { offsets: plan.time_offsets.clone() }
                }
                NamespaceSource::New => continue,
                NamespaceSource::Path(path) => Prepare::Namespace { kind, path: path.clone() },
                NamespaceSource::Given(index) => Prepare::Given { kind, index: *index },
            };
            let from = self.handle(prepare);
            if kind == NamespaceKind::Pid && !all {
                self.joined_pid = Some(from);
            } else {
                self.push(Step::JoinNamespace { from, kind: kind.clone_flag() });
            }
        }
    }

    /// Sysctls and names of the namespaces that `now` chooses.
    fn settings(&mut self, plan: &Plan, now: impl Fn(NamespaceKind) -> bool) {
        for (file, value) in &plan.sysctls {
            if plan::sysctl_namespace(file).is_none_or(&now) {
                let path = text(&format!("/proc/sys/{file}"));
                self.push(Step::WriteProc { path, value: text(value), forgive: 0 });
            }
        }
        if now(NamespaceKind::Uts) {
            if let Some(name) = &plan.hostname {
                self.push(Step::SetHostName(text(name)));
            }
            if let Some(name) = &plan.domainname {
                self.push(Step::SetDomainName(text(name)));
            }
        }
    }
}

/// Whether a namespace's settings are made with the host's rights: where it was joined, whoever it belongs to. The
/// sysctls of IPC namespaces are the exception: only the root of the owning user namespace may write them.
fn before(plan: &Plan, kind: NamespaceKind) -> bool {
    let joined = |n: &NamespacePlan| n.kind == kind && n.source != NamespaceSource::New;
    kind != NamespaceKind::Ipc && plan.namespaces.iter().any(joined)
}

/// CLONE_NEW* of all that is made with the process itself. The cgroup namespace is made after the group was joined, a
/// time namespace before, because its offsets must be written while nobody is in it.
fn new_kinds(plan: &Plan) -> u32 {
    let made = |n: &&NamespacePlan| {
        n.source == NamespaceSource::New && n.kind != NamespaceKind::Cgroup && n.kind != NamespaceKind::Time
    };
    plan.namespaces.iter().filter(made).fold(0, |flags, n| flags | n.kind.clone_flag())
}
