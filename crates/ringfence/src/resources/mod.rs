//! What a sandbox may use: typed wants, in the shape of OCI's `LinuxResources`.
//!
//! Absent means "leave alone". The serde form is OCI's JSON; [`Resources::from_oci_json`] also tells which fields
//! nobody read.

mod block_io;
mod builder;
mod cpuset;
mod document;
mod file_value;
mod huge_page;
mod json;
mod merge;
mod named;
mod oci;
mod size;
#[cfg(feature = "oci")]
mod spec_type;
mod v1_files;
mod validate;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use block_io::Throttles;
pub use block_io::{BlockIo, DeviceWeight};
pub use cpuset::CpuSet;
pub use document::SpecFile;
pub use huge_page::HugePageSize;
pub(crate) use named::FIELDS;
pub(crate) use size::page_floor;
pub use size::{parse_cpus, parse_limit, parse_size};
pub(crate) use validate::most_burst;

use crate::devices::DeviceRule;

/// A limit: a number, or none at all. The kernel's word for none is `max`; OCI's is -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// This much; the unit is the setting's.
    Value(u64),
    /// No limit. Greater than every value.
    Max,
}

impl Limit {
    /// A limit in bytes as the kernel gives it. Where it has no word for no limit (v1, and hugetlb of Linux 6.18 until a
    /// limit is written), that is the largest number of bytes below 2⁶³ in whole pages, of whatever size they are; no
    /// machine has half as much.
    pub(crate) fn from_bytes(bytes: u64) -> Self {
        if bytes >= 1 << 62 { Self::Max } else { Self::Value(bytes) }
    }
}

impl From<u64> for Limit {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

impl fmt::Display for Limit {
    /// As cgroup v2 files have it: the number, or `max`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => value.fmt(f),
            Self::Max => f.write_str("max"),
        }
    }
}

/// The number, or the string `max`. (OCI's documents have forms of their own.)
impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => serializer.serialize_u64(*value),
            Self::Max => serializer.serialize_str("max"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrMax;

        impl Visitor<'_> for NumberOrMax {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, or \"max\"")
            }

            fn visit_u64<E>(self, value: u64) -> Result<Limit, E> {
                Ok(Limit::Value(value))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Limit, E> {
                if text == "max" {
                    Ok(Limit::Max)
                } else {
                    Err(E::invalid_value(Unexpected::Str(text), &self))
                }
            }
        }

        deserializer.deserialize_any(NumberOrMax)
    }
}

/// OCI `LinuxResources`: what the sandbox as a whole may use.
///
/// The fields are as a caller gives them; [`Resources::validate`] says whether any host could take them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Device rules, in order; later ones win.
    #[serde(deserialize_with = "oci::collection", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRule>,
    /// Memory.
    #[serde(deserialize_with = "oci::section", skip_serializing_if = "oci::is_empty")]
    pub memory: Memory,
    /// CPU time, and the CPUs and memory nodes to run on.
    #[serde(deserialize_with = "oci::section", skip_serializing_if = "oci::is_empty")]
    pub cpu: Cpu,
    /// Number of tasks.
    #[serde(deserialize_with = "oci::section", skip_serializing_if = "oci::is_empty")]
    pub pids: Pids,
    /// Block devices: weights and throttles.
    #[serde(rename = "blockIO", deserialize_with = "oci::section", skip_serializing_if = "oci::is_empty")]
    pub block_io: BlockIo,
    /// Huge pages in bytes, by page size: `hugetlb.<size>.limit_in_bytes` (v1), `hugetlb.<size>.max` (v2), and the limits
    /// of reservations beside them (`.rsvd`, since Linux 5.7). OCI: 2⁶⁴ − 1 (or -1) is [`Limit::Max`]; 0 is no page at all.
    #[serde(
        deserialize_with = "oci::read_list::<HugepageLimit, _>",
        serialize_with = "oci::write_list::<HugepageLimit, _>",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub hugepage_limits: BTreeMap<HugePageSize, Limit>,
    /// Class and priorities of network packets (v1 only).
    #[serde(deserialize_with = "oci::section", skip_serializing_if = "oci::is_empty")]
    pub network: Network,
    /// RDMA resources by device (`mlx5_1`): `rdma.max`.
    #[serde(deserialize_with = "oci::sections", skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, Rdma>,
    /// Files of cgroup v2 by name (`memory.high`), written last; they win over what was derived.
    #[serde(deserialize_with = "oci::map", skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
}

