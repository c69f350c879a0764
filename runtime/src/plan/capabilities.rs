//! Capability sets of a spec as masks, clipped to what can be given here.

use crate::sys::step::CapabilityMasks;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// CAP_SYS_ADMIN, which loading a filter needs without no_new_privs.
pub(super) const SYS_ADMIN: u64 = 1 << 21;

/// The five sets. What this process has not got itself is left out without a word: a node may be confined too
/// (CRI-SEC: "all" means all there are). Ambient needs permitted and inheritable, else the kernel refuses it.
pub(super) fn masks(asked: Option<&LinuxCapabilities>, available: u64) -> CapabilityMasks {
    let Some(asked) = asked else { return CapabilityMasks::default() };
    let set = |list: &Option<Capabilities>| list.as_ref().map_or(0, mask) & available;
    let permitted = set(asked.permitted());
    let inheritable = set(asked.inheritable());
    CapabilityMasks {
        bounding: set(asked.bounding()),
        effective: set(asked.effective()) & permitted,
        permitted,
        inheritable,
        ambient: set(asked.ambient()) & permitted & inheritable,
    }
}

fn mask(list: &Capabilities) -> u64 {
    list.iter().fold(0, |mask, &capability| mask | 1 << number(capability))
}

/// capabilities(7), linux/capability.h.
fn number(capability: Capability) -> u32 {
    use Capability as C;
    match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn clips_to_what_is_available_and_keeps_ambient_legal() {
        let set: Capabilities = HashSet::from([Capability::SysResource, Capability::NetRaw]);
        let mut asked = LinuxCapabilities::default();
        asked
            .set_bounding(Some(set.clone()))
            .set_permitted(Some(set.clone()))
            .set_effective(Some(set.clone()));
        asked.set_ambient(Some(set)).set_inheritable(None);
        let masks = masks(Some(&asked), !(1 << 24));
        assert_eq!(masks.bounding, 1 << 13);
        assert_eq!(masks.effective, 1 << 13);
        assert_eq!(masks.ambient, 0, "ambient without inheritable is refused by the kernel");
    }
}
