//! One connection to a message bus, and calls with deadlines.
//!
//! No thread of its own reads from it: of the threads that wait for an answer, one reads, and hands the others what is theirs. So
//! nothing outlives the last handle, and it makes no difference whether callers are inside an async runtime, and in which.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::process;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::Message;
use zbus::message::Type as MessageType;
use zbus::wire::{DynamicType, Type};

use super::socket::{Decoder, Socket};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::poll::Deadline;

const THE_BUS: [&str; 3] = ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"];
const DESTINATION: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// How long one answer may take: a systemd that executes itself anew may never give it.
const ANSWER: Duration = Duration::from_secs(15);
/// How long each answer may take at least, also shortly before a deadline.
const LEAST_ANSWER: Duration = Duration::from_secs(1);
/// How much is read at most to see whether the connection is open.
const MOST_CHUNKS: usize = 16;
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// systemd answered with an error: its name and its message.
    Refused { name: String, message: String },
    /// There is nobody at the address.
    Unreachable(String),
    /// The connection broke: it is not known what became of the call.
    Broken(String),
    /// No answer before the deadline.
    TimedOut,
}

impl Failure {
    /// As the error of what was being done.
    pub(super) fn while_doing(self, what: &str) -> Error {
        match self {
            Self::Refused { name, message } if message.is_empty() => {
                Error::new(ErrorKind::Systemd, format!("{what}: systemd answered {name}"))
            }
            Self::Refused { name, message } => {
                // It ended at this moment.
                let is_gone = name.ends_with(".NoSuchUnit");
                let kind = if is_gone { ErrorKind::NotFound } else { ErrorKind::Systemd };
                Error::new(kind, format!("{what}: systemd says: {message}"))
            }
            Self::Unreachable(why) => Error::new(ErrorKind::Systemd, format!("{what}: {why}")),
            Self::Broken(why) => {
                Error::new(ErrorKind::Systemd, format!("{what}: the connection to systemd broke: {why}"))
            }
            Self::TimedOut => {
                Error::new(ErrorKind::TimedOut, format!("{what}: systemd did not answer in time"))
            }
        }
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Errors with which the bus speaks for a systemd that is gone.
const GONE: [&str; 3] = [
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.Disconnected",
];

/// What an answer says: the message itself, or that the call was refused.
fn accepted(answer: Message) -> Result<Message, Failure> {
    if answer.message_type() != MessageType::Error {
        return Ok(answer);
    }
    let name = answer.header().error_name().map(|name| name.as_str().to_owned()).unwrap_or_default();
    let message = answer.body().deserialize::<String>().unwrap_or_default();
    Err(if GONE.contains(&name.as_str()) {
        Failure::Broken(message)
    } else {
        Failure::Refused { name, message }
    })
}

/// A lock that others may hold for as long as a call takes; `None` if the deadline comes first. In a child after fork(2) it may
/// be held by a thread that is not there.
pub(super) fn lock_until<T>(mutex: &Mutex<T>, deadline: Deadline) -> Option<MutexGuard<'_, T>> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if deadline.is_over() => return None,
            Err(TryLockError::WouldBlock) => deadline.sleep(Duration::from_millis(1)),
        }
    }
}

/// A connection to a bus on which systemd answers.
#[derive(Debug)]
pub(super) struct Bus {
    socket: Socket,
    /// The process that made it. A child after fork(2) has the same socket, and would take the parent's answers.
    process: u32,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    /// Held while a message is sent.
    outbox: Mutex<()>,
    /// The methods that were called.
    #[cfg(test)]
    calls: Mutex<Vec<&'static str>>,
}

/// What arrived.
#[derive(Debug, Default)]
struct Inbox {
    decoder: Decoder,
    /// A thread reads for all that wait.
    is_read: bool,
    /// By the number of a call whose answer is waited for.
    answers: BTreeMap<NonZeroU32, Option<Message>>,
    /// The ends of jobs by unit, once for each that waits: the job and its result.
    watched: Vec<(String, Vec<(String, String)>)>,
    /// Why nothing more arrives.
    broken: Option<String>,
}

impl Inbox {
    fn take(&mut self, bytes: &[u8]) {
        self.decoder.add(bytes);
        loop {
            match self.decoder.next() {
                Ok(Some(message)) => self.sort(message),
                Ok(None) => return,
                Err(failure) => return self.close(failure),
            }
        }
    }

