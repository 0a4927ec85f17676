//! Scalar resources, such as encryption slots of confidential VMs: the files of `misc`, the same on both versions.

use serde::{Deserialize, Serialize};

use super::file::File;
use super::parse;
use crate::host::Controller::Misc;
use crate::resources::Limit;

/// One scalar resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MiscStats {
    /// In use: `misc.current`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// The most that ever was: `misc.peak`, since Linux 6.11.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// The cgroup's own limit: `misc.max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Allocations that the limit refused: `NAME.max` of `misc.events`, since Linux 5.16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
}

pub(super) const FILES: &[File] = &[
    File::v2(Misc, "misc.current", |stats, contents| current(&mut stats.misc, contents)),
    File::v2(Misc, "misc.peak", |stats, contents| peak(&mut stats.misc, contents)),
    File::v2(Misc, "misc.max", |stats, contents| limits(&mut stats.misc, contents)),
    File::v2(Misc, "misc.events", |stats, contents| events(&mut stats.misc, contents)),
    File::v1(Misc, "misc.current", |stats, contents| current(&mut stats.misc, contents)),
    File::v1(Misc, "misc.peak", |stats, contents| peak(&mut stats.misc, contents)),
    File::v1(Misc, "misc.max", |stats, contents| limits(&mut stats.misc, contents)),
    File::v1(Misc, "misc.events", |stats, contents| events(&mut stats.misc, contents)),
];

type Resources = super::Table<String, MiscStats>;

fn current(resources: &mut Resources, contents: &[u8]) {
    for (name, value) in parse::flat_keyed_text(contents) {
        resources.update(name, |row| row.current = Some(value));
    }
}

fn peak(resources: &mut Resources, contents: &[u8]) {
    for (name, value) in parse::flat_keyed_text(contents) {
        resources.update(name, |row| row.peak = Some(value));
    }
}

fn limits(resources: &mut Resources, contents: &[u8]) {
    for (name, limit) in parse::flat_keyed_limits(contents) {
        resources.update(name, |row| row.limit = Some(limit));
    }
}

fn events(resources: &mut Resources, contents: &[u8]) {
    for (name, count) in parse::flat_keyed_text(contents) {
        if let Some(name) = name.strip_suffix(".max") {
            resources.update(name, |row| row.refused = Some(count));
        }
    }
}
