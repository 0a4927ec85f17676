//! Amounts as people write them: `64M`, `max`, `0.5` CPUs.

use super::Limit;
use crate::{Error, Result};

/// The CFS period that [`parse_cpus`] counts in: the kernel's default, 100 ms.
const PERIOD_US: u64 = 100_000;

/// The least that may be asked for: the kernel takes no quota below 1 ms.
const LEAST_QUOTA_US: u64 = 1_000;

/// Reads a size: whole bytes, or a whole number of `K`, `M`, `G` or `T` (powers of 1024, either case).
///
/// # Errors
/// Anything else, and what does not fit 64 bits. The error names no setting: the caller knows it.
pub fn parse_size(text: &str) -> Result<u64> {
    let refused = |why: &'static str| Error::new(crate::ErrorKind::InvalidInput, why).with_value(text);
    if text == "max" {
        return Err(refused("a size has an end: `max` is for limits"));
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift: u32 = match text.get(digits.len()..).map(str::to_ascii_uppercase).as_deref() {
        Some("") => 0,
        Some("K") => 10,
        Some("M") => 20,
        Some("G") => 30,
        Some("T") => 40,
        _ => return Err(refused("the unit is K, M, G or T (powers of 1024), or nothing for bytes")),
    };
    if digits.contains(['.', ',']) {
        return Err(refused("a size is a whole number: write 1536M for one and a half G"));
    }
    let number = whole(digits)
        .ok_or_else(|| refused("takes a whole number with K, M, G or T behind it, such as 64M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| refused("more than 64 bits can count"))
}

/// Reads the limit called `setting`: a size as [`parse_size`] takes it, or `max`.
///
/// # Errors
/// As [`parse_size`]; they name the setting.
pub fn parse_limit(setting: &'static str, text: &str) -> Result<Limit> {
    match text {
        "max" => Ok(Limit::Max),
        "-1" => Err(Error::invalid(setting, text, "no limit is written `max`")),
        size => parse_size(size).map(Limit::Value).map_err(|error| error.with_setting(setting)),
    }
}

/// Reads a number of CPUs, such as `0.5` or `2`, as the quota in microseconds per period of 100 ms; or `max`.
///
/// Reckoned in decimal: `0.29` is 29000 µs exactly. Parts of a microsecond (from the sixth decimal) are dropped, so that
/// the quota is never above what was asked.
///
/// # Errors
/// Less than 0.01, more than six decimals, and anything that is no decimal number. The error names no setting.
pub fn parse_cpus(text: &str) -> Result<Limit> {
    if text == "max" {
        return Ok(Limit::Max);
    }
    let refused = |why: &'static str| Error::new(crate::ErrorKind::InvalidInput, why).with_value(text);
    let malformed =
        || refused("takes a number of CPUs with at most six decimals, such as 0.5 or 2, or `max`");
    let (units, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if decimals.len() > 6 {
        return Err(malformed());
    }
    let units = whole(units).ok_or_else(malformed)?;
    let millionths =
        whole(&format!("{decimals:0<6}")).filter(|_| !decimals.is_empty()).ok_or_else(malformed)?;
    let quota = units
        .checked_mul(PERIOD_US)
        .and_then(|quota| quota.checked_add(millionths.saturating_mul(PERIOD_US) / 1_000_000))
        .ok_or_else(|| refused("more CPUs than any host has"))?;
    if quota < LEAST_QUOTA_US {
        return Err(refused("at least 0.01 CPUs: the kernel takes no quota below 1 ms per 100 ms"));
    }
    Ok(Limit::Value(quota))
}

/// `bytes` as the kernel keeps a memory limit: rounded down to whole pages.
pub(crate) fn page_floor(bytes: u64, page_size: u64) -> u64 {
    // A page size of 0 could only come from a made-up host; then nothing is rounded.
    bytes.saturating_sub(bytes.checked_rem(page_size).unwrap_or(0))
}

/// A number of digits alone: `u64::from_str` would take a sign too.
fn whole(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_kept_in_whole_pages() {
        for (bytes, page_size, kept) in [
            (0, 4096, 0),
            (4095, 4096, 0),
            (4096, 4096, 4096),
            (4097, 4096, 4096),
            (65_535, 65_536, 0),
            (u64::MAX, 4096, u64::MAX - 4095),
            (5, 0, 5),
        ] {
            assert_eq!(page_floor(bytes, page_size), kept, "{bytes} {page_size}");
        }
    }

    #[test]
    fn a_size_is_bytes_or_has_a_unit_of_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("4096", 4096),
            ("1K", 1 << 10),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("2g", 2 << 30),
            ("3T", 3 << 40),
            ("18446744073709551615", u64::MAX),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "such as 64M"),
            ("M", "such as 64M"),
            ("-1", "such as 64M"),
            ("+1", "such as 64M"),
            (" 1", "such as 64M"),
            ("1 M", "such as 64M"),
            ("0x10", "such as 64M"),
            ("1_000", "such as 64M"),
            ("1M ", "such as 64M"),
            ("٣", "such as 64M"),
            ("64MB", "the unit is"),
            ("64MiB", "the unit is"),
            ("64P", "the unit is"),
            ("1e6x", "the unit is"),
            ("1.5G", "whole number"),
            ("0.5", "whole number"),
            ("1,5G", "whole number"),
            ("max", "for limits"),
            ("18446744073709551616", "such as 64M"),
            ("16777216T", "64 bits"),
        ] {
            let error = parse_size(text).unwrap_err();
            assert!(error.message().contains(reason), "{text:?}: {error}");
            assert_eq!(error.value(), Some(text));
        }
    }

    #[test]
    fn a_limit_is_a_size_or_max_and_its_error_names_the_setting() {
        assert_eq!(parse_limit("memory.limit", "max").unwrap(), Limit::Max);
        assert_eq!(parse_limit("memory.limit", "1K").unwrap(), Limit::Value(1024));
        let error = parse_limit("memory.limit", "64MB").unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"memory.limit = "64MB": the unit is K, M, G or T (powers of 1024), or nothing for bytes"#
        );
        let error = parse_limit("memory.swap", "-1").unwrap_err();
        assert_eq!(error.to_string(), r#"memory.swap = "-1": no limit is written `max`"#);
    }

    #[test]
    fn cpus_become_the_exact_quota() {
        for (text, quota) in [
            ("1", 100_000),
            ("0.5", 50_000),
            ("0.01", 1_000),
            ("0.29", 29_000), // 0.29 · 100000 is 28999.999… in floating point
            ("1.1", 110_000),
            ("2.50", 250_000),
            ("0.333333", 33_333),
            ("0.012345", 1_234),
            ("64", 6_400_000),
            ("08.0", 800_000),
        ] {
            assert_eq!(parse_cpus(text).unwrap(), Limit::Value(quota), "{text}");
        }
        assert_eq!(parse_cpus("max").unwrap(), Limit::Max);
    }

    #[test]
    fn what_is_no_number_of_cpus_is_refused() {
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1,5",
            "0.1234567",
            "0.+1",
            "inf",
            "NaN",
            "0",
            "0.0",
            "0.009999",
            "184467440737096",
            "99999999999999999999",
            "1.2.3",
        ] {
            let refused = parse_cpus(text);
            assert!(refused.is_err(), "{text:?} gave {refused:?}");
        }
    }

    proptest! {
        #[test]
        fn rounding_to_pages_is_the_greatest_multiple_below(bytes: u64, shift in 12u32..17) {
            let page_size = 1 << shift;
            let kept = page_floor(bytes, page_size);
            prop_assert!(kept <= bytes && bytes - kept < page_size && kept.is_multiple_of(page_size));
        }

        #[test]
        fn every_number_of_bytes_reads_back(bytes: u64) {
            prop_assert_eq!(parse_size(&bytes.to_string()).unwrap(), bytes);
        }

        #[test]
        fn every_quota_can_be_asked_for_as_cpus(quota in 1_000u64..100_000_000) {
            let text = format!("{}.{:05}", quota / 100_000, quota % 100_000);
            prop_assert_eq!(parse_cpus(&text).unwrap(), Limit::Value(quota));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "[-+0-9.]{0,30}[kKmMgGtTpPé]{0,2}|.*") {
            let _ = parse_limit("memory.limit", &text);
            let _ = parse_cpus(&text);
        }
    }
}
