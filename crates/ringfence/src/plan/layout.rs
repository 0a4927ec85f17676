//! The directories, and on v2 the controllers that are enabled above them.

use std::sync::Arc;

use rustix::io::Errno;

use super::{Action, Dir, Draft, OWNER, PartWant, Reaction, Step, Undo};
use crate::host::{Controller, Hierarchy, Version};
use crate::interface::controller_of;

/// What comes before the values of a new cgroup: its directory in every hierarchy, so that a process that joins is
/// counted, frozen and found in each. On v2 controllers are enabled on the way down, while the levels are empty.
pub(super) fn make(draft: &Draft<'_>) -> Vec<Step> {
    if let Some(whole) = draft.want.threads_of {
        return make_threaded(draft, whole);
    }
    let mut steps = Vec::new();
    let base = draft.host.base_of(draft.want.path);
    let levels = levels(draft.want.path, base);
    for (index, hierarchy) in
        draft.host.hierarchies.iter().enumerate().filter(|(index, _)| draft.takes(*index))
    {
        let (required, wanted) = match hierarchy.version {
            Version::V1 => Default::default(),
            Version::V2 => {
                let (mut required, mut wanted) = controllers(draft, &draft.steps, index, hierarchy);
                if draft.want.parts.iter().any(PartWant::has_cpuset)
                    && hierarchy.controllers.contains(&Controller::Cpuset)
                    && !required.contains(&Controller::Cpuset)
                {
                    required.push(Controller::Cpuset);
                    wanted.retain(|controller| *controller != Controller::Cpuset);
                }
                (required, wanted)
            }
        };
        let leaf = draft.leaf(index);
        for dir in levels.iter().map(|path| Dir::new(index, Arc::clone(path))) {
            if !(required.is_empty() && wanted.is_empty())
                && let Some(above) = dir.parent()
            {
                let evacuate = draft.want.evacuate && *above.path == *base;
                let (required, wanted) = (required.clone(), wanted.clone());
                steps.push(Step::new(Action::EnableControllers {
                    dir: above,
                    required,
                    wanted,
                    evacuate,
                    threads: false,
                }));
            }
            let ancestor = dir != leaf;
            let mut step = Step::new(Action::MakeDir { dir, ancestor });
            step.undo = Undo::RemoveDir;
            steps.push(step);
        }
    }
    steps
}

/// The same for a part into which threads go: on v2 it is switched before anything is enabled, which makes the whole the
/// domain of its threads.
fn make_threaded(draft: &Draft<'_>, whole: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, hierarchy) in
        draft.host.hierarchies.iter().enumerate().filter(|(index, _)| draft.takes(*index))
    {
        let dir = draft.leaf(index);
        let mut make = Step::new(Action::MakeDir { dir: dir.clone(), ancestor: false });
        make.undo = Undo::RemoveDir;
        steps.push(make);
        if hierarchy.version == Version::V1 {
            continue;
        }
        let (file, value) = ("cgroup.type".into(), "threaded".to_owned());
        let mut switch = Step::new(Action::Write { dir: dir.clone(), file, value });
        switch.on(
            Errno::OPNOTSUPP,
            Reaction::Explain("it cannot have threads: a cgroup beside it holds processes"),
        );
        steps.push(switch);
        let (required, wanted) = controllers(draft, &draft.steps, index, hierarchy);
        if !(required.is_empty() && wanted.is_empty()) {
            let (dir, evacuate, threads) = (Dir::new(index, whole), false, true);
            steps.push(Step::new(Action::EnableControllers { dir, required, wanted, evacuate, threads }));
        }
    }
    steps
}

/// What comes before the values of a change: on v2 it may need a controller that nothing has needed before, which is
/// enabled from the root down. Processes that run inside do not hinder that.
pub(super) fn enable_missing(draft: &Draft<'_>) -> Vec<Step> {
    enable_for(draft, &draft.steps)
}

/// The same for these writes.
pub(super) fn enable_for(draft: &Draft<'_>, writes: &[Step]) -> Vec<Step> {
    let Some((index, hierarchy)) = draft.unified() else { return Vec::new() };
    let (mut required, _) = controllers(draft, writes, index, hierarchy);
    // A controller of which a file is there is enabled.
    let is_there = |controller: &Controller| {
        writes.iter().any(|step| match &step.action {
            Action::Write { dir, file, .. } => {
                let is_its = dir.hierarchy == index && controller_of(file) == Some(*controller);
                is_its && draft.has(index, file)
            }
            _ => false,
        })
    };
    required.retain(|controller| !is_there(controller));
    if !required.is_empty() {
        let there =
            Controller::list_from_v2(draft.now(index, "cgroup.controllers").as_deref().unwrap_or_default());
        required.retain(|controller| !there.contains(controller));
    }
    if required.is_empty() {
        return Vec::new();
    }
    let enable = |dir: Dir| {
        let (required, wanted, evacuate) = (required.clone(), Vec::new(), false);
        let threads = draft.want.threads_of == Some(&*dir.path);
        Step::new(Action::EnableControllers { dir, required, wanted, evacuate, threads })
    };
    let levels = levels(draft.want.path, draft.host.base_of(draft.want.path));
    levels.into_iter().filter_map(|path| Dir::new(index, path).parent()).map(enable).collect()
}

/// What comes after the values of a new cgroup: it is given to its owner, in every hierarchy. Its limits are not.
pub(super) fn hand_over(draft: &mut Draft<'_>) {
    let Some(owner) = draft.want.owner else { return };
    for index in 0..draft.host.hierarchies.len() {
        if draft.takes(index) {
            let dir = draft.leaf(index);
            let step = draft.push(Step::new(Action::Delegate { dir, owner }));
            step.setting = Some(OWNER.into());
            step.on(Errno::PERM, Reaction::Unsupported("giving a cgroup away takes CAP_CHOWN"));
            step.on(Errno::INVAL, Reaction::Explain("this user namespace has no such user or group"));
        }
    }
    if draft.want.path.is_empty() {
        draft.report.add(OWNER, owner, draft.host.why_nothing());
    }
}

/// The v2 controllers without which a value that is written has no file, and those that are only wanted.
fn controllers(
    draft: &Draft<'_>,
    writes: &[Step],
    index: usize,
    hierarchy: &Hierarchy,
) -> (Vec<Controller>, Vec<Controller>) {
    let mut required = Vec::new();
    for step in writes {
        if let Action::Write { dir, file, .. } = &step.action
            && dir.hierarchy == index
            && let Some(controller) = controller_of(file)
            && !step.is_optional()
            && !required.contains(&controller)
        {
            required.push(controller);
        }
    }
    let offered = |controller: &Controller| hierarchy.controllers.contains(controller);
    let wanted = draft.want.statistics.iter().copied().filter(offered);
    let wanted = wanted.filter(|controller| !required.contains(controller)).collect();
    (required, wanted)
}

/// The path and those above it below `base`, top-down.
fn levels(path: &str, base: &str) -> Vec<Arc<str>> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.filter_map(|end| path.get(..end)).filter(|level| level.len() > base.len()).map(Arc::from).collect()
}
