//! Runs a command, and lets one of its system calls fail, or kills it there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{ENOSYS, user_regs_struct};
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::calls::{self, Way};

/// Longer than any command takes with `--timeout 5`, under emulation too.
const PATIENCE: Duration = Duration::from_secs(60);

/// What befalls the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The process is killed before the call is done; all calls before it are.
    Kill,
    /// The call fails in one of the ways that are plausible for it, by its position among them.
    Fail(usize),
}

/// The call that was to be hit.
#[derive(Debug, Clone)]
pub struct Hit {
    /// Its name, with the path that it is about.
    pub call: String,
    /// How it failed.
    pub errno: Option<Errno>,
    /// Before the command looked at the machine: the loader and the runtime of the language.
    pub is_start: bool,
    /// Before the command has opened the lock: what it learns here is about the machine, not about a sandbox.
    pub is_before_lock: bool,
    /// The kernel may refuse memory here, upon which the process aborts.
    pub is_memory: bool,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; minus the signal that ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// How many calls it made, if nothing befell it.
    pub calls: u64,
    /// How many of them were about device programs, which are not seen otherwise.
    pub about_devices: u64,
    pub hit: Option<Hit>,
    pub hung: bool,
    /// What was still open, beside what it was given, when it ended by itself.
    pub open: Vec<String>,
}

/// Runs the command; its call number `at`, from 0, has the fault. Its threads are followed, processes that it starts are not.
#[allow(clippy::zombie_processes)] // The tracer waits for it.
pub fn run(command: &Command, at: u64, fault: Fault) -> Ended {
    let mut shell = Command::new("sh");
    // It waits until it is traced.
    shell.args(["-c", "read go; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    // Where cargo sets it, the loader searches there first, and the calls of a sample are among its own.
    shell.env_remove("LD_LIBRARY_PATH");
    let mut child =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sh");
    let pid = Pid::from_raw(child.id().try_into().expect("a PID"));
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEEXIT
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).expect("ptrace");
    let mut go = child.stdin.take().expect("a pipe");
    go.write_all(b"\n").expect("a shell that waits");
    drop(go);
    let (ended, watched) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let hangs = watched.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        if hangs {
            _ = kill(pid, Signal::SIGKILL);
        }
        hangs
    });
    let mut tracer = Tracer {
        pid,
        at,
        fault,
        calls: 0,
        about_devices: 0,
        hit: None,
        stage: Stage::Shell,
        pending: BTreeMap::new(),
        inside: BTreeMap::new(),
        inherited: BTreeMap::new(),
        open: Vec::new(),
    };
    let code = tracer.follow();
    drop(ended);
    let hung = watch.join().expect("the watch");
    let read = |pipe: Option<&mut dyn std::io::Read>| {
        let mut text = Vec::new();
        _ = pipe.expect("a pipe").read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    let stdout = read(child.stdout.as_mut().map(|pipe| pipe as _));
    let stderr = read(child.stderr.as_mut().map(|pipe| pipe as _));
    Ended {
        code,
        stdout,
        stderr,
        calls: tracer.calls,
        about_devices: tracer.about_devices,
        hit: tracer.hit,
        hung,
        open: tracer.open,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stage {
    /// Which becomes the command.
    Shell,
    Start,
    Machine,
    Locked,
}

struct Tracer {
    pid: Pid,
    at: u64,
    fault: Fault,
    calls: u64,
    about_devices: u64,
    hit: Option<Hit>,
    stage: Stage,
    /// How the call of a thread is to fail.
    pending: BTreeMap<Pid, Way>,
    /// Whether a thread was at the entry of a call when it last stopped, or at its exit.
    inside: BTreeMap<Pid, bool>,
    /// What the command was given.
    inherited: BTreeMap<u32, String>,
    open: Vec<String>,
}

impl Tracer {
    fn follow(&mut self) -> i32 {
        let mut traced = vec![self.pid];
        loop {
            let (pid, signal) = match next(&traced) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.pid => return code,
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.pid => return -(signal as i32),
                Ok(WaitStatus::PtraceSyscall(pid)) => {
                    self.call(pid);
                    (pid, None)
                }
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                    if event == Event::PTRACE_EVENT_EXEC as i32 {
                        self.inside.insert(pid, true);
                        self.stage = Stage::Start;
                        self.inherited = open_in(pid);
                    }
                    if event == Event::PTRACE_EVENT_EXIT as i32 && pid == self.pid {
                        let own = |(fd, path)| (self.inherited.get(&fd) != Some(&path)).then_some(path);
                        self.open = open_in(pid).into_iter().filter_map(own).collect();
                    }
                    if event == Event::PTRACE_EVENT_CLONE as i32 {
                        traced.extend(
                            ptrace::getevent(pid)
                                .ok()
                                .and_then(|tid| Some(Pid::from_raw(tid.try_into().ok()?))),
                        );
                    }
                    (pid, None)
                }
                Ok(WaitStatus::Stopped(pid, signal)) => (pid, Some(signal)),
                Ok(ended) => {
                    traced.retain(|pid| ended.pid() != Some(*pid));
                    continue;
                }
                Err(errno) => panic!("waitpid: {errno}"),
            };
            // Once it has had its fault, it runs on by itself.
            let is_over = self.hit.is_some() && self.pending.is_empty() && self.fault != Fault::Kill;
            let goes_on = if is_over { ptrace::cont(pid, signal) } else { ptrace::syscall(pid, signal) };
            match goes_on {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => panic!("ptrace: {errno}"),
            }
        }
    }

    fn call(&mut self, pid: Pid) {
        // Not PTRACE_GET_SYSCALL_INFO, which kernels that run as a process (User-mode Linux) have not.
        let Ok(mut registers) = ptrace::getregs(pid) else { return };
        let looks_entered = registers.rax.cast_signed() == -i64::from(ENOSYS);
        let is_entry = self.inside.get(&pid).map_or(looks_entered, |inside| !inside);
        self.inside.insert(pid, is_entry);
        if !is_entry {
            // What was to be done and was not, has failed by itself.
            if let Some(way) = self.pending.remove(&pid)
                && (matches!(way, Way::Refused(_)) || registers.rax.cast_signed() >= 0)
            {
                let errno = way.errno();
                registers.rax = i64::from(-(errno as i32)).cast_unsigned();
                _ = ptrace::setregs(pid, registers);
            }
            return;
        }
        if self.stage == Stage::Shell {
            return;
        }
        let (number, arguments) = entered(&registers);
        let path = || path_of(pid, number, &arguments);
        if self.stage < Stage::Locked && calls::is_open(number) {
            let path = path().unwrap_or_default();
            if self.stage == Stage::Start && path == "/proc/self/mountinfo" {
                self.stage = Stage::Machine;
            }
            if path.ends_with(".lock") {
                self.stage = Stage::Locked;
            }
        }
        let at = self.calls;
        self.calls += 1;
        self.about_devices += u64::from(number == nix::libc::SYS_bpf);
        if at != self.at || self.fault == Fault::None {
            return;
        }
        let path = path();
        let ways = calls::ways(number, path.as_deref().unwrap_or_default());
        let way = match self.fault {
            Fault::Fail(which) => ways.get(which).copied(),
            _ => None,
        };
        self.hit = Some(Hit {
            call: format!("{}({})", calls::name(number), path.unwrap_or_default()),
            errno: way.map(|way| way.errno()),
            is_start: self.stage == Stage::Start,
            is_before_lock: self.stage < Stage::Locked,
            is_memory: calls::is_memory(number),
        });
        match (self.fault, way) {
            (Fault::Kill, _) => _ = kill(self.pid, Signal::SIGKILL),
            (_, Some(way @ Way::Refused(_))) => {
                registers.orig_rax = u64::MAX;
                _ = ptrace::setregs(pid, registers);
                self.pending.insert(pid, way);
            }
            (_, Some(way)) => drop(self.pending.insert(pid, way)),
            (_, None) => {}
        }
    }
}

