//! Counters of what happened in a cgroup, as the kernel keeps them.

use serde::{Deserialize, Serialize};

use super::What;
use crate::cgroup::Cgroup;
use crate::host::{Controller, Host, Version};

/// How often something happened in a cgroup since it was made. `None` for what its kernel and version do not count.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Counts {
    /// Processes that the kernel killed because memory ran out (`oom_kill` in `memory.events` of v2; Linux 4.13 in
    /// `memory.oom_control` of v1, without cgroups below).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Memory went over `memory.high` (v2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<u64>,
    /// Memory was about to go over the limit (`max` in `memory.events`; on v1 `memory.failcnt` and, for the limit of memory and
    /// swap, `memory.memsw.failcnt`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<u64>,
    /// Memory was reclaimed below `memory.low` (v2): more is protected than there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_low: Option<u64>,
    /// A task was not made because of `pids.max` (`pids.events`). Before Linux 6.11, and on v1, without cgroups below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<u64>,
}

impl Counts {
    /// Whether nothing is known.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    fn all(&self) -> [Option<u64>; 5] {
        let Self { oom_kill, memory_high, memory_max, memory_low, pids_max } = *self;
        [oom_kill, memory_high, memory_max, memory_low, pids_max]
    }

    fn of([oom_kill, memory_high, memory_max, memory_low, pids_max]: [Option<u64>; 5]) -> Self {
        Self { oom_kill, memory_high, memory_max, memory_low, pids_max }
    }

    /// Adds those of another cgroup.
    pub(crate) fn add(&mut self, other: &Self) {
        let mut sum = self.all();
        for (mine, theirs) in sum.iter_mut().zip(other.all()) {
            if let Some(theirs) = theirs {
                *mine = Some(mine.unwrap_or(0).saturating_add(theirs));
            }
        }
        *self = Self::of(sum);
    }

    /// Takes over what has grown, and says by how much.
    pub(crate) fn advance(&mut self, now: &Self) -> Self {
        let (mut latest, mut grown) = (self.all(), now.all());
        for (mine, now) in latest.iter_mut().zip(&mut grown) {
            let before = *mine;
            *mine = before.max(*now);
            *now = now.map(|now| now.saturating_sub(before.unwrap_or(0))).filter(|by| *by > 0);
        }
        *self = Self::of(latest);
        Self::of(grown)
    }

    /// What has grown, as events. A limit is met before somebody is killed for it.
    pub(super) fn as_events(&self) -> impl Iterator<Item = What> + use<> {
        let all = [
            self.memory_low.map(|count| What::MemoryLow { count }),
            self.memory_high.map(|count| What::MemoryHigh { count }),
            self.memory_max.map(|count| What::MemoryMax { count }),
            self.oom_kill.map(|count| What::OomKill { count }),
            self.pids_max.map(|count| What::PidsMax { count }),
        ];
        all.into_iter().flatten()
    }

    /// `memory.events` of v2.
    pub(super) fn take_memory_events(&mut self, bytes: &[u8]) {
        for (key, value) in flat(bytes) {
            let field = match key {
                b"oom_kill" => &mut self.oom_kill,
                b"high" => &mut self.memory_high,
                b"max" => &mut self.memory_max,
                b"low" => &mut self.memory_low,
                _ => continue,
            };
            *field = Some(value);
        }
    }

    /// `memory.oom_control` of v1.
    pub(super) fn take_oom_control(&mut self, bytes: &[u8]) {
        self.oom_kill = flat(bytes).find(|(key, _)| *key == b"oom_kill").map(|(_, value)| value);
    }

    /// `memory.failcnt` or `memory.memsw.failcnt` of v1: each limit is met by itself.
    pub(super) fn take_failcnt(&mut self, bytes: &[u8]) {
        self.add(&Self { memory_max: number(bytes.trim_ascii()), ..Self::default() });
    }

    /// `pids.events`.
    pub(super) fn take_pids_events(&mut self, bytes: &[u8]) {
        self.pids_max = flat(bytes).find(|(key, _)| *key == b"max").map(|(_, value)| value);
    }
}

/// Lines of a name and a number. A line that is none is left out.
pub(super) fn flat(bytes: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.splitn(2, |byte| *byte == b' ');
        Some((words.next()?, number(words.next()?)?))
    })
}

fn number(bytes: &[u8]) -> Option<u64> {
    str::from_utf8(bytes).ok()?.parse().ok()
}

/// The counters of one cgroup of many that may have had its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastCounts {
    /// The kernel's number of the directory, which no other one gets while the machine runs.
    pub(crate) instance: u64,
    /// What was counted.
    pub(crate) counts: Counts,
}

/// Cgroups of a sandbox whose counters are still known, those that are gone too.
const KNOWN: usize = 16;

/// What was counted in the cgroups of a sandbox, whoever has read it, and how often.
#[derive(Debug, Default)]
pub(super) struct Tally {
    known: Vec<LastCounts>,
    /// What is still to be told.
    pub(super) grown: Counts,
}

impl Tally {
    /// Takes over what is new, and says what that is.
    pub(super) fn count(&mut self, now: &LastCounts) -> Counts {
        let at = self.known.iter().position(|known| known.instance == now.instance);
        let new = LastCounts { instance: now.instance, counts: Counts::default() };
        let mut last = at.map_or(new, |at| self.known.remove(at));
        let by = last.counts.advance(&now.counts);
        self.grown.add(&by);
        // Those that are there are read again and again, and so are never the oldest.
        if self.known.len() >= KNOWN {
            self.known.remove(0);
        }
        self.known.push(last);
        by
    }
}

