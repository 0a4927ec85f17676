//! v1's `devices.list`, and the writes from it to another policy.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence::fuzzing::{V1, devices_list};
use ringfence::{DevicePolicy, ErrorKind};
use ringfence_fuzz::{expressible, parts, probes, rules};

fuzz_target!(|data: &[u8]| {
    let [list, to] = parts(data);
    let from = match devices_list(list) {
        Ok(Some(policy)) => policy,
        Ok(None) => DevicePolicy::allow_all(),
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Kernel),
    };
    if from.exceptions().count() > 40 {
        return;
    }
    let to = expressible(&rules(to));
    let flips = from.default_verdict() != to.default_verdict();
    let mut kernel = V1::with(&from);
    assert!(kernel.shows(&from));
    assert_eq!(kernel.transition(Some(from.clone()), &to, true).is_err(), flips);
    let probes = probes([&from, &to]);
    let allows = |policy: &DevicePolicy, at: usize| {
        let (kind, major, minor, access) = probes[at];
        access.is_some_and(|access| policy.check(kind, major, minor, access).allowed)
    };
    let always: Vec<usize> =
        (0..probes.len()).filter(|at| !flips && allows(&from, *at) && allows(&to, *at)).collect();
    for write in kernel.transition(Some(from), &to, false).unwrap() {
        kernel.apply(&write);
        for at in &always {
            let (kind, major, minor, access) = probes[*at];
            assert!(kernel.allows(kind, major, minor, access), "refused on the way");
        }
    }
    assert!(kernel.shows(&to));
    for (at, (kind, major, minor, access)) in probes.iter().enumerate().filter(|(_, probe)| probe.3.is_some())
    {
        assert_eq!(kernel.allows(*kind, *major, *minor, *access), allows(&to, at));
    }
    assert!(
        kernel.transition(Some(to.clone()), &to, true).unwrap().is_empty(),
        "there is nothing more to do"
    );
});
