//! Which threads of a VMM are vCPUs, by the names that it gives them. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{IoThread, VcpuThread};
use crate::{Error, Profile, Result, text};

/// What the kernel keeps of a thread's name, in bytes (`TASK_COMM_LEN` without the NUL); the rest is cut off.
const NAME_LENGTH: usize = 15;

/// QEMU's own I/O thread, which serves its monitors and which `query-iothreads` does not list.
const MONITOR: &str = "mon_iothread";

/// A VMM whose vCPU threads are known by name.
///
/// | VMM | vCPU threads | named in |
/// | --- | --- | --- |
/// | `qemu` | `CPU 0/KVM`, `CPU 0/MSHV`, `CPU 0/TCG`; `ALL CPUs/TCG` is all of them in one thread | QEMU, `accel/kvm/kvm-accel-ops.c`, `accel/mshv/mshv-all.c`, `accel/tcg/tcg-accel-ops-mttcg.c`, `tcg-accel-ops-rr.c` |
/// | `cloud-hypervisor` | `vcpu0` | Cloud Hypervisor, `vmm/src/cpu.rs` |
/// | `firecracker` | `fc_vcpu 0` | Firecracker, `src/vmm/src/vstate/vcpu.rs` |
/// | `stratovirt` | `CPU 0/KVM` | StratoVirt, `cpu/src/lib.rs` |
/// | `crosvm` | `crosvm_vcpu0` | crosvm, `src/crosvm/sys/linux/vcpu.rs` |
/// | `openvmm` | `vp-0` | OpenVMM, `openvmm/openvmm_core/src/worker/dispatch.rs` |
/// | `dragonball` | `db_vcpu0` | Kata Containers, `src/dragonball/src/vcpu/vcpu_impl.rs` |
///
/// QEMU names its threads only with `-name NAME,debug-threads=on`, and its I/O threads then `IO ID` (`iothread.c`). The
/// others give their I/O threads no names by which they could be told from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Vmm {
    /// QEMU, with any accelerator.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
    /// StratoVirt.
    StratoVirt,
    /// crosvm.
    Crosvm,
    /// OpenVMM.
    OpenVmm,
    /// Dragonball, whose threads are those of Kata's runtime in Rust.
    Dragonball,
}

impl Vmm {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Qemu,
        Self::CloudHypervisor,
        Self::Firecracker,
        Self::StratoVirt,
        Self::Crosvm,
        Self::OpenVmm,
        Self::Dragonball,
    ];

    /// The VMM of a profile, if it is for one alone whose threads have names.
    pub fn of(profile: Profile) -> Option<Self> {
        match profile {
            Profile::Qemu => Some(Self::Qemu),
            Profile::CloudHypervisor => Some(Self::CloudHypervisor),
            Profile::Firecracker => Some(Self::Firecracker),
            Profile::None | Profile::Default | Profile::Kata => None,
        }
    }

    /// The name, as the command has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
            Self::StratoVirt => "stratovirt",
            Self::Crosvm => "crosvm",
            Self::OpenVmm => "openvmm",
            Self::Dragonball => "dragonball",
        }
    }

    fn vcpus(self) -> &'static [NamePattern] {
        const fn pattern(before: &'static str, after: &'static str) -> NamePattern {
            NamePattern { before: Cow::Borrowed(before), after: Cow::Borrowed(after) }
        }
        match self {
            Self::Qemu => {
                const { &[pattern("CPU ", "/KVM"), pattern("CPU ", "/TCG"), pattern("CPU ", "/MSHV")] }
            }
            Self::CloudHypervisor => const { &[pattern("vcpu", "")] },
            Self::Firecracker => const { &[pattern("fc_vcpu ", "")] },
            Self::StratoVirt => const { &[pattern("CPU ", "/KVM")] },
            Self::Crosvm => const { &[pattern("crosvm_vcpu", "")] },
            Self::OpenVmm => const { &[pattern("vp-", "")] },
            Self::Dragonball => const { &[pattern("db_vcpu", "")] },
        }
    }
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Vmm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|vmm| vmm.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid("vmm", name, format!("takes one of {names}"))
        })
    }
}

