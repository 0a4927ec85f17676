//! What can be asked about, and the kernel's files for it.

use std::fmt;
use std::str::FromStr;

use super::value::Throttle;
use crate::host::{Controller, Version};
use crate::resources::HugePageSize;
use crate::{Error, Result};

/// What is to be explained: a controller, a setting of OCI, or a file of either version.
///
/// Any name is taken on any host: `memory.max` is about `memory.limit_in_bytes` where memory is on v1. A controller's name
/// is about its first limit: `memory` the hard limit, `cpu` the quota, `cpuset` the CPUs, `io` all throttles.
#[derive(Debug, Clone)]
pub struct Key {
    given: String,
    subject: &'static Subject,
    /// Of huge pages.
    page_size: Option<HugePageSize>,
}

/// A row of the table of what can be explained.
#[derive(Debug)]
struct Subject {
    controller: Controller,
    rule: Rule,
    /// What it can be called. `*` stands for the size of huge pages.
    names: &'static [&'static str],
    /// The files to read on v2 and on v1; none: that version has no such thing.
    v2: &'static [&'static str],
    v1: &'static [&'static str],
}

/// How the files are to be read, and what the levels come to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// The least limit, in bytes.
    Bytes,
    /// The least limit, in tasks.
    Tasks,
    /// The least quota in proportion to its period.
    Bandwidth,
    /// What the kernel says is effective.
    Set,
    /// The least of each throttle of each device on v2, the cgroup's own on v1, where each kind has a file.
    Throttles(&'static [Throttle]),
}

impl Subject {
    const fn throttle(
        kinds: &'static [Throttle],
        names: &'static [&'static str],
        v1: &'static [&'static str],
    ) -> Self {
        Self { controller: Controller::Io, rule: Rule::Throttles(kinds), names, v2: &["io.max"], v1 }
    }
}

