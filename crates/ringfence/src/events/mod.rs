//! Events of many sandboxes in one stream: OOM kills, limits that were met, processes that come and go, freezing, pressure,
//! and the end.
//!
//! What the kernel tells of is waited for: inotify(7) on the counters of v2, of which one descriptor serves any number of
//! files, where poll(2) would take one entry for each; on v1 the eventfd of `memory.oom_control`, and a pidfd for a process
//! inside. What it does not tell of (`memory.failcnt` and `pids.events` of v1) is looked at once a second.

mod counts;
mod event;
mod farewell;
mod live;
mod mailbox;
mod place;
mod stored;
mod subject;
mod trigger;
mod watches;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};
use rustix::fs::inotify::ReadFlags;

pub use counts::Counts;
pub(crate) use counts::LastCounts;
pub use event::{Event, What};
pub(crate) use farewell::{Hearer, Hearers, LastWord, Lifetime, announce};
pub use trigger::{PressureKind, PressureResource, PressureTrigger};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::poll::Deadline;
use crate::kernel::watch;
use crate::sandbox::Sandbox;
use mailbox::{Mailbox, Message};
use place::Kit;
use stored::Stored;
use subject::Subject;
use watches::{Watches, Whom};

/// The numbers by which descriptors are known; from `FIRST` on those of sandboxes.
const INOTIFY: u64 = 0;
const TIMER: u64 = 1;
const MAILBOX: u64 = 2;
const FIRST: u64 = 16;

/// A stream of events of many sandboxes, on one thread.
///
/// Its descriptor ([`AsFd`]) is readable when [`Events::wait`] has something to do: call it then with
/// [`Duration::ZERO`] until it says `None`. As an [`Iterator`] it blocks, and ends when the last sandbox is removed.
///
/// What happened before a sandbox was added is not told. Nothing is lost however late it is read, and an OOM kill not even
/// if the sandbox is removed at once: whoever removes it by [`Sandbox::destroy`] passes its last counters on, within the
/// process through the `Sandbox` that was added, and through a [`Store`](crate::Store) to those that
/// [watch it](Events::add_store).
///
/// A scope that systemd removes behind its last process takes its counters along: they are read as fast as can be, but
/// what was counted last may be missed. One that is [held](Sandbox::hold_meanwhile), as by the command's `run`, stays until
/// it is destroyed. Where the kernel does not let the holder be spared (see there), it may be killed with the others, and
/// the scope goes at once.
pub struct Events {
    kit: Kit,
    timer: OwnedFd,
    subjects: BTreeMap<u32, Subject>,
    next: u32,
    stored: Option<Stored>,
    queue: VecDeque<Result<Event>>,
    // Kept, so that waiting allocates nothing.
    ready: Vec<epoll::Event>,
    told: Vec<u8>,
    concerned: Vec<Whom>,
    messages: Vec<Message>,
}

impl Events {
    /// A stream without sandboxes.
    ///
    /// # Errors
    /// [`ErrorKind::Kernel`] where descriptors, or instances of inotify (`fs.inotify.max_user_instances`), have run out.
    pub fn new() -> Result<Self> {
        Self::set_up().map_err(|errno| {
            let why =
                "cannot watch anything: descriptors, or fs.inotify.max_user_instances (sysctl), have run out";
            Error::new(ErrorKind::Kernel, why).with_errno(errno)
        })
    }

    fn set_up() -> rustix::io::Result<Self> {
        let (epoll, timer, mailbox) = (Arc::new(watch::epoll()?), watch::timer()?, Arc::new(Mailbox::new()?));
        let watches = Watches::new()?;
        watch::add(&*epoll, &watches.inotify, INOTIFY, EventFlags::IN)?;
        watch::add(&*epoll, &timer, TIMER, EventFlags::IN)?;
        watch::add(&*epoll, &*mailbox, MAILBOX, EventFlags::IN)?;
        Ok(Self {
            kit: Kit { epoll, watches, mailbox, pressure: None, buffer: Vec::with_capacity(4096) },
            timer,
            subjects: BTreeMap::new(),
            next: 0,
            stored: None,
            queue: VecDeque::with_capacity(64),
            ready: Vec::with_capacity(64),
            told: Vec::with_capacity(16 << 10),
            concerned: Vec::with_capacity(64),
            messages: Vec::with_capacity(64),
        })
    }

