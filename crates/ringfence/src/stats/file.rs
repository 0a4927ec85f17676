//! One kernel file that statistics are made of: which one it is, and what its contents say.

use super::Stats;
use crate::host::{Controller, Version};

/// A row of a controller's table.
pub(super) struct File {
    pub(super) version: Version,
    /// `None`: every v2 cgroup has it, whatever controllers it has.
    pub(super) controller: Option<Controller>,
    /// The name in the cgroup's directory. `*` stands for a key without a dot: the page size in `hugetlb.2MB.max`.
    pub(super) name: &'static str,
    pub(super) take: Take,
}

/// What takes the contents of a file into the statistics.
#[derive(Debug, Clone, Copy)]
pub(super) enum Take {
    Contents(fn(&mut Stats, &[u8])),
    Keyed(fn(&mut Stats, &str, &[u8])),
}

impl File {
    pub(super) const fn v1(controller: Controller, name: &'static str, take: fn(&mut Stats, &[u8])) -> Self {
        Self { version: Version::V1, controller: Some(controller), name, take: Take::Contents(take) }
    }

    pub(super) const fn v2(controller: Controller, name: &'static str, take: fn(&mut Stats, &[u8])) -> Self {
        Self { version: Version::V2, controller: Some(controller), name, take: Take::Contents(take) }
    }

    /// A file of v2 that no controller owns.
    pub(super) const fn core(name: &'static str, take: fn(&mut Stats, &[u8])) -> Self {
        Self { version: Version::V2, controller: None, name, take: Take::Contents(take) }
    }

    /// Files of which there is one per key, whose name has a `*` in the key's place.
    pub(super) const fn keyed(
        version: Version,
        controller: Controller,
        name: &'static str,
        take: fn(&mut Stats, &str, &[u8]),
    ) -> Self {
        Self { version, controller: Some(controller), name, take: Take::Keyed(take) }
    }

    /// Whether there is one such file per key.
    pub(super) fn is_keyed(&self) -> bool {
        matches!(self.take, Take::Keyed(_))
    }

    /// The name in a hierarchy that may be mounted with `noprefix`, which is for the cpuset alone.
    pub(super) fn name_in(&self, noprefix: bool) -> &'static str {
        self.name.strip_prefix("cpuset.").filter(|_| noprefix).unwrap_or(self.name)
    }

    /// The key that `name` has in the place of `*`; "" for a file without a key; `None` if it is not this file.
    pub(super) fn key_in<'a>(&self, name: &'a str) -> Option<&'a str> {
        let Some((before, after)) = self.name.split_once('*') else {
            return (name == self.name).then_some("");
        };
        let key = name.strip_prefix(before)?.strip_suffix(after)?;
        (!key.is_empty() && !key.contains('.')).then_some(key)
    }
}

impl Take {
    pub(super) fn call(self, stats: &mut Stats, key: &str, contents: &[u8]) {
        match self {
            Self::Contents(take) => take(stats, contents),
            Self::Keyed(take) => take(stats, key, contents),
        }
    }
}
