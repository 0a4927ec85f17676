//! What tells of changes: inotify(7), timers, counters, and an epoll(7) over all of them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::fs::inotify;
use rustix::io::{Errno, Result};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use crate::kernel::dir::path_of_descriptor;

/// The head of `struct inotify_event`: wd, mask, cookie, and the length of the name behind it.
const HEAD: usize = 16;

/// One descriptor that is readable when any of many is.
pub(crate) fn epoll() -> Result<OwnedFd> {
    epoll::create(epoll::CreateFlags::CLOEXEC)
}

/// Adds a descriptor, to be known by `data`.
pub(crate) fn add(epoll: impl AsFd, fd: impl AsFd, data: u64, flags: epoll::EventFlags) -> Result<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(data), flags)
}

/// Waits for descriptors that have something to tell, for `timeout`, or without end. Empty when the time is over.
pub(crate) fn wait(epoll: impl AsFd, ready: &mut Vec<epoll::Event>, timeout: Option<Duration>) -> Result<()> {
    ready.clear();
    // A time that the kernel cannot hold is no limit either.
    let seconds = |at_most: Duration| i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX);
    let timeout =
        timeout.map(|at_most| Timespec { tv_sec: seconds(at_most), tv_nsec: at_most.subsec_nanos().into() });
    let at_most = ready.capacity().max(1);
    ready.reserve(at_most);
    match epoll::wait(epoll, rustix::buffer::spare_capacity(ready), timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A counter that another thread, or the kernel, makes readable.
pub(crate) fn counter() -> Result<OwnedFd> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

/// Makes a counter readable.
pub(crate) fn raise(counter: impl AsFd) {
    // It cannot be full before 2^64 of them.
    _ = rustix::io::write(counter, &1_u64.to_ne_bytes());
}

/// Takes back what a counter or a timer says; whether it said something.
pub(crate) fn lower(fd: impl AsFd) -> bool {
    rustix::io::read(fd, &mut [0_u8; 8]).is_ok()
}

/// A timer that is not running.
pub(crate) fn timer() -> Result<OwnedFd> {
    rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
}

/// Makes a timer readable after this long, once; `None` stops it.
pub(crate) fn ring_after(timer: impl AsFd, after: Option<Duration>) -> Result<()> {
    let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
    // 0 would stop it.
    let value = after.map_or(nothing, |after| {
        let after = after.max(Duration::from_nanos(1));
        Timespec { tv_sec: after.as_secs().cast_signed(), tv_nsec: after.subsec_nanos().into() }
    });
    let new = Itimerspec { it_interval: nothing, it_value: value };
    rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &new).map(drop)
}

/// Files and directories that are watched.
pub(crate) fn inotify() -> Result<OwnedFd> {
    inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
}

/// Watches what is open: the same file has the same number, however often it is asked for.
pub(crate) fn watch(inotify: impl AsFd, open: impl AsFd, flags: inotify::WatchFlags) -> Result<i32> {
    inotify::add_watch(inotify, path_of_descriptor(open.as_fd()), flags)
}

/// Ends a watch. What was removed is none any more.
pub(crate) fn unwatch(inotify: impl AsFd, watch: i32) {
    _ = inotify::remove_watch(inotify, watch);
}

/// One line of what inotify tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told<'a> {
    pub(crate) watch: i32,
    pub(crate) flags: inotify::ReadFlags,
    /// In a directory: of whom. Empty for the file itself.
    pub(crate) name: &'a [u8],
}

/// Reads what inotify has to tell, as much as there is room for; nothing if there is nothing.
pub(crate) fn read_told(inotify: impl AsFd, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    let room = buffer.capacity().max(8 << 10);
    buffer.reserve(room);
    match rustix::io::read(inotify, rustix::buffer::spare_capacity(buffer)) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Takes the next line off the front of what was read.
pub(crate) fn next_told<'a>(bytes: &mut &'a [u8]) -> Option<Told<'a>> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let field = |at: usize| -> Option<[u8; 4]> { head.get(at..at + 4)?.try_into().ok() };
    let watch = i32::from_ne_bytes(field(0)?);
    let flags = inotify::ReadFlags::from_bits_retain(u32::from_ne_bytes(field(4)?));
    let length = usize::try_from(u32::from_ne_bytes(field(12)?)).ok()?;
    let (name, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(Told { watch, flags, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nobody_else_keeps_open_is_watched() {
        let (inotify, file) = (inotify().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let given = OwnedFd::from(file.reopen().unwrap());
        let number = watch(&inotify, given, inotify::WatchFlags::MODIFY).unwrap();
        std::fs::write(file.path(), "more").unwrap();
        let mut buffer = Vec::new();
        read_told(&inotify, &mut buffer).unwrap();
        assert_eq!(next_told(&mut &buffer[..]).map(|told| told.watch), Some(number));
    }

    #[test]
    fn what_inotify_tells_is_read_line_by_line_and_a_torn_one_is_none() {
        let mut line = Vec::new();
        for field in [7_i32, 0x200, 0, 8] {
            line.extend(field.to_ne_bytes());
        }
        line.extend(b"vm1\0\0\0\0\0");
        let two = [&line[..], &line[..]].concat();
        let mut rest = &two[..];
        let expected = Told { watch: 7, flags: inotify::ReadFlags::DELETE, name: b"vm1" };
        assert_eq!(next_told(&mut rest), Some(expected));
        assert_eq!(next_told(&mut rest), Some(expected));
        assert_eq!(next_told(&mut rest), None);
        assert_eq!(next_told(&mut &line[..20]), None);
        assert_eq!(next_told(&mut &line[..3]), None);
    }
}