/// The names of vCPU threads: any text with `{}` where the vCPU's number is, such as `vcpu{}` or `CPU {}/KVM`.
///
/// It is matched whole. Of a thread's name the kernel keeps 15 bytes: what is behind them need not be there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern {
    before: Cow<'static, str>,
    after: Cow<'static, str>,
}

impl NamePattern {
    /// The number in a thread's name, if the name is like this.
    pub fn number(&self, name: &[u8]) -> Option<u32> {
        let rest = name.strip_prefix(self.before.as_bytes())?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, after) = rest.split_at_checked(digits)?;
        let is_cut = name.len() >= NAME_LENGTH;
        let expected = self.after.as_bytes();
        if after == expected || is_cut && expected.starts_with(after) {
            str::from_utf8(digits).ok()?.parse().ok()
        } else {
            None
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{}}{}", self.before, self.after)
    }
}

impl FromStr for NamePattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &'static str| Error::invalid("vmm", text, why);
        let (before, after) = text
            .split_once("{}")
            .ok_or_else(|| refused("a pattern has {} where the vCPU's number is, such as vcpu{}"))?;
        if after.contains("{}") {
            return Err(refused("a pattern has one {}, where the vCPU's number is"));
        }
        if before.len() >= NAME_LENGTH {
            return Err(refused("the kernel keeps 15 bytes of a thread's name: the number would be cut off"));
        }
        if after.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(refused("a digit behind {} cannot be told from the vCPU's number"));
        }
        Ok(Self { before: Cow::Owned(before.to_owned()), after: Cow::Owned(after.to_owned()) })
    }
}

/// How the vCPU threads of a VMM are called: as those of a VMM that is known, or as a pattern says.
///
/// In text, and in JSON, it is the name of the VMM or the pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ThreadNames {
    /// As a known VMM names them.
    Of(Vmm),
    /// As the caller says.
    Like(NamePattern),
}

impl From<NamePattern> for ThreadNames {
    fn from(pattern: NamePattern) -> Self {
        Self::Like(pattern)
    }
}

impl ThreadNames {
    /// What a thread of this name is.
    fn role(&self, name: &[u8]) -> Option<Role> {
        let patterns = match self {
            Self::Of(vmm) => vmm.vcpus(),
            Self::Like(pattern) => std::slice::from_ref(pattern),
        };
        if let Some(index) = patterns.iter().find_map(|pattern| pattern.number(name)) {
            return Some(Role::Vcpu(index));
        }
        if *self != Self::Of(Vmm::Qemu) {
            return None;
        }
        if name == b"ALL CPUs/TCG" {
            return Some(Role::EveryVcpu);
        }
        let id = String::from_utf8_lossy(name.strip_prefix(b"IO ")?).into_owned();
        (!id.is_empty() && id != MONITOR).then_some(Role::IoThread(id))
    }

    /// The vCPU and I/O threads among threads of these IDs and names, by number and by ID.
    ///
    /// A thread has the name of the one that made it until it is given its own: of two that are called the same, the one
    /// that `started` first is the vCPU. Where one thread runs all vCPUs, it is each of `expected`.
    pub(crate) fn sort<'n>(
        &self,
        threads: impl IntoIterator<Item = (u32, &'n [u8])>,
        started: impl Fn(u32) -> Option<u64>,
        expected: u32,
    ) -> (Vec<VcpuThread>, Vec<IoThread>) {
        let mut vcpus: BTreeMap<u32, u32> = BTreeMap::new();
        let mut io_threads: BTreeMap<String, u32> = BTreeMap::new();
        let first = |one: u32, other: u32| {
            let age = |tid| (started(tid).unwrap_or(u64::MAX), tid);
            if age(one) <= age(other) { one } else { other }
        };
        for (tid, name) in threads {
            match self.role(name) {
                Some(Role::Vcpu(index)) => {
                    vcpus.entry(index).and_modify(|known| *known = first(*known, tid)).or_insert(tid);
                }
                Some(Role::EveryVcpu) => {
                    for index in 0..expected.max(1) {
                        vcpus.entry(index).and_modify(|known| *known = first(*known, tid)).or_insert(tid);
                    }
                }
                Some(Role::IoThread(id)) => {
                    io_threads.entry(id).and_modify(|known| *known = first(*known, tid)).or_insert(tid);
                }
                None => {}
            }
        }
        (
            vcpus.into_iter().map(|(index, tid)| VcpuThread { index, tid }).collect(),
            io_threads.into_iter().map(|(id, tid)| IoThread { id, tid }).collect(),
        )
    }
}

