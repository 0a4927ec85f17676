//! One connection to a message bus, and calls with deadlines.
//!
//! A thread of the connection's own drives it, and callers wait by parking: it makes no difference whether they are inside
//! an async runtime, and in which.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::wire::{DynamicType, Type};
use zbus::{Connection, DBusError as _, MatchRule, Message, MessageStream, connection};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::poll::Deadline;

const DESTINATION: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// How long one answer may take: a systemd that executes itself anew may never give it.
const ANSWER: Duration = Duration::from_secs(15);
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
            Self::Refused { message, .. } => {
                Error::new(ErrorKind::Systemd, format!("{what}: systemd says: {message}"))
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
        let refused = |name: &str, message: Option<&str>| Self::Refused {
            name: name.to_owned(),
            message: message.unwrap_or_default().to_owned(),
        };
        match &error {
            zbus::Error::MethodError(name, message, _) => refused(name.as_str(), message.as_deref()),
            zbus::Error::FDO(error) => match &**error {
                // The bus speaks for one that is gone.
                zbus::fdo::Error::NoReply(why)
                | zbus::fdo::Error::NameHasNoOwner(why)
                | zbus::fdo::Error::Disconnected(why) => Self::Broken(why.clone()),
                error => refused(error.name().as_str(), error.description()),
            },
            zbus::Error::Connection(..) | zbus::Error::Address(_) => Self::Unreachable(error.to_string()),
            error => Self::Broken(error.to_string()),
        }
    }
}

/// A connection to a bus on which systemd answers; subscribed to the ends of its jobs.
#[derive(Debug)]
pub(super) struct Bus {
    connection: Connection,
    jobs: Arc<Jobs>,
    /// The methods that were called.
    #[cfg(test)]
    calls: Mutex<Vec<&'static str>>,
}

impl Bus {
    /// Connects, and subscribes to the ends of jobs.
    pub(super) fn connect(address: &str, deadline: Deadline) -> Result<Self, Failure> {
        let (address, jobs) = (address.to_owned(), Arc::new(Jobs::default()));
        let (sender, receiver) = mpsc::sync_channel(1);
        let ended = Arc::clone(&jobs);
        thread::Builder::new()
            .name("ringfence-bus".to_owned())
            .spawn(move || zbus::block_on(serve(&address, &ended, &sender)))
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let opened = receiver.recv_timeout(deadline.at_most(ANSWER).left());
        let bus = Self {
            connection: opened.map_err(|_| Failure::TimedOut)??,
            jobs,
            #[cfg(test)]
            calls: Mutex::default(),
        };
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

    /// Whether it can still be used.
    pub(super) fn is_open(&self) -> bool {
        !self.connection.is_closed()
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

    fn call_at<B, R>(
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
        let call = self.connection.call_method(Some(DESTINATION), object, Some(interface), method, body);
        let answer = wait(call, deadline.at_most(ANSWER)).ok_or(Failure::TimedOut)??;
        Ok(answer.body().deserialize()?)
    }

    /// Begins to take note of the ends of jobs of a unit: before the call that makes one.
    pub(super) fn watch<'a>(&'a self, unit: &'a str) -> Watch<'a> {
        self.jobs.locked().watched.push((unit.to_owned(), Vec::new()));
        Watch { jobs: &self.jobs, unit }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // Ends the thread.
        wait(self.connection.clone().close(), Deadline::after(Duration::from_secs(1)));
    }
}

/// The thread of a connection: opens it, and takes note of jobs until it is closed.
async fn serve(address: &str, jobs: &Jobs, opened: &mpsc::SyncSender<Result<Connection, Failure>>) {
    let (connection, mut signals) = match open(address).await {
        Ok(open) => open,
        Err(error) => return drop(opened.send(Err(error.into()))),
    };
    if opened.send(Ok(connection)).is_ok() {
        while let Some(Ok(message)) = poll_fn(|context| Pin::new(&mut signals).poll_next(context)).await {
            jobs.take_note(&message);
        }
    }
    jobs.locked().broken = true;
    jobs.changed.notify_all();
}

async fn open(address: &str) -> zbus::Result<(Connection, MessageStream)> {
    let connection = connection::Builder::address(address).build().await?;
    let ends = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender(DESTINATION)
        .path(OBJECT)
        .interface(MANAGER)
        .member("JobRemoved")
        .build()?;
    let signals = MessageStream::for_match_rule(ends, &connection, std::num::NonZeroUsize::new(1024)).await?;
    Ok((connection, signals))
}

/// The ends of jobs of units that somebody waits for.
#[derive(Debug, Default)]
struct Jobs {
    noted: Mutex<Noted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Noted {
    /// By unit; once for each that waits. The job and its result.
    watched: Vec<(String, Vec<(String, String)>)>,
    broken: bool,
}

impl Jobs {
    fn locked(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_note(&self, message: &Message) {
        type JobRemoved = (u32, zbus::OwnedObjectPath, String, String);
        let Ok((_, job, unit, result)) = message.body().deserialize::<JobRemoved>() else { return };
        for (watched, ended) in &mut self.locked().watched {
            if *watched == unit {
                ended.push((job.to_string(), result.clone()));
            }
        }
        self.changed.notify_all();
    }
}

/// Takes note of the ends of jobs of one unit.
pub(super) struct Watch<'a> {
    jobs: &'a Jobs,
    unit: &'a str,
}

impl Watch<'_> {
    /// Waits for the end of a job, and returns its result: `done`, `canceled`, `failed`, …
    pub(super) fn ended(&self, job: &str, deadline: Deadline) -> Result<String, Failure> {
        let mut noted = self.jobs.locked();
        loop {
            let ended =
                noted.watched.iter().filter(|(unit, _)| unit == self.unit).flat_map(|(_, ended)| ended);
            if let Some((_, result)) = ended.into_iter().find(|(known, _)| known == job) {
                return Ok(result.clone());
            }
            if noted.broken {
                return Err(Failure::Broken("closed while a job ran".to_owned()));
            }
            if deadline.is_over() {
                return Err(Failure::TimedOut);
            }
            let waited = self.jobs.changed.wait_timeout(noted, deadline.left());
            noted = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut noted = self.jobs.locked();
        if let Some(position) = noted.watched.iter().position(|(unit, _)| unit == self.unit) {
            noted.watched.swap_remove(position);
        }
    }
}

/// Waits for a future on this thread, whatever else runs on it; `None` if the deadline comes first.
fn wait<F: Future>(future: F, deadline: Deadline) -> Option<F::Output> {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        if deadline.is_over() {
            return None;
        }
        thread::park_timeout(deadline.left());
    }
}
