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

/// The sets without what is not `available` (number n at bit n): for another runtime, which would refuse the rest.
pub fn clipped(asked: &LinuxCapabilities, available: u64) -> LinuxCapabilities {
    let clip = |list: &Option<Capabilities>| -> Option<Capabilities> {
        let list = list.as_ref()?;
        Some(list.iter().copied().filter(|&capability| available & (1 << number(capability)) != 0).collect())
    };
    let mut clipped = LinuxCapabilities::default();
    clipped
        .set_bounding(clip(asked.bounding()))
        .set_effective(clip(asked.effective()))
        .set_permitted(clip(asked.permitted()))
        .set_inheritable(clip(asked.inheritable()))
        .set_ambient(clip(asked.ambient()));
    clipped
}

fn mask(list: &Capabilities) -> u64 {
    list.iter().fold(0, |mask, &capability| mask | 1 << number(capability))
}

/// capabilities(7), linux/capability.h: each at the place of its number.
const ALL: [Capability; 41] = {
    use Capability as C;
    [
        C::Chown,
        C::DacOverride,
        C::DacReadSearch,
        C::Fowner,
        C::Fsetid,
        C::Kill,
        C::Setgid,
        C::Setuid,
        C::Setpcap,
        C::LinuxImmutable,
        C::NetBindService,
        C::NetBroadcast,
        C::NetAdmin,
        C::NetRaw,
        C::IpcLock,
        C::IpcOwner,
        C::SysModule,
        C::SysRawio,
        C::SysChroot,
        C::SysPtrace,
        C::SysPacct,
        C::SysAdmin,
        C::SysBoot,
        C::SysNice,
        C::SysResource,
        C::SysTime,
        C::SysTtyConfig,
        C::Mknod,
        C::Lease,
        C::AuditWrite,
        C::AuditControl,
        C::Setfcap,
        C::MacOverride,
        C::MacAdmin,
        C::Syslog,
        C::WakeAlarm,
        C::BlockSuspend,
        C::AuditRead,
        C::Perfmon,
        C::Bpf,
        C::CheckpointRestore,
    ]
};

fn number(capability: Capability) -> usize {
    // Every variant is in the list: the test below counts on it.
    ALL.iter().position(|&known| known == capability).unwrap_or(63)
}

/// The names of all capabilities that this runtime knows, by number (`CAP_CHOWN` is 0).
pub fn capability_names() -> Vec<String> {
    ALL.iter().map(|capability| format!("CAP_{capability}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_numbers_agree_with_the_kernel() {
        let names = capability_names();
        assert_eq!(
            (&*names[0], &*names[21], &*names[40]),
            ("CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE")
        );
        for (index, name) in names.iter().enumerate() {
            let known: caps::Capability = name.parse().unwrap();
            assert_eq!((known.index() as usize, 1 << index), (index, known.bitmask()), "{name}");
        }
    }

    #[test]
    fn clips_to_what_is_available_and_keeps_ambient_legal() {
        let set: Capabilities = HashSet::from([Capability::SysResource, Capability::NetRaw]);
        let mut asked = LinuxCapabilities::default();
        asked
            .set_bounding(Some(set.clone()))
            .set_permitted(Some(set.clone()))
            .set_effective(Some(set.clone()));
        asked.set_ambient(Some(set)).set_inheritable(None);
        let available = !(1 << 24);
        let clipped = clipped(&asked, available);
        assert_eq!(clipped.bounding(), &Some(HashSet::from([Capability::NetRaw])));
        assert_eq!(clipped.inheritable(), &None);
        assert_eq!(super::masks(Some(&clipped), u64::MAX), super::masks(Some(&asked), available));
        let masks = masks(Some(&asked), available);
        assert_eq!(masks.bounding, 1 << 13);
        assert_eq!(masks.effective, 1 << 13);
        assert_eq!(masks.ambient, 0, "ambient without inheritable is refused by the kernel");
    }
}
