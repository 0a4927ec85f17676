//! From the contents of each level's files to the answer: pure.

use super::Decider;
use super::key::{Key, Rule};
use super::read::Contents;
use super::value::{Bandwidth, PerDevice, Throttle, Value};
use crate::devices::DeviceNumber;
use crate::host::Version;
use crate::resources::{CpuSet, Limit};
use crate::stats::parse;

/// What the levels come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) effective: Value,
    pub(super) decided_by: Option<Decider>,
    /// Of each level, what it has itself.
    pub(super) own: Vec<Option<Value>>,
}

/// A file that says something that no kernel says: its level, and its place among the files of one level.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) level: usize,
    pub(super) file: usize,
}

/// What the levels, from the root down to the cgroup, come to.
pub(super) fn decide(key: &Key, version: Version, levels: &[Contents]) -> Result<Answer, Malformed> {
    match (key.rule(), version) {
        (Rule::Bytes, _) => limit(levels, parse::bytes_limit, Value::Bytes),
        (Rule::Tasks, _) => limit(levels, parse::limit, Value::Tasks),
        (Rule::Bandwidth, _) => bandwidth(version, levels),
        (Rule::Set, _) => set(levels),
        (Rule::Throttles(kinds), _) => throttles(kinds, version, levels),
    }
}

/// Each level's own, made of its files by `parse`; a level without its first file has none.
fn own<T>(
    levels: &[Contents],
    parse: impl Fn(&Contents) -> Result<T, usize>,
) -> Result<Vec<Option<T>>, Malformed> {
    let parsed = levels.iter().enumerate().map(|(number, level)| {
        if level.file(0).is_none() {
            return Ok(None);
        }
        parse(level).map(Some).map_err(|file| Malformed { level: number, file })
    });
    parsed.collect()
}

/// The least of all levels, and the level that has it.
fn limit(
    levels: &[Contents],
    parse: impl Fn(&[u8]) -> Option<Limit>,
    value: impl Fn(Limit) -> Value,
) -> Result<Answer, Malformed> {
    let own = own(levels, |level| level.file(0).and_then(&parse).ok_or(0))?;
    let mut effective = Limit::Max;
    let mut decided_by = None;
    for (level, limit) in levels.iter().zip(&own) {
        if let Some(limit @ Limit::Value(_)) = *limit
            && limit <= effective
        {
            effective = limit;
            decided_by = Some(Decider::Level(level.path.clone()));
        }
    }
    let own = own.into_iter().map(|limit| limit.map(&value)).collect();
    Ok(Answer { effective: value(effective), decided_by, own })
}

/// The least of all levels in proportion to the period. Without any, the period is that of the last level that has one.
fn bandwidth(version: Version, levels: &[Contents]) -> Result<Answer, Malformed> {
    let own = own(levels, |level| match version {
        Version::V1 => v1_bandwidth(level),
        Version::V2 => level.file(0).and_then(v2_bandwidth).ok_or(0),
    })?;
    let mut effective = own.iter().rev().find_map(|own| *own).unwrap_or(Bandwidth::UNLIMITED);
    effective.quota_us = Limit::Max;
    let mut decided_by = None;
    for (level, bandwidth) in levels.iter().zip(&own) {
        if let Some(bandwidth @ Bandwidth { quota_us: Limit::Value(_), .. }) = *bandwidth
            && bandwidth.compare(&effective).is_le()
        {
            effective = bandwidth;
            decided_by = Some(Decider::Level(level.path.clone()));
        }
    }
    let own = own.into_iter().map(|bandwidth| bandwidth.map(Value::Bandwidth)).collect();
    Ok(Answer { effective: Value::Bandwidth(effective), decided_by, own })
}

/// `QUOTA PERIOD`, where the quota can be `max`.
fn v2_bandwidth(contents: &[u8]) -> Option<Bandwidth> {
    let mut words = std::str::from_utf8(contents).ok()?.split_ascii_whitespace();
    let (quota, period) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    Some(Bandwidth {
        quota_us: parse::number_or_max(quota)?,
        period_us: whole_period(parse::number(period)?)?,
    })
}

