//! Devices: what a sandbox may open, at its start and while it runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::{self, File};

use crate::support::{self, Done, Sandbox, finish, is_on_v1, skip, wait};
use rustix::io::Errno;
use serde_json::{Value, json};

testbed! {
    drivers: "cgroupfs systemd";
}

const EPERM: i32 = Errno::PERM.raw_os_error();

/// The accesses that the tables try, as probes and as rules.
const ACCESSES: [&str; 4] = ["r", "w", "rw", "m"];

/// 1:11, in no profile's list, and harmless to open.
const OUTSIDER: &str = "/dev/kmsg";

/// The probes' script for every access to every one of these devices: path and minor number below character major 1.
fn script(devices: &[(&str, u32)]) -> String {
    let each = devices.iter().flat_map(|(path, minor)| {
        ACCESSES.map(|access| match access {
            "m" => format!("mknod c 1 {minor}"),
            _ => format!("open {path} {access}"),
        })
    });
    each.collect::<Vec<_>>().join(";")
}

/// What the kernel says to each operation of a script inside: whether it is allowed.
#[track_caller]
fn allowed(sandbox: &Sandbox, script: &str) -> Vec<bool> {
    let done = sandbox.probe("exec", &[], script).exits(0);
    let results: Vec<bool> =
        done.probed().iter().map(|errno| errno.parse::<i32>().unwrap() != EPERM).collect();
    assert_eq!(results.len(), script.split(';').count(), "{}", done.stdout);
    results
}

fn outsider_opens_outside() -> bool {
    let opens = File::options().read(true).write(true).open(OUTSIDER).is_ok();
    if !opens {
        skip("/dev/kmsg does not open outside a sandbox either");
    }
    opens
}

#[test]
fn a_device_outside_the_list_is_refused_for_reading_for_writing_and_for_mknod() {
    if !outsider_opens_outside() {
        return;
    }
    let sandbox = Sandbox::named("refused");
    sandbox.create(&["--profile", "none"]);
    assert_eq!(allowed(&sandbox, &script(&[(OUTSIDER, 11)])), [false; 4]);
    // Each access on its own.
    for (access, expected) in [
        ("r", [true, false, false, false]),
        ("w", [false, true, false, false]),
        ("m", [false, false, false, true]),
        ("rw", [true, true, true, false]),
        ("rwm", [true; 4]),
    ] {
        let sandbox = Sandbox::named(&format!("only-{access}"));
        sandbox.create(&["--profile", "none", "--device-allow", &format!("c 1:11 {access}")]);
        assert_eq!(allowed(&sandbox, &script(&[(OUTSIDER, 11)])), expected, "{access} alone is allowed");
    }
}

#[test]
fn the_runtime_defaults_open() {
    let sandbox = Sandbox::named("defaults");
    sandbox.create(&[]);
    let list = sandbox.json("devices ls", &[]);
    assert_eq!(list["default"], "deny");
    let defaults = ["null", "zero", "full", "random", "urandom", "tty", "ptmx"];
    // A tty opens for those who have one (ENXIO otherwise), and ptmx wants both.
    let script: Vec<_> = defaults.map(|name| format!("open /dev/{name} rw")).into();
    assert_eq!(allowed(&sandbox, &script.join(";")), [true; 7], "{defaults:?}");
    for minor in [3, 5, 7, 8, 9] {
        let exceptions = list["exceptions"].as_array().unwrap();
        assert!(
            exceptions.iter().any(|one| one["type"] == "c" && one["major"] == 1 && one["minor"] == minor),
            "1:{minor} in {list}"
        );
    }
}

