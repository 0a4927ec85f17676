//! Huge pages.

use rustix::io::Errno;

use super::draft::minus_one;
use super::{Draft, Reaction};
use crate::host::{Controller, Version};
use crate::resources::Limit;

pub(super) fn plan(draft: &mut Draft<'_>) {
    for (size, limit) in &draft.want.change.hugepage_limits {
        let setting = format!("hugepageLimits.{size}");
        let Some((index, version)) = draft.place_of(Controller::Hugetlb) else {
            draft.report.add(setting, limit, draft.why_without(Controller::Hugetlb));
            continue;
        };
        if !draft.host.huge_page_sizes.contains(size) {
            draft.report.add(setting, limit, "this host has no huge pages of this size");
            continue;
        }
        // The kernel rounds down to pages of this size.
        let limit = match limit {
            Limit::Value(bytes) => Limit::Value(bytes - bytes % size.bytes()),
            Limit::Max => Limit::Max,
        };
        let (file, value) = match version {
            Version::V1 => ("limit_in_bytes", minus_one(limit)),
            Version::V2 => ("max", limit.to_string()),
        };
        let reservations =
            draft.host.capabilities.hugetlb_rsvd.then(|| format!("hugetlb.{size}.rsvd.{file}"));
        for file in [Some(format!("hugetlb.{size}.{file}")), reservations].into_iter().flatten() {
            let why = Reaction::Explain("more is in use, or reserved, than that");
            draft.write(index, setting.clone(), file, &value).on(Errno::BUSY, why);
        }
    }
}