/// What happens next to one of them; never to another child of ours.
fn next(traced: &[Pid]) -> nix::Result<WaitStatus> {
    if let [only] = traced {
        return waitpid(*only, Some(WaitPidFlag::__WALL));
    }
    loop {
        for pid in traced {
            let status = waitpid(*pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))?;
            if status != WaitStatus::StillAlive {
                return Ok(status);
            }
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The descriptors of a process.
fn open_in(pid: Pid) -> BTreeMap<u32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        Some((fd, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
    };
    entries.filter_map(read).collect()
}

fn entered(registers: &user_regs_struct) -> (i64, [u64; 6]) {
    let user_regs_struct { orig_rax, rdi, rsi, rdx, r10, r8, r9, .. } = *registers;
    (orig_rax.cast_signed(), [rdi, rsi, rdx, r10, r8, r9])
}

/// What a call is about: the path that it names, or that of its descriptor.
fn path_of(pid: Pid, number: i64, arguments: &[u64; 6]) -> Option<String> {
    let text = |address: u64| {
        let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
        let mut buffer = [0; 256];
        // Less where it lies at the end of what is mapped.
        let length = (0..=4).rev().find_map(|power| {
            let wanted = 16 << power;
            memory.read_at(&mut buffer[..wanted], address).ok().filter(|read| *read > 0)
        })?;
        let end = buffer[..length].iter().position(|byte| *byte == 0).unwrap_or(length);
        Some(String::from_utf8_lossy(&buffer[..end]).into_owned())
    };
    let descriptor = |fd: u64| {
        let path = fs::read_link(format!("/proc/{pid}/fd/{}", fd as i32)).ok()?;
        Some(path.to_string_lossy().into_owned())
    };
    match calls::about(number) {
        calls::About::Path(argument) => text(arguments[argument]),
        calls::About::At(argument) => {
            let name = text(arguments[argument + 1])?;
            match descriptor(arguments[argument]) {
                Some(above) if !name.starts_with('/') => Some(format!("{above}/{name}")),
                _ => Some(name),
            }
        }
        calls::About::Descriptor => descriptor(arguments[0]),
        calls::About::Nothing => None,
    }
}
