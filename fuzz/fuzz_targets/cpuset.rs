//! Lists of CPUs and memory nodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::CpuSet;
use ringfence_fuzz::{assert_refused, parts};

fuzz_target!(|data: &[u8]| {
    let [one, other] = parts(data);
    let (Ok(one), Ok(other)) = (str::from_utf8(one), str::from_utf8(other)) else { return };
    if let (Some(one), Some(other)) = (read(one), read(other)) {
        let (union, both) = (one.union(&other), one.intersection(&other));
        assert!(one.is_subset(&union) && both.is_subset(&one) && both.is_subset(&other));
        assert_eq!(union.len() + both.len(), one.len() + other.len());
        assert_eq!(one.is_subset(&other), both == one);
        for set in [union, both] {
            assert_eq!(set, set.to_string().parse().unwrap());
        }
    }
});

fn read(text: &str) -> Option<CpuSet> {
    let set: CpuSet = match text.parse() {
        Ok(set) => set,
        Err(error) => {
            assert_refused(&error);
            assert_eq!(error.value(), Some(text));
            return None;
        }
    };
    assert_eq!(set, set.to_string().parse().unwrap());
    assert_eq!(set, CpuSet::from_numbers(set.iter()).unwrap());
    assert_eq!((set.iter().count(), set.iter().next().is_none()), (set.len(), set.is_empty()));
    assert!(set.iter().all(|number| set.contains(number)) && set.iter().is_sorted());
    let json = serde_json::to_string(&set).unwrap();
    assert_eq!(set, serde_json::from_str(&json).unwrap());
    Some(set)
}
