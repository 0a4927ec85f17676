//! RDMA resources.

use rustix::io::Errno;

use super::{Draft, Reaction};
use crate::host::Controller;
use crate::resources::{Limit, Rdma};

/// The kernel's greatest number stands for no limit, and reads back so.
fn kept(limit: Limit) -> Limit {
    if limit >= Limit::Value(i32::MAX as u64) { Limit::Max } else { limit }
}

pub(super) fn plan(draft: &mut Draft<'_>) {
    for (device, limits) in &draft.want.change.rdma {
        let setting = format!("rdma.{device}");
        let Some((index, _)) = draft.place_of(Controller::Rdma) else {
            draft.report_without(Controller::Rdma, &setting, limits);
            continue;
        };
        // The file and its words are the same in both versions; what is not named there stays.
        let Rdma { hca_handles, hca_objects } = limits;
        let words = [("hca_handle", hca_handles), ("hca_object", hca_objects)];
        let words =
            words.into_iter().filter_map(|(name, limit)| Some(format!(" {name}={}", kept((*limit)?))));
        let words = words.collect::<String>();
        if !words.is_empty() {
            let why = Reaction::Explain("no RDMA device has this name");
            draft.write(index, setting, "rdma.max", format!("{device}{words}")).on(Errno::NODEV, why);
        }
    }
}
