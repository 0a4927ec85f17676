//! CPU time: weight, idleness, bandwidth, real time.

use rustix::io::Errno;

use super::draft::{NOT_VALID_HERE, lowered, minus_one};
use super::{Draft, Reaction, Undo, Verify, convert};
use crate::error::{Error, Result};
use crate::host::{Controller, Version};
use crate::resources::{Cpu, Limit, most_burst};

const NO_BURST: &str = "this kernel has no CPU burst (Linux 5.14)";
const NO_IDLE: &str = "this kernel has no cpu.idle (Linux 5.15)";

pub(super) fn plan(draft: &mut Draft<'_>) -> Result<()> {
    let change = &draft.want.change.cpu;
    match draft.place_of(Controller::Cpu) {
        Some((index, Version::V1)) => {
            weight_and_idle(draft, index, Version::V1, change);
            bandwidth(draft, index, Version::V1, change)?;
            realtime(draft, index);
        }
        Some((index, Version::V2)) => {
            weight_and_idle(draft, index, Version::V2, change);
            bandwidth(draft, index, Version::V2, change)?;
            no_realtime(draft, "cgroup v2 has no real-time limits");
        }
        None => {
            let time = Cpu { cpus: None, mems: None, ..change.clone() };
            draft.report_without(Controller::Cpu, "cpu", &time);
        }
    }
    Ok(())
}

/// `cpu.idle` and the weight beside it, which the kernel lets nobody write while `cpu.idle` is 1 and forgets when it
/// becomes 0. The steps: weight then idle = 1; idle = 0 then weight.
fn weight_and_idle(draft: &mut Draft<'_>, index: usize, version: Version, cpu: &Cpu) {
    if cpu.idle.is_none() && cpu.weight.is_none() && cpu.shares.is_none() {
        return;
    }
    if let Some(idle) = cpu.idle.filter(|idle| *idle != 0 && !draft.host.capabilities.cpu_idle) {
        draft.report.add("cpu.idle", idle, NO_IDLE);
    }
    let base = draft.want.base;
    let (file, verify, changed, before) = match version {
        Version::V1 => {
            let shares = |cpu: &Cpu| cpu.weight.map(convert::weight_to_shares).or(cpu.shares);
            let verify = Verify::ReadsBack { allowed: "2 to 262144" };
            ("cpu.shares", verify, shares(cpu), shares(&base.cpu))
        }
        Version::V2 => {
            let weight = |cpu: &Cpu| cpu.weight.or(cpu.shares.map(convert::shares_to_weight));
            ("cpu.weight", Verify::Accepted, weight(cpu), weight(&base.cpu))
        }
    };
    let field = if cpu.weight.is_some() { "cpu.weight" } else { "cpu.shares" };
    let write_weight = |draft: &mut Draft<'_>, weight: u64, undo: Option<Undo>| {
        let setting = draft.setting(file, field);
        let step = draft.write(index, setting, file, weight);
        step.verify(verify.clone()).on(Errno::INVAL, NOT_VALID_HERE);
        step.undo = undo.unwrap_or(std::mem::take(&mut step.undo));
    };
    let idle_now = draft.now_to_write(index, "cpu.idle").as_deref() == Some("1");
    let idle = cpu.idle.filter(|_| draft.host.capabilities.cpu_idle).map_or(idle_now, |idle| idle == 1);
    match (idle_now, idle) {
        (true, true) => {
            if let Some(weight) = changed {
                let why = "the cgroup is idle (cpu.idle = 1): its weight counts again when it is not";
                let setting = draft.setting(file, field);
                draft.report.add(setting, weight, why);
            }
        }
        (true, false) => {
            let name = draft.setting("cpu.idle", "cpu.idle");
            draft.write(index, name, "cpu.idle", 0);
            if let Some(weight) = changed.or(before) {
                // Writing cpu.idle = 1 again takes the weight with it.
                write_weight(draft, weight, Some(Undo::Nothing));
            }
        }
        (false, idle) => {
            if let Some(weight) = changed {
                write_weight(draft, weight, None);
            }
            if idle {
                let weight_now = draft.now_to_write(index, file).map(|weight| weight.to_string());
                let name = draft.setting("cpu.idle", "cpu.idle");
                let step = draft.write(index, name, "cpu.idle", 1);
                step.on(Errno::NOENT, Reaction::Unsupported(NO_IDLE));
                if let Undo::Write(writes) = &mut step.undo {
                    writes.extend(weight_now.map(|weight| (file.into(), weight)));
                }
            }
        }
    }
}

