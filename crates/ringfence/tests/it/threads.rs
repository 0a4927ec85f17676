//! The threads of a real QEMU, by its monitor and by their names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::skip;
use ringfence::{ErrorKind, Expect, Finder, Qmp, Vmm, VmmThreads};

testbed! {}

const SOON: Duration = Duration::from_secs(20);

struct Qemu {
    process: Child,
    scratch: tempfile::TempDir,
}

impl Qemu {
    /// Two vCPUs and an I/O thread; the machine stays stopped.
    fn start(options: &[&str]) -> Option<Self> {
        let scratch = tempfile::tempdir().unwrap();
        let monitor = format!("unix:{},server=on,wait=off", scratch.path().join("qmp").display());
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-S",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-m",
            "64",
            "-smp",
            "2,sockets=4,cores=1,threads=1,maxcpus=4",
        ]);
        command
            .args(["-name", "x,debug-threads=on", "-object", "iothread,id=io0", "-qmp", &monitor])
            .args(options);
        match command.stdin(Stdio::null()).spawn() {
            Ok(process) => Some(Self { process, scratch }),
            Err(error) => {
                skip(&format!("qemu-system-x86_64: {error}"));
                None
            }
        }
    }

    fn find(&self, finder: &Finder) -> VmmThreads {
        finder.find(self.process.id(), Expect::vcpus(2).within(SOON)).unwrap()
    }

    fn monitor(&self) -> Finder {
        Finder::qmp(self.scratch.path().join("qmp"))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[test]
fn what_qemu_says_of_its_threads_is_what_they_are_called() {
    let Some(mut qemu) = Qemu::start(&["-accel", "tcg,thread=multi"]) else { return };
    // At once, while it starts.
    let told = qemu.find(&qemu.monitor());
    let named = qemu.find(&Vmm::Qemu.into());
    assert_eq!(told, named);
    assert_eq!(told.vcpus.iter().map(|vcpu| vcpu.index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(told.io_threads.iter().map(|thread| thread.id.as_str()).collect::<Vec<_>>(), ["io0"]);
    for (tid, name) in [
        (told.vcpus[0].tid, "CPU 0/TCG"),
        (told.vcpus[1].tid, "CPU 1/TCG"),
        (told.io_threads[0].tid, "IO io0"),
    ] {
        let path = format!("/proc/{}/task/{tid}/comm", qemu.process.id());
        assert_eq!(std::fs::read_to_string(path).unwrap().trim_end(), name);
    }

    // More vCPUs than there are: it says how many there are.
    let expect = Expect::vcpus(3).within(Duration::from_secs(3));
    let error = qemu.monitor().find(qemu.process.id(), expect).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.message().starts_with("2 vCPU threads were found"), "{error}");

    // The monitor of another process.
    let expect = Expect::vcpus(2).within(Duration::from_secs(3));
    let error = qemu.monitor().find(std::process::id(), expect).unwrap_err();
    assert!(error.message().contains("none of process"), "{error}");

    // A monitor serves one client at a time.
    let first = Qmp::connect(qemu.scratch.path().join("qmp"), SOON).unwrap();
    let error = Qmp::connect(qemu.scratch.path().join("qmp"), Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.message().contains("one client at a time"), "{error}");
    drop(first);
    qemu.find(&qemu.monitor());

    qemu.process.kill().unwrap();
    qemu.process.wait().unwrap();
    assert!(qemu.monitor().find(qemu.process.id(), Expect::vcpus(2).within(SOON)).is_err());
}

#[test]
fn one_thread_that_runs_all_vcpus_is_found_as_each_of_them() {
    let Some(qemu) = Qemu::start(&["-accel", "tcg,thread=single"]) else { return };
    let (told, named) = (qemu.find(&qemu.monitor()), qemu.find(&Vmm::Qemu.into()));
    assert_eq!(told, named);
    assert_eq!((told.vcpus.len(), told.vcpus[0].tid), (2, told.vcpus[1].tid));
}

#[test]
fn a_vcpu_that_is_hotplugged_later_is_found_when_looking_again() {
    let Some(qemu) = Qemu::start(&["-accel", "tcg,thread=multi", "-machine", "q35"]) else { return };
    assert_eq!(qemu.find(&qemu.monitor()).vcpus.len(), 2);
    let plug = r#"{"execute": "device_add", "arguments": {"driver": "qemu64-x86_64-cpu", "id": "c2", "socket-id": 2, "core-id": 0, "thread-id": 0}}"#;
    let monitor = UnixStream::connect(qemu.scratch.path().join("qmp")).unwrap();
    let mut lines = BufReader::new(&monitor).lines();
    let mut said = || lines.next().unwrap().unwrap();
    assert!(said().contains("QMP"));
    for command in [r#"{"execute": "qmp_capabilities"}"#, plug] {
        writeln!(&monitor, "{command}").unwrap();
        let answer = said();
        assert!(answer.contains("return"), "{command}: {answer}");
    }
    let three = Expect::vcpus(3).within(SOON);
    let named = Finder::from(Vmm::Qemu).find(qemu.process.id(), three).unwrap();
    drop(monitor);
    assert_eq!(qemu.monitor().find(qemu.process.id(), three).unwrap(), named);
}