/// The hierarchy by whose directory a cgroup is known: v2's where it has one, else that of memory.
pub(super) fn reference(host: &Host, path: &str) -> usize {
    let unified = host.unified().map(|(index, _)| index);
    let memory = host.hierarchy_of(Controller::Memory).map(|(index, _)| index);
    let all = unified.into_iter().chain(memory).chain(0..host.hierarchies.len());
    all.into_iter().find(|index| host.takes(*index, path)).unwrap_or(0)
}

impl Cgroup {
    /// The kernel's number of the directory by which it is known, also when that is gone.
    fn instance(&self) -> Option<u64> {
        let reference = reference(&self.host, &self.path);
        let (_, open) = self.dirs.iter().find(|(dir, _)| dir.hierarchy == reference)?;
        open.inode().ok()
    }

    /// What was counted until now; `None` where the kernel does not say any more.
    pub(crate) fn counted(&self) -> Option<LastCounts> {
        // Of one that others made in some hierarchies alone, nothing else is known by its number.
        let instance = self.instance().unwrap_or(0);
        let mut counts = Counts::default();
        let mut buffer = Vec::with_capacity(512);
        let read = |controller, v1: &str, v2: &str, buffer: &mut Vec<u8>| {
            let (version, dir) = self.dir_of(controller)?;
            let file = if version == Version::V1 { v1 } else { v2 };
            dir.read_into(file, buffer).ok().map(|()| version)
        };
        match read(Controller::Memory, "memory.oom_control", "memory.events", &mut buffer) {
            Some(Version::V1) => counts.take_oom_control(&buffer),
            Some(Version::V2) => counts.take_memory_events(&buffer),
            None => {}
        }
        for file in ["memory.failcnt", "memory.memsw.failcnt"] {
            if read(Controller::Memory, file, "", &mut buffer) == Some(Version::V1) {
                counts.take_failcnt(&buffer);
            }
        }
        if read(Controller::Pids, "pids.events", "pids.events", &mut buffer).is_some() {
            counts.take_pids_events(&buffer);
        }
        (!counts.is_unknown()).then_some(LastCounts { instance, counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_files_of_both_versions() {
        let mut v2 = Counts::default();
        v2.take_memory_events(b"low 1\nhigh 2\nmax 33\noom 4\noom_kill 5\noom_group_kill 6\n");
        v2.take_pids_events(b"max 7\n");
        let all = [v2.memory_low, v2.memory_high, v2.memory_max, v2.oom_kill, v2.pids_max];
        assert_eq!(all, [1, 2, 33, 5, 7].map(Some));
        let mut v1 = Counts::default();
        v1.take_oom_control(b"oom_kill_disable 0\nunder_oom 0\noom_kill 8\n");
        v1.take_failcnt(b"9\n");
        v1.take_failcnt(b"1\n");
        assert_eq!((v1.oom_kill, v1.memory_max, v1.memory_high), (Some(8), Some(10), None));
    }

    #[test]
    fn rubbish_is_no_count() {
        let mut counts = Counts::default();
        for bytes in [&b""[..], b"oom_kill", b"oom_kill \n", b"oom_kill -1", b"\xff\xff 1\nmax x", b"1 1"] {
            counts.take_memory_events(bytes);
            counts.take_oom_control(bytes);
            counts.take_failcnt(bytes);
            counts.take_pids_events(bytes);
        }
        assert!(counts.is_unknown());
    }

    #[test]
    fn what_is_read_twice_is_counted_once() {
        let mut tally = Tally::default();
        let last = |instance, kills| {
            let counts = Counts { oom_kill: Some(kills), ..Counts::default() };
            LastCounts { instance, counts }
        };
        for (instance, kills, new) in
            [(1, 1, Some(1)), (1, 1, None), (2, 3, Some(3)), (1, 2, Some(1)), (2, 1, None)]
        {
            assert_eq!(tally.count(&last(instance, kills)).oom_kill, new);
        }
        assert_eq!(tally.grown.oom_kill, Some(5));
        // What is gone for long is forgotten, what is still read is not.
        for instance in 10..100 {
            tally.count(&last(instance, 0));
            assert_eq!(tally.count(&last(1, 2)).oom_kill, None);
        }
        assert!(tally.known.len() <= KNOWN);
    }

    #[test]
    fn only_what_has_grown_is_an_event() {
        let mut known = Counts { oom_kill: Some(2), memory_max: Some(5), ..Counts::default() };
        let now = Counts { oom_kill: Some(5), memory_max: Some(5), pids_max: Some(1), ..Counts::default() };
        let grown = known.advance(&now);
        let events: Vec<_> = grown.as_events().collect();
        assert_eq!(events, [What::OomKill { count: 3 }, What::PidsMax { count: 1 }]);
        assert_eq!(known, now);
        // What was told by somebody who looked earlier.
        assert_eq!(known.advance(&Counts { oom_kill: Some(4), ..Counts::default() }), Counts::default());
        assert_eq!(known.oom_kill, Some(5));
    }
}
