//! Huge pages: the files of `hugetlb`, a set for each page size.

use serde::{Deserialize, Serialize};

use super::file::File;
use super::parse;
use crate::host::Controller::Hugetlb;
use crate::host::Version::{V1, V2};
use crate::resources::Limit;

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HugetlbStats {
    /// Faulted in: `.current`; v1: `.usage_in_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// The most that ever was: v1 `.max_usage_in_bytes`; v2 has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// The cgroup's own limit: `.max`; v1: `.limit_in_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// What a limit refused, faults (SIGBUS) and reservations (ENOMEM): `max` of `.events`; v1: the sum of `.failcnt`
    /// and `.rsvd.failcnt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
    /// Reserved by mmap(2): `.rsvd.current`; v1: `.rsvd.usage_in_bytes`. Since Linux 5.7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<u64>,
    /// The limit of reservations: `.rsvd.max`; v1: `.rsvd.limit_in_bytes`. Since Linux 5.7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_limit: Option<Limit>,
}

/// v1's `.rsvd.failcnt` comes after `.failcnt`: the sum is taken.
pub(super) const FILES: &[File] = &[
    File::keyed(V2, Hugetlb, "hugetlb.*.current", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.current = parse::value(contents));
    }),
    File::keyed(V2, Hugetlb, "hugetlb.*.max", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.limit = parse::bytes_limit(contents));
    }),
    File::keyed(V2, Hugetlb, "hugetlb.*.events", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.refused = parse::value_of(contents, "max"));
    }),
    File::keyed(V2, Hugetlb, "hugetlb.*.rsvd.current", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.reserved = parse::value(contents));
    }),
    File::keyed(V2, Hugetlb, "hugetlb.*.rsvd.max", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.reserved_limit = parse::bytes_limit(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.usage_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.current = parse::value(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.max_usage_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.peak = parse::value(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.limit_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.limit = parse::bytes_limit(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.failcnt", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.refused = parse::value(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.rsvd.failcnt", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.refused = sum(pages.refused, parse::value(contents)));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.rsvd.usage_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.reserved = parse::value(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.rsvd.limit_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.reserved_limit = parse::bytes_limit(contents));
    }),
];

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.saturating_add(other?))
}
