//! Against monitors that we play ourselves.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;
use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(150);
const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

/// A monitor that greets and says these lines, one for each command that comes, and then closes.
struct Monitor {
    scratch: tempfile::TempDir,
    thread: JoinHandle<Vec<String>>,
}

impl Monitor {
    fn saying(answers: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(scratch.path().join("qmp")).unwrap();
        let answers: Vec<String> = answers.iter().map(|&answer| answer.to_owned()).collect();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(GREETING.as_bytes()).unwrap();
            let (mut commands, mut reader) = (Vec::new(), BufReader::new(stream.try_clone().unwrap()));
            for answer in answers {
                let mut command = String::new();
                reader.read_line(&mut command).unwrap();
                commands.push(command);
                // In two pieces, so that an answer is never there at once.
                let (one, other) = answer.as_bytes().split_at(answer.len() / 2);
                for piece in [one, other] {
                    stream.write_all(piece).unwrap();
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            commands
        });
        Self { scratch, thread }
    }

    fn path(&self) -> PathBuf {
        self.scratch.path().join("qmp")
    }

    fn commands(self) -> String {
        self.thread.join().unwrap().concat()
    }
}

/// One that listens and never says a word.
fn silent() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    (scratch, path, listener)
}

#[test]
fn threads_are_asked_for_and_events_between_the_answers_are_not_minded() {
    let event = "{\"event\": \"STOP\", \"timestamp\": {}}\r\n";
    let late = "{\"return\": [], \"id\": 99}\r\n";
    let monitor = Monitor::saying(&[
        &format!("{event}{{\"return\": {{}}, \"id\": 1}}\r\n{event}"),
        &format!("{event}{late}{{\"return\": [{{\"cpu-index\": 0, \"thread-id\": 5}}], \"id\": 2}}\r\n"),
        "{\"return\": [{\"id\": \"io0\", \"thread-id\": 6}]}\r\n",
    ]);
    let mut qmp = Qmp::connect(monitor.path(), SOON).unwrap();
    assert_eq!(qmp.vcpus().unwrap(), [VcpuThread { index: 0, tid: 5 }]);
    assert_eq!(qmp.io_threads().unwrap(), [IoThread { id: "io0".to_owned(), tid: 6 }]);
    let commands = monitor.commands();
    let wanted = ["qmp_capabilities", "query-cpus-fast", "query-iothreads"];
    assert!(wanted.iter().zip(commands.lines()).all(|(name, line)| line.contains(name)), "{commands}");
}

#[test]
fn an_answer_that_is_longer_than_one_read_is_read_whole() {
    let cpus: Vec<String> = (0..5000)
        .map(|index| {
            format!(
                "{{\"cpu-index\": {index}, \"thread-id\": {}, \"qom-path\": \"/machine/cpu\"}}",
                index + 7
            )
        })
        .collect();
    let monitor = Monitor::saying(&[
        "{\"return\": {}, \"id\": 1}\r\n",
        &format!("{{\"return\": [{}], \"id\": 2}}\r\n", cpus.join(", ")),
    ]);
    let vcpus = Qmp::connect(monitor.path(), SOON).unwrap().vcpus().unwrap();
    assert_eq!((vcpus.len(), vcpus[4999]), (5000, VcpuThread { index: 4999, tid: 5006 }));
}

#[test]
fn what_qemu_says_against_it_is_in_the_error() {
    let monitor = Monitor::saying(&[
        "{\"return\": {}, \"id\": 1}\r\n",
        "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"not in this state\"}}\r\n",
    ]);
    let error = Qmp::connect(monitor.path(), SOON).unwrap().vcpus().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Vmm);
    assert_eq!(error.message(), "QEMU refused query-cpus-fast: not in this state");
    assert_eq!(error.path(), Some(monitor.path().as_path()));
}

#[test]
fn a_peer_that_closes_or_talks_nonsense_is_an_error_at_once() {
    let begun = Instant::now();
    for (answers, said) in [
        (&[][..], "closed its monitor"),
        (&["{\"return\": {}, \"id\": 1}\r\n"], "closed its monitor"),
        (&["{\"return\": {}, \"id\": 1}\r\n", "{\"return\": [{\"cpu-ind"], "closed its monitor"),
        (&["{\"return\": {}, \"id\": 1}\r\n", "\u{fffd}\r\n"], "no JSON object"),
        (&["{\"return\": {}, \"id\": 1}\r\n", "{\"return\": [}\r\n"], "no JSON"),
        (&["{\"return\": {}, \"id\": 1}\r\n", "{\"return\": 5, \"id\": 2}\r\n"], "not as it should be"),
    ] {
        let monitor = Monitor::saying(answers);
        let error = Qmp::connect(monitor.path(), SOON).and_then(|mut qmp| qmp.vcpus()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Vmm, "{error}");
        assert!(error.message().contains(said), "{answers:?}: {error}");
    }
    assert!(begun.elapsed() < SOON);
}

#[test]
fn a_peer_that_never_answers_is_waited_for_until_the_deadline() {
    let (_scratch, path, listener) = silent();
    let begun = Instant::now();
    let error = Qmp::connect(&path, SHORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.message().contains("does not greet"), "{error}");
    assert!(begun.elapsed() < SOON);

    // It greets, and that is all.
    let talking = std::thread::spawn(move || {
        // The first is the one that has gone away meanwhile.
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(GREETING.as_bytes()).unwrap();
        stream
    });
    let error = Qmp::connect(&path, SHORT).unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::TimedOut, "QEMU's monitor did not answer in time")
    );
    drop(talking.join().unwrap());
}

#[test]
fn a_queue_that_is_full_does_not_hold_us_for_ever() {
    let (_scratch, path, listener) = silent();
    rustix::net::listen(&listener, 0).unwrap();
    let waiting: Vec<_> = std::iter::from_fn(|| connect(&path).ok()).take(100).collect();
    assert!(waiting.len() < 100);
    let error = Qmp::connect(&path, SHORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.message().contains("one client at a time"), "{error}");
}

#[test]
fn a_socket_that_is_yet_to_come_is_waited_for_and_one_that_cannot_be_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("qmp");
    let error = Qmp::connect(&path, SHORT).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::TimedOut, Some(libc::ENOENT)));
    assert!(error.message().contains("-qmp unix:PATH"), "{error}");

    let begun = Instant::now();
    for path in ["/dev/null/x".to_owned(), format!("/{}", "x".repeat(200))] {
        assert!(Qmp::connect(path, SOON).is_err());
    }
    assert!(begun.elapsed() < SOON);

    let late = std::thread::spawn(move || {
        std::thread::sleep(SHORT);
        let listener = UnixListener::bind(path).unwrap();
        listener.accept().unwrap().0.write_all(GREETING.as_bytes()).unwrap();
    });
    let error = Qmp::connect(scratch.path().join("qmp"), SOON).unwrap_err();
    assert!(error.message().contains("closed its monitor"), "{error}");
    late.join().unwrap();
}
