//! Huge pages: the files of `hugetlb`, a set for each page size.

use serde::Serialize;

use super::file::File;
use super::parse;
use crate::host::Controller::Hugetlb;
use crate::host::Version::{V1, V2};
use crate::resources::Limit;

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
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
    /// Allocations that a limit refused (SIGBUS): `max` of `.events`; v1: `.failcnt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
    /// Reserved by mmap(2): `.rsvd.current`; v1: `.rsvd.usage_in_bytes`. Since Linux 5.7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<u64>,
    /// The limit of reservations: `.rsvd.max`; v1: `.rsvd.limit_in_bytes`. Since Linux 5.7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_limit: Option<Limit>,
}

pub(super) const FILES: &[File] = &[
    File::keyed(V2, Hugetlb, "hugetlb.*.current", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.current = parse::value(contents));
    }),
    File::keyed(V2, Hugetlb, "hugetlb.*.max", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.limit = limit(size, contents));
    }),
    File::keyed(V2, Hugetlb, "hugetlb.*.events", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.refused = parse::value_of(contents, "max"));
    }),
    File::keyed(V2, Hugetlb, "hugetlb.*.rsvd.current", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.reserved = parse::value(contents));
    }),
    File::keyed(V2, Hugetlb, "hugetlb.*.rsvd.max", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.reserved_limit = limit(size, contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.usage_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.current = parse::value(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.max_usage_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.peak = parse::value(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.limit_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.limit = limit(size, contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.failcnt", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.refused = parse::value(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.rsvd.usage_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.reserved = parse::value(contents));
    }),
    File::keyed(V1, Hugetlb, "hugetlb.*.rsvd.limit_in_bytes", |stats, size, contents| {
        stats.hugetlb.update(size, |pages| pages.reserved_limit = limit(size, contents));
    }),
];

/// A limit in bytes. "No limit" is `max` on v2; on v1 it is the largest number of bytes below 2^63 that is whole huge pages:
/// 9223372036852678656 for `2MB`, 9223372035781033984 for `1GB`. Linux 6.18 says 9223372036854771712, the largest that is
/// whole pages, of a new cgroup on v2 for each size, until a limit is written.
pub(crate) fn limit(size: &str, contents: &[u8]) -> Option<Limit> {
    let unlimited = page_size(size).and_then(|page| (1_u64 << 63).checked_sub(page));
    let is_unlimited = |bytes| unlimited.is_some_and(|unlimited| bytes >= unlimited);
    Some(match parse::limit(contents)? {
        Limit::Value(bytes) if is_unlimited(bytes) => Limit::Max,
        limit => limit,
    })
}

/// A page size in bytes, as file names have it: `64KB`, `2MB`, `1GB`.
fn page_size(name: &str) -> Option<u64> {
    let (number, unit) = name.split_at_checked(name.len().checked_sub(2)?)?;
    let unit = match unit {
        "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    parse::number(number)?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_max_however_the_kernel_says_it() {
        for (size, contents, expected) in [
            ("2MB", "max\n", Some(Limit::Max)),
            ("2MB", "9223372036852678656\n", Some(Limit::Max)),
            ("1GB", "9223372035781033984\n", Some(Limit::Max)),
            ("1GB", "9223372036854771712\n", Some(Limit::Max)),
            ("2MB", "9223372036850581504\n", Some(Limit::Value(9223372036850581504))),
            ("2MB", "0\n", Some(Limit::Value(0))),
            ("2MB", "-1\n", None),
        ] {
            assert_eq!(limit(size, contents.as_bytes()), expected, "{size} {contents}");
        }
    }
}
