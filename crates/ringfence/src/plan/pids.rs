//! Number of tasks.

use super::Draft;
use super::draft::lowered;
use crate::host::Controller;
use crate::resources::Limit;

pub(super) fn plan(draft: &mut Draft<'_>) {
    // None is one, as the runtimes have it: nothing beyond the first task.
    let Some(limit) = draft.want.change.pids.limit.map(|limit| limit.max(Limit::Value(1))) else { return };
    match draft.place_of(Controller::Pids) {
        // The file and its words are the same in both versions.
        Some((index, _)) => {
            let verify = lowered(draft.want, limit, "a number or \"max\"");
            let before = draft.want.base.pids.limit.unwrap_or(Limit::Max);
            if !draft.want.create
                && limit < before
                && let Some(running) = draft.number(index, "pids.current")
                && limit < Limit::Value(running)
            {
                let why = format!(
                    "in force from now on; {running} tasks run, and no other one starts before they are fewer"
                );
                draft.report.note("pids.limit", limit, why);
            }
            draft.write(index, "pids.limit", "pids.max", limit).verify(verify);
        }
        None => draft.report_without(Controller::Pids, "pids", &draft.want.change.pids),
    }
}
