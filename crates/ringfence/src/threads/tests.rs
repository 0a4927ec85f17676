//! With threads of this process, and processes of our own.

use std::ffi::CString;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A thread that has a name, and goes when this is dropped.
struct Named {
    tid: u32,
    stop: Option<Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Named {
    fn new(name: &[u8]) -> Self {
        let (name, (stop, stopped), (tell, told)) = (CString::new(name).unwrap(), channel(), channel());
        let thread = std::thread::spawn(move || {
            rustix::thread::set_name(&name).unwrap();
            tell.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            _ = stopped.recv();
        });
        Self { tid: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn find(names: &str, expect: Expect) -> Result<Vec<(u32, u32)>> {
    let names: ThreadNames = names.parse().unwrap();
    let found = Finder::from(names).find(std::process::id(), expect)?;
    assert_eq!(found.pid, std::process::id());
    Ok(found.vcpus.into_iter().map(|vcpu| (vcpu.index, vcpu.tid)).collect())
}

#[test]
fn the_threads_of_a_process_are_found_by_their_names() {
    let threads: Vec<Named> =
        [&b"vcpu1"[..], b"vcpu0", b"fc_vcpu 0", b"\xff\xfe(\n", b"worker"].map(Named::new).into();
    let expect = Expect::vcpus(2).within(SOON);
    assert_eq!(find("cloud-hypervisor", expect).unwrap(), [(0, threads[1].tid), (1, threads[0].tid)]);
    assert_eq!(find("firecracker", Expect::any()).unwrap(), [(0, threads[2].tid)]);
}

#[test]
fn a_thread_that_appears_late_is_waited_for() {
    let first = Named::new(b"late 0");
    let second = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(200));
        Named::new(b"late 1")
    });
    let found = find("late {}", Expect::vcpus(2).within(SOON)).unwrap();
    let second = second.join().unwrap();
    assert_eq!(found, [(0, first.tid), (1, second.tid)]);
}

#[test]
fn when_too_few_are_there_in_time_the_error_says_how_many_and_what_else() {
    let _threads = [Named::new(b"few 0"), Named::new(b"else\xff")];
    let within = Duration::from_millis(100);
    let begun = Instant::now();
    let error = find("few {}", Expect::vcpus(3).within(within)).unwrap_err();
    assert!(begun.elapsed() >= within);
    assert_eq!(
        (error.kind(), error.setting(), error.value()),
        (ErrorKind::TimedOut, Some("vcpus"), Some("3"))
    );
    assert!(error.message().starts_with("1 vCPU thread was found in time"), "{error}");
    assert!(error.message().contains(&format!("process {}", std::process::id())), "{error}");
    let error = find("nobody {}", Expect::any().within(Duration::ZERO)).unwrap_err();
    assert!(error.message().starts_with("0 vCPU threads were found"), "{error}");
}

#[test]
fn threads_that_come_and_go_are_not_minded() {
    let keep = Named::new(b"stay 0");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                drop(Named::new(b"stay 1"));
            }
        });
        for _ in 0..300 {
            let found = find("stay {}", Expect::vcpus(1).within(SOON)).unwrap();
            assert_eq!(found[0], (0, keep.tid));
            assert!(found.len() <= 2, "{found:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A process that is killed in the end.
struct Started(Child);

impl Started {
    fn shell(script: &str) -> Self {
        let mut command = Command::new("sh");
        Self(
            command
                .args(["-c", script])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn a_process_that_has_ended_is_an_error_at_once() {
    let mut process = Started::shell("exit 0");
    process.0.wait().unwrap();
    let begun = Instant::now();
    for finder in [Finder::from(Vmm::Qemu), Finder::qmp("/nowhere/qmp")] {
        let error = finder.find(process.0.id(), Expect::vcpus(1).within(SOON)).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Kernel, Some(libc::ESRCH)), "{error}");
    }
    // A zombie has ended, too.
    let mut zombie = Started::shell("exit 0");
    while crate::kernel::proc::is_running(zombie.0.id()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Finder::from(Vmm::Qemu).find(zombie.0.id(), Expect::any().within(SOON)).is_err());
    zombie.0.wait().unwrap();
    assert!(begun.elapsed() < SOON);
}

fn nothing_of(pid: u32) -> VmmThreads {
    VmmThreads {
        pid,
        vcpus: Vec::new(),
        io_threads: Vec::new(),
        helpers: Vec::new(),
        kernel_threads: Vec::new(),
    }
}

#[test]
fn helpers_are_what_a_process_made_and_what_that_made() {
    let process = Started::shell("sh -c 'sleep 61 & wait' & sleep 61; :");
    let found = nothing_of(process.0.id());
    let until = Instant::now() + SOON;
    let helpers = loop {
        let helpers = found.clone().with_helpers().helpers;
        let names: Vec<&str> = helpers.iter().map(|helper| helper.name.as_str()).collect();
        if names.len() == 3 && names.iter().filter(|name| **name == "sleep").count() == 2 {
            break helpers;
        }
        assert!(Instant::now() < until, "{helpers:?}");
        std::thread::sleep(Duration::from_millis(5));
    };
    for helper in &helpers {
        let pid = rustix::process::Pid::from_raw(helper.pid as i32).unwrap();
        _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[test]
fn what_only_calls_itself_a_kernel_thread_is_none() {
    let pid = std::process::id();
    let _thread = Named::new(format!("vhost-{pid}").as_bytes());
    let process = Started::shell(&format!("printf kvm-pit/{pid} > /proc/self/comm; read line"));
    let name = format!("kvm-pit/{pid}");
    let until = Instant::now() + SOON;
    while crate::kernel::proc::name(process.0.id()) != Some(name.clone()) {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(nothing_of(pid).with_kernel_threads().kernel_threads, []);
}
