//! CPUs and memory nodes.

use std::borrow::Cow;

use rustix::io::Errno;

use super::{Action, Dir, Draft, Reaction, Step, Verify};
use crate::host::{Controller, Hierarchy, Version};
use crate::resources::{Cpu, CpuSet};

/// The setting, its file, and on v2 the file with the set that is in force.
const SETTINGS: [(&str, &str, &str); 2] = [
    ("cpu.cpus", "cpuset.cpus", "cpuset.cpus.effective"),
    ("cpu.mems", "cpuset.mems", "cpuset.mems.effective"),
];

const USED_BELOW: &str = "a child cgroup uses what would be taken away, or (cgroup v2 before Linux 5.17) has a set of CPUs or \
                          memory nodes while this cgroup has none";

pub(super) fn plan(draft: &mut Draft<'_>) {
    let Cpu { cpus, mems, .. } = &draft.want.change.cpu;
    match draft.hierarchy_of(Controller::Cpuset) {
        Some((index, hierarchy)) if hierarchy.version == Version::V1 => v1(draft, index, hierarchy),
        Some((index, _)) => {
            for ((setting, file, effective), set) in SETTINGS.into_iter().zip([cpus, mems]) {
                let setting = draft.setting(file, setting);
                match set {
                    Some(set) if set.is_empty() => lift(draft, index, setting, file),
                    Some(set) => {
                        let step = draft.write(index, setting, file, set);
                        explain(step).verify(Verify::Within { file: effective, asked: set.clone() });
                    }
                    None => {}
                }
            }
        }
        None => {
            let wanted = |set: &Option<CpuSet>| set.clone().filter(|set| !set.is_empty());
            let sets = Cpu { cpus: wanted(cpus), mems: wanted(mems), ..Cpu::default() };
            draft.report_without(Controller::Cpuset, "cpu", &sets);
        }
    }
}

/// Makes a cgroup of v2 follow its parent again, unless it does already. A newline empties the file: an empty write is none.
fn lift(draft: &mut Draft<'_>, index: usize, setting: Cow<'static, str>, file: &'static str) {
    if draft.now_to_write(index, file).is_some_and(|now| !now.is_empty()) {
        draft.write(index, setting, file, "\n");
    }
}

/// A new cpuset is empty, and nothing can join it: every level that is empty is filled from the one above, top-down.
fn v1(draft: &mut Draft<'_>, index: usize, hierarchy: &Hierarchy) {
    let files = if hierarchy.noprefix { ["cpus", "mems"] } else { ["cpuset.cpus", "cpuset.mems"] };
    let Cpu { cpus, mems, .. } = &draft.want.change.cpu;
    let machine = [&draft.host.cpus, &draft.host.mems];
    for (((file, (setting, ..)), set), machine) in
        files.into_iter().zip(SETTINGS).zip([cpus, mems]).zip(machine)
    {
        let wanted = set.as_ref().filter(|set| !set.is_empty());
        if draft.want.create {
            fill(draft, index, file, wanted.is_some(), machine);
        }
        if let Some(set) = wanted {
            explain(draft.write(index, setting, file, set));
        } else if set.is_some() && !draft.want.create {
            // Lifted: v1 has no word for that, and the parent's set is the most that it can have.
            let inherited = inherited(draft, index, file, machine).0;
            explain(draft.write(index, setting, file, inherited));
        }
    }
}

/// Fills the empty levels of one cpuset file, the cgroup's own too unless its set `is_wanted`, with what the nearest level
/// has that is not empty; `machine` is what the root has if it is not read.
fn fill(draft: &mut Draft<'_>, index: usize, file: &'static str, is_wanted: bool, machine: &CpuSet) {
    let own = draft.leaf(index);
    let (inherited, empty) = inherited(draft, index, file, machine);
    // Top-down: empty, or not there yet. If somebody else makes it first, they fill it with the same.
    for dir in empty.into_iter().rev().chain((!is_wanted).then_some(own)) {
        draft.push(Step::new(Action::Write { dir, file: file.into(), value: inherited.clone() }));
    }
}

/// What the nearest level above has that is not empty, and the empty levels between, from the nearest on; `machine` if no level
/// is read.
fn inherited(draft: &Draft<'_>, index: usize, file: &str, machine: &CpuSet) -> (String, Vec<Dir>) {
    let (mut inherited, mut empty) = (None, Vec::new());
    for dir in std::iter::successors(draft.leaf(index).parent(), Dir::parent) {
        inherited = draft.above(index, &dir.path, file).filter(|now| !now.is_empty());
        if inherited.is_some() {
            break;
        }
        if !dir.path.is_empty() {
            empty.push(dir);
        }
    }
    (inherited.map_or_else(|| machine.to_string(), |now| now.to_string()), empty)
}

/// The errnos of a set that the parent does not have, or that lacks what the tasks need.
pub(super) fn explain(step: &mut Step) -> &mut Step {
    step.on(Errno::INVAL, Reaction::Explain("not online, or not a list such as 0-3,8"))
        .on(Errno::RANGE, Reaction::Explain("not on this machine"))
        .on(Errno::ACCESS, Reaction::Explain("the parent cgroup does not have all of it"))
        .on(Errno::NOSPC, Reaction::Explain("a set that is in use cannot become empty"))
        .on(Errno::BUSY, Reaction::Explain(USED_BELOW))
}

/// The file with the set that is in force (v2), for a file that takes one.
pub(super) fn effective(file: &str) -> Option<&'static str> {
    SETTINGS.into_iter().find(|(_, known, _)| *known == file).map(|(.., effective)| effective)
}