enum Role {
    Vcpu(u32),
    EveryVcpu,
    IoThread(String),
}

impl From<Vmm> for ThreadNames {
    fn from(vmm: Vmm) -> Self {
        Self::Of(vmm)
    }
}

impl fmt::Display for ThreadNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(vmm) => vmm.fmt(f),
            Self::Like(pattern) => pattern.fmt(f),
        }
    }
}

impl FromStr for ThreadNames {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.contains("{}") {
            return text.parse().map(Self::Like);
        }
        text.parse().map(Self::Of).map_err(|error: Error| {
            let names = error.message().to_owned();
            error.with_message(format!(
                "{names}; or a pattern with {{}} where the vCPU's number is, such as vcpu{{}}"
            ))
        })
    }
}

impl Serialize for ThreadNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ThreadNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer, "the name of a VMM, or a pattern such as \"vcpu{}\"")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Sorted = (Vec<(u32, u32)>, Vec<(String, u32)>);

    fn sorted(names: &str, threads: &[(u32, &str)], expected: u32) -> Sorted {
        let names: ThreadNames = names.parse().unwrap();
        let threads = threads.iter().map(|(tid, name)| (*tid, name.as_bytes()));
        let (vcpus, io_threads) = names.sort(threads, |tid| Some(u64::from(tid % 100)), expected);
        (
            vcpus.into_iter().map(|vcpu| (vcpu.index, vcpu.tid)).collect(),
            io_threads.into_iter().map(|thread| (thread.id, thread.tid)).collect(),
        )
    }

    #[test]
    fn the_threads_of_each_vmm_are_known_by_their_names_and_by_no_others() {
        for (vmm, names, others) in [
            ("qemu", ["CPU 0/KVM", "CPU 11/KVM"], ["CPU /KVM", "CPU 0/", "worker"]),
            ("qemu", ["CPU 0/TCG", "CPU 11/TCG"], ["CPU 0/KVMs", "qemu-system-x86", "call_rcu"]),
            ("cloud-hypervisor", ["vcpu0", "vcpu11"], ["vcpu", "vcpu1a", "_disk0_q0"]),
            ("firecracker", ["fc_vcpu 0", "fc_vcpu 11"], ["fc_vcpu", "fc_api", "fc_vmm"]),
            ("stratovirt", ["CPU 0/KVM", "CPU 11/KVM"], ["CPU 0/TCG", "iothread1", "CPU-0/KVM"]),
            ("crosvm", ["crosvm_vcpu0", "crosvm_vcpu11"], ["crosvm_vcpu", "crosvm", "vcpu0"]),
            ("openvmm", ["vp-0", "vp-11"], ["vp-", "vp0", "vp-1-2"]),
            ("dragonball", ["db_vcpu0", "db_vcpu11"], ["db_vcpu", "vmm_master", "vcpu0"]),
            ("my {} cpu", ["my 0 cpu", "my 11 cpu"], ["my 0 cp", "my  cpu", "0"]),
            ("{}", ["0", "11"], ["", "0x", "-1"]),
        ] {
            let threads = [(10, names[0]), (20, names[1]), (1, others[0]), (2, others[1]), (3, others[2])];
            assert_eq!(sorted(vmm, &threads, 0), (vec![(0, 10), (11, 20)], vec![]), "{vmm}");
        }
    }

    #[test]
    fn io_threads_of_qemu_are_found_and_the_one_of_its_monitor_is_not() {
        let threads =
            [(5, "IO io0"), (6, "IO mon_iothread"), (7, "IO "), (8, "IO a long name-"), (9, "CPU 0/KVM")];
        let io_threads = vec![("a long name-".to_owned(), 8), ("io0".to_owned(), 5)];
        assert_eq!(sorted("qemu", &threads, 0), (vec![(0, 9)], io_threads));
        assert_eq!(sorted("stratovirt", &threads, 0), (vec![(0, 9)], vec![]));
    }

    #[test]
    fn one_thread_that_runs_all_vcpus_is_each_of_them() {
        let threads = [(1, "qemu"), (2, "ALL CPUs/TCG")];
        assert_eq!(sorted("qemu", &threads, 0).0, [(0, 2)]);
        assert_eq!(sorted("qemu", &threads, 3).0, [(0, 2), (1, 2), (2, 2)]);
    }

    #[test]
    fn what_a_vcpu_thread_has_just_made_has_its_name_and_is_no_vcpu() {
        // Started at 5 and at 7: a thread ID alone says nothing, they begin again.
        for threads in [[(205, "vcpu0"), (107, "vcpu0")], [(107, "vcpu0"), (205, "vcpu0")]] {
            assert_eq!(sorted("cloud-hypervisor", &threads, 0).0, [(0, 205)]);
        }
    }

    #[test]
    fn a_name_that_the_kernel_cut_is_known_by_what_is_left() {
        let pattern: NamePattern = "my vcpu no {}/worker".parse().unwrap();
        for (name, number) in [
            ("my vcpu no 7/wo", Some(7)),
            ("my vcpu no 12/w", Some(12)),
            ("my vcpu no 123/", Some(123)),
            ("my vcpu no 1234", Some(1234)),
            ("my vcpu no 7/w", None),
            ("my vcpu no 7/xo", None),
            ("my vcpu no 7/worker", Some(7)),
        ] {
            assert_eq!(pattern.number(name.as_bytes()), number, "{name}");
        }
    }

    #[test]
    fn a_bad_pattern_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "qemu, cloud-hypervisor"),
            ("vcpu*", "such as vcpu{}"),
            ("QEMU", "takes one of"),
            ("{}{}", "one {}"),
            ("vcpu{}of{}", "one {}"),
            ("fifteen bytes: {}", "15 bytes"),
            ("vcpu{}0", "a digit behind"),
        ] {
            let error = text.parse::<ThreadNames>().expect_err(text);
            assert!(error.message().contains(reason), "{text}: {error}");
            assert_eq!((error.setting(), error.value()), (Some("vmm"), Some(text)));
        }
    }

    #[test]
    fn names_are_a_text_in_json() {
        for text in ["qemu", "crosvm", "CPU {}/KVM"] {
            let names: ThreadNames = text.parse().unwrap();
            let json = serde_json::to_string(&names).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<ThreadNames>(&json).unwrap(), names);
        }
        assert!(serde_json::from_str::<ThreadNames>("\"vcpu\"").is_err());
    }

    proptest! {
        #[test]
        fn a_name_that_is_made_of_a_pattern_is_like_it_for_as_long_as_the_number_is_whole(
            before in "[a-z /]{0,14}", after in "([a-z /][a-z0-9 /]{0,8})?", number: u32,
        ) {
            let pattern: NamePattern = format!("{before}{{}}{after}").parse().unwrap();
            let name = format!("{before}{number}{after}");
            prop_assert_eq!(pattern.number(name.as_bytes()), Some(number));
            if before.len() + number.to_string().len() <= NAME_LENGTH {
                prop_assert_eq!(pattern.number(&name.as_bytes()[..name.len().min(NAME_LENGTH)]), Some(number));
            }
        }

        #[test]
        fn no_name_makes_a_pattern_panic(pattern in ".{0,8}[{][}].{0,8}", name in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(pattern) = pattern.parse::<NamePattern>() {
                _ = pattern.number(&name);
            }
        }
    }
}