#[test]
fn the_jailer_of_firecracker_makes_its_nodes_and_opens_no_more_than_firecracker_does() {
    let sandbox = Sandbox::named("jailer");
    let created = sandbox.attempt("create", &[support::hold(), &["--profile", "firecracker"]].concat());
    if !fs::exists("/dev/kvm").unwrap() && !fs::exists("/dev/mshv").unwrap() {
        assert!(created.exits(1).stderr.contains("/dev/kvm"));
        return skip("there is no hypervisor here");
    }
    created.exits(0);
    let number = |path: &str| {
        let stat = rustix::fs::stat(path).ok()?;
        Some(format!("{} {}", rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)))
    };
    for path in ["/dev/kvm", "/dev/net/tun", "/dev/urandom", "/dev/userfaultfd"] {
        let Some(number) = number(path) else { continue };
        let opens = path != "/dev/userfaultfd";
        let script = format!("mknod c {number};open {path} rw");
        assert_eq!(allowed(&sandbox, &script), [true, opens], "{path}");
    }
    assert_eq!(allowed(&sandbox, "mknod c 10 196;mknod c 1 11"), [false, false]);
}

#[test]
fn a_default_that_the_caller_denies_is_denied() {
    let sandbox = Sandbox::named("denied-default");
    sandbox.create(&["--device-deny", "c 1:5 rwm", "--device-deny", "/dev/full:w"]);
    let expected = [[false; 4], [true, false, false, true], [true; 4]].concat();
    assert_eq!(allowed(&sandbox, &script(&[("/dev/zero", 5), ("/dev/full", 7), ("/dev/null", 3)])), expected);
}

#[test]
fn rules_are_taken_in_order_and_the_last_one_wins() {
    let sandbox = Sandbox::named("order");
    sandbox.create(&["--device-deny", "a", "--device-allow", "c 1:11 rwm", "--device-deny", "c 1:11 w"]);
    assert_eq!(allowed(&sandbox, &script(&[(OUTSIDER, 11)])), [true, false, false, true]);
}

#[test]
fn a_check_says_what_the_kernel_does() {
    const TABLES: [&[&str]; 6] = [
        &[],
        &["--device-allow", "c 1:11 r"],
        &["--device-allow", "c 1:* rw", "--device-deny", "c 1:5 rwm"],
        &["--device-allow", "c 1:11 w", "--device-deny", "c 1:5 w"],
        &["--device-allow", "a"],
        &["--device-allow", "a", "--device-deny", "c 1:11 r", "--device-deny", "c 1:5 wm"],
    ];
    const DEVICES: [(&str, u32); 2] = [(OUTSIDER, 11), ("/dev/zero", 5)];
    if !outsider_opens_outside() {
        return;
    }
    let sandbox = Sandbox::named("check");
    for table in TABLES {
        let created = sandbox.attempt_json("create", &[&["--profile", "none"], table].concat());
        if created.code == 2 {
            // Cutting a device out of a wildcard cannot be expressed.
            assert!(table.contains(&"c 1:* rw"), "{table:?}: {}", created.stderr);
            continue;
        }
        created.exits(0);
        let done = allowed(&sandbox, &script(&DEVICES));
        let mut asked = Vec::new();
        for (_, minor) in DEVICES {
            for access in ACCESSES {
                let rule = format!("c 1:{minor} {access}");
                let mut check =
                    sandbox.ringfence(&["-o", "json", "devices", "check", "--id", &sandbox.id, &rule]);
                check.env("RUST_BACKTRACE", "0");
                let answer = support::finish(check);
                let says = answer.json()["allowed"].as_bool().unwrap();
                assert_eq!(answer.code, if says { 0 } else { 4 }, "{table:?} {rule}");
                asked.push(says);
            }
        }
        assert_eq!(asked, done, "{table:?}: the check (left) and the kernel (right)");
        sandbox.does("rm", &[]);
    }
}

#[test]
fn with_everything_allowed_an_exception_denies_every_access_that_overlaps_it() {
    if !outsider_opens_outside() {
        return;
    }
    let sandbox = Sandbox::named("allow-all");
    sandbox.create(&["--device-allow", "a", "--device-deny", "c 1:11 r", "--device-deny", "c 1:5 w"]);
    assert_eq!(sandbox.json("devices ls", &[])["default"], "allow");
    // Reading and writing at once is denied where one of them is.
    let expected = [[false, true, false, true], [true, false, false, true]].concat();
    assert_eq!(allowed(&sandbox, &script(&[(OUTSIDER, 11), ("/dev/zero", 5)])), expected);
}