const SUBJECTS: &[Subject] = &[
    Subject {
        controller: Controller::Memory,
        rule: Rule::Bytes,
        names: &["memory", "memory.limit", "memory.max", "memory.limit_in_bytes"],
        v2: &["memory.max"],
        v1: &["memory.limit_in_bytes"],
    },
    Subject {
        controller: Controller::Memory,
        rule: Rule::Bytes,
        names: &["memory.high"],
        v2: &["memory.high"],
        v1: &[],
    },
    // Swap alone on v2, memory and swap together on v1.
    Subject {
        controller: Controller::Memory,
        rule: Rule::Bytes,
        names: &["memory.swap", "memory.swap.max", "memory.memsw.limit_in_bytes"],
        v2: &["memory.swap.max"],
        v1: &["memory.memsw.limit_in_bytes"],
    },
    Subject {
        controller: Controller::Cpu,
        rule: Rule::Bandwidth,
        names: &["cpu", "cpu.quota", "cpu.period", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"],
        v2: &["cpu.max"],
        v1: &["cpu.cfs_quota_us", "cpu.cfs_period_us"],
    },
    Subject {
        controller: Controller::Cpuset,
        rule: Rule::Set,
        names: &["cpuset", "cpu.cpus", "cpuset.cpus", "cpuset.cpus.effective", "cpuset.effective_cpus"],
        v2: &["cpuset.cpus.effective"],
        v1: &["cpuset.effective_cpus"],
    },
    Subject {
        controller: Controller::Cpuset,
        rule: Rule::Set,
        names: &["cpu.mems", "cpuset.mems", "cpuset.mems.effective", "cpuset.effective_mems"],
        v2: &["cpuset.mems.effective"],
        v1: &["cpuset.effective_mems"],
    },
    Subject {
        controller: Controller::Pids,
        rule: Rule::Tasks,
        names: &["pids", "pids.limit", "pids.max"],
        v2: &["pids.max"],
        v1: &["pids.max"],
    },
    Subject::throttle(
        &Throttle::ALL,
        &["io", "io.max"],
        &[
            "blkio.throttle.read_bps_device",
            "blkio.throttle.write_bps_device",
            "blkio.throttle.read_iops_device",
            "blkio.throttle.write_iops_device",
        ],
    ),
    Subject::throttle(
        &[Throttle::ReadBytes],
        &["blockIO.throttleReadBpsDevice", "blkio.throttle.read_bps_device"],
        &["blkio.throttle.read_bps_device"],
    ),
    Subject::throttle(
        &[Throttle::WriteBytes],
        &["blockIO.throttleWriteBpsDevice", "blkio.throttle.write_bps_device"],
        &["blkio.throttle.write_bps_device"],
    ),
    Subject::throttle(
        &[Throttle::Reads],
        &["blockIO.throttleReadIOPSDevice", "blkio.throttle.read_iops_device"],
        &["blkio.throttle.read_iops_device"],
    ),
    Subject::throttle(
        &[Throttle::Writes],
        &["blockIO.throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"],
        &["blkio.throttle.write_iops_device"],
    ),
    Subject {
        controller: Controller::Hugetlb,
        rule: Rule::Bytes,
        names: &["hugepageLimits.*", "hugetlb.*.max", "hugetlb.*.limit_in_bytes"],
        v2: &["hugetlb.*.max"],
        v1: &["hugetlb.*.limit_in_bytes"],
    },
    Subject {
        controller: Controller::Hugetlb,
        rule: Rule::Bytes,
        names: &["hugetlb.*.rsvd.max", "hugetlb.*.rsvd.limit_in_bytes"],
        v2: &["hugetlb.*.rsvd.max"],
        v1: &["hugetlb.*.rsvd.limit_in_bytes"],
    },
];

/// The stand-in for the size of huge pages, for people.
const SIZE: &str = "SIZE";

impl Key {
    /// The names that are taken: a line for each thing that can be explained. `SIZE` stands for the size of huge pages,
    /// such as `2MB`.
    pub fn names() -> impl Iterator<Item = String> {
        SUBJECTS.iter().map(|subject| subject.names.join(", ").replace('*', SIZE))
    }

    /// The controller whose files say it.
    pub fn controller(&self) -> Controller {
        self.subject.controller
    }

    pub(super) fn rule(&self) -> Rule {
        self.subject.rule
    }

    pub(super) fn page_size(&self) -> Option<HugePageSize> {
        self.page_size
    }

    /// The files to read; none if the version has no such thing. `noprefix` as in [`Hierarchy`](crate::Hierarchy).
    pub(super) fn files(&self, version: Version, noprefix: bool) -> Vec<String> {
        let files = match version {
            Version::V1 => self.subject.v1,
            Version::V2 => self.subject.v2,
        };
        let prefix = if noprefix { "cpuset." } else { "" };
        let named = |file: &&str| {
            let file = file.strip_prefix(prefix).unwrap_or(file);
            file.replace('*', &self.page_size.map(|size| size.to_string()).unwrap_or_default())
        };
        files.iter().map(named).collect()
    }
}

impl FromStr for Key {
    type Err = Error;

    /// Takes one of [`Key::names`].
    fn from_str(text: &str) -> Result<Self> {
        let found = SUBJECTS.iter().find_map(|subject| {
            let page_size = subject.names.iter().find_map(|name| page_size_in(name, text))?;
            Some(Self { given: text.to_owned(), subject, page_size })
        });
        found.ok_or_else(|| {
            let names = Self::names().collect::<Vec<_>>().join("; ");
            Error::invalid("key", text, format!("takes one of {names} ({SIZE}: of huge pages, such as 2MB)"))
        })
    }
}

/// Whether `text` is this name, and the size of huge pages that stands where the name has `*`.
fn page_size_in(name: &str, text: &str) -> Option<Option<HugePageSize>> {
    let Some((before, after)) = name.split_once('*') else {
        return (name == text).then_some(None);
    };
    HugePageSize::parse(text.strip_prefix(before)?.strip_suffix(after)?).map(Some)
}

impl fmt::Display for Key {
    /// As it was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn key(text: &str) -> Key {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn names_of_controllers_oci_and_both_versions_lead_to_the_same_files() {
        let table: &[(&[&str], &[&str], &[&str])] = &[
            (
                &["memory", "memory.limit", "memory.max", "memory.limit_in_bytes"],
                &["memory.max"],
                &["memory.limit_in_bytes"],
            ),
            (&["memory.high"], &["memory.high"], &[]),
            (
                &["memory.swap", "memory.swap.max", "memory.memsw.limit_in_bytes"],
                &["memory.swap.max"],
                &["memory.memsw.limit_in_bytes"],
            ),
            (&["cpu", "cpu.quota", "cpu.max"], &["cpu.max"], &["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
            (&["cpuset", "cpu.cpus", "cpuset.cpus"], &["cpuset.cpus.effective"], &["cpuset.effective_cpus"]),
            (&["cpu.mems", "cpuset.mems"], &["cpuset.mems.effective"], &["cpuset.effective_mems"]),
            (&["pids", "pids.limit", "pids.max"], &["pids.max"], &["pids.max"]),
            (
                &["blkio.throttle.write_iops_device", "blockIO.throttleWriteIOPSDevice"],
                &["io.max"],
                &["blkio.throttle.write_iops_device"],
            ),
            (
                &["hugepageLimits.1GB", "hugetlb.1GB.max", "hugetlb.1GB.limit_in_bytes"],
                &["hugetlb.1GB.max"],
                &["hugetlb.1GB.limit_in_bytes"],
            ),
            (&["hugetlb.64KB.rsvd.max"], &["hugetlb.64KB.rsvd.max"], &["hugetlb.64KB.rsvd.limit_in_bytes"]),
        ];
        for (names, v2, v1) in table {
            for name in *names {
                assert_eq!(key(name).files(Version::V2, false), *v2, "{name}");
                assert_eq!(key(name).files(Version::V1, false), *v1, "{name}");
                assert_eq!(key(name).to_string(), *name);
            }
        }
        assert_eq!(key("io").files(Version::V1, false).len(), 4);
        assert_eq!(key("cpuset").files(Version::V1, true), ["effective_cpus"]);
    }

    #[test]
    fn no_name_means_two_things_and_every_file_of_limits_is_a_name() {
        let names: Vec<_> = SUBJECTS.iter().flat_map(|subject| subject.names).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for subject in SUBJECTS {
            for file in subject.v1.iter().chain(subject.v2) {
                assert!(names.contains(&file), "{file}");
            }
        }
    }

    #[test]
    fn what_cannot_be_explained_is_refused_with_all_that_can() {
        let bad = [
            "",
            "Memory",
            "memory.",
            "memory.low",
            "cpu.weight",
            "hugepageLimits.*",
            "hugepageLimits.2",
            "hugetlb.2MB",
            "hugetlb.2MB.x.max",
            "hugetlb.../x.max",
            "pids.max\n",
            "../pids.max",
        ];
        for text in bad {
            let error = text.parse::<Key>().unwrap_err();
            assert_eq!((error.setting(), error.value()), (Some("key"), Some(text)));
            for name in ["memory.limit", "hugepageLimits.SIZE", "io.max", "cpu.cfs_quota_us"] {
                assert!(error.message().contains(name), "{error}");
            }
        }
    }
}