    /// Adds a sandbox, whose events bear this name. A separate overhead belongs to it: populated is then either, and frozen
    /// are both.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if its cgroup is gone; [`ErrorKind::Unsupported`] if it never had one;
    /// [`ErrorKind::Kernel`] when the kernel watches no more (`fs.inotify.max_user_watches`), or descriptors have run out: on
    /// v2 a sandbox takes three, on v1 eight.
    pub fn add(&mut self, name: &str, sandbox: &Sandbox) -> Result<()> {
        let state = sandbox.state();
        let host = Arc::new(sandbox.host().clone());
        if state.cgroup.is_empty() {
            return Err(Error::new(ErrorKind::Unsupported, host.why_nothing()).with_value(name));
        }
        let key = self.next_key();
        // Before it is looked at, so that its end is not missed.
        let mailbox = Arc::downgrade(&self.kit.mailbox);
        let lifetime: Arc<()> = Arc::default();
        let listening: Lifetime = Arc::downgrade(&lifetime) as Lifetime;
        sandbox.before_removal(
            listening,
            Arc::new(move |word| {
                if let Some(mailbox) = mailbox.upgrade() {
                    mailbox.post(Message::Last(key, word));
                }
            }),
        );
        let mut subject = Subject::new(key, name, &host, &state, &mut self.kit)?;
        if let Err(error) = subject.begin(&mut self.kit) {
            subject.close(&mut self.kit);
            return Err(error);
        }
        if !subject.is_there() && !state.path.is_systemd() {
            subject.close(&mut self.kit);
            let why = "there is no such cgroup in any hierarchy";
            return Err(Error::new(ErrorKind::NotFound, why).with_value(&state.cgroup));
        }
        subject.ends_with_cgroup = !state.path.is_systemd();
        subject.lifetime = Some(lifetime);
        self.subjects.insert(key, subject);
        Ok(())
    }

    /// Adds a threshold of pressure to a sandbox that was added before under this name.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the kernel does not measure pressure, has none for cgroups (v1), or keeps the window
    /// to those with CAP_SYS_RESOURCE; [`ErrorKind::NotFound`] for a name that was not added.
    pub fn add_pressure(&mut self, name: &str, trigger: &PressureTrigger) -> Result<()> {
        let found = self.subjects.values_mut().find(|subject| &*subject.id == name);
        let Some(subject) = found else {
            return Err(Error::new(ErrorKind::NotFound, "nothing of this name is watched").with_value(name));
        };
        subject.add_pressure(trigger, &mut self.kit)
    }

