//! Doors to private parsers, for the fuzz targets: only with `--cfg fuzzing`, and no part of the interface.

use std::path::Path;

use crate::devices::filter::Override;
use crate::devices::kernel_list::KernelList;
use crate::devices::program::{self, Insn, interpreter};
use crate::devices::transition::{self, DeviceWrite, LiveDevices, LiveList};
use crate::devices::{Access, DeviceKind};
use crate::kernel::proc;
use crate::plan::{self, DeviceWant, Want};
use crate::stats::Stats;
use crate::threads::qmp;
use crate::{
    DevicePolicy, Hierarchy, Host, IoThread, Mode, Plan, Resources, Result, State, ThreadNames, VcpuThread,
    Version, explain, host, stats,
};

pub mod interface {
    pub fn is_keyed(file: &str) -> bool {
        crate::interface::is_keyed(file)
    }

    pub fn merged(file: &str, before: &str, written: &str) -> String {
        crate::interface::merged(file, before, written)
    }

    pub fn restoring(file: &str, written: &str, now: &str) -> Vec<String> {
        crate::interface::restoring(file, written, now)
    }

    pub fn holds(file: &str, written: &str, now: &str, page_size: u64) -> bool {
        crate::interface::holds(file, written, now, page_size)
    }
}

pub fn hierarchies(mountinfo: &[u8], root: Option<&Path>) -> Result<(Mode, Vec<Hierarchy>)> {
    host::of_mountinfo(mountinfo, root)
}

pub fn device_mapper_major(proc_devices: &str) -> Option<u32> {
    host::device_mapper_major(proc_devices)
}

pub fn check_state(state: &State) -> Result<()> {
    state.check()
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

/// What holds for a cgroup, and what each level has itself, by the contents of its files from the root down.
pub fn explain(
    key: &explain::Key,
    version: Version,
    levels: &[Vec<Option<Vec<u8>>>],
) -> Option<(explain::Value, Vec<Option<explain::Value>>)> {
    explain::effective(key, version, levels)
}

/// The plan of a change to the cgroup `vm1`, whose files `read` has.
pub fn plan_change(
    host: &Host,
    base: &Resources,
    change: &Resources,
    policy: Option<&DevicePolicy>,
    read: impl Fn(&str) -> Option<String>,
) -> Result<Plan> {
    let devices =
        policy.map(|policy| DeviceWant { before: None, policy, overriding: Override::from_allowed(false) });
    let want = Want { devices, ..Want::change("vm1", base, change) };
    plan::plan(host, &want, &|file| Ok(read(file.name)))
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
        Ok(transition::transition(&live, to, || populated)?.into_iter().map(Write).collect())
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

/// What was heard of a QMP monitor.
#[derive(Debug, Default, PartialEq)]
pub struct Monitor {
    /// How many messages, whatever they were.
    pub messages: usize,
    /// Each answer, as if it told of vCPUs, and of I/O threads.
    pub answers: Vec<std::result::Result<(Vec<VcpuThread>, Vec<IoThread>), String>>,
}

impl Monitor {
    /// Listens to what comes in pieces of this length.
    pub fn hear(said: &[u8], length: usize) -> Result<Self> {
        let (mut decoder, mut heard) = (qmp::Decoder::default(), Self::default());
        for piece in said.chunks(length.max(1)) {
            decoder.feed(piece);
            while let Some(message) = decoder.next()? {
                heard.messages += 1;
                if let qmp::Message::Return { value, .. } = message {
                    let vcpus = qmp::vcpus(value.clone()).map_err(|error| error.to_string());
                    let io_threads = qmp::io_threads(value).map_err(|error| error.to_string());
                    heard.answers.push(match (vcpus, io_threads) {
                        (Err(_), Err(error)) => Err(error),
                        (vcpus, io_threads) => {
                            Ok((vcpus.unwrap_or_default(), io_threads.unwrap_or_default()))
                        }
                    });
                }
            }
        }
        Ok(heard)
    }
}

/// The vCPU and I/O threads among threads of these IDs and names, all as old as their IDs say.
pub fn sort_threads(names: &ThreadNames, threads: &[(u32, &[u8])]) -> (Vec<VcpuThread>, Vec<IoThread>) {
    names.sort(threads.iter().copied(), |tid| Some(tid.into()), 0)
}
