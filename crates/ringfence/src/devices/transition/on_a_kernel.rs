//! Changes of a device list on this machine's kernel.

use proptest::prelude::*;

use super::super::Access;
use super::super::kernel_list::KernelList;
use super::super::policy::tests::{any_rules, policy};
use super::super::real_cgroup::RealCgroup;
use super::tests::live;
use super::*;

const POLICIES: [&[&str]; 9] = [
    &[],
    &["allow c 1:3 rwm"],
    &["allow c 1:3 r", "allow c 1:5 rw"],
    &["allow c 1:* r"],
    &["allow c 1:* rwm", "allow c 1:3 r", "allow b *:* m"],
    &["allow c *:* m", "allow c *:5 rw", "allow b 8:0 rwm"],
    &["allow a"],
    &["allow a", "deny c 1:3 w"],
    &["allow a", "deny c 1:5 rwm", "deny b *:* r"],
];

fn change(cgroup: &RealCgroup, from: &LiveDevices, to: &DevicePolicy, populated: bool) {
    for write in transition(from, to, || populated).unwrap() {
        cgroup.write(write.file, &write.value).unwrap_or_else(|error| panic!("{write:?}: {error}"));
    }
    let list = parse_devices_list(&cgroup.read("devices.list")).unwrap();
    assert!(list.shows(to), "{list:?} is not {to:?}");
}

#[test]
fn the_kernel_lists_what_was_asked_and_refuses_nothing_on_the_way() {
    let Some(cgroup) = RealCgroup::v1() else {
        return;
    };
    let nodes = [("/dev/null", 3), ("/dev/zero", 5), ("/dev/full", 7)];
    let mut opened = 0;
    for from in POLICIES.map(policy) {
        for to in POLICIES.map(policy) {
            // As it was created: what its parent has is not known.
            let list = parse_devices_list(&cgroup.read("devices.list")).unwrap();
            change(&cgroup, &LiveDevices { list, known: None }, &from, false);
            if from.default_verdict() != to.default_verdict() {
                change(&cgroup, &live(&from), &to, false);
                continue;
            }
            let allowed =
                |policy: &DevicePolicy, minor| policy.check(DeviceKind::Char, 1, minor, Access::READ).allowed;
            let both = nodes.iter().filter(|(_, minor)| allowed(&from, *minor) && allowed(&to, *minor));
            let opening = cgroup.opening(&both.map(|(path, _)| *path).collect::<Vec<_>>(), &[]);
            for _ in 0..20 {
                change(&cgroup, &live(&from), &to, true);
                change(&cgroup, &live(&to), &from, true);
            }
            change(&cgroup, &live(&from), &to, true);
            opened += opening.stop();
        }
    }
    assert!(opened > 50, "{opened}");
}

#[test]
fn the_kernel_allows_and_refuses_as_the_policy_has_it() {
    let Some(cgroup) = RealCgroup::v1() else { return };
    let mut known = None;
    for policy in POLICIES.map(policy) {
        let list = parse_devices_list(&cgroup.read("devices.list")).unwrap();
        change(&cgroup, &LiveDevices { list, known }, &policy, false);
        for letters in ["r", "w", "rw", "m"] {
            for minor in [3, 5] {
                let meant = policy.check(DeviceKind::Char, 1, minor, letters.parse().unwrap()).allowed;
                assert_eq!(cgroup.allows(letters, (1, minor)), meant, "{policy:?}: c 1:{minor} {letters}");
            }
        }
        known = Some(policy);
    }
}

#[test]
fn the_model_of_the_kernel_is_what_the_kernel_does() {
    let Some(cgroup) = RealCgroup::v1() else { return };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner
        .run(&any_rules(), |rules| {
            cgroup.write("devices.deny", "a").unwrap();
            for rule in &rules {
                let file = if rule.allow { "devices.allow" } else { "devices.deny" };
                cgroup.write(file, &rule.to_string()).unwrap();
            }
            let list = parse_devices_list(&cgroup.read("devices.list")).unwrap();
            prop_assert_eq!(list, KernelList::after(&rules).show());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_refusal_names_the_parent_or_the_children() {
    let Some(parent) = RealCgroup::v1() else { return };
    parent.write("devices.deny", "a").unwrap();
    parent.write("devices.allow", "c 1:3 r").unwrap();
    let child = parent.child("child");
    let explain = |cgroup: &RealCgroup, file, value: &str| {
        let write = DeviceWrite { file, value: value.to_owned() };
        let errno = Errno::from_io_error(&cgroup.write(file, value).unwrap_err()).unwrap();
        let error = refusal(&cgroup.dir, write.file, &write.value, errno);
        assert_eq!(error.path(), Some(cgroup.dir.join(file).as_path()));
        error.to_string()
    };
    let parents = format!("its parent {} denies", parent.dir.display());
    assert!(explain(&child, ALLOW, "c 1:3 rw").contains(&parents));
    assert!(explain(&child, ALLOW, "a *:* rwm").contains(&parents));
    assert!(explain(&parent, DENY, "a *:* rwm").contains("children"));
}
