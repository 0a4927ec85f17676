//! A process that embeds the library and has signal handlers, masks and parents of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)] // clippy.toml frees only #[test] functions.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use crate::support::soak::times;
use crate::support::{Guarded, by_systemd, name, path, runs_alone, skip, test_path};
use ringfence::{Cgroup, Command, ErrorKind, Host, Resources, Result, SandboxConfig, null};

testbed! {
    drivers: "cgroupfs systemd";
}

/// Shared with all children: how often the handler ran in this process, and in others.
struct Runs {
    parent: AtomicU32,
    here: AtomicU32,
    elsewhere: AtomicU32,
}

static RUNS: AtomicPtr<Runs> = AtomicPtr::new(std::ptr::null_mut());

fn runs() -> &'static Runs {
    // SAFETY: mapped before the handler is installed, and never unmapped.
    unsafe { &*RUNS.load(Ordering::Relaxed) }
}

extern "C" fn count(_: libc::c_int) {
    let runs = runs();
    let here = std::process::id() == runs.parent.load(Ordering::Relaxed);
    let counter = if here { &runs.here } else { &runs.elsewhere };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Installs the handler for a signal that does nothing to who has no handler for it.
fn count_signals() {
    // SAFETY: a new mapping of zeroes, which is what three counters may be; the handler does nothing but count in it.
    unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let page = libc::mmap(std::ptr::null_mut(), size_of::<Runs>(), protection, flags, -1, 0);
        assert_ne!(page, libc::MAP_FAILED);
        RUNS.store(page.cast(), Ordering::Relaxed);
        runs().parent.store(std::process::id(), Ordering::Relaxed);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGURG, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Sends the signal to this process group, children included, for as long as `work` takes.
fn under_signals(work: impl FnOnce()) {
    // SAFETY: plain system calls. The group is this process's own, so that nobody else gets the signals.
    unsafe { assert_eq!(libc::setpgid(0, 0), 0) };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // SAFETY: as above.
                unsafe { libc::kill(0, libc::SIGURG) };
            }
        });
        // Ends the other thread also where it panics.
        let _done = Finally(&done);
        work();
    });
}

struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn runs_to_its_end(spawned: Result<ringfence::Child>) {
    assert!(spawned.unwrap().wait().unwrap().success());
}

fn no_handler_runs_in_children_of(spawn: impl Fn()) {
    count_signals();
    under_signals(|| (0..times(100)).for_each(|_| spawn()));
    assert!(runs().here.load(Ordering::Relaxed) > 100, "there were no signals");
    assert_eq!(runs().elsewhere.load(Ordering::Relaxed), 0, "the handler ran in a child");
}

fn true_command() -> Command {
    Command::new("/bin/true").stdin(null().unwrap())
}

#[test]
fn no_signal_handler_runs_in_a_child_that_is_born_inside_or_joins_by_itself() {
    if runs_alone(module_path!(), "no_signal_handler_runs_in_a_child_that_is_born_inside_or_joins_by_itself")
    {
        return;
    }
    let mut host = Host::detect().unwrap();
    let born = Guarded::new(&host, "born", Resources::new());
    host.capabilities.clone_into_cgroup = false;
    let joins = Guarded::new(&host, "joins", Resources::new());
    no_handler_runs_in_children_of(|| {
        runs_to_its_end(born.spawn(&true_command()));
        runs_to_its_end(joins.spawn(&true_command()));
    });
}

#[test]
fn no_signal_handler_runs_in_the_first_process_of_a_unit() {
    if !by_systemd() {
        return;
    }
    if runs_alone(module_path!(), "no_signal_handler_runs_in_the_first_process_of_a_unit") {
        return;
    }
    let host = Host::detect().unwrap();
    count_signals();
    under_signals(|| {
        for _ in 0..5 {
            let vm = Guarded::planned(&host, &SandboxConfig::new(path("first")));
            runs_to_its_end(vm.spawn(&true_command()));
        }
    });
    assert!(runs().here.load(Ordering::Relaxed) > 100, "there were no signals");
    assert_eq!(runs().elsewhere.load(Ordering::Relaxed), 0, "the handler ran in a child");
}

#[test]
fn no_signal_handler_runs_in_a_placeholder() {
    if runs_alone(module_path!(), "no_signal_handler_runs_in_a_placeholder") {
        return;
    }
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "placeholder", Resources::new());
    no_handler_runs_in_children_of(|| drop(vm.hold_meanwhile().unwrap()));
}

/// Whether a line of `/proc/self/status`, as a program that was started with `change` sees it, has a signal.
fn signals_seen(cgroup: &Cgroup, change: fn(Command) -> Command) -> impl Fn(&str, i32) -> bool + use<> {
    let output = std::env::temp_dir().join(name("status"));
    let file = std::fs::File::create(&output).unwrap();
    let command = Command::new("/bin/cat").args(["/proc/self/status"]).stdout(file);
    runs_to_its_end(cgroup.spawn(&change(command)));
    let text = std::fs::read_to_string(&output).unwrap();
    std::fs::remove_file(&output).unwrap();
    move |line, signal| {
        let hex = text.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(":\t")).unwrap();
        u64::from_str_radix(hex, 16).unwrap() & 1 << (signal - 1) != 0
    }
}