/// OCI `LinuxMemory`. Sizes in bytes, at most 2⁶³ − 1; the kernel rounds them down to pages.
///
/// `Limit::Value(0)` is a value like others, but has no OCI form: there, 0 is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Hard limit: `memory.limit_in_bytes` (v1), `memory.max` (v2). OCI: 0 is absent, -1 is [`Limit::Max`].
    #[serde(with = "oci::limit", skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Soft limit: `memory.soft_limit_in_bytes` (v1), `memory.low` (v2).
    #[serde(with = "oci::limit", skip_serializing_if = "Option::is_none")]
    pub reservation: Option<Limit>,
    /// Memory plus swap, as in OCI and v1: `memory.memsw.limit_in_bytes` (v1); v2 keeps the difference to the limit
    /// in `memory.swap.max`.
    #[serde(with = "oci::limit", skip_serializing_if = "Option::is_none")]
    pub swap: Option<Limit>,
    /// Kernel memory limit: obsolete, reported and not written.
    #[serde(with = "oci::limit", skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Limit>,
    /// TCP buffer limit: `memory.kmem.tcp.limit_in_bytes` (v1 only).
    #[serde(rename = "kernelTCP", with = "oci::limit", skip_serializing_if = "Option::is_none")]
    pub kernel_tcp: Option<Limit>,
    /// 0 to 100: `memory.swappiness` (v1 only). OCI: 2⁶⁴ − 1, the -1 of docker, is absent.
    #[serde(with = "oci::unless_minus_one", skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u64>,
    /// Whether the OOM killer is off: `memory.oom_control` (v1 only).
    #[serde(rename = "disableOOMKiller", skip_serializing_if = "Option::is_none")]
    pub disable_oom_killer: Option<bool>,
    /// Hierarchical accounting: always on in every supported kernel; `false` is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_hierarchy: Option<bool>,
    /// Refuse a limit below what is in use before writing it (v1; on v2 that is always refused unless forced).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_before_update: Option<bool>,
}

/// OCI `LinuxCPU`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// Relative share, 2 to 262144: `cpu.shares` (v1), converted to `cpu.weight` (v2). OCI: 0 is absent.
    #[serde(with = "oci::nonzero", skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Relative weight, 1 to 10000, as in v2's `cpu.weight`; not part of OCI. Wins over `shares`; converted on v1.
    #[serde(with = "oci::number", skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    /// Microseconds of CPU time per period, from 1000. OCI: 0 is absent, -1 is [`Limit::Max`].
    #[serde(with = "oci::limit", skip_serializing_if = "Option::is_none")]
    pub quota: Option<Limit>,
    /// Length of the period in microseconds, 1000 to 1000000. OCI: 0 is absent.
    #[serde(with = "oci::nonzero", skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// Microseconds that unused quota may accumulate to; at most the quota; 0 is none. Since Linux 5.14.
    #[serde(with = "oci::number", skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// 1: run only when nothing else wants to; 0: not so. Since Linux 5.15.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<i64>,
    /// Microseconds of real-time scheduling per real-time period, -1 for no limit, 0 for none (v1 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_runtime: Option<i64>,
    /// Real-time period in microseconds (v1 only). OCI: 0 is absent.
    #[serde(with = "oci::nonzero", skip_serializing_if = "Option::is_none")]
    pub realtime_period: Option<u64>,
    /// CPUs to run on. An empty set lifts them: the cgroup follows its parent. OCI: "" is absent.
    #[serde(with = "oci::set", skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuSet>,
    /// Memory nodes to allocate from. An empty set lifts them: the cgroup follows its parent. OCI: "" is absent.
    #[serde(with = "oci::set", skip_serializing_if = "Option::is_none")]
    pub mems: Option<CpuSet>,
}

/// OCI `LinuxPids`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// Number of tasks: `pids.max`, at most 4194304. OCI: -1 is [`Limit::Max`]; 0 means 1, as the runtimes have it:
    /// nothing beyond the first task.
    #[serde(with = "oci::pids", skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
}

/// OCI `LinuxNetwork`: marks on the packets that leave (v1 only).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Class for tc(8) and netfilter, 0xAAAABBBB for `AAAA:BBBB`: `net_cls.classid`.
    #[serde(rename = "classID", skip_serializing_if = "Option::is_none")]
    pub class_id: Option<u32>,
    /// Priority by network interface of the host: `net_prio.ifpriomap`.
    #[serde(
        deserialize_with = "oci::read_list::<InterfacePriority, _>",
        serialize_with = "oci::write_list::<InterfacePriority, _>",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub priorities: BTreeMap<String, u32>,
}

/// OCI `LinuxRdma`: what may be had of one device, a number of at most 31 bits each. OCI: 2³² − 1 is [`Limit::Max`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rdma {
    /// Open handles: `hca_handle` of `rdma.max`.
    #[serde(with = "oci::max32", skip_serializing_if = "Option::is_none")]
    pub hca_handles: Option<Limit>,
    /// Objects: `hca_object` of `rdma.max`.
    #[serde(with = "oci::max32", skip_serializing_if = "Option::is_none")]
    pub hca_objects: Option<Limit>,
}

/// OCI `LinuxHugepageLimit`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HugepageLimit {
    page_size: HugePageSize,
    #[serde(with = "oci::huge_pages")]
    limit: Limit,
}

impl oci::Item for HugepageLimit {
    type Key = HugePageSize;
    type Value = Limit;

    fn into_entry(self) -> (HugePageSize, Limit) {
        (self.page_size, self.limit)
    }

    fn from_entry(page_size: &HugePageSize, limit: &Limit) -> Self {
        Self { page_size: *page_size, limit: *limit }
    }
}

/// OCI `LinuxInterfacePriority`.
#[derive(Serialize, Deserialize)]
struct InterfacePriority {
    name: String,
    priority: u32,
}

impl oci::Item for InterfacePriority {
    type Key = String;
    type Value = u32;

    fn into_entry(self) -> (String, u32) {
        (self.name, self.priority)
    }

    fn from_entry(name: &String, priority: &u32) -> Self {
        Self { name: name.clone(), priority: *priority }
    }
}

/// What a change gives, overrides; what it leaves out, stays.
fn update<T: Clone>(field: &mut Option<T>, change: &Option<T>) {
    if change.is_some() {
        field.clone_from(change);
    }
}
