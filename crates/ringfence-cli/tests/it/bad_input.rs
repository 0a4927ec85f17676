//! Bad input is refused with the setting, what was given and what is allowed; nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;

use crate::support::soak::in_testbed;
use crate::support::{Done, Sandbox, by_systemd, directories_named, finish, mode};
use serde_json::Value;

testbed! {
    drivers: "cgroupfs systemd";
    gate: "host trixie/systemd";
}

const BAD: i32 = 2;
const REFUSED: i32 = 1;

/// What is given, and what the error has to say: the code, the setting, the value, and a word of what is allowed.
type Case<'a> = (&'a [&'a str], i32, &'a str, &'a str, &'a str);

/// What is wrong with an error, as a program gets it and as a person gets it.
fn complaints(sandbox: &Sandbox, verb: &str, case: Case<'_>) -> Vec<String> {
    let (args, code, setting, value, allowed) = case;
    let json = sandbox.attempt_json(verb, args);
    if json.code != code || !json.stdout.is_empty() {
        return vec![format!("{verb} {args:?}: exit code {} and not {code}: {json:?}", json.code)];
    }
    let error = json.error();
    let said = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    let told = sandbox.attempt(verb, args);
    let kinds = if code == BAD { &["invalid_input"][..] } else { &["unsupported", "kernel"] };
    let checks = [
        ("the kind", kinds.contains(&said("kind").as_str())),
        ("the setting", said("setting").contains(setting)),
        ("the value", said("value").contains(value)),
        ("what is allowed", said("message").contains(allowed)),
        ("the same for people", told.code == code && told.stdout.is_empty()),
        ("the setting for people", told.stderr.contains(&said("setting"))),
        (
            "the message for people",
            told.stderr.contains(&said("message")) && !told.stderr.contains("panicked"),
        ),
    ];
    let missed = checks.into_iter().filter(|(_, is_so)| !is_so);
    missed.map(|(what, _)| format!("{verb} {args:?}: not {what} in {error} or {:?}", told.stderr)).collect()
}