#[test]
fn devices_are_added_and_taken_away_while_a_process_runs() {
    if !outsider_opens_outside() {
        return;
    }
    let sandbox = Sandbox::named("hotplug");
    sandbox.detached(&[], "sleep 1000");
    let all = script(&[(OUTSIDER, 11)]);
    assert_eq!(allowed(&sandbox, &all), [false; 4]);
    sandbox.does("devices allow", &["/dev/kmsg:r"]);
    assert_eq!(allowed(&sandbox, &all), [true, false, false, false]);
    sandbox.does("devices allow", &["c 1:11 w"]);
    assert_eq!(allowed(&sandbox, &all), [true, true, true, false]);
    let exceptions = sandbox.json("devices ls", &[])["exceptions"].clone();
    let ours =
        exceptions.as_array().unwrap().iter().find(|one| one["major"] == 1 && one["minor"] == 11).unwrap();
    assert_eq!(ours["access"], "rw", "{exceptions}");
    sandbox.does("devices deny", &["c 1:11 r"]);
    assert_eq!(allowed(&sandbox, &all), [false, true, false, false]);
    sandbox.does("devices deny", &["c 1:11 rwm"]);
    assert_eq!(allowed(&sandbox, &all), [false; 4]);
    if is_on_v1("devices") {
        let list = sandbox.file("devices.list").unwrap();
        assert!(!list.contains("1:11") && list.contains("c 1:3 rwm"), "{list}");
    }
}

/// Opens an allowed device in a loop while `change` is called `turns` times; no open fails.
#[track_caller]
fn never_refused(sandbox: &Sandbox, turns: usize, change: impl Fn(usize)) {
    let stop = sandbox.scratch.path().join("stop");
    let hammer = format!("hammer /dev/zero rw {}", stop.display());
    let mut command = sandbox.probe_command("exec", &[], &hammer);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    (0..turns).for_each(change);
    fs::write(&stop, "").unwrap();
    let done = wait(child, hammer).exits(0);
    let [tries, failures] =
        done.probed()[0].split(' ').map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>()[..]
    else {
        panic!("{done:?}")
    };
    assert!(tries > 100, "{tries} tries");
    assert_eq!(failures, 0, "of {tries} tries");
}

#[test]
fn a_device_that_is_allowed_all_the_time_is_never_refused_while_others_change() {
    let sandbox = Sandbox::named("steady");
    sandbox.create(&[]);
    never_refused(&sandbox, 50, |turn| {
        let rule = ["c 1:11 rwm", "c 10:229 rw", "b 7:* rwm"][turn / 2 % 3];
        sandbox.does(if turn % 2 == 0 { "devices allow" } else { "devices deny" }, &[rule]);
    });
}

#[test]
fn a_device_that_is_allowed_is_never_refused_while_limits_change() {
    // systemd's DeviceAllow cannot express the last two.
    for rules in [&[][..], &["--device-allow", "c *:200 rw"], &["--profile", "none", "--resources"]] {
        let sandbox = Sandbox::named("steady-limits");
        let document = sandbox.all_devices_but_kmsg();
        let whole = rules.last() == Some(&"--resources");
        let file = whole.then_some(document.to_str().unwrap());
        sandbox.create(&rules.iter().copied().chain(file).collect::<Vec<_>>());
        let list = sandbox.file("devices.list");
        never_refused(&sandbox, if rules.is_empty() { 12 } else { 4 }, |turn| {
            let number = (100 + turn).to_string();
            let change = [["--pids", &number], ["--cpu-weight", &number], ["--cpus", "0.9"]][turn % 3];
            sandbox.does("set", &change);
        });
        assert_eq!(sandbox.file("devices.list"), list, "{rules:?}");
        if whole && outsider_opens_outside() {
            let script = format!("open {OUTSIDER} r;open /dev/null rw");
            assert_eq!(allowed(&sandbox, &script), [false, true], "{rules:?}");
        }
        sandbox.does("rm", &["--kill"]);
    }
}