    /// The next event. `None` when `timeout` is over, or when there is nothing left to wait for
    /// ([`Events::is_over`]).
    ///
    /// # Errors
    /// What the kernel refused, and [`ErrorKind::State`] for a state of a [store](Events::add_store) that cannot be read; the
    /// stream goes on.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Event>> {
        let deadline = Deadline::after(timeout);
        self.next_before(|| Some(deadline.left()))
    }

    fn next_before(&mut self, left: impl Fn() -> Option<Duration>) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return event.map(Some);
            }
            if self.is_over() {
                return Ok(None);
            }
            let left = left();
            self.set_timer()?;
            let waited = watch::wait(&self.kit.epoll, &mut self.ready, left);
            waited.map_err(|errno| failed("cannot wait for events", errno))?;
            if self.ready.is_empty() && left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.take_in();
        }
    }

    /// Whether every sandbox that was added is removed, and no store is watched whose sandboxes are still to come.
    pub fn is_over(&self) -> bool {
        let more = self.stored.as_ref().is_some_and(Stored::has_future);
        self.queue.is_empty() && self.subjects.is_empty() && !more
    }

    fn next_key(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// Rings when something is to be looked at that nobody tells of.
    fn set_timer(&self) -> Result<()> {
        let soonest = self.subjects.values().filter_map(Subject::again).min();
        let after = soonest.map(|again| again.saturating_duration_since(Instant::now()));
        watch::ring_after(&self.timer, after).map_err(|errno| failed("cannot set a timer", errno))
    }

    /// Looks at all that is said to have changed.
    fn take_in(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for event in &ready {
            match event.data.u64() {
                INOTIFY => self.take_told(),
                TIMER => {
                    watch::lower(&self.timer);
                    let now = Instant::now();
                    self.look_at_all(|subject| subject.again().is_some_and(|again| again <= now));
                }
                MAILBOX => self.take_messages(),
                data => {
                    let key = u32::try_from(data.saturating_sub(FIRST)).unwrap_or_default();
                    self.look_at(key);
                }
            }
        }
        self.ready = ready;
    }

    fn take_told(&mut self) {
        let mut told = std::mem::take(&mut self.told);
        if let Err(errno) = watch::read_told(&self.kit.watches.inotify, &mut told) {
            self.queue.push_back(Err(failed("cannot read what has changed", errno)));
        }
        let mut concerned = std::mem::take(&mut self.concerned);
        let mut rest = &told[..];
        while let Some(line) = watch::next_told(&mut rest) {
            if line.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.rescan();
                self.look_at_all(|_| true);
                continue;
            }
            concerned.clear();
            self.kit.watches.concerned(line.watch, line.name, &mut concerned);
            for whom in &concerned {
                match whom {
                    Whom::Sandbox(key) => self.look_at(*key),
                    Whom::Store => self.take_stored(line.name, line.flags),
                    Whom::Spool => self.take_spool(),
                }
            }
        }
        (self.told, self.concerned) = (told, concerned);
    }

    fn take_messages(&mut self) {
        let mut messages = std::mem::take(&mut self.messages);
        self.kit.mailbox.collect(&mut messages);
        for message in messages.drain(..) {
            match message {
                Message::Last(key, word) => self.hear(key, word),
                Message::Pressure(key, position) => {
                    if let Some(subject) = self.subjects.get(&key)
                        && let Some(trigger) = subject.triggers.get(position)
                    {
                        subject.say(What::Pressure { trigger: *trigger }, &mut self.queue);
                    }
                }
            }
        }
        self.messages = messages;
    }

    /// Somebody removes a sandbox.
    fn hear(&mut self, key: u32, word: LastWord) {
        let Some(subject) = self.subjects.get_mut(&key) else { return };
        match word {
            LastWord::Counted(last) => {
                subject.hear(&last);
                self.tell(key);
            }
            LastWord::Removed => self.end(key),
        }
    }

    fn look_at_all(&mut self, wanted: impl Fn(&Subject) -> bool) {
        let mut after = 0;
        while let Some((key, subject)) = self.subjects.range(after..).next() {
            let (key, is_wanted) = (*key, wanted(subject));
            if is_wanted {
                self.look_at(key);
            }
            let Some(next) = key.checked_add(1) else { break };
            after = next;
        }
    }

    fn look_at(&mut self, key: u32) {
        let Some(subject) = self.subjects.get_mut(&key) else { return };
        if let Err(error) = subject.look(&mut self.kit) {
            self.queue.push_back(Err(error));
        }
        self.tell(key);
    }

    /// Tells what is new of a sandbox, and that it is removed if it ends with its cgroup.
    fn tell(&mut self, key: u32) {
        let Some(subject) = self.subjects.get_mut(&key) else { return };
        if subject.ends_with_cgroup && !subject.is_there() {
            // What was said in this process was said before the cgroup went.
            self.take_messages();
            return self.end(key);
        }
        subject.tell(&mut self.queue);
    }

    /// A sandbox is removed.
    fn end(&mut self, key: u32) {
        if let Some(mut subject) = self.subjects.remove(&key) {
            subject.close(&mut self.kit);
            subject.tell(&mut self.queue);
            if subject.was_there {
                subject.say(What::Removed, &mut self.queue);
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = self.subjects.values().map(|subject| &subject.id);
        f.debug_struct("Events").field("watched", &watched.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kit.epoll.as_fd()
    }
}

/// Blocks until something happens; ends when the last sandbox is removed.
impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_before(|| None).transpose()
    }
}

fn failed(what: &'static str, errno: rustix::io::Errno) -> Error {
    Error::new(ErrorKind::Kernel, what).with_errno(errno)
}