#[test]
fn a_program_starts_with_the_mask_and_the_ignored_signals_of_its_caller() {
    if runs_alone(module_path!(), "a_program_starts_with_the_mask_and_the_ignored_signals_of_its_caller") {
        return;
    }
    let host = Host::detect().unwrap();
    let path = path("signals");
    let vm = Guarded::make(&host, &SandboxConfig::new(path.clone()));
    let cgroup = Cgroup::open(&host, &path).unwrap();
    count_signals();
    // SAFETY: plain system calls with a set of this frame.
    unsafe {
        libc::signal(libc::SIGUSR1, libc::SIG_IGN);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGUSR2);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
    let has = signals_seen(&cgroup, |command| command);
    assert!(has("SigBlk", libc::SIGUSR2));
    assert!((1..=64).filter(|signal| *signal != libc::SIGUSR2).all(|signal| !has("SigBlk", signal)));
    assert!(has("SigIgn", libc::SIGUSR1) && !has("SigIgn", libc::SIGPIPE) && !has("SigIgn", libc::SIGURG));
    assert!(!has("SigCgt", libc::SIGURG));
    let has = signals_seen(&cgroup, |command| command.blocked_signals([libc::SIGHUP, libc::SIGRTMAX()]));
    assert!(has("SigBlk", libc::SIGHUP) && has("SigBlk", libc::SIGRTMAX()) && !has("SigBlk", libc::SIGUSR2));
    let has = signals_seen(&cgroup, |command| command.blocked_signals([]));
    assert!((1..=64).all(|signal| !has("SigBlk", signal)));
    // The caller's own mask is what it was.
    // SAFETY: as above.
    let blocked = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
        [libc::SIGUSR2, libc::SIGHUP, libc::SIGTERM].map(|signal| libc::sigismember(&raw const set, signal))
    };
    assert_eq!(blocked, [1, 0, 0]);
    let error = cgroup.spawn(&true_command().blocked_signals([65])).unwrap_err();
    assert_eq!(error.setting(), Some("blocked_signals"), "{error}");
    drop(vm);
}

const STRACE: &str = "/usr/bin/strace";

/// In the environment of the test that is traced: the cgroup to spawn into, and the file that the program would make.
const ORPHAN: &str = "RINGFENCE_TEST_ORPHAN";

/// Traced by the next one, which makes the child slow: this process is killed before the child asks for the signal.
#[test]
fn dies_while_its_child_is_on_its_way_to_exec() {
    let Some(what) = std::env::var_os(ORPHAN).map(|what| what.into_string().unwrap()) else { return };
    let (path, file) = what.split_once('=').unwrap();
    let host = Host::detect().unwrap();
    let cgroup = Cgroup::open(&host, &path.parse().unwrap()).unwrap();
    std::thread::spawn(|| {
        let children = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let of = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("children"));
            tasks.flatten().any(|task| of(&task).is_ok_and(|children| !children.is_empty()))
        };
        while !children() {
            std::thread::yield_now();
        }
        // Longer than it takes a child that waits for systemd to be let go.
        std::thread::sleep(Duration::from_millis(500));
        // SAFETY: a plain system call.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    let command = Command::new("/bin/touch").args([file]).parent_death_signal(libc::SIGKILL);
    let spawned = cgroup.spawn(&command);
    unreachable!("{spawned:?}");
}

#[test]
fn a_program_whose_parent_died_before_it_asked_for_the_signal_is_not_started() {
    if std::fs::metadata(STRACE).is_err() {
        return skip("there is no strace");
    }
    let host = Host::detect().unwrap();
    let path = path("orphan");
    let vm = Guarded::make(&host, &SandboxConfig::new(path.clone()));
    let file = std::env::temp_dir().join(name("orphan-ran"));
    let mut traced = std::process::Command::new(STRACE);
    traced.args([
        "-f",
        "-qq",
        "-e",
        "trace=prctl",
        "-e",
        "inject=prctl:delay_enter=2000000",
        "-o",
        "/dev/null",
    ]);
    traced.arg(std::env::current_exe().unwrap());
    let test = test_path(module_path!(), "dies_while_its_child_is_on_its_way_to_exec");
    traced.args(["--exact", &test, "--test-threads=1"]).env(ORPHAN, format!("{path}={}", file.display()));
    let done = traced.output().unwrap();
    // It ends with the last of those that it traces.
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&done.status), Some(9), "{done:?}");
    let ran = file.exists();
    _ = std::fs::remove_file(&file);
    assert!(!ran, "the program was started without a parent");
    drop(vm);
}

#[test]
fn ignored_sigchld_is_refused_before_the_fork() {
    if runs_alone(module_path!(), "ignored_sigchld_is_refused_before_the_fork") {
        return;
    }
    let host = Host::detect().unwrap();
    let vm = Guarded::new(&host, "sigchld", Resources::new());
    let act = |handler, flags| {
        // SAFETY: no handler is installed: the actions are to ignore the signal and the default one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (handler, flags);
            assert_eq!(libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut()), 0);
        }
    };
    for (handler, flags) in [(libc::SIG_IGN, 0), (libc::SIG_DFL, libc::SA_NOCLDWAIT)] {
        act(handler, flags);
        let error = vm.spawn(&true_command()).unwrap_err();
        assert_eq!((error.kind(), error.setting()), (ErrorKind::Unsupported, Some("SIGCHLD")), "{error}");
        ringfence::stop_ignoring_children();
        runs_to_its_end(vm.spawn(&true_command()));
    }
    // Ignored only afterwards: the process has ended, and that is all that can be known.
    let child = vm.spawn(&true_command().blocked_signals([])).unwrap();
    act(libc::SIG_IGN, 0);
    let waited = child.wait();
    act(libc::SIG_DFL, 0);
    match waited {
        Ok(status) => assert!(status.success()),
        Err(error) => assert!(error.message().contains("has ended"), "{error}"),
    }
}