    fn sort(&mut self, message: Message) {
        match message.message_type() {
            MessageType::MethodReturn | MessageType::Error => {
                let serial = message.header().reply_serial();
                if let Some(waiting) = serial.and_then(|serial| self.answers.get_mut(&serial)) {
                    *waiting = Some(message);
                }
            }
            MessageType::Signal => self.note_job(&message),
            MessageType::MethodCall => {}
        }
    }

    fn note_job(&mut self, message: &Message) {
        type JobRemoved = (u32, zbus::OwnedObjectPath, String, String);
        if message.header().member().is_none_or(|member| member.as_str() != "JobRemoved") {
            return;
        }
        let Ok((_, job, unit, result)) = message.body().deserialize::<JobRemoved>() else { return };
        for (_, ended) in self.watched.iter_mut().filter(|(watched, _)| *watched == unit) {
            ended.push((job.to_string(), result.clone()));
        }
    }

    fn close(&mut self, failure: Failure) {
        let why = match failure {
            Failure::Broken(why) | Failure::Unreachable(why) => why,
            failure => format!("{failure:?}"),
        };
        self.broken.get_or_insert(why);
    }
}

impl Bus {
    /// Connects, and subscribes to the ends of jobs.
    pub(super) fn connect(address: &str, deadline: Deadline) -> Result<Self, Failure> {
        let bus = Self {
            socket: Socket::connect(address, deadline.at_most(ANSWER))?,
            process: process::id(),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            outbox: Mutex::default(),
            #[cfg(test)]
            calls: Mutex::default(),
        };
        bus.call_to(THE_BUS, "Hello", &(), deadline)?;
        bus.subscribe(deadline)?;
        Ok(bus)
    }

    /// Subscribes to systemd's signals, which it sends only while somebody has subscribed. Asks again until the deadline:
    /// a systemd that reloads (slow generators, many units) answers nobody for longer than [`ANSWER`].
    fn subscribe(&self, deadline: Deadline) -> Result<(), Failure> {
        loop {
            match self.call("Subscribe", &(), deadline) {
                Err(Failure::TimedOut) if !deadline.is_over() => {}
                // On a bus that was restarted, systemd may take this connection for an earlier one of the same name.
                Err(Failure::Refused { name, .. }) if name.ends_with(".AlreadySubscribed") => return Ok(()),
                subscribed => return subscribed,
            }
        }
    }

    /// Whether this process can still use it.
    pub(super) fn is_open(&self) -> bool {
        if self.process != process::id() {
            return false;
        }
        let mut inbox = self.inbox();
        // Another thread that reads notices by itself. A bus that floods is not read to its end.
        for _ in 0..MOST_CHUNKS {
            if inbox.is_read || inbox.broken.is_some() {
                break;
            }
            match self.socket.receive(Deadline::after(Duration::ZERO)) {
                Ok(Some(bytes)) => inbox.take(&bytes),
                Ok(None) => break,
                Err(failure) => inbox.close(failure),
            }
        }
        inbox.broken.is_none()
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The methods that were called since this was asked last.
    #[cfg(test)]
    pub(super) fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls a method of systemd's manager object.
    pub(super) fn call<B, R>(&self, method: &'static str, body: &B, deadline: Deadline) -> Result<R, Failure>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        self.call_at(OBJECT, MANAGER, method, body, deadline)
    }

    /// A property of an object of systemd's.
    pub(super) fn property<R>(
        &self,
        object: &str,
        interface: &str,
        name: &str,
        deadline: Deadline,
    ) -> Result<R, Failure>
    where
        R: TryFrom<zbus::OwnedVariant>,
    {
        let value: zbus::OwnedVariant =
            self.call_at(object, PROPERTIES, "Get", &(interface, name), deadline)?;
        R::try_from(value).map_err(|_| Failure::Broken(format!("the property {name} has another type")))
    }

    /// Calls a method of an object of systemd's.
    pub(super) fn call_at<B, R>(
        &self,
        object: &str,
        interface: &str,
        method: &'static str,
        body: &B,
        deadline: Deadline,
    ) -> Result<R, Failure>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        #[cfg(test)]
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(method);
        let answer = self.call_to([DESTINATION, object, interface], method, body, deadline)?;
        Ok(answer.body().deserialize()?)
    }