/// The two files of CPU bandwidth on v1: quota and period.
pub(super) const V1_BANDWIDTH: [&str; 2] = ["cpu.cfs_quota_us", "cpu.cfs_period_us"];

/// The CPU bandwidth that is in force or will be: quota, period and burst, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bandwidth {
    quota: Limit,
    period: u64,
    burst: u64,
}

impl Bandwidth {
    /// What is in force; a new cgroup has the kernel's defaults.
    fn now(draft: &Draft<'_>, index: usize, version: Version) -> Self {
        let (quota, period, burst) = match version {
            Version::V1 => {
                let number = |file| draft.number_to_write(index, file);
                (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us"), number("cpu.cfs_burst_us"))
            }
            Version::V2 => {
                let now = draft.now_to_write(index, "cpu.max");
                let (quota, period) =
                    now.as_deref().and_then(|text| text.split_once(' ')).unwrap_or_default();
                (quota.parse().ok(), period.parse().ok(), draft.number_to_write(index, "cpu.max.burst"))
            }
        };
        // systemd rounds a quota up, and shows no period without one: the halves are those that were asked for.
        let asked = draft.want.unit.map(|_| &draft.want.base.cpu);
        let (asked_quota, asked_period) = asked.map_or((None, None), |cpu| (cpu.quota, cpu.period));
        Self {
            quota: asked_quota.unwrap_or(quota.map_or(Limit::Max, Limit::Value)),
            period: asked_period.or(period).unwrap_or(100_000),
            burst: burst.unwrap_or(0),
        }
    }

    /// What is asked for on top of it. A burst that the caller did not set goes down with the quota, or follows it where
    /// that `is_default`; one that was set and is above it is an error, as it is the kernel's EINVAL.
    fn changed(self, cpu: &Cpu, is_default: bool) -> Result<Self> {
        let quota = cpu.quota.unwrap_or(self.quota);
        let period = cpu.period.unwrap_or(self.period);
        let burst = match (cpu.burst, quota) {
            (Some(burst), Limit::Value(quota)) if burst > most_burst(quota) => {
                let allowed = format!("is at most {} µs beside this quota, {quota} µs", most_burst(quota));
                return Err(Error::invalid("cpu.burst", burst, allowed));
            }
            (Some(burst), _) => burst,
            (None, Limit::Value(quota)) if is_default => most_burst(quota),
            (None, Limit::Max) if is_default => 0,
            (None, Limit::Value(quota)) => self.burst.min(most_burst(quota)),
            (None, Limit::Max) => self.burst,
        };
        Ok(Self { quota, period, burst })
    }
}

/// The kernel refuses a burst above the quota at every moment, so that the burst goes down before the quota and up after
/// it.
fn bandwidth(draft: &mut Draft<'_>, index: usize, version: Version, cpu: &Cpu) -> Result<()> {
    if cpu.quota.is_none() && cpu.period.is_none() && cpu.burst.is_none() {
        return Ok(());
    }
    if !draft.host.capabilities.cpu_quota {
        let bandwidth = Cpu { quota: cpu.quota, period: cpu.period, burst: cpu.burst, ..Cpu::default() };
        draft.report_all(
            "cpu",
            &bandwidth,
            "this kernel has no CPU bandwidth control (CONFIG_CFS_BANDWIDTH)",
        );
        return Ok(());
    }
    let burst_is_default =
        draft.want.burst_by_default && cpu.quota.is_some() && draft.want.base.cpu.burst.is_none();
    let now = Bandwidth::now(draft, index, version);
    let then = now.changed(cpu, burst_is_default)?;
    let file = match version {
        Version::V1 => "cpu.cfs_burst_us",
        Version::V2 => "cpu.max.burst",
    };
    let write_burst = |draft: &mut Draft<'_>| {
        let setting = draft.setting(file, "cpu.burst");
        let step = draft.write(index, setting, file, then.burst);
        step.on(Errno::INVAL, NOT_VALID_HERE).on(Errno::NOENT, Reaction::Unsupported(NO_BURST));
    };
    let has_burst = draft.host.capabilities.cpu_burst;
    if let Some(burst) = cpu.burst.filter(|burst| *burst > 0 && !has_burst) {
        draft.report.add("cpu.burst", burst, NO_BURST);
    }
    let changes = has_burst && (cpu.burst.is_some() || then.burst != now.burst);
    if changes && then.burst < now.burst {
        write_burst(draft);
    }
    match version {
        Version::V1 => v1_quota_and_period(draft, index, cpu, now),
        Version::V2 if cpu.quota.is_some() || cpu.period.is_some() => {
            let field = if cpu.quota.is_some() { "cpu.quota" } else { "cpu.period" };
            let allowed = "a quota of 1000 µs and more, a period of 1000 to 1000000 µs";
            let verify = lowered(draft.want, then.quota, allowed);
            let setting = draft.setting("cpu.max", field);
            let value = format!("{} {}", then.quota, then.period);
            draft.write(index, setting, "cpu.max", value).verify(verify).on(Errno::INVAL, NOT_VALID_HERE);
        }
        Version::V2 => {}
    }
    if changes && then.burst >= now.burst {
        write_burst(draft);
    }
    Ok(())
}

