//! A message bus that does not answer: the timeout of the command holds.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::support::{Sandbox, by_systemd, finish, skip};

testbed! {
    modes: "systemd";
    drivers: "systemd";
    gate: "trixie";
}

#[test]
fn timeout_holds_on_a_silent_bus() {
    if !by_systemd() {
        return skip("without systemd there is no bus to ask");
    }
    let sandbox = Sandbox::named("silent");
    sandbox.create(&[]);
    let socket = sandbox.scratch.path().join("bus");
    // Connections are accepted by the kernel alone.
    let _listener = UnixListener::bind(&socket).unwrap();
    let other = format!("{}-2", sandbox.id);
    let timed = |args: &[&str], code: i32| {
        let mut command = sandbox.ringfence(args);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", socket.display()));
        command.args(["--timeout", "2"]);
        let begun = Instant::now();
        let done = finish(command);
        // The limit, one second, and the start of the command under emulation.
        assert!(begun.elapsed() < Duration::from_secs(8), "{args:?}: {:?}", begun.elapsed());
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        assert!(done.stderr.contains("did not answer in time"), "{args:?}: {}", done.stderr);
    };
    timed(&["create", &other], 1);
    timed(&["set", &sandbox.id, "--pids", "50"], 1);
    timed(&["rm", &sandbox.id, "--kill"], 1);
    sandbox.does("rm", &["--kill"]);
    sandbox.is_gone();
}