#[track_caller]
fn refused(sandbox: &Sandbox, verb: &str, case: Case<'_>) {
    let complaints = complaints(sandbox, verb, case);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Each case leaves nothing: no directory, no state.
#[track_caller]
fn all_refused(name: &str, cases: &[Case<'_>]) {
    let sandbox = Sandbox::named(name);
    let mut wrong = Vec::new();
    for case in cases {
        wrong.extend(complaints(&sandbox, "create", *case));
        sandbox.is_gone();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The same for run, which must not start anything.
    for case in cases.iter().filter(|case| case.1 == BAD).take(2) {
        let witness = sandbox.scratch.path().join("started");
        let done = sandbox.run(case.0, &["touch", witness.to_str().unwrap()]);
        assert!([BAD, 125].contains(&done.code), "{done:?}");
        assert!(!witness.exists());
        sandbox.is_gone();
    }
}

#[test]
fn paths_that_name_no_cgroup_of_their_own() {
    let long = "x".repeat(300);
    if by_systemd() {
        for path in ["", "/", "/a/b", "a", "x.slice:a:", "x:a:b", "a-.slice:x:y", "x.slice:a:b c"] {
            all_refused("path", &[(&["--path", path], BAD, "ath", path, "")]);
        }
        return;
    }
    let given: Vec<(&str, &str)> = vec![
        ("", "own"),
        (".", "own"),
        ("/", "own"),
        ("../..", "own"),
        ("/..", "own"),
        ("a\nb", "newline"),
        ("a/cgroup.procs", "cgroup."),
        ("a/tasks", "tasks"),
        ("a/memory.max", "memory.max"),
        (&long, "255"),
        ("x.slice:a:b", "systemd"),
        ("x.slice:a:", ""),
        ("a-.slice:x:y", ""),
    ];
    for (path, allowed) in given {
        let value = if path.contains('\n') { "a" } else { path };
        all_refused("path", &[(&["--path", path], BAD, "ath", value, allowed)]);
    }
    assert!(directories_named("x.slice:a:b").is_empty());
}

#[test]
fn three_parts_without_a_slice_are_never_a_directory() {
    let sandbox = Sandbox::named("parts");
    let spec = sandbox.scratch.path().join("config.json");
    for path in ["machine:x:y", "a:b.slice:c", "./machine:x:y", "machine:x:y/z"] {
        fs::write(&spec, serde_json::json!({"linux": {"cgroupsPath": path}}).to_string()).unwrap();
        let overhead = format!("separate={path}");
        for (options, setting) in [
            (["--path", path], "ath"),
            (["--parent", path], "parent"),
            (["--overhead", &overhead], "overhead"),
            (["--spec", spec.to_str().unwrap()], "cgroupsPath"),
        ] {
            for verb in ["create", "plan"] {
                refused(&sandbox, verb, (&options, BAD, setting, path, "slice"));
            }
            sandbox.is_gone();
        }
    }
    for name in ["machine:x:y", "a:b.slice:c", "machine:x:y"] {
        assert!(directories_named(name).is_empty(), "{name}");
    }
}

#[test]
fn documents_without_an_end_and_nested_without_an_end_are_refused() {
    let sandbox = Sandbox::named("bounds");
    let write = |name: &str, text: String| {
        let file = sandbox.scratch.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let long = write("long", " ".repeat((16 << 20) + 1));
    let deep = write("deep", format!("{{\"a\": {}{}}}", "[".repeat(200), "]".repeat(200)));
    let names = write("names", format!("{}{}", "<a xmlns:b='c'>".repeat(4000), "</a>".repeat(4000)));
    let convert = |from: &'static str| vec!["convert", "--to", "v2", "--from", from];
    let id = &*sandbox.id;
    let mut cases = Vec::new();
    for (file, why) in [("/dev/zero", "16 MiB"), (&long, "16 MiB"), (&deep, "recursion limit")] {
        for mut line in [
            vec!["create", id, "--spec"],
            vec!["create", id, "--resources"],
            vec!["plan", id, "--spec"],
            vec!["plan", id, "--resources"],
            convert("oci"),
        ] {
            line.push(file);
            cases.push((line, why));
        }
    }
    for from in ["v1", "libvirt"] {
        for file in ["/dev/zero", &long] {
            cases.push(([convert(from), vec![file]].concat(), "16 MiB"));
        }
    }
    for file in ["/dev/zero", &long] {
        cases.push((vec!["plan", id, "--host", file], "16 MiB"));
    }
    cases.push(([convert("libvirt"), vec![&names]].concat(), "namespaces"));
    for (line, why) in cases {
        let done = finish(sandbox.ringfence(&line)).exits(BAD);
        assert!(done.stderr.contains(why), "{line:?}: {}", done.stderr);
        sandbox.is_gone();
    }
    let mut command = sandbox.ringfence(&["create", id, "--resources", "-"]);
    command.stdin(fs::File::open("/dev/zero").unwrap());
    let done = finish(command).exits(BAD);
    assert!(done.stderr.contains("16 MiB"), "{}", done.stderr);
    sandbox.is_gone();
}

#[test]
fn a_state_without_an_end_is_an_error() {
    let sandbox = Sandbox::named("endless");
    sandbox.create(&[]);
    let file = sandbox.state_dir().join(format!("{}.json", sandbox.id));
    let state = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    let done = sandbox.attempt("show", &[]);
    assert!(done.code == REFUSED && !done.stderr.is_empty(), "{done:?}");
    fs::remove_file(&file).unwrap();
    fs::write(&file, &state).unwrap();
    sandbox.does("rm", &[]);
}

#[test]
fn a_hundred_thousand_unified_keys_and_device_rules_are_planned() {
    // What takes a second on a machine takes half a minute where it is emulated.
    let many = if in_testbed() { 10_000 } else { 100_000 };
    let sandbox = Sandbox::named("many");
    let file = sandbox.scratch.path().join("resources.json");
    let path = file.to_str().unwrap();
    let keys: Vec<String> = (0..many).map(|at| format!("\"memory.x{at}\": \"1\"")).collect();
    fs::write(&file, format!("{{\"unified\": {{{}}}}}", keys.join(", "))).unwrap();
    for host in ["v2", "v2+systemd"] {
        let plan = sandbox.json("plan", &["--host", host, "--resources", path]);
        let steps = plan["steps"].as_array().unwrap();
        let is_one = |step: &&Value| step["path"].as_str().is_some_and(|path| path.contains("/memory.x"));
        assert_eq!(steps.iter().filter(is_one).count(), many, "{host}");
    }
    let rules: Vec<String> = (0..many / 2)
        .map(|at| {
            let allow = format!(
                "{{\"allow\": true, \"type\": \"c\", \"major\": 300, \"minor\": {}, \"access\": \"w\"}}",
                60_000 - at
            );
            let deny = "{\"allow\": false, \"type\": \"c\", \"major\": 300, \"access\": \"r\"}";
            format!("{allow}, {deny}")
        })
        .collect();
    fs::write(&file, format!("{{\"devices\": [{}]}}", rules.join(", "))).unwrap();
    let plan = sandbox.json("plan", &["--host", "v2", "--resources", path]);
    let filter = plan["steps"].as_array().unwrap().iter().find(|step| step["op"] == "device_filter");
    assert!(filter.unwrap()["exceptions"].as_array().unwrap().len() >= many / 2);
}

#[test]
fn ids_that_are_no_ids() {
    let sandbox = Sandbox::named("ids");
    let long = "x".repeat(129);
    for id in ["", "a/b", "..", "a b", "a\nb", "ä", &long] {
        for verb in [&["create"][..], &["show"], &["rm"], &["set", "--pids", "5"]] {
            let done = finish(sandbox.ringfence(&[&["-o", "json"], verb, &["--", id]].concat())).exits(BAD);
            let error = done.error();
            assert_eq!(error["kind"], "invalid_input", "{verb:?} {id:?}: {error}");
        }
    }
    assert!(!sandbox.state_dir().exists());
}

#[test]
fn sizes_numbers_and_lists_that_are_none() {
    all_refused(
        "values",
        &[
            (&["--memory", "12Q"], BAD, "memory", "12Q", "K, M, G"),
            (&["--memory", "64MB"], BAD, "memory", "64MB", "K, M, G"),
            (&["--memory=-5"], BAD, "memory", "-5", "64M"),
            (&["--memory", "1.5G"], BAD, "memory", "1.5G", "whole number"),
            (&["--memory", ""], BAD, "memory", "", "64M"),
            (&["--memory", "99999999999T"], BAD, "memory", "99999999999T", "64 bits"),
            (&["--memory-reservation", "x"], BAD, "reservation", "x", "K, M, G"),
            (&["--memory-swap", "x"], BAD, "swap", "x", "K, M, G"),
            (&["--cpus", "0"], BAD, "cpu", "0", "0.01"),
            (&["--cpus", "x"], BAD, "cpu", "x", "0.5"),
            (&["--cpus=-1"], BAD, "cpu", "-1", "0.5"),
            (&["--cpus", "1e3"], BAD, "cpu", "1e3", "0.5"),
            (&["--cpuset-cpus", "3-1"], BAD, "cpu", "3-1", "lowest"),
            (&["--cpuset-cpus", "a"], BAD, "cpu", "a", "0-3"),
            (&["--cpuset-cpus", "99999"], BAD, "cpu", "99999", "up to"),
            (&["--cpuset-mems", "0-"], BAD, "mems", "0-", "0-3"),
            (&["--cpu-shares", "1"], BAD, "cpu", "1", "262144"),
            (&["--cpu-shares", "300000"], BAD, "cpu", "300000", "262144"),
            (&["--cpu-shares", "x"], BAD, "cpu", "x", ""),
            (&["--cpu-weight", "0"], BAD, "cpu", "0", "10000"),
            (&["--cpu-weight", "10001"], BAD, "cpu", "10001", "10000"),
            (&["--pids", "x"], BAD, "pids", "x", ""),
            (&["--pids=-7"], BAD, "pids", "-7", ""),
            (&["--cpu-burst", "x"], BAD, "burst", "x", ""),
            (&["--pin=none"], BAD, "pin", "none", "exclusive"),
            (&["--pin", "--overhead", "together"], BAD, "pin", "matching", "nested"),
        ],
    );
}

#[test]
fn values_that_contradict_each_other() {
    all_refused(
        "contradictions",
        &[
            (&["--memory", "64M", "--memory-swap", "32M"], BAD, "memory.swap", "33554432", "limit"),
            (&["--memory-swap", "64M"], BAD, "memory.swap", "67108864", "limit"),
            (&["--cpus", "0.1", "--cpu-burst", "20000"], BAD, "cpu.burst", "20000", "10000"),
        ],
    );
}

#[test]
fn device_rules_that_are_none() {
    let cases: Vec<Case<'_>> = vec![
        (&["--device-allow", "x 1:3"], BAD, "device", "x 1:3", "MAJOR:MINOR"),
        (&["--device-allow", "c 1"], BAD, "device", "c 1", "MAJOR:MINOR"),
        (&["--device-allow", "c 1:3 q"], BAD, "device", "q", "r, w and m"),
        (&["--device-allow", "c -1:3 r"], BAD, "device", "c -1:3 r", "MAJOR:MINOR"),
        (&["--device-allow", "c 1:99999999999 r"], BAD, "device", "99999999999", ""),
        (&["--device-deny", "a 1:3 rwm"], BAD, "device", "a 1:3", ""),
        (&["--device-deny", "a *:* r"], BAD, "device", "a *:*", ""),
        (&["--device-allow", "/dev/does-not-exist"], BAD, "device", "/dev/does-not-exist", ""),
        (&["--device-allow", "/etc/passwd"], BAD, "device", "/etc/passwd", ""),
        (&["--device-allow", "/dev/null:x"], BAD, "device", "/dev/null:x", ""),
        (&["--device-allow", ""], BAD, "device", "", "MAJOR:MINOR"),
        // Cutting a device out of a wildcard cannot be expressed.
        (&["--device-allow", "c 1:* rw", "--device-deny", "c 1:11 r"], BAD, "device", "1:11", ""),
    ];
    all_refused("rules", &cases);

    let sandbox = Sandbox::named("live-rules");
    sandbox.create(&[]);
    let before = sandbox.json("devices ls", &[]);
    for (args, code, setting, value, allowed) in cases.iter().take(11) {
        refused(&sandbox, "devices allow", (&[args[1]], *code, setting, value, allowed));
    }
    assert_eq!(sandbox.json("devices ls", &[]), before);
}

#[test]
fn documents_that_are_broken() {
    let sandbox = Sandbox::named("documents");
    let file = sandbox.scratch.path().join("resources.json");
    let path = file.to_str().unwrap();
    for (text, setting, value, allowed) in [
        ("{", "", "", ""),
        ("", "", "", ""),
        ("[]", "", "", ""),
        ("{\"memory\": {\"limit\": 1,}}", "", "", ""),
        ("{\"memory\": {\"limit\": \"64M\"}}", "memory.limit", "", "whole number"),
        ("{\"memory\": {\"limit\": -2}}", "memory.limit", "", "-1 for no limit"),
        ("{\"memory\": {\"limit\": 1e30}}", "memory.limit", "", "whole number"),
        ("{\"memory\": []}", "memory", "", "object"),
        ("{\"memory\": {\"swappiness\": 101}}", "memory.swappiness", "101", "100"),
        ("{\"memory\": {\"limit\": 67108864, \"swap\": 1048576}}", "memory.swap", "1048576", "limit"),
        ("{\"cpu\": {\"shares\": 1}}", "cpu.shares", "1", "262144"),
        ("{\"cpu\": {\"period\": 10}}", "cpu.period", "10", "1000"),
        ("{\"cpu\": {\"cpus\": \"3-1\"}}", "cpu.cpus", "3-1", "lowest"),
        ("{\"cpu\": {\"cpus\": 3}}", "cpu.cpus", "", "list"),
        ("{\"pids\": {\"limit\": true}}", "pids.limit", "", "whole number"),
        (
            "{\"devices\": [{\"allow\": true, \"type\": \"a\", \"major\": 1, \"minor\": 3, \"access\": \"rwm\"}]}",
            "devices",
            "",
            "",
        ),
        ("{\"devices\": [{\"allow\": true, \"type\": \"a\", \"access\": \"r\"}]}", "devices", "", ""),
        ("{\"devices\": [{\"allow\": true, \"type\": \"x\", \"access\": \"r\"}]}", "devices", "", ""),
        (
            "{\"devices\": [{\"allow\": true, \"type\": \"c\", \"access\": \"q\"}]}",
            "devices",
            "",
            "r, w and m",
        ),
        ("{\"devices\": [{\"type\": \"c\", \"access\": \"r\"}]}", "devices", "", "allow"),
        ("{\"unified\": {\"memory/max\": \"1\"}}", "unified", "memory/max", ""),
        ("{\"unified\": {\"../memory.max\": \"1\"}}", "unified", "../memory.max", ""),
        ("{\"unified\": {\"memory.high\": 5}}", "unified", "", "string"),
    ] {
        fs::write(&file, text).unwrap();
        let json = sandbox.attempt_json("create", &["--resources", path]).exits(BAD);
        let error = json.error();
        let says = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(error["kind"], "invalid_input", "{text}: {error}");
        assert!(says("setting").contains(setting), "{text}: no setting {setting:?} in {error}");
        assert!(says("value").contains(value), "{text}: no value {value:?} in {error}");
        // Where a parser explains, the explanation may be the cause.
        assert!(error.to_string().contains(allowed), "{text}: not what is allowed, {allowed:?}, in {error}");
        let told = sandbox.attempt("create", &["--resources", path]).exits(BAD).stderr;
        assert!(told.contains(&says("message")) && told.contains(allowed), "{text}: {told}");
        sandbox.is_gone();
    }
    let missing = sandbox.attempt_json("create", &["--resources", "/does/not/exist"]);
    assert!([BAD, REFUSED].contains(&missing.code), "{missing:?}");
    assert!(missing.error().to_string().contains("/does/not/exist"), "{missing:?}");
}

#[test]
fn fields_that_nobody_reads_are_reported_and_refused_under_strict() {
    let sandbox = Sandbox::named("unread");
    let file = sandbox.scratch.path().join("resources.json");
    fs::write(&file, "{\"memory\": {\"limit\": 67108864, \"colour\": 3}, \"taste\": 5}").unwrap();
    let path = file.to_str().unwrap();
    let created = sandbox.json("create", &["--resources", path]);
    let report = created["report"].to_string();
    assert!(report.contains("memory.colour") && report.contains("taste"), "{created}");
    sandbox.does("rm", &[]);
    let strict =
        finish(sandbox.ringfence(&["--strict", "create", &sandbox.id, "--resources", path])).exits(REFUSED);
    assert!(strict.stderr.contains("colour"), "{}", strict.stderr);
    sandbox.is_gone();
}

#[test]
fn unified_settings_that_this_host_cannot_have() {
    let sandbox = Sandbox::named("unified");
    refused(&sandbox, "create", (&["--unified", "memory/max=1"], BAD, "unified", "memory/max", ""));
    refused(&sandbox, "create", (&["--unified", "memory.max"], BAD, "unified", "memory.max", "KEY=VALUE"));
    sandbox.is_gone();
    refused(
        &sandbox,
        "create",
        (&["--unified", "taste.max=1"], REFUSED, "unified.taste.max", "1", "cgroup v2"),
    );
    sandbox.is_gone();
    if mode() != "v2" {
        refused(
            &sandbox,
            "create",
            (&["--unified", "memory.high=1048576"], REFUSED, "unified.memory.high", "1048576", "v2"),
        );
        sandbox.is_gone();
    }
}

#[test]
fn unified_values_that_the_kernel_would_refuse() {
    let sandbox = Sandbox::named("values");
    for (pair, setting, value, allowed) in [
        ("cpu.weight=0", "unified.cpu.weight", "0", "1 to 10000"),
        ("memory.high=-1", "unified.memory.high", "-1", "max"),
        ("memory.oom.group=invalid", "unified.memory.oom.group", "invalid", "0 or 1"),
        ("pids.max=-1", "unified.pids.max", "-1", "max"),
        ("cgroup.max.depth=x", "unified.cgroup.max.depth", "x", "max"),
    ] {
        for host in ["v2", "v2+systemd"] {
            let case = (&["--host", host, "--unified", pair][..], BAD, setting, value, allowed);
            refused(&sandbox, "plan", case);
        }
        refused(&sandbox, "create", (&["--unified", pair], BAD, setting, value, allowed));
        sandbox.is_gone();
    }
}

#[test]
fn changes_that_are_refused_change_nothing() {
    let sandbox = Sandbox::named("set");
    sandbox.create(&["--memory", "64M", "--memory-swap", "64M", "--cpus", "0.5", "--pids", "10"]);
    let shown: Value = sandbox.json("show", &[]);
    for case in [
        (&["--pids", "20", "--memory", "12Q"][..], BAD, "memory", "12Q", "K, M, G"),
        (&["--pids", "20", "--memory-swap", "32M"], BAD, "memory.swap", "33554432", "limit"),
        (&["--pids", "20", "--cpu-burst", "60000"], BAD, "cpu.burst", "60000", "50000"),
        (&["--pids", "20", "--cpuset-cpus", "3-1"], BAD, "cpu", "3-1", "lowest"),
    ] {
        refused(&sandbox, "set", case);
        assert_eq!(sandbox.file("pids.max").unwrap(), "10");
    }
    assert_eq!(sandbox.json("show", &[]), shown);
}

#[test]
fn commands_that_are_none() {
    let sandbox = Sandbox::named("usage");
    for args in [
        &[][..],
        &["dance"],
        &["create"],
        &["run", "x"],
        &["create", "x", "--colour", "red"],
        &["create", "x", "--profile", "toaster"],
        &["-o", "xml", "ls"],
        &["--timeout", "soon", "ls"],
        &["attach", "x", "one"],
        &["kill", "x", "--signal", "LOUD"],
        &["plan", "x", "--host", "v3"],
    ] {
        let done: Done = finish(sandbox.ringfence(args));
        assert!(done.code == BAD, "{args:?}: {done:?}");
        assert!(!done.stderr.is_empty() && !done.stderr.contains("panicked"), "{args:?}: {done:?}");
    }
    assert!(!sandbox.state_dir().exists());
}
