//! Device programs on this machine's kernel: attached, replaced, and obeyed.

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::super::policy::tests::policy;
use super::super::program::compile;
use super::super::real_cgroup::{RealCgroup, alone};
use super::super::{DeviceKind, DevicePolicy};
use super::*;
use crate::skip::skip;

const NULL: (u32, u32) = (1, 3);
const ZERO: (u32, u32) = (1, 5);

/// A cgroup in which device programs can be attached, and the right to be the only test with descriptors.
fn cgroup() -> Option<(RealCgroup, std::sync::MutexGuard<'static, ()>)> {
    let guard = alone();
    let cgroup = RealCgroup::v2()?;
    // Before Linux 5.11 programs are locked memory, and large ones, or those just replaced, more than may be locked by default.
    let all = rustix::process::Rlimit { current: None, maximum: None };
    _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, all);
    match load(&compile(&DevicePolicy::allow_all())) {
        Ok(_) => Some((cgroup, guard)),
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

fn install(cgroup: &RealCgroup, policy: &DevicePolicy) -> DeviceFilter {
    let (filter, report) =
        DeviceFilter::install(cgroup.fd(), &compile(policy), Earlier::Unknown, Override::Refuse).unwrap();
    assert!(report.is_empty(), "{report}");
    filter
}

/// These devices are allowed alone, or denied alone.
fn excepting<'a>(verb: &str, devices: impl Iterator<Item = &'a str>) -> DevicePolicy {
    let start = if verb == "deny" { "allow a" } else { "deny a" }.to_owned();
    let rules: Vec<String> =
        std::iter::once(start).chain(devices.map(|devices| format!("{verb} {devices}"))).collect();
    policy(&rules.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A program of another manager.
fn foreign(cgroup: &RealCgroup, policy: &DevicePolicy, flags: u32) -> u32 {
    let bytes: Vec<[u8; 8]> = compile(policy).iter().map(|insn| insn.to_bytes()).collect();
    let program = bpf::load(&bytes, "foreign").unwrap();
    bpf::attach_with(cgroup.fd(), &program, flags, None).unwrap();
    bpf::info(&program).unwrap().id
}

fn ids(cgroup: &RealCgroup) -> Vec<u32> {
    bpf::attached(cgroup.fd()).unwrap().ids
}

/// A thousand times, and long enough for a process to look on.
fn enough() -> impl Iterator<Item = usize> {
    let start = std::time::Instant::now();
    (0..).take_while(move |n| *n < 1000 || start.elapsed().as_millis() < 300)
}

#[test]
fn each_access_is_allowed_or_refused_as_the_policy_has_it() {
    let Some((cgroup, _alone)) = cgroup() else {
        return;
    };
    for rules in [
        &[][..],
        &["allow c 1:3 r", "allow c 1:5 w"],
        &["allow c 1:3 m", "allow c 1:5 rw"],
        &["allow c 1:* r", "allow c *:5 w"],
        &["allow c 1:3 rwm", "allow b 1:5 rwm"],
        &["allow a"],
        &["allow a", "deny c 1:3 r", "deny c 1:5 w"],
        &["allow a", "deny c 1:3 m", "deny c *:5 rw"],
        &["allow a", "deny c *:* rwm"],
    ] {
        let policy = policy(rules);
        install(&cgroup, &policy);
        for letters in ["r", "w", "rw", "m"] {
            for (major, minor) in [NULL, ZERO] {
                let meant = policy.check(DeviceKind::Char, major, minor, letters.parse().unwrap()).allowed;
                assert_eq!(
                    cgroup.allows(letters, (major, minor)),
                    meant,
                    "{rules:?}: c {major}:{minor} {letters}"
                );
            }
        }
    }
    assert_eq!(ids(&cgroup).len(), 1, "each took the place of the one before");
}

#[test]
fn the_verifier_takes_thousands_of_exceptions() {
    let Some((cgroup, _alone)) = cgroup() else {
        return;
    };
    // Some that share what they return, and more than do, or than one jump goes over.
    for many in [200, 9000] {
        let minors = (0..many).map(|minor| format!("c 1:{minor} rw"));
        let majors = (2..100).map(|major| format!("b {major}:{major} r"));
        let listed: Vec<String> = minors.chain(majors).collect();
        for (verb, is_allowed) in [("allow", true), ("deny", false)] {
            install(&cgroup, &excepting(verb, listed.iter().map(String::as_str)));
            for device in [NULL, ZERO] {
                assert_eq!(cgroup.allows("rw", device), is_allowed, "{many} {device:?}");
            }
        }
    }
}

#[test]
fn no_open_is_decided_otherwise_while_programs_are_replaced() {
    let Some((cgroup, _alone)) = cgroup() else {
        return;
    };
    let programs =
        [policy(&["allow c 1:3 rwm"]), policy(&["allow a", "deny c 1:5 rwm"])].map(|p| compile(&p));
    let install = |program: &[Insn], earlier: Earlier<'_>| {
        DeviceFilter::install(cgroup.fd(), program, earlier, Override::Refuse).unwrap().0
    };
    let mut filter = install(&programs[0], Earlier::Unknown);
    let opening = cgroup.opening(&["/dev/null"], &["/dev/zero"]);
    for n in enough() {
        let earlier = match n % 3 {
            0 => Earlier::Unknown,
            1 => Earlier::Id(filter.id()),
            _ => Earlier::Held(&filter),
        };
        filter = install(&programs[n % 2], earlier);
    }
    assert!(opening.stop() > 10);
    assert_eq!(ids(&cgroup), [filter.id()]);
}

#[test]
fn nor_where_the_kernel_cannot_replace_in_one() {
    let Some((cgroup, _alone)) = cgroup() else { return };
    let programs = [policy(&["allow c 1:3 rwm"]), policy(&["allow a", "deny c 1:5 rwm"])];
    let [one, other] = programs.map(|policy| load(&compile(&policy)).unwrap());
    bpf::attach(cgroup.fd(), &one, None).unwrap();
    let opening = cgroup.opening(&["/dev/null"], &["/dev/zero"]);
    for _ in enough() {
        replace_in_two(cgroup.fd(), &other, &one).unwrap();
        replace_in_two(cgroup.fd(), &one, &other).unwrap();
    }
    assert!(opening.stop() > 10);
    assert_eq!(ids(&cgroup), [bpf::info(&one).unwrap().id]);
}

#[test]
fn programs_of_others_stay_and_must_agree() {
    let Some((cgroup, _alone)) = cgroup() else { return };
    let theirs = foreign(&cgroup, &policy(&["allow a", "deny c 1:5 rwm"]), bpf::ALLOW_MULTI);
    let first = install(&cgroup, &DevicePolicy::deny_all());
    let second = install(&cgroup, &policy(&["allow c 1:* rwm"]));
    assert_eq!(ids(&cgroup), [theirs, second.id()]);
    assert!(cgroup.allows("r", NULL) && !cgroup.allows("r", ZERO));
    assert_ne!(first.id(), second.id());
}

#[test]
fn several_of_ours_become_one() {
    let Some((cgroup, _alone)) = cgroup() else { return };
    let left: Vec<OwnedFd> = (0..3).map(|_| load(&compile(&DevicePolicy::deny_all())).unwrap()).collect();
    left.iter().for_each(|program| bpf::attach(cgroup.fd(), program, None).unwrap());
    let before = ids(&cgroup);
    let filter = install(&cgroup, &DevicePolicy::allow_all());
    assert_eq!(ids(&cgroup), [filter.id()]);
    filter.undo(cgroup.fd()).unwrap();
    assert_eq!(ids(&cgroup), before);
}

#[test]
fn undo_puts_back_what_was_before() {
    let Some((cgroup, _alone)) = cgroup() else { return };
    let first = install(&cgroup, &policy(&["allow c 1:3 r"]));
    let second = install(&cgroup, &policy(&["allow c 1:5 r"]));
    assert!(!cgroup.allows("r", NULL));
    second.undo(cgroup.fd()).unwrap();
    assert_eq!(ids(&cgroup), [first.id()]);
    assert!(cgroup.allows("r", NULL) && !cgroup.allows("r", ZERO));
    first.undo(cgroup.fd()).unwrap();
    assert!(ids(&cgroup).is_empty());
    assert!(cgroup.allows("r", ZERO));
}

#[test]
fn an_ancestors_program_that_would_be_overridden_is_not_unless_that_is_allowed() {
    let Some((parent, _alone)) = cgroup() else { return };
    let middle = parent.child("middle");
    let cgroup = middle.child("cgroup");
    let theirs = foreign(&parent, &policy(&["allow a", "deny c 1:5 rwm"]), bpf::ALLOW_OVERRIDE);
    let program = compile(&DevicePolicy::allow_all());
    let error = DeviceFilter::install(cgroup.fd(), &program, Earlier::Unknown, Override::Refuse).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Unsupported, Some(parent.dir.as_path())), "{error}");
    assert!(ids(&cgroup).is_empty());
    assert_eq!(bpf::effective(cgroup.fd()).unwrap().ids, [theirs]);
    let (ours, report) =
        DeviceFilter::install(cgroup.fd(), &program, Earlier::Unknown, Override::Allow).unwrap();
    assert_eq!(bpf::effective(cgroup.fd()).unwrap().ids, [ours.id()]);
    assert_eq!(report.lines()[0].value, parent.dir.display().to_string());
    assert!(cgroup.allows("r", ZERO), "the program above is no longer asked");
    install(&cgroup, &DevicePolicy::deny_all());
}