/// A child's quota per period may not exceed its parent's: the way on which the ratio does not rise comes first, and the
/// other one if the kernel minds.
fn v1_quota_and_period(draft: &mut Draft<'_>, index: usize, cpu: &Cpu, now: Bandwidth) {
    let quota = cpu.quota.map(|quota| ("cpu.quota", "cpu.cfs_quota_us", minus_one(quota)));
    // At each write the kernel walks through all cgroups there are; systemd is told both or neither.
    let is_new = |period: &u64| *period != now.period || draft.want.unit.is_some();
    let period = cpu.period.filter(is_new);
    let period = period.map(|period| ("cpu.period", "cpu.cfs_period_us", period.to_string()));
    let both =
        if cpu.period.is_some_and(|period| period < now.period) { [quota, period] } else { [period, quota] };
    let mut left = both.iter().flatten().count();
    for (setting, file, value) in both.into_iter().flatten() {
        left -= 1;
        let reaction = if left > 0 { Reaction::Defer } else { NOT_VALID_HERE };
        draft.write(index, setting, file, value).on(Errno::INVAL, reaction);
    }
}

/// A runtime of 0, which every new cgroup has, asks for nothing; nor does a period beside it.
fn no_realtime(draft: &mut Draft<'_>, why: &str) {
    let Cpu { realtime_runtime, realtime_period, .. } = draft.want.change.cpu;
    if realtime_runtime != Some(0) {
        draft.report_all("cpu", &Cpu { realtime_runtime, realtime_period, ..Cpu::default() }, why);
    }
}

/// v1: the kernel keeps runtime ≤ period at every moment: the runtime goes down before the period, and up after it.
fn realtime(draft: &mut Draft<'_>, index: usize) {
    const RUNTIME: &str = "cpu.rt_runtime_us";
    let Cpu { realtime_period, realtime_runtime, .. } = draft.want.change.cpu;
    if realtime_period.is_none() && realtime_runtime.is_none() {
        return;
    }
    if !draft.host.capabilities.cpu_rt {
        return no_realtime(draft, "this kernel has no real-time group scheduling (CONFIG_RT_GROUP_SCHED)");
    }
    let mut settings = [
        ("cpu.realtimePeriod", "cpu.rt_period_us", realtime_period.map(|period| period.to_string())),
        ("cpu.realtimeRuntime", RUNTIME, realtime_runtime.map(|runtime| runtime.to_string())),
    ];
    let runtime_now = draft.now_to_write(index, RUNTIME).and_then(|text| text.parse::<i64>().ok());
    if realtime_runtime.zip(runtime_now).is_some_and(|(runtime, now)| runtime < now) {
        settings.reverse();
    }
    let why = "more real-time than the parent cgroup has left, or less than its tasks need";
    for (setting, file, value) in settings {
        if let Some(value) = value {
            draft.write(index, setting, file, value).on(Errno::INVAL, Reaction::Explain(why));
        }
    }
}
