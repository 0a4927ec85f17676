//! Text from outside is escaped before it reaches a terminal.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use crate::support::{Done, Sandbox, by_systemd, finish};
use serde_json::{Value, json};

testbed! {
    // No cgroup is made.
    modes: "host plain-v2";
    gate: "host";
}

/// Control and format characters: clear the screen, set the title, CSI of C1, DEL, a right-to-left override, a line separator,
/// and a newline, which would forge a line of output.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;x\u{7}\u{9b}2J\u{7f}\u{202e}\u{2028}\u{85}\r\nforged";

/// [`HOSTILE`] without the newline, which paths and keys cannot have.
fn hostile() -> String {
    HOSTILE.replace('\n', "")
}

/// Whether a terminal would act on something in the text; newlines separate the lines of output.
fn steers(text: &str) -> bool {
    let bidi = ['\u{202e}', '\u{2028}'];
    text.chars().any(|c| c != '\n' && (c.is_control() || bidi.contains(&c)))
        || text.lines().any(|line| line.starts_with("forged"))
}

/// Runs the command in each form of output. For people its output shows ESC and CSI escaped, on stdout or stderr.
#[track_caller]
fn assert_escaped(sandbox: &Sandbox, line: &[&str], code: i32) -> Done {
    for form in ["json", "jsonl"] {
        let done = finish(sandbox.ringfence(&[&["-o", form], line].concat())).exits(code);
        assert!(!steers(&done.stdout) && !steers(&done.stderr), "{line:?}: {done:?}");
    }
    let done = finish(sandbox.ringfence(line)).exits(code);
    assert!(!steers(&done.stdout) && !steers(&done.stderr), "{line:?}: {done:?}");
    let both = format!("{}{}", done.stdout, done.stderr);
    assert!(both.contains(r"\u{1b}[2J") && both.contains(r"\u{9b}2J"), "{line:?}: {both}");
    done
}