#[test]
fn an_ancestor_that_allows_no_program_below_it_is_named() {
    let Some((parent, _alone)) = cgroup() else {
        return;
    };
    let middle = parent.child("middle");
    let cgroup = middle.child("cgroup");
    foreign(&parent, &DevicePolicy::allow_all(), 0);
    let program = compile(&DevicePolicy::allow_all());
    for overriding in [Override::Refuse, Override::Allow] {
        let error = DeviceFilter::install(cgroup.fd(), &program, Earlier::Unknown, overriding).unwrap_err();
        assert_eq!(error.path(), Some(parent.dir.as_path()), "{error}");
        assert!(error.to_string().contains("flags 0"), "{error}");
    }
    // The kernel's own word, without our look at the ancestors first.
    let denied = bpf::attach(cgroup.fd(), &load(&program).unwrap(), None).unwrap_err();
    assert_eq!((denied, refused(cgroup.fd(), denied).path()), (Errno::PERM, Some(parent.dir.as_path())));
}

#[test]
fn a_program_in_the_cgroup_that_allows_no_second_one_is_explained() {
    let Some((cgroup, _alone)) = cgroup() else {
        return;
    };
    let theirs = foreign(&cgroup, &DevicePolicy::allow_all(), bpf::ALLOW_OVERRIDE);
    let program = compile(&DevicePolicy::deny_all());
    let error = DeviceFilter::install(cgroup.fd(), &program, Earlier::Unknown, Override::Allow).unwrap_err();
    assert!(error.to_string().contains("allows no second one"), "{error}");
    assert_eq!(ids(&cgroup), [theirs]);
}

