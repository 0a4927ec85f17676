//! Number of tasks: the files of `pids`, the same on both versions.

use serde::{Deserialize, Serialize};

use super::file::File;
use super::{absent, parse};
use crate::host::Controller::Pids;
use crate::resources::Limit;

/// Number of tasks (threads count one each).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PidsStats {
    /// Tasks in the cgroup and below: `pids.current`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// The most there ever were: `pids.peak`, since Linux 6.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// The cgroup's own limit: `pids.max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// What happened: `pids.events`.
    #[serde(skip_serializing_if = "absent")]
    pub events: PidsEvents,
}

/// How often something happened to a cgroup's tasks since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PidsEvents {
    /// Forks that the limit refused, since Linux 6.11; before, and on v1: forks refused to tasks of this cgroup itself,
    /// whoever's limit it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
}

pub(super) const FILES: &[File] = &[
    File::v2(Pids, "pids.current", |stats, contents| stats.pids.current = parse::value(contents)),
    File::v2(Pids, "pids.peak", |stats, contents| stats.pids.peak = parse::value(contents)),
    File::v2(Pids, "pids.max", |stats, contents| stats.pids.limit = parse::limit(contents)),
    File::v2(Pids, "pids.events", |stats, contents| stats.pids.events.max = parse::value_of(contents, "max")),
    File::v1(Pids, "pids.current", |stats, contents| stats.pids.current = parse::value(contents)),
    File::v1(Pids, "pids.peak", |stats, contents| stats.pids.peak = parse::value(contents)),
    File::v1(Pids, "pids.max", |stats, contents| stats.pids.limit = parse::limit(contents)),
    File::v1(Pids, "pids.events", |stats, contents| stats.pids.events.max = parse::value_of(contents, "max")),
];