fn file(sandbox: &Sandbox, name: &str, text: impl ToString) -> String {
    let path = sandbox.scratch.path().join(name);
    fs::write(&path, text.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn state_dir(sandbox: &Sandbox) -> PathBuf {
    let directory = sandbox.state_dir();
    DirBuilder::new().mode(0o700).recursive(true).create(&directory).unwrap();
    directory
}

#[test]
fn control_characters_of_a_document_are_escaped_in_plans_reports_and_errors() {
    let sandbox = Sandbox::named("document");
    let id = &*sandbox.id;
    let hostile = hostile();
    let path = if by_systemd() { format!(":{hostile}:x") } else { format!("/{hostile}/x") };
    let spec = file(&sandbox, "config.json", json!({"linux": {"cgroupsPath": path}}));
    // A unit's name has no such characters.
    assert_escaped(
        &sandbox,
        &["plan", id, "--host", "v2", "--spec", &spec],
        if by_systemd() { 2 } else { 0 },
    );
    assert_escaped(&sandbox, &["create", id, "--path", &format!("/{hostile}/memory.max")], 2);
    let bad = json!({"linux": {"cgroupsPath": format!("/{hostile}/memory.max")}});
    let bad = file(&sandbox, "bad.json", bad);
    assert_escaped(&sandbox, &["create", id, "--spec", &bad], 2);

    // Field names, keys and values that are reported, and those that are refused.
    let unread = json!({"memory": {(HOSTILE): 1}});
    let unread = file(&sandbox, "unread.json", unread);
    let planned = assert_escaped(&sandbox, &["plan", id, "--host", "v2", "--resources", &unread], 0);
    assert!(planned.stdout.contains("report"), "{planned:?}");
    assert_escaped(&sandbox, &["--strict", "plan", id, "--host", "v2", "--resources", &unread], 1);
    for unified in [
        json!({(format!("memory.{hostile}")): "1"}),
        json!({"memory.x": HOSTILE}),
        json!({(HOSTILE): HOSTILE}),
        json!({"memory.high": HOSTILE}),
    ] {
        let name = file(&sandbox, "unified.json", json!({"unified": unified}));
        for host in ["v1", "v2", "v2+systemd"] {
            for line in [
                &["plan", id, "--host", host, "--resources", &name][..],
                &["convert", "--from", "oci", "--to", "v2", &name],
                &["convert", "--from", "oci", "--to", "systemd", &name],
            ] {
                let code = finish(sandbox.ringfence(line)).code;
                assert!((0..=2).contains(&code), "{line:?}");
                assert_escaped(&sandbox, line, code);
            }
        }
    }
    // JSON keeps what it was given.
    let unified = file(&sandbox, "unified.json", json!({"unified": {"memory.x": hostile}}));
    let line = ["convert", "--from", "oci", "--to", "oci", &unified];
    let text = finish(sandbox.ringfence(&line)).exits(0);
    assert!(!steers(&text.stdout), "{text:?}");
    assert_eq!(text.json()["unified"]["memory.x"], hostile);
}

#[test]
fn control_characters_of_other_documents_and_arguments_are_escaped() {
    let sandbox = Sandbox::named("others");
    let id = &*sandbox.id;
    // XML cannot have C0.
    let xml = "<domain><resource><partition>/\u{9b}2J\u{202e}</partition></resource>\
               <cputune><vcpusched a='\u{9b}2J'/></cputune></domain>";
    let xml = file(&sandbox, "domain.xml", xml);
    let files = file(&sandbox, "v1", format!("memory.{}=1\n", hostile()));
    let foreign = file(&sandbox, "host.json", json!({"mode": HOSTILE}));
    let nowhere = format!("/nowhere/{}", hostile());
    for line in [
        &["-v", "convert", "--from", "libvirt", "--to", "v2", &xml][..],
        &["-v", "convert", "--from", "v1", "--to", "v2", &files],
        &["plan", id, "--host", &foreign],
        &["plan", id, "--resources", &nowhere],
        &["plan", id, "--host", &hostile()],
        &["show", &hostile()],
        &["create", id, "--device-allow", &hostile()],
        &["create", id, "--memory", &hostile()],
        &["--driver", &hostile(), "ls"],
        &["ls", &format!("--{}", hostile())],
    ] {
        let done = finish(sandbox.ringfence(line));
        assert!((0..=2).contains(&done.code), "{done:?}");
        assert!(!steers(&done.stdout) && !steers(&done.stderr), "{line:?}: {done:?}");
        assert!(!done.stdout.is_empty() || !done.stderr.is_empty(), "{line:?}");
    }
}

#[test]
fn control_characters_of_a_recorded_sandbox_are_escaped() {
    let sandbox = Sandbox::named("recorded");
    let mut state: Value =
        serde_json::from_str(include_str!("../../../ringfence/src/sandbox/state-1.json")).unwrap();
    let path = format!("ringfence/{}", hostile());
    state["path"] = format!("/{path}").into();
    state["cgroup"] = path.into();
    state["report"] = json!([{"setting": HOSTILE, "value": HOSTILE, "why": HOSTILE}]);
    state["claims"] = json!({(HOSTILE): []});
    state["resources"]["unified"] = json!({"memory.x": HOSTILE});
    fs::write(state_dir(&sandbox).join(format!("{}.json", sandbox.id)), state.to_string()).unwrap();
    let shown = assert_escaped(&sandbox, &["show", &sandbox.id], 0);
    assert!(shown.stdout.lines().any(|line| line.starts_with("report")), "{shown:?}");
    assert_escaped(&sandbox, &["ls"], 0);
    assert_eq!(sandbox.json("show", &[])["report"][0]["why"], HOSTILE);
}

#[test]
fn control_characters_of_announced_steps_are_escaped() {
    if by_systemd() {
        // The name of a unit has none.
        return;
    }
    let sandbox = Sandbox::named("announced");
    // Creation fails between the announcement and the first cgroup, because the state cannot be written.
    let in_the_way = state_dir(&sandbox).join(format!("{}.tmp", sandbox.id));
    fs::create_dir(&in_the_way).unwrap();
    let path = format!("/{}", hostile());
    let done = assert_escaped(&sandbox, &["-v", "create", &sandbox.id, "--path", &path], 1);
    assert!(done.stderr.contains("make_dir"), "{done:?}");
    fs::remove_dir(in_the_way).unwrap();
    // With the directory in the way, the identity of the store could not go.
    finish(sandbox.ringfence(&["gc", "--apply"])).exits(0);
}
