//! Sizes, limits, numbers of CPUs, and thresholds of pressure.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::{Limit, PressureTrigger};
use ringfence::resources::{parse_cpus, parse_limit, parse_size};
use ringfence_fuzz::assert_refused;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let size = parse_size(text);
    match &size {
        Ok(bytes) => assert_eq!(u128::from(*bytes), meant(text).expect("a size")),
        Err(error) => {
            assert_refused(error);
            assert_eq!(error.value(), Some(text));
            assert!(meant(text).is_none_or(|bytes| u64::try_from(bytes).is_err()), "{error}");
        }
    }
    match parse_limit("memory.limit", text) {
        Ok(Limit::Max) => assert_eq!(text, "max"),
        Ok(Limit::Value(bytes)) => assert_eq!(bytes, size.expect("a size too")),
        Err(error) => assert_eq!((error.setting(), size.is_err()), (Some("memory.limit"), true)),
    }
    match text.parse::<PressureTrigger>() {
        Ok(trigger) => assert_eq!(trigger.to_string().parse::<PressureTrigger>().expect("as printed"), trigger),
        Err(error) => assert_refused(&error),
    }
    match parse_cpus(text) {
        Ok(Limit::Max) => assert_eq!(text, "max"),
        Ok(Limit::Value(quota)) => assert_eq!(Some(quota), quota_of(text)),
        Err(error) => {
            assert_refused(&error);
            let quota = quota_of(text);
            assert!(quota.is_none_or(|quota| quota < 1000), "{error}");
        }
    }
});

fn number(digits: &str) -> Option<u128> {
    let good = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let short = digits.trim_start_matches('0');
    // What is longer is more than 64 bits can count in any unit.
    good.then(|| format!("0{}", short.get(..25).unwrap_or(short)).parse().expect("26 digits fit"))
}

/// Digits and a unit, whatever the size.
fn meant(text: &str) -> Option<u128> {
    let units = [("k", 10), ("m", 20), ("g", 30), ("t", 40)];
    let lower = text.to_ascii_lowercase();
    for (unit, shift) in units {
        if let Some(digits) = lower.strip_suffix(unit) {
            return number(digits).map(|number| number << shift);
        }
    }
    number(text)
}

/// 100000 times a decimal number, cut off.
fn quota_of(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let millionths = number(&format!("{part:0<6}")).filter(|_| (1..=6).contains(&part.len()))?;
    u64::try_from(number(whole)? * 100_000 + millionths / 10).ok()
}
