//! Signals for the processes of a cgroup. Each is sent by pidfd, after the process was seen inside once more: a PID that was
//! reused outside is never hit.

use std::collections::BTreeSet;

use rustix::io::Errno;
use rustix::process::Signal;

use super::Cgroup;
use crate::error::{Error, Result};
use crate::kernel::proc::Held;

/// How many processes are held at a time: each takes a descriptor.
const AT_A_TIME: usize = 64;

impl Cgroup {
    /// Sends a signal to every process inside, once; returns those that were sent it. The calling process is spared.
    pub fn signal(&self, signal: i32) -> Result<BTreeSet<u32>> {
        signal_all(&|| self.processes(), signal)
    }
}

/// Sends a signal, given by its number, to every process that `list` lists, but for the calling one.
pub(crate) fn signal_all(list: &dyn Fn() -> Result<BTreeSet<u32>>, signal: i32) -> Result<BTreeSet<u32>> {
    let given = Signal::from_named_raw(signal)
        .ok_or_else(|| Error::invalid("signal", signal, "the number of a signal"))?;
    let mut pids = list()?;
    pids.remove(&std::process::id());
    send_inside(&pids, list, given)
}

/// Sends a signal to those of the processes that `list` still lists when they are held; returns those that were sent it.
pub(super) fn send_inside(
    pids: &BTreeSet<u32>,
    list: &dyn Fn() -> Result<BTreeSet<u32>>,
    signal: Signal,
) -> Result<BTreeSet<u32>> {
    let mut pids = pids.iter().copied().peekable();
    let mut reached = BTreeSet::new();
    while pids.peek().is_some() {
        let mut held = Vec::new();
        while held.len() < AT_A_TIME
            && let Some(pid) = pids.peek()
        {
            match Held::open(*pid) {
                Ok(process) => held.push(process),
                // Those that are held are signalled first, which frees their descriptors.
                Err(Errno::MFILE | Errno::NFILE) if !held.is_empty() => break,
                // It has ended.
                Err(_) => {}
            }
            pids.next();
        }
        if held.is_empty() {
            continue;
        }
        let inside = list()?;
        let still_inside = held.iter().filter(|process| inside.contains(&process.pid));
        reached.extend(still_inside.filter(|process| process.signal(signal).is_ok()).map(|one| one.pid));
    }
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command};

    use super::*;

    fn sleepers(number: usize) -> Vec<Child> {
        (0..number).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect()
    }

    /// Which of these were ended by the signal; the others are killed.
    fn ended_by(signal: Signal, children: Vec<Child>) -> Vec<bool> {
        let ended = |mut child: Child| {
            _ = child.kill();
            child.wait().unwrap().signal() == Some(signal.as_raw())
        };
        children.into_iter().map(ended).collect()
    }

    #[test]
    fn process_that_has_left_meanwhile_is_not_signalled() {
        let children = sleepers(3);
        let pids: Vec<u32> = children.iter().map(Child::id).collect();
        // As if the second one had ended outside of our sight, and another process had its PID now.
        let listed = Cell::new(0);
        let list = || {
            listed.set(listed.get() + 1);
            let left = |pid: &u32| listed.get() == 1 || *pid != pids[1];
            Ok(pids.iter().copied().filter(left).collect())
        };
        let reached = signal_all(&list, Signal::TERM.as_raw()).unwrap();
        assert_eq!(reached, BTreeSet::from([pids[0], pids[2]]));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(ended_by(Signal::TERM, children), [true, false, true]);
    }

    #[test]
    fn more_processes_than_are_held_at_a_time_are_all_signalled_and_the_caller_is_not() {
        let children = sleepers(AT_A_TIME + 3);
        let pids: BTreeSet<u32> = children.iter().map(Child::id).collect();
        let all = || Ok(pids.iter().copied().chain([std::process::id(), 0]).collect());
        assert_eq!(signal_all(&all, Signal::TERM.as_raw()).unwrap(), pids);
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(ended_by(Signal::TERM, children).into_iter().all(|ended| ended));
    }
}
