//! Every command in the README works, in the order in which it stands there.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

use std::path::Path;
use std::process::Command;

use crate::support::{binary, driver, finish, skip};

testbed! {
    drivers: "cgroupfs systemd";
}

const README: &str = include_str!("../../../../README.md");

/// The lines of the README's `console` blocks that a reader would type, and whether they are about systemd.
fn commands() -> Vec<(bool, &'static str)> {
    let mut commands = Vec::new();
    let (mut inside, mut by_systemd) = (false, false);
    for line in README.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            heading if heading.starts_with("## ") => by_systemd = heading == "## With systemd",
            line if inside => commands.extend(line.strip_prefix("# ").map(|line| (by_systemd, line))),
            _ => {}
        }
    }
    assert!(commands.iter().any(|(by_systemd, _)| *by_systemd), "{commands:?}");
    commands
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let state = tempfile::tempdir().unwrap();
    let here = binary().parent().unwrap().to_owned();
    let path = format!("{}:{}", here.display(), std::env::var("PATH").unwrap());
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    let has_systemd = Path::new("/run/systemd/system").is_dir();
    if !has_systemd {
        skip("systemd is not process 1 here: what is said of it is not tried");
    }
    for (by_systemd, line) in commands.into_iter().filter(|(by_systemd, _)| has_systemd || !by_systemd) {
        let mut command = Command::new("sh");
        command.args(["-c", line]).env("PATH", &path).env("RINGFENCE_STATE_DIR", state.path().join("state"));
        // Where it is systemd that makes the sandboxes, as for a reader who says nothing about it.
        let is_auto = by_systemd || driver() == "systemd";
        command.env("RINGFENCE_DRIVER", if is_auto { "auto" } else { driver() });
        finish(command).exits(0);
    }
    assert!(!Path::new(&state.path().join("state")).exists(), "the README leaves a sandbox behind");
}