/// Two files: the quota, where -1 is none, and the period.
fn v1_bandwidth(level: &Contents) -> Result<Bandwidth, usize> {
    let quota = level.file(0).ok_or(0_usize)?;
    let quota_us = match quota.trim_ascii_end() {
        b"-1" => Limit::Max,
        _ => Limit::Value(parse::value(quota).ok_or(0_usize)?),
    };
    let period = level.file(1).and_then(parse::value).and_then(whole_period);
    Ok(Bandwidth { quota_us, period_us: period.ok_or(1_usize)? })
}

/// No period is 0: it divides.
fn whole_period(period_us: u64) -> Option<u64> {
    (period_us > 0).then_some(period_us)
}

/// The set of the last level that has one; the first from which on it is that set decides.
fn set(levels: &[Contents]) -> Result<Answer, Malformed> {
    let own = own(levels, |level| level.file(0).and_then(parsed_set).ok_or(0))?;
    let mut effective: Option<&CpuSet> = None;
    let mut decided_by = None;
    for (level, set) in levels.iter().zip(&own) {
        if let Some(set) = set
            && effective != Some(set)
        {
            effective = Some(set);
            decided_by = Some(Decider::Level(level.path.clone()));
        }
    }
    let effective = Value::Set(effective.cloned().unwrap_or_default());
    Ok(Answer { effective, decided_by, own: own.into_iter().map(|set| set.map(Value::Set)).collect() })
}

fn parsed_set(contents: &[u8]) -> Option<CpuSet> {
    std::str::from_utf8(contents).ok()?.parse().ok()
}

/// v2: the least of all levels, by device and kind. v1: the cgroup's own. There the throttles of a cgroup know nothing of
/// those above it: a child of a cgroup that may read 1 MiB/s reads as fast as it likes (seen on Linux 6.1 and 6.18).
fn throttles(kinds: &[Throttle], version: Version, levels: &[Contents]) -> Result<Answer, Malformed> {
    let own = own(levels, |level| {
        Ok(match version {
            Version::V1 => v1_throttles(kinds, level),
            Version::V2 => v2_throttles(kinds, level.file(0).unwrap_or_default()),
        })
    })?;
    let skipped = match version {
        Version::V1 => levels.len().saturating_sub(1),
        Version::V2 => 0,
    };
    let mut effective = PerDevice::new();
    let mut decided_by = PerDevice::new();
    for (level, devices) in levels.iter().zip(&own).skip(skipped) {
        for (device, throttles) in devices.iter().flatten() {
            for &kind in kinds {
                let Some(&value) = throttles.get(kind) else { continue };
                let least = effective.entry(*device).or_default();
                if least.get(kind).is_none_or(|&least| value <= least) {
                    least.set(kind, value);
                    decided_by.entry(*device).or_default().set(kind, level.path.clone());
                }
            }
        }
    }
    Ok(Answer {
        effective: Value::Throttles(effective),
        decided_by: (!decided_by.is_empty()).then_some(Decider::Throttles(decided_by)),
        own: own.into_iter().map(|devices| devices.map(Value::Throttles)).collect(),
    })
}

/// Lines of `MAJOR:MINOR rbps=N …`, where a number can be `max`. A line without numbers of a device, and kinds that are
/// not known here, are left out.
fn v2_throttles(kinds: &[Throttle], contents: &[u8]) -> PerDevice<u64> {
    let mut devices = PerDevice::<u64>::new();
    for line in parse::lines(contents) {
        let Some((device, rest)) = device_of(line) else { continue };
        for (name, text) in parse::assignments(rest) {
            let kind = kinds.iter().find(|kind| kind.as_str() == name);
            if let (Some(&kind), Some(value)) = (kind, parse::number(text)) {
                devices.entry(device).or_default().set(kind, value);
            }
        }
    }
    devices
}

/// A file for each kind, with lines of `MAJOR:MINOR N`.
fn v1_throttles(kinds: &[Throttle], level: &Contents) -> PerDevice<u64> {
    let mut devices = PerDevice::<u64>::new();
    for (number, &kind) in kinds.iter().enumerate() {
        for line in parse::lines(level.file(number).unwrap_or_default()) {
            if let Some((device, rest)) = device_of(line)
                && let Some(value) = parse::number(rest.trim_ascii())
            {
                devices.entry(device).or_default().set(kind, value);
            }
        }
    }
    devices
}

fn device_of(line: &str) -> Option<(DeviceNumber, &str)> {
    let (device, rest) = line.split_once(' ')?;
    Some((DeviceNumber::parse(device)?, rest))
}

#[cfg(test)]
mod tests;
