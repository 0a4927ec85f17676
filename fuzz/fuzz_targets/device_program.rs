//! The eBPF compiler: the program decides as the policy does, for every policy that rules can make.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::devices::RuleKind;
use ringfence::fuzzing::{Program, V1};
use ringfence::{DevicePolicy, DeviceRule};
use ringfence_fuzz::{expressible, probes, rules};

fuzz_target!(|data: &[u8]| {
    let mut given = rules(data);
    // Many rules alike: several blocks, and jumps over all of one.
    if data.len() % 8 == 7 {
        let some: Vec<DeviceRule> = given.iter().take(2).cloned().collect();
        given.extend(some.into_iter().flat_map(run_of));
    }
    let nothing = DevicePolicy::deny_all();
    let policy = expressible(&given);
    let program = Program::of(&policy);
    assert_eq!(program.unreachable(), None, "{policy:?}");
    let kernel = V1::with(if given.len() > 100 { &nothing } else { &policy });
    for (at, (kind, major, minor, access)) in probes([&policy]).into_iter().enumerate() {
        // Of hundreds of numbers some will do.
        if at > 1000 && at % 101 != 0 {
            continue;
        }
        let meant = match access {
            Some(access) => policy.check(kind, major, minor, access).allowed,
            None if given.len() > 100 => continue,
            None => kernel.allows(kind, major, minor, None),
        };
        let allowed = program.allows(kind, major, minor, access);
        assert_eq!(allowed, meant, "{kind} {major}:{minor} {access:?} with {policy:?}");
    }
    let (again, report) = DevicePolicy::from_rules(&policy.to_rules()).unwrap();
    assert!(again == policy && report.is_empty());
});

/// The same for hundreds of minor numbers.
fn run_of(rule: DeviceRule) -> impl Iterator<Item = DeviceRule> {
    let first = rule.numbers.minor.filter(|_| rule.kind != RuleKind::All);
    first.into_iter().flat_map(|first| first..first.saturating_add(300)).map(move |minor| {
        let mut one = rule.clone();
        one.numbers.minor = Some(minor);
        one
    })
}
