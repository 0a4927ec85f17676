//! What other threads have to tell to the one that waits for events.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::epoll::{self, EventFlags};
use rustix::io::Result;

use super::farewell::LastWord;
use crate::kernel::watch;

/// A message, and the number of the sandbox that it is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Message {
    Last(u32, LastWord),
    /// A trigger of it fired, by its position.
    Pressure(u32, usize),
}

/// Messages, and a descriptor that is readable while there are any.
#[derive(Debug)]
pub(super) struct Mailbox {
    counter: OwnedFd,
    messages: Mutex<Vec<Message>>,
}

impl Mailbox {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { counter: watch::counter()?, messages: Mutex::new(Vec::with_capacity(64)) })
    }

    pub(super) fn post(&self, message: Message) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        watch::raise(&self.counter);
    }

    /// Takes all messages, against an empty list.
    pub(super) fn collect(&self, empty: &mut Vec<Message>) {
        watch::lower(&self.counter);
        std::mem::swap(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner), empty);
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }
}

/// A thread that waits for pressure. Whoever asks whether a trigger fired takes the answer away from everybody else, and
/// whoever waits for our descriptor asks: only a thread of our own is sure to be the only one.
#[derive(Debug)]
pub(super) struct PressureThread {
    epoll: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
}

/// No trigger's.
const STOP: u64 = u64::MAX;

impl PressureThread {
    pub(super) fn start(mailbox: &Arc<Mailbox>) -> std::io::Result<Self> {
        let (epoll, stop) = (Arc::new(watch::epoll()?), Arc::new(watch::counter()?));
        watch::add(&*epoll, &*stop, STOP, EventFlags::IN)?;
        let (theirs, mailbox, kept) = (Arc::clone(&epoll), Arc::clone(mailbox), Arc::clone(&stop));
        let forward = move || {
            // Open for as long as it is waited for.
            let _kept = kept;
            let mut ready: Vec<epoll::Event> = Vec::with_capacity(64);
            while watch::wait(&*theirs, &mut ready, None).is_ok() {
                for event in &ready {
                    let (data, flags) = (event.data.u64(), event.flags);
                    if data == STOP {
                        return;
                    }
                    // With an error the cgroup is gone.
                    if flags.contains(EventFlags::PRI) && !flags.contains(EventFlags::ERR) {
                        let (key, position) = ((data >> 16) as u32, (data & 0xffff) as usize);
                        mailbox.post(Message::Pressure(key, position));
                    }
                }
            }
        };
        std::thread::Builder::new().name("pressure".to_owned()).stack_size(64 << 10).spawn(forward)?;
        Ok(Self { epoll, stop })
    }

    /// Waits for one more trigger, until its descriptor is closed.
    pub(super) fn add(&self, key: u32, position: usize, trigger: impl AsFd) -> Result<()> {
        let data = u64::from(key) << 16 | position as u64;
        // Once for each time it fires; an error too, which would not end.
        watch::add(&*self.epoll, trigger, data, EventFlags::PRI | EventFlags::ET)
    }
}

impl Drop for PressureThread {
    fn drop(&mut self) {
        watch::raise(&*self.stop);
    }
}
