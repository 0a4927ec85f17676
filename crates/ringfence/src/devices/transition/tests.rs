use proptest::prelude::*;

use super::super::kernel_list::KernelList;
use super::super::policy::tests::{any_rules, every_access, expressible, policy};
use super::*;

pub(super) fn live(policy: &DevicePolicy) -> LiveDevices {
    LiveDevices { list: policy.into(), known: Some(policy.clone()) }
}

fn writes(from: &[&str], to: &[&str]) -> Vec<String> {
    let writes = transition(&live(&policy(from)), &policy(to), || true).unwrap();
    writes.iter().map(|write| format!("{} < {}", write.file, write.value)).collect()
}

#[test]
fn what_is_gained_is_written_before_what_is_lost_and_nothing_else() {
    let table: [(&[&str], &[&str], &[&str]); 6] = [
        (&["allow c 1:3 rw"], &["allow c 1:3 rw"], &[]),
        (&["allow c 1:3 r"], &["allow c 1:3 rwm"], &["devices.allow < c 1:3 wm"]),
        (&["allow c 1:3 rwm"], &["allow c 1:3 r"], &["devices.deny < c 1:3 wm"]),
        (
            &["allow c 1:* r", "allow b 8:0 rw"],
            &["allow c 1:3 r", "allow b 8:0 wm"],
            &[
                "devices.allow < b 8:0 m",
                "devices.allow < c 1:3 r",
                "devices.deny < b 8:0 r",
                "devices.deny < c 1:* r",
            ],
        ),
        (
            &["allow a", "deny c 1:3 r"],
            &["allow a", "deny c 1:3 w"],
            &["devices.deny < c 1:3 w", "devices.allow < c 1:3 r"],
        ),
        (&["allow a"], &["allow a"], &[]),
    ];
    for (from, to, expected) in table {
        assert_eq!(writes(from, to), expected, "{from:?} to {to:?}");
    }
}

#[test]
fn the_default_changes_only_while_nothing_runs() {
    for (from, to) in [(&[][..], &["allow a"][..]), (&["allow a"], &["allow c 1:3 rwm"])] {
        let error = transition(&live(&policy(from)), &policy(to), || true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("freeze the sandbox first"), "{error}");
    }
    let flip = transition(&live(&policy(&["allow a"])), &policy(&["allow c 1:3 rwm"]), || false).unwrap();
    let flip: Vec<_> = flip.iter().map(|write| (write.file, write.value.as_str())).collect();
    assert_eq!(flip, [("devices.deny", "a *:* rwm"), ("devices.allow", "c 1:3 rwm")]);
}

#[test]
fn exceptions_that_are_not_known_are_reset_first() {
    let to = policy(&["allow a", "deny c 1:3 rwm"]);
    let of_another_default = Some(policy(&["allow c 1:3 rwm"]));
    for known in [None, of_another_default] {
        let live = LiveDevices { list: LiveList::AllowByDefault, known };
        let writes = transition(&live, &to, || false).unwrap();
        assert!(writes.first().unwrap().is_reset() && writes.len() == 2, "{writes:?}");
        assert!(transition(&live, &to, || true).unwrap_err().to_string().contains("not known"));
        assert_eq!(transition(&live, &DevicePolicy::allow_all(), || true).unwrap().len(), 1);
    }
}

#[test]
fn the_kernels_list_is_read_with_its_word_for_every_number() {
    let read = |text: &str| parse_devices_list(text.as_bytes());
    assert_eq!(read("").unwrap(), LiveList::from(&DevicePolicy::deny_all()));
    assert_eq!(read("a *:* rwm\n").unwrap(), LiveList::AllowByDefault);
    let listed = policy(&["allow c 1:* rw", "allow b *:7 m", "allow c 1:3 rwm"]);
    assert!(read("c 1:4294967295 rw\nb *:7 m\nc 1:3 r\nc 1:3 wm\n").unwrap().shows(&listed));
    assert!(!read("c 1:* rw\nb *:7 m\n").unwrap().shows(&listed));
    for refused in ["c", "c 1:3", "d 1:3 rwm", "c 1:3 rwm x", "c 1 rwm", "c 1:x r", "a *:* rw", "\u{0}"] {
        assert!(read(refused).unwrap_err().to_string().contains("no device rule"), "{refused:?}");
    }
    assert!(parse_devices_list(b"\xff\xfe 1:3 rwm").is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse_devices_list(&bytes);
    }

    #[test]
    fn every_change_arrives_and_refuses_nothing_on_the_way(from in any_rules(), to in any_rules()) {
        let (from, to) = (expressible(&from), expressible(&to));
        let mut kernel = KernelList::after(&from.to_rules());
        let flips = from.default_verdict() != to.default_verdict();
        prop_assert_eq!(transition(&live(&from), &to, || true).is_err(), flips);
        let writes = transition(&live(&from), &to, || false).unwrap();
        for write in &writes {
            kernel.apply(write);
            for (kind, major, minor, access) in every_access().filter(|_| !flips) {
                let allows = |policy: &DevicePolicy| policy.check(kind, major, minor, access).allowed;
                if allows(&from) && allows(&to) {
                    let letter = if kind == DeviceKind::Char { 'c' } else { 'b' };
                    prop_assert!(kernel.allows(letter, major, minor, &access.to_string()));
                }
            }
        }
        prop_assert!(kernel.show().shows(&to));
        for (kind, major, minor, access) in every_access() {
            let letter = if kind == DeviceKind::Char { 'c' } else { 'b' };
            let allowed = kernel.allows(letter, major, minor, &access.to_string());
            prop_assert_eq!(allowed, to.check(kind, major, minor, access).allowed);
        }
        // From here there is nothing more to do.
        prop_assert_eq!(transition(&live(&to), &to, || true).unwrap(), []);
    }
}