/// `ringfence OPTIONS VERB ID RULE` without some capabilities, as in a container.
fn without(capabilities: &str, sandbox: &Sandbox, options: &[&str], verb: &str, rule: &str) -> Done {
    let whole = sandbox.ringfence(&[options, &["devices", verb, &sandbox.id, rule]].concat());
    let mut command = std::process::Command::new("setpriv");
    command.arg(format!("--bounding-set={capabilities}")).arg(format!("--inh-caps={capabilities}"));
    command.arg(whole.get_program()).args(whole.get_args()).env("NO_COLOR", "1");
    finish(command)
}

#[test]
fn a_device_program_that_cannot_be_replaced_is_reported_or_refused_and_made_good_later() {
    if is_on_v1("devices") || !outsider_opens_outside() {
        return skip("no device programs here");
    }
    let sandbox = Sandbox::named("held");
    sandbox.create(&["--profile", "none"]);
    let all = script(&[(OUTSIDER, 11)]);

    let refused = without("-sys_admin", &sandbox, &["--strict"], "allow", "c 1:11 rw").exits(1);
    assert!(refused.stderr.contains("CAP_SYS_ADMIN"), "{refused:?}");
    assert!(!sandbox.does("devices ls", &[]).stdout.contains("1:11"));

    let reported = without("-sys_admin", &sandbox, &[], "allow", "c 1:11 rw").exits(0);
    assert!(reported.stderr.contains("CAP_SYS_ADMIN"), "{reported:?}");
    assert_eq!(allowed(&sandbox, &all), [false; 4]);
    sandbox.does("devices allow", &["c 1:11 rw"]);
    assert_eq!(allowed(&sandbox, &all), [true, true, true, false]);

    let reported = without("-sys_admin,-bpf", &sandbox, &[], "deny", "c 1:11 rw").exits(0);
    assert!(reported.stderr.contains("CAP_BPF"), "{reported:?}");
    assert_eq!(allowed(&sandbox, &all), [true, true, true, false]);
    sandbox.does("devices deny", &["c 1:11 rw"]);
    assert_eq!(allowed(&sandbox, &all), [false; 4]);
}

#[test]
fn a_device_that_comes_and_goes_leaves_no_trail() {
    let sandbox = Sandbox::named("trail");
    sandbox.create(&["--profile", "none"]);
    for _ in 0..5 {
        sandbox.does("devices allow", &["c 1:11 rw"]);
        sandbox.does("devices deny", &["c 1:11 rw"]);
    }
    let shown = sandbox.json("show", &[]);
    assert_eq!(shown["resources"]["devices"].as_array().unwrap().len(), 1, "{shown}");
}

#[test]
fn an_update_with_the_device_list_in_force_is_done_and_with_another_one_refused() {
    let sandbox = Sandbox::named("update");
    let file = |name: &str, document: Value| {
        let path = sandbox.scratch.path().join(name);
        fs::write(&path, document.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw"},
    ]);
    let created = file("created.json", json!({"devices": rules, "pids": {"limit": 10}}));
    let update = file("update.json", json!({"devices": rules, "pids": {"limit": 20}}));
    let other = file("other.json", json!({"devices": [rules[0]], "pids": {"limit": 30}}));
    let nothing = file("nothing.json", json!({}));
    sandbox.create(&["--resources", &created]);
    sandbox.does("devices allow", &["c 1:12 r", "--claim", "x"]);
    let before = sandbox.json("devices ls", &[]);
    let done = finish(sandbox.ringfence(&["--strict", "set", &sandbox.id, "--resources", &update])).exits(0);
    assert_eq!((done.stderr.as_str(), sandbox.file("pids.max").as_deref()), ("", Some("20")));
    assert_eq!(sandbox.json("devices ls", &[]), before);
    assert_eq!(sandbox.json("show", &[])["resources"]["devices"].as_array().unwrap().len(), 2);

    let shown = sandbox.json("show", &[]);
    assert_eq!(sandbox.json("set", &["--resources", &nothing])["report"], json!([]));
    let refused = sandbox.attempt_json("set", &["--resources", &other]).exits(2).error();
    assert_eq!(refused["setting"], "devices");
    assert_eq!((sandbox.json("show", &[]), sandbox.file("pids.max").as_deref()), (shown, Some("20")));
    sandbox.attempt("set", &[]).exits(2);
}
