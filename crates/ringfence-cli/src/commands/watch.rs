//! `watch`: what happens in sandboxes, as it happens.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ringfence::{Error, ErrorKind, Event, Events, PressureTrigger, Result, SandboxId, What};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{Format, clock};

/// Print what happens in sandboxes, as it happens, until interrupted
///
/// A line for each event, of JSON with -o json: OOM kills, limits of memory and tasks that were met, processes that come
/// and go, freezing, pressure, removal. A count is how often it happened since the line before. OOM kills are told of
/// sandboxes too that are removed at once. Without an ID, sandboxes that are made later are watched too; with IDs it ends
/// when all of them are removed.
#[derive(Debug, Args)]
pub struct Watch {
    /// Names of sandboxes [default: all, those to come too]
    #[arg(value_name = "ID")]
    ids: Vec<SandboxId>,

    /// Tell when tasks stall on a resource for so long within a window, such as memory:some:100ms/1s (cgroup v2)
    ///
    /// The resource is memory, cpu, io or irq; some: at least one task stalls, full: all do; the window is 500ms to 10s.
    /// Without CAP_SYS_RESOURCE the kernel takes windows of 2s, 4s, 6s, 8s and 10s alone.
    #[arg(long, value_name = "RES:KIND:STALL/WINDOW")]
    pressure: Vec<PressureTrigger>,
}

impl Watch {
    pub fn run(&self, context: &Context) -> Result<Exit> {
        let host = context.host()?;
        // Before anything is watched: who ends us at once ends us in order.
        let signals = ends()?;
        // A sandbox takes up to eight descriptors. Where they may not be more it is said when they have run out.
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
        }
        let mut events = Events::new()?;
        let only = (!self.ids.is_empty()).then_some(&self.ids[..]);
        events.add_store(&host, &context.store(&host), only, &self.pressure)?;
        let mut exit = Exit::Done;
        loop {
            loop {
                match events.wait(Duration::ZERO) {
                    Ok(Some(event)) if !has_ended(&signals)? => print(context, &event)?,
                    Ok(Some(_)) => return Ok(exit),
                    Ok(None) => break,
                    // The others are watched all the same.
                    Err(error) if error.kind() == ErrorKind::State => {
                        context.output.error(&error);
                        exit = Exit::Failed;
                    }
                    Err(error) => return Err(error),
                }
            }
            if events.is_over() || context.output.is_closed() {
                return Ok(exit);
            }
            let stdout = io::stdout();
            let mut fds = [
                PollFd::new(events.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                // It tells by itself that nobody reads any more.
                PollFd::new(stdout.as_fd(), PollFlags::empty()),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("cannot wait for events", errno)),
            }
            let [_, ended, closed] = fds.map(|fd| fd.any().unwrap_or(false));
            if ended || closed {
                return Ok(exit);
            }
        }
    }
}

/// Waits until a line can be written without waiting, so that who does not read does not keep us from ending.
fn has_ended(signals: &SignalFd) -> Result<bool> {
    let stdout = io::stdout();
    let mut fds =
        [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(failed("cannot wait for whoever reads", errno)),
    }
    let [ended, _] = fds.map(|fd| fd.any().unwrap_or(false));
    Ok(ended)
}

fn print(context: &Context, event: &Event) -> Result<()> {
    match context.output.format() {
        Format::Table => context.output.words(words(event)),
        Format::Json | Format::Jsonl => context.output.line(event),
    }
}

/// For people.
fn words(event: &Event) -> String {
    let times = |count: &u64| if *count == 1 { String::new() } else { format!(" ({count} times)") };
    let mut line = format!("{} {}: ", clock(event.at_us), event.id);
    _ = match &event.what {
        What::OomKill { count: 1 } => write!(line, "out of memory: a process was killed"),
        What::OomKill { count } => write!(line, "out of memory: {count} processes were killed"),
        What::MemoryHigh { count } => write!(line, "memory is above memory.high{}", times(count)),
        What::MemoryMax { count } => write!(line, "memory is at its limit{}", times(count)),
        What::MemoryLow { count } => write!(line, "memory was reclaimed below memory.low{}", times(count)),
        What::PidsMax { count } => write!(line, "a task was refused: too many{}", times(count)),
        What::Populated => write!(line, "populated"),
        What::Empty => write!(line, "empty"),
        What::Frozen => write!(line, "frozen"),
        What::Thawed => write!(line, "thawed"),
        What::Pressure { trigger } => write!(line, "pressure {trigger}"),
        What::Removed => write!(line, "removed"),
        other => write!(line, "{other:?}"),
    };
    line
}

/// Signals that end us.
fn ends() -> Result<SignalFd> {
    let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    set.thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|errno| failed("cannot watch for signals", errno))
}

fn failed(what: &'static str, errno: Errno) -> Error {
    Error::new(ErrorKind::Kernel, what).with_source(errno)
}
