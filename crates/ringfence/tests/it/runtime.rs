//! Inside an async runtime: its `Command` joins by the hook, and blocking calls are made from tasks of both kinds.

#![allow(clippy::unwrap_used)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;

use crate::support::{Guarded, SOON};
use ringfence::{Command, Host, Remaining, Resources};

testbed! {
    drivers: "cgroupfs systemd";
}

fn make(host: &Host, what: &str) -> Guarded {
    Guarded::new(host, what, Resources::new().pids_limit(20))
}

/// The life of a sandbox whose command is the runtime's own.
async fn live(host: Host, what: String) {
    let vm = Arc::new(tokio::task::spawn_blocking(move || make(&host, &what)).await.unwrap());
    let mut command = tokio::process::Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    // SAFETY: the hook is async-signal-safe, as it promises.
    unsafe { command.pre_exec(vm.join_hook().unwrap()) };
    let mut child = command.spawn().unwrap();
    assert_eq!(vm.processes().unwrap(), BTreeSet::from([child.id().unwrap()]));

    // One that the runtime does not know of is not collected behind our back.
    let other = Arc::clone(&vm);
    let status = tokio::task::spawn_blocking(move || other.spawn(&Command::new("true")).unwrap().wait());
    assert!(status.await.unwrap().unwrap().success());

    drop(child.stdin.take());
    assert!(child.wait().await.unwrap().success());
    let (last, paths) = (Arc::clone(&vm), vm.paths());
    tokio::task::spawn_blocking(move || last.destroy(Remaining::Refuse, SOON)).await.unwrap().unwrap();
    assert!(paths.values().all(|path| !path.exists()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_sandboxes_at_once() {
    let host = Host::detect().unwrap();
    let lives: Vec<_> = (0..4).map(|n| tokio::spawn(live(host.clone(), format!("task-{n}")))).collect();
    for one in lives {
        one.await.unwrap();
    }
}

#[tokio::test]
async fn blocking_calls_in_a_task_work_too() {
    let host = Host::detect().unwrap();
    let vm = make(&host, "direct");
    let child = vm.spawn(&Command::new("sleep").args(["1000"])).unwrap();
    vm.freeze(SOON).unwrap();
    vm.thaw(SOON).unwrap();
    assert_eq!(vm.destroy(Remaining::Kill, SOON).unwrap().killed, BTreeSet::from([child.pid()]));
    assert!(!child.wait().unwrap().success());
}