#[test]
fn descriptors_are_not_leaked_and_programs_are_freed() {
    let Some((cgroup, _alone)) = cgroup() else { return };
    let own = cgroup.dir.to_string_lossy();
    let ours = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        links
            .filter(|link| ["bpf-prog", &own].iter().any(|part| link.to_string_lossy().contains(part)))
            .count()
    };
    let before = ours();
    for n in 0..50 {
        let filter = install(&cgroup, &policy(&["allow c 1:3 r"]));
        assert_eq!(ours(), before + if n == 0 { 1 } else { 2 });
        let filter = filter.settled();
        assert_eq!(ours(), before + 1);
        drop(filter);
        assert!(is_installed(cgroup.fd(), &compile(&policy(&["allow c 1:3 r"]))).unwrap());
    }
    let last = ids(&cgroup);
    drop(install(&cgroup, &DevicePolicy::deny_all()));
    assert_eq!(bpf::program_by_id(last[0]).unwrap_err(), Errno::NOENT, "the replaced program is freed");
    assert_eq!(ours(), before);
}

#[test]
fn the_installed_program_is_told_from_another() {
    let Some((cgroup, _alone)) = cgroup() else { return };
    let (one, other) = (compile(&policy(&["allow c 1:3 r"])), compile(&policy(&["allow c 1:3 w"])));
    assert!(!is_installed(cgroup.fd(), &one).unwrap());
    install(&cgroup, &policy(&["allow c 1:3 r"]));
    foreign(&cgroup, &policy(&["allow c 1:3 w"]), bpf::ALLOW_MULTI);
    assert!(is_installed(cgroup.fd(), &one).unwrap() && !is_installed(cgroup.fd(), &other).unwrap());
}