    /// Sends a call, also where the deadline is over, and waits for its answer. Not until the deadline, so that a call whose
    /// answer is lost can be made again.
    fn call_to<B>(
        &self,
        whom: [&str; 3],
        method: &str,
        body: &B,
        deadline: Deadline,
    ) -> Result<Message, Failure>
    where
        B: Serialize + DynamicType,
    {
        let deadline = deadline.at_most(ANSWER.min((deadline.left() / 2).max(LEAST_ANSWER)));
        let message = method_call(whom, method, body)?;
        let serial = message.primary_header().serial_num();
        self.inbox().answers.insert(serial, None);
        let answer = self
            .send(&message, deadline)
            .and_then(|()| self.wait_until(deadline, |inbox| inbox.answers.get_mut(&serial)?.take()));
        self.inbox().answers.remove(&serial);
        accepted(answer?)
    }

    fn send(&self, message: &Message, deadline: Deadline) -> Result<(), Failure> {
        let _sending = lock_until(&self.outbox, deadline).ok_or(Failure::TimedOut)?;
        self.socket.send(message.data().bytes(), deadline).inspect_err(|failure| {
            if let Failure::Broken(why) = failure {
                self.inbox().close(Failure::Broken(why.clone()));
            }
        })
    }

    /// Waits for something to arrive.
    fn wait_until<T>(
        &self,
        deadline: Deadline,
        mut has_arrived: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> Result<T, Failure> {
        let mut inbox = self.inbox();
        loop {
            if let Some(arrived) = has_arrived(&mut inbox) {
                return Ok(arrived);
            }
            if let Some(why) = &inbox.broken {
                return Err(Failure::Broken(why.clone()));
            }
            if deadline.is_over() {
                return Err(Failure::TimedOut);
            }
            if inbox.is_read {
                let waited = self.arrived.wait_timeout(inbox, deadline.left());
                inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            inbox.is_read = true;
            drop(inbox);
            let received = self.socket.receive(deadline);
            inbox = self.inbox();
            inbox.is_read = false;
            match received {
                Ok(bytes) => inbox.take(&bytes.unwrap_or_default()),
                Err(failure) => inbox.close(failure),
            }
            self.arrived.notify_all();
        }
    }

    /// Begins to take note of the ends of jobs of a unit: before the call that makes one. The bus delivers those of this unit
    /// alone, and only meanwhile: nobody reads while nothing is waited for.
    pub(super) fn watch<'a>(&'a self, unit: &'a str, deadline: Deadline) -> Result<Watch<'a>, Failure> {
        self.inbox().watched.push((unit.to_owned(), Vec::new()));
        let watch = Watch { bus: self, unit };
        // The bus takes messages in order, so that its answer need not be waited for.
        self.send(&method_call(THE_BUS, "AddMatch", &rule(unit))?, deadline)?;
        Ok(watch)
    }
}

fn method_call<B>(
    [destination, object, interface]: [&str; 3],
    method: &str,
    body: &B,
) -> zbus::Result<Message>
where
    B: Serialize + DynamicType,
{
    Message::method_call(object, method).destination(destination).interface(interface).build(body)
}

/// Selects the signals about the ends of jobs of a unit, in whose name no apostrophe may be.
fn rule(unit: &str) -> String {
    format!(
        "type='signal',sender='{DESTINATION}',path='{OBJECT}',interface='{MANAGER}',member='JobRemoved',arg2='{unit}'"
    )
}

/// Takes note of the ends of jobs of one unit.
pub(super) struct Watch<'a> {
    bus: &'a Bus,
    unit: &'a str,
}

impl Watch<'_> {
    /// Waits for the end of a job, and returns its result: `done`, `canceled`, `failed`, …
    pub(super) fn ended(&self, job: &str, deadline: Deadline) -> Result<String, Failure> {
        self.bus.wait_until(deadline, |inbox| {
            let mut ended =
                inbox.watched.iter().filter(|(unit, _)| unit == self.unit).flat_map(|(_, ended)| ended);
            ended.find(|(known, _)| known == job).map(|(_, result)| result.clone())
        })
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut inbox = self.bus.inbox();
        if let Some(position) = inbox.watched.iter().position(|(unit, _)| unit == self.unit) {
            inbox.watched.swap_remove(position);
        }
        drop(inbox);
        if let Ok(message) = method_call(THE_BUS, "RemoveMatch", &rule(self.unit)) {
            // A bus that does not take it is about to be left.
            _ = self.bus.send(&message, Deadline::after(Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests;
