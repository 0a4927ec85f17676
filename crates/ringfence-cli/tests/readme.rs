//! Every command in the README works, in the order in which it stands there.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

mod support;

use std::path::Path;
use std::process::Command;

use support::{binary, driver, finish};

const README: &str = include_str!("../../../README.md");

/// The lines of the README's `console` blocks that a reader would type.
fn commands() -> Vec<&'static str> {
    let mut commands = Vec::new();
    let mut inside = false;
    for line in README.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            line if inside => commands.extend(line.strip_prefix("# ")),
            _ => {}
        }
    }
    commands
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let state = tempfile::tempdir().unwrap();
    let here = binary().parent().unwrap().to_owned();
    let path = format!("{}:{}", here.display(), std::env::var("PATH").unwrap());
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    for line in commands {
        let mut command = Command::new("sh");
        command.args(["-c", line]).env("PATH", &path).env("RINGFENCE_STATE_DIR", state.path().join("state"));
        command.env("RINGFENCE_DRIVER", driver());
        finish(command).exits(0);
    }
    assert!(!Path::new(&state.path().join("state")).exists(), "the README leaves a sandbox behind");
}