#[test]
fn the_verifier_accepts_hundreds_of_exceptions_of_every_form() {
    let Some((cgroup, _alone)) = cgroup() else {
        return;
    };
    let few = ["c *:* m", "b *:* m", "c 7:* rwm", "c *:9 rw", "b 8:0 rwm", "c 4294967294:4294967294 rwm"];
    let many: Vec<String> =
        (0..900).map(|n| format!("c {}:{} {}", n / 300, n, ["rwm", "r", "wm"][n % 3])).collect();
    for verb in ["allow", "deny"] {
        let policy = excepting(verb, few.iter().copied().chain(many.iter().map(String::as_str)));
        assert_eq!(policy.exceptions().count(), 906);
        install(&cgroup, &policy);
    }
    // The two wildcards that cover everything below them in their blocks, and all that can be left out.
    for rules in [
        &["allow c *:* rwm", "allow c 1:* rwm", "allow c 1:3 r"][..],
        &["allow b *:* rwm", "allow c *:* rwm"],
    ] {
        install(&cgroup, &policy(rules));
    }
}

/// Runs on a thread of its own: capabilities belong to threads.
fn without(dropped: CapabilitySet, run: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective -= dropped;
            sets.permitted -= dropped;
            sets.inheritable -= dropped;
            set_capabilities(None, sets).unwrap();
            run();
        });
    });
}

#[test]
fn without_cap_sys_admin_only_a_filter_that_is_held_can_be_replaced() {
    let Some((cgroup, _alone)) = cgroup() else {
        return;
    };
    let first = install(&cgroup, &DevicePolicy::deny_all());
    let program = compile(&DevicePolicy::allow_all());
    without(CapabilitySet::SYS_ADMIN, || {
        let install =
            |earlier| DeviceFilter::install(cgroup.fd(), &program, earlier, Override::Refuse).unwrap();
        let (second, report) = install(Earlier::Held(&first));
        assert_eq!((ids(&cgroup), report.is_empty()), (vec![second.id()], true));
        let (third, report) = install(Earlier::Id(second.id()));
        assert_eq!(ids(&cgroup), [second.id(), third.id()]);
        assert!(report.to_string().contains("CAP_SYS_ADMIN"), "{report}");
    });
}

#[test]
fn without_any_capability_the_error_names_those_that_are_needed() {
    let Some((cgroup, _alone)) = cgroup() else {
        return;
    };
    without(CapabilitySet::all(), || {
        let program = compile(&DevicePolicy::allow_all());
        let error =
            DeviceFilter::install(cgroup.fd(), &program, Earlier::Unknown, Override::Refuse).unwrap_err();
        assert!(error.to_string().contains("CAP_BPF and CAP_NET_ADMIN"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    });
}

#[test]
fn a_directory_that_is_no_v2_cgroup_is_an_error() {
    let Some((_cgroup, _alone)) = cgroup() else { return };
    let other = std::fs::File::open("/tmp").unwrap();
    let program = compile(&DevicePolicy::allow_all());
    let error =
        DeviceFilter::install(other.as_fd(), &program, Earlier::Unknown, Override::Refuse).unwrap_err();
    assert!(error.to_string().contains("cgroup v2"), "{error}");
}
