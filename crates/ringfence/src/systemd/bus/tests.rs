use std::io::{ErrorKind as IoErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::*;
use crate::systemd::{Manager, Started, limit_systemd};

/// More than any call over a socket takes, and less than a request may take without a limit.
const SOON: Duration = Duration::from_secs(20);

/// What the peer at the other end of the socket does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    /// Accepts connections and says nothing.
    Silent,
    /// Lets in and answers no call.
    SilentOnceInside,
    /// Lets in, answers to `Hello` and `Subscribe` alone, and sends signals without end.
    Floods,
    /// Sends bytes without end in the place of an answer to the authentication.
    Babbles,
    /// Sends what is no message once it has let in.
    Nonsense,
    /// Answers, and starts each unit at once.
    Answers,
}

/// A peer of the connection at a socket; it stays until the test process ends.
struct Peer {
    address: String,
    connections: Arc<AtomicUsize>,
    _directory: tempfile::TempDir,
}

impl Peer {
    fn that(behaviour: Behaviour) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let listener = UnixListener::bind(&socket).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                accepted.fetch_add(1, Ordering::Relaxed);
                // It ends with its connection.
                thread::spawn(move || serve(stream.unwrap(), behaviour));
            }
        });
        Self { address: format!("unix:path={}", socket.display()), connections, _directory: directory }
    }

    fn manager(&self) -> Manager {
        Manager::new(self.address.clone())
    }
}

fn serve(mut stream: UnixStream, behaviour: Behaviour) -> std::io::Result<()> {
    let mut chunk = [0; 4096];
    if behaviour == Behaviour::Silent {
        while stream.read(&mut chunk)? > 0 {}
        return Ok(());
    }
    if behaviour == Behaviour::Babbles {
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    }
    // As dbus-daemon and dbus-broker answer: an identity is asked for, and taken from the kernel.
    let mut said = Vec::new();
    for (expected, answer) in [(&b"\0AUTH EXTERNAL\r\n"[..], &b"DATA\r\n"[..]), (b"DATA\r\n", b"OK 1234\r\n")]
    {
        while !said.ends_with(b"\r\n") {
            let read = stream.read(&mut chunk)?;
            said.extend_from_slice(&chunk[..read]);
        }
        assert_eq!(said, expected);
        said.clear();
        stream.write_all(answer)?;
    }
    let mut begin = [0; 7];
    stream.read_exact(&mut begin)?;
    assert_eq!(&begin, b"BEGIN\r\n");
    if behaviour == Behaviour::Nonsense {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
    }
    let mut decoder = Decoder::default();
    let signal = job_removed("other.scope");
    loop {
        if behaviour == Behaviour::Floods {
            stream.set_nonblocking(true)?;
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => decoder.add(&chunk[..read]),
            Err(error) if error.kind() == IoErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        stream.set_nonblocking(false)?;
        while let Some(call) = decoder.next().unwrap() {
            for answer in answers(&call, behaviour) {
                stream.write_all(answer.data().bytes())?;
            }
        }
        if behaviour == Behaviour::Floods {
            for _ in 0..100 {
                stream.write_all(signal.data().bytes())?;
            }
        }
    }
}

fn job_removed(unit: &str) -> Message {
    let job = zbus::OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap();
    Message::signal(OBJECT, MANAGER, "JobRemoved").build(&(1_u32, job, unit, "done")).unwrap()
}

fn answers(call: &Message, behaviour: Behaviour) -> Vec<Message> {
    let header = call.header();
    let reply = Message::method_return(&header);
    let job = zbus::OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap();
    match header.member().unwrap().as_str() {
        _ if matches!(behaviour, Behaviour::SilentOnceInside | Behaviour::Nonsense) => Vec::new(),
        "Hello" => vec![reply.build(&":1.7").unwrap()],
        "Subscribe" => vec![reply.build(&()).unwrap()],
        _ if behaviour == Behaviour::Floods => Vec::new(),
        "StartTransientUnit" | "StopUnit" => {
            vec![reply.build(&job).unwrap(), job_removed("rf-test.scope")]
        }
        "GetUnit" => {
            let error = Message::error(&header, "org.freedesktop.systemd1.NoSuchUnit").build(&"not loaded");
            vec![error.unwrap()]
        }
        _ => vec![reply.build(&()).unwrap()],
    }
}

#[test]
fn requests_are_answered_from_many_threads() {
    let peer = Peer::that(Behaviour::Answers);
    let manager = peer.manager();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(manager.start("rf-test.scope", "x", &[], &[1]).unwrap(), Started::Anew);
                    assert!(manager.stop("rf-test.scope", false).unwrap());
                    assert!(!manager.is_taken("rf-test.scope").unwrap());
                }
            });
        }
    });
    assert_eq!(peer.connections.load(Ordering::Relaxed), 1);
}

