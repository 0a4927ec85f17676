//! Doors to private parsers, for the fuzz targets: only with `--cfg fuzzing`, and no part of the interface.

use std::path::Path;

use crate::devices::kernel_list::KernelList;
use crate::devices::program::{self, Insn, interpreter};
use crate::devices::transition::{self, DeviceWrite, LiveDevices, LiveList};
use crate::devices::{Access, DeviceKind};
use crate::kernel::proc;
use crate::stats::Stats;
use crate::{DevicePolicy, Hierarchy, Mode, Result, Version, host, stats};

pub fn hierarchies(mountinfo: &[u8], root: Option<&Path>) -> Result<(Mode, Vec<Hierarchy>)> {
    host::of_mountinfo(mountinfo, root)
}

pub fn device_mapper_major(proc_devices: &str) -> Option<u32> {
    host::device_mapper_major(proc_devices)
}

/// State and start time.
pub fn process_stat(bytes: &[u8]) -> Option<(char, u64)> {
    proc::Stat::parse(bytes).map(|stat| (stat.state, stat.start_time))
}

pub fn process_cgroups(text: &str) -> Vec<(String, String)> {
    proc::parse_cgroups(text)
}

pub fn stats_files(version: Version) -> impl Iterator<Item = &'static str> {
    stats::file_names(version)
}

pub fn clear_stats(stats: &mut Stats) {
    stats.clear();
}

/// What `devices.list` shows; `None` for default allow.
pub fn devices_list(bytes: &[u8]) -> Result<Option<DevicePolicy>> {
    Ok(match transition::parse_devices_list(bytes)? {
        LiveList::Listed(policy) => Some(policy),
        LiveList::AllowByDefault => None,
    })
}

/// A device cgroup of v1, as the model has it.
#[derive(Clone)]
pub struct V1(KernelList);

impl V1 {
    pub fn with(policy: &DevicePolicy) -> Self {
        Self(KernelList::after(&policy.to_rules()))
    }

    /// The writes to `to`: from a policy that is known, or from what the list shows alone.
    pub fn transition(
        &self,
        known: Option<DevicePolicy>,
        to: &DevicePolicy,
        populated: bool,
    ) -> Result<Vec<Write>> {
        let live = LiveDevices { list: self.0.show(), known };
        Ok(transition::transition(&live, to, populated)?.into_iter().map(Write).collect())
    }

    pub fn apply(&mut self, write: &Write) {
        self.0.apply(&write.0);
    }

    pub fn shows(&self, policy: &DevicePolicy) -> bool {
        self.0.show().shows(policy)
    }

    pub fn allows(&self, kind: DeviceKind, major: u32, minor: u32, access: Option<Access>) -> bool {
        let letters = access.map_or_else(String::new, |access| access.to_string());
        self.0.allows(if kind == DeviceKind::Char { 'c' } else { 'b' }, major, minor, &letters)
    }
}

pub struct Write(DeviceWrite);

/// A policy as the kernel of v2 runs it.
pub struct Program(Vec<Insn>);

impl Program {
    pub fn of(policy: &DevicePolicy) -> Self {
        Self(program::compile(policy))
    }

    pub fn allows(&self, kind: DeviceKind, major: u32, minor: u32, access: Option<Access>) -> bool {
        interpreter::run(&self.0, kind, major, minor, access.map_or(0, |access| access.bits().into()))
    }

    /// An instruction for which the verifier refuses it.
    pub fn unreachable(&self) -> Option<usize> {
        interpreter::unreachable(&self.0)
    }
}
