//! The caller's own files of v2, in the fixed order of their names, in the place of what was derived for the same file.

use rustix::io::Errno;

use super::draft::NOT_VALID_HERE;
use super::{Action, Draft, Reaction, Verify, cpuset, io};
use crate::error::{Error, ErrorKind, Result};
use crate::interface::{controller_of, is_core_limit, is_keyed, lifts_cpuset};
use crate::resources::FIELDS;

pub(super) fn plan(draft: &mut Draft<'_>) -> Result<()> {
    let refuse = |key: &str, value: &str, why: String| {
        let error = Error::new(ErrorKind::Unsupported, why);
        Err(error.with_setting(format!("unified.{key}")).with_value(value))
    };
    replace_derived(draft);
    for (key, value) in draft.named {
        // The field has said it.
        if lifts_cpuset(key, value) && draft.host.unified().is_some() {
            continue;
        }
        let Some((index, hierarchy)) = draft.host.unified() else {
            return refuse(
                key,
                value,
                "unified settings need cgroup v2, and this host has v1 alone".to_owned(),
            );
        };
        match controller_of(key) {
            None if is_core_limit(key) => {
                if !draft.takes(index) {
                    let why = "the cgroup cannot be in the hierarchy of cgroup v2 here";
                    draft.report.add(format!("unified.{key}"), value, why);
                    continue;
                }
            }
            None => {
                let why = "the part before the dot is no controller of cgroup v2".to_owned();
                return refuse(key, value, why);
            }
            Some(controller) if draft.host.withholds(controller, draft.want.path) => {
                if !FIELDS.contains(&key.as_str()) {
                    let why = draft.why_without(controller);
                    draft.report.add(format!("unified.{key}"), value, why);
                }
                continue;
            }
            Some(controller) if !hierarchy.controllers.contains(&controller) => {
                let why = format!("this host's cgroup v2 does not offer the {controller} controller");
                return refuse(key, value, why);
            }
            // Fields have said it.
            Some(_) if FIELDS.contains(&key.as_str()) => continue,
            Some(_) => {}
        }
        let keyed = is_keyed(key);
        // Such a file takes one of its lines at a time.
        for line in value.lines().filter(|line| !line.trim().is_empty()) {
            let step = draft.write(index, format!("unified.{key}"), key.clone(), line);
            if let (Some(file), Ok(asked)) = (cpuset::effective(key), line.trim().parse()) {
                cpuset::explain(step).verify(Verify::Within { file, asked });
            }
            // It takes the word, and says afterwards that the partition is invalid, and why.
            if key == "cpuset.cpus.partition" {
                let allowed = "member; root and isolated where the kernel finds the CPUs and the cgroups above fit for it";
                step.verify(Verify::ReadsBack { allowed });
            }
            if keyed {
                io::explain(step).on(
                    Errno::OPNOTSUPP,
                    Reaction::Explain("what this file is about is not on for this device"),
                );
            }
            step.on(
                Errno::NOENT,
                Reaction::Explain("this kernel has no such file for cgroups below the root"),
            )
            .on(Errno::INVAL, NOT_VALID_HERE);
        }
    }
    Ok(())
}

/// Drops what was derived for files that are written here, in one pass over the steps. What was derived for other lines of
/// the same file stays.
fn replace_derived(draft: &mut Draft<'_>) {
    let Some((index, _)) = draft.host.unified() else { return };
    let (host, path, named) = (draft.host, draft.want.path, draft.named);
    let is_written_here = |file: &str| {
        named.get(file).is_some_and(|value| !lifts_cpuset(file, value))
            && !is_keyed(file)
            && !FIELDS.contains(&file)
            && controller_of(file).is_some_and(|controller| !host.withholds(controller, path))
    };
    draft.steps.retain(|step| match &step.action {
        Action::Write { dir, file, .. } => dir.hierarchy != index || !is_written_here(file),
        _ => true,
    });
}