#[test]
fn limit_holds_whatever_the_bus_does() {
    use Behaviour::{Babbles, Floods, Nonsense, Silent, SilentOnceInside};
    let limit = Duration::from_millis(700);
    for behaviour in [Silent, SilentOnceInside, Floods, Babbles, Nonsense] {
        let peer = Peer::that(behaviour);
        let manager = peer.manager();
        let begun = Instant::now();
        let limited = limit_systemd(limit);
        // All of them together: as a call that fails goes on to take back what it did.
        let errors = [
            manager.start("rf-test.scope", "x", &[], &[1]).unwrap_err(),
            manager.set("rf-test.scope", &[]).unwrap_err(),
            manager.stop("rf-test.scope", false).unwrap_err(),
            manager.is_taken("rf-test.scope").unwrap_err(),
        ];
        drop(limited);
        let took = begun.elapsed();
        assert!(took < limit + Duration::from_secs(1), "{behaviour:?}: {took:?}");
        for error in errors {
            let known = [ErrorKind::TimedOut, ErrorKind::Systemd];
            assert!(known.contains(&error.kind()), "{behaviour:?}: {error}");
        }
    }
}

#[test]
fn limit_holds_while_another_thread_connects() {
    let peer = Peer::that(Behaviour::Silent);
    let manager = peer.manager();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _limit = limit_systemd(Duration::from_secs(3));
            manager.version().unwrap_err()
        });
        while peer.connections.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        let begun = Instant::now();
        let _limit = limit_systemd(Duration::from_millis(200));
        assert_eq!(manager.version().unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_millis(1200), "{:?}", begun.elapsed());
    });
}

/// Runs one of these tests in a process of its own, with an address of this process.
fn run_alone(test: &str, address: &str) {
    let test = format!("systemd::bus::tests::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture", "--test-threads=1"]).env(ALONE, address);
    let done = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}\n{}", text(&done.stdout), text(&done.stderr));
}

const ALONE: &str = "RINGFENCE_TEST_BUS";

/// Runs something in a child after fork(2), which has one thread. The caller is a process in which no other thread works: the
/// test harness waits.
fn in_child(work: impl FnOnce() -> bool) {
    // SAFETY: as above, no other thread holds a lock of the allocator. The child ends without running what else its parent
    // had to do.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_good = work();
        // SAFETY: it does not return.
        unsafe { libc::_exit(i32::from(!is_good)) };
    }
    let mut status = 0;
    // SAFETY: a local, and a child of this process.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}

#[test]
fn new_user_namespace_can_be_made_after_a_request() {
    let Ok(address) = std::env::var(ALONE) else {
        for behaviour in [Behaviour::Answers, Behaviour::Silent] {
            run_alone("new_user_namespace_can_be_made_after_a_request", &Peer::that(behaviour).address);
        }
        return;
    };
    // SAFETY: a plain system call that concerns the child alone; it has one thread.
    let unshare = || unsafe { libc::unshare(libc::CLONE_NEWUSER) == 0 };
    in_child(|| {
        let manager = Manager::new(address);
        let limited = limit_systemd(Duration::from_millis(500));
        _ = manager.is_taken("rf-test.scope");
        let tasks = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        drop((manager, limited));
        // EINVAL is for a process with more than one thread.
        tasks == 1 && (unshare() || last_errno() != libc::EINVAL)
    });
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or_default()
}

#[test]
fn child_after_fork_connects_by_itself() {
    let Ok(address) = std::env::var(ALONE) else {
        let peer = Peer::that(Behaviour::Answers);
        run_alone("child_after_fork_connects_by_itself", &peer.address);
        assert_eq!(peer.connections.load(Ordering::Relaxed), 2, "one for each process");
        return;
    };
    let manager = Manager::new(address);
    assert!(!manager.is_taken("rf-test.scope").unwrap());
    let begun = Instant::now();
    in_child(|| manager.is_taken("rf-test.scope").is_ok_and(|is_taken| !is_taken));
    assert!(begun.elapsed() < SOON);
    assert!(!manager.is_taken("rf-test.scope").unwrap(), "the parent's connection is as it was");
}

#[test]
fn address_without_a_bus_is_unreachable() {
    for address in ["nonsense", "tcp:host=localhost,port=1", "unix:path=/no/such/socket", ""] {
        let error = Manager::new(address.to_owned()).version().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Systemd, "{error}");
        assert!(error.message().contains(address), "{error}");
    }
}

/// With a real message bus, on which there is no systemd.
#[test]
fn real_bus_lets_in_and_says_that_systemd_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus");
    let daemon = Command::new("dbus-daemon")
        .args(["--session", "--nofork", "--nopidfile", "--address"])
        .arg(format!("unix:path={}", socket.display()))
        .spawn();
    let Ok(mut daemon) = daemon else { return crate::skip::skip("there is no dbus-daemon") };
    let begun = Instant::now();
    while !Path::exists(&socket) && begun.elapsed() < SOON {
        thread::sleep(Duration::from_millis(5));
    }
    let manager = Manager::new(format!("unix:path=/no/such/socket;unix:path={}", socket.display()));
    let limited = limit_systemd(SOON);
    let answer = manager.version();
    drop((manager, limited));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let error = answer.unwrap_err();
    assert!(error.message().contains("org.freedesktop.systemd1"), "{error}");
}
