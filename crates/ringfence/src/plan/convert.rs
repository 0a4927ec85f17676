//! Conversions between the units of OCI, cgroup v1 and cgroup v2.

use crate::{Error, Limit, Result};

/// The least and the greatest `cpu.shares` of cgroup v1, where the kernel clamps.
const SHARES: (u64, u64) = (2, 262_144);

/// The least and the greatest `cpu.weight` of cgroup v2.
const WEIGHT: (u64, u64) = (1, 10_000);

/// The `cpu.weight` (v2, 1 to 10000) for `cpu.shares` (v1, 2 to 262144; others count as the nearest of these).
///
/// ceil(10^((l² + 125·l)/612 − 7/34)) with l = log2(shares): the curve on which the two versions' least, default and
/// greatest values meet. Monotonic, and every weight is reached.
pub(crate) fn shares_to_weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES.0, SHARES.1);
    match shares {
        // Here the power is a whole number, and rounding up must not depend on the last bit of a float. Everywhere else
        // it is farther than 4·10⁻¹⁰ of itself from one, a hundred thousand times the error of `log2` and `powf`.
        2 => 1,
        1024 => 100,
        262_144 => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let weight = 10f64.powf((l * l + 125.0 * l - 126.0) / 612.0).ceil();
            // The cast saturates.
            (weight as u64).clamp(WEIGHT.0, WEIGHT.1)
        }
    }
}

/// The greatest `cpu.shares` that [`shares_to_weight`] turns into `weight` (1 to 10000; others count as the nearest).
///
/// Its exact inverse: converted back, every weight is itself; 1, 100 and 10000 become 2, 1024 and 262144.
pub(crate) fn weight_to_shares(weight: u64) -> u64 {
    let weight = weight.clamp(WEIGHT.0, WEIGHT.1);
    // Bisection: `low` gives at most `weight`, everything above `high` gives more.
    let (mut low, mut high) = SHARES;
    while low < high {
        let middle = low.midpoint(high.saturating_add(1));
        if shares_to_weight(middle) <= weight {
            low = middle;
        } else {
            high = middle.saturating_sub(1);
        }
    }
    low
}

/// The `io.weight` (v2, 1 to 10000) for OCI's weight of block devices (10 to 1000; others count as the nearest): linear.
pub(crate) fn io_weight(weight: u64) -> u64 {
    1 + (weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// `memory.swap.max` (v2: swap alone) for OCI's swap, which is memory plus swap.
///
/// # Errors
/// A swap limit that is smaller than the memory limit, or beside memory without a limit.
pub(crate) fn swap_to_v2(limit: Limit, swap: Limit) -> Result<Limit> {
    let refused = |why| Error::invalid("memory.swap", swap, why);
    match (limit, swap) {
        (_, Limit::Max) => Ok(Limit::Max),
        (Limit::Max, Limit::Value(_)) => Err(refused(
            "is memory plus swap: without a memory limit there is no telling how much of it is swap",
        )),
        (Limit::Value(limit), Limit::Value(both)) => both
            .checked_sub(limit)
            .map(Limit::Value)
            .ok_or_else(|| refused("is memory plus swap: it cannot be less than the memory limit")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn least_default_and_greatest_shares_become_least_default_and_greatest_weight() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000)] {
            assert_eq!(shares_to_weight(shares), weight);
            assert_eq!(weight_to_shares(weight), shares);
        }
    }

    #[test]
    fn shares_between_the_fixed_points_follow_the_curve() {
        // Reckoned apart, with fifty digits.
        for (shares, weight) in [
            (3, 2),
            (10, 4),
            (100, 17),
            (512, 59),
            (1023, 100),
            (1025, 101),
            (2048, 174),
            (10_000, 627),
            (262_143, 10_000),
        ] {
            assert_eq!(shares_to_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn shares_outside_the_range_count_as_the_nearest() {
        for (shares, weight) in [(0, 1), (1, 1), (262_145, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(shares_to_weight(shares), weight);
        }
        for (weight, shares) in [(0, 2), (10_001, 262_144), (u64::MAX, 262_144)] {
            assert_eq!(weight_to_shares(weight), shares);
        }
    }

    #[test]
    fn more_shares_never_weigh_less_and_no_weight_is_skipped() {
        let mut before = shares_to_weight(2);
        for shares in 3..=262_144 {
            let weight = shares_to_weight(shares);
            assert!(weight == before || weight == before + 1, "{shares}: {before} then {weight}");
            before = weight;
        }
    }

    #[test]
    fn every_weight_becomes_shares_and_itself_again() {
        let mut before = 0;
        for weight in 1..=10_000 {
            let shares = weight_to_shares(weight);
            assert_eq!(shares_to_weight(shares), weight);
            assert!(shares > before, "{weight}");
            before = shares;
        }
    }

    #[test]
    fn weights_of_devices_are_stretched_from_10_to_1000_to_1_to_10000() {
        for (given, weight) in
            [(0, 1), (10, 1), (11, 11), (100, 910), (500, 4950), (1000, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(io_weight(given), weight, "{given}");
        }
        assert!((10..1000).all(|weight| io_weight(weight) < io_weight(weight + 1)));
    }

    #[test]
    fn swap_alone_is_memory_plus_swap_less_memory() {
        use Limit::{Max, Value};
        for (limit, swap, alone) in [
            (Value(100), Value(300), Some(Value(200))),
            (Value(100), Value(100), Some(Value(0))),
            (Value(100), Max, Some(Max)),
            (Max, Max, Some(Max)),
            (Value(100), Value(99), None),
            (Max, Value(100), None),
        ] {
            assert_eq!(swap_to_v2(limit, swap).ok(), alone, "{limit} {swap}");
        }
        let error = swap_to_v2(Value(2), Value(1)).unwrap_err();
        assert_eq!((error.setting(), error.value()), (Some("memory.swap"), Some("1")));
    }

    proptest! {
        #[test]
        fn swap_alone_and_memory_make_swap_again(limit: u64, swap: u64) {
            match swap_to_v2(Limit::Value(limit), Limit::Value(swap)) {
                Ok(Limit::Value(alone)) => prop_assert_eq!(limit.checked_add(alone), Some(swap)),
                Ok(Limit::Max) => prop_assert!(false, "a number became no limit"),
                Err(_) => prop_assert!(swap < limit),
            }
        }
    }
}
