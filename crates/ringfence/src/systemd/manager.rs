//! systemd's manager: starting, changing and stopping units.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use zbus::{OwnedObjectPath, Variant};

use super::OURS;
use super::bus::{Bus, Failure, lock_until};
use super::limit;
use super::property::{Property, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::poll::Deadline;
use crate::resources::CpuSet;

const UNIT: &str = "org.freedesktop.systemd1.Unit";
/// systemd knows its units by this path and their invocation ID too.
const BY_INVOCATION: &str = "/org/freedesktop/systemd1/unit/";
const JOB: &str = "org.freedesktop.systemd1.Job";

/// How long one request may take, a job and all repetitions included, unless a limit says less.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the end of a job is waited for before systemd is asked what became of it: its signal is lost when it executes
/// itself anew at the wrong moment.
const NOTICE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// What came of a request with properties.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// All of them were taken.
    All,
    /// This systemd has no property of this name; nothing was done.
    Lacks(String),
}

/// What came of starting a unit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// It runs.
    Anew,
    /// There is one with our description already.
    Already,
    /// As [`Told::Lacks`].
    Lacks(String),
}

/// One connection to systemd, kept, and made anew when it breaks.
#[derive(Debug)]
pub(crate) struct Manager {
    address: String,
    bus: Mutex<Option<Arc<Bus>>>,
    /// Properties that the systemd at the other end does not have.
    lacking: Mutex<BTreeSet<String>>,
}

impl Manager {
    /// The system's manager, or the user's. Connects when it is first needed.
    pub(crate) fn new(address: String) -> Self {
        Self { address, bus: Mutex::default(), lacking: Mutex::default() }
    }

    /// Whether systemd is known not to have a property.
    pub(crate) fn lacks(&self, name: &str) -> bool {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Starts a transient unit and waits until it runs. `description` tells one of ours from one of others.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if there is one of others.
    pub(crate) fn start(
        &self,
        unit: &str,
        description: &str,
        properties: &[Property],
        pids: &[u32],
    ) -> Result<Started> {
        let deadline = limit::deadline(PATIENCE);
        let what = format!("cannot start {unit}");
        let mut asked_before = false;
        loop {
            let bus = self.connected(deadline)?;
            let mut told = message(properties, false);
            if !pids.is_empty() {
                told.push(("PIDs", Variant::from(pids.to_vec())));
            }
            let watch = match bus.watch(unit, deadline) {
                Ok(watch) => watch,
                Err(Failure::Broken(_) | Failure::TimedOut) if !deadline.is_over() => {
                    deadline.sleep(PAUSE);
                    continue;
                }
                Err(failure) => return Err(failure.while_doing(&what)),
            };
            let none: [(&str, Vec<(&str, Variant<'_>)>); 0] = [];
            let job = bus.call::<_, OwnedObjectPath>(
                "StartTransientUnit",
                &(unit, "fail", told, none.as_slice()),
                deadline,
            );
            let failure = match job.map(|job| wait_for(&bus, &watch, unit, job.as_str(), deadline)) {
                Ok(Ok(result)) if result == "done" => return Ok(Started::Anew),
                Ok(Ok(result)) => {
                    let why = format!("{what}: the job of systemd ended as {result:?}");
                    return Err(Error::new(ErrorKind::Systemd, why));
                }
                Ok(Err(failure)) | Err(failure) => failure,
            };
            drop(watch);
            match failure {
                Failure::Refused { name, .. } if name.ends_with(".UnitExists") => {
                    let there = self.what_is_there(&bus, unit, description, pids, deadline)?;
                    match there {
                        // By an attempt of which we were not told.
                        Some(Started::Already) if pids.is_empty() && asked_before => {
                            return Ok(Started::Anew);
                        }
                        Some(started) => return Ok(started),
                        None => {}
                    }
                }
                // The slice is being stopped at this moment, with the last unit that was in it.
                Failure::Refused { name, .. }
                    if name.ends_with(".TransactionIsDestructive") && !deadline.is_over() =>
                {
                    deadline.sleep(PAUSE);
                }
                Failure::Refused { name, message } => {
                    if let Some(lacking) = self.lacking_of(&name, &message, properties) {
                        return Ok(Started::Lacks(lacking));
                    }
                    return Err(Failure::Refused { name, message }.while_doing(&what));
                }
                // What became of it shows when it is asked for again.
                Failure::Broken(_) | Failure::TimedOut if !deadline.is_over() => {
                    asked_before = true;
                    deadline.sleep(PAUSE);
                }
                failure => return Err(failure.while_doing(&what)),
            }
            if deadline.is_over() {
                let why = format!("{what}: there is a unit of that name, and it does not go away");
                return Err(Error::new(ErrorKind::TimedOut, why));
            }
        }
    }

    /// A unit of the name is loaded: one of ours that runs, with the processes or without; or one that may be gone at the
    /// next attempt.
    fn what_is_there(
        &self,
        bus: &Bus,
        unit: &str,
        description: &str,
        pids: &[u32],
        deadline: Deadline,
    ) -> Result<Option<Started>> {
        let what = format!("cannot start {unit}");
        let looked_up = || -> Result<Option<(String, String, String)>, Failure> {
            let Some(object) = activation(bus, unit, deadline)? else { return Ok(None) };
            let state = found(bus.property::<String>(&object, UNIT, "ActiveState", deadline))?;
            let theirs = found(bus.property::<String>(&object, UNIT, "Description", deadline))?;
            Ok(state.zip(theirs).map(|(state, theirs)| (state, theirs, object)))
        };
        let (state, theirs, object) = match looked_up() {
            Ok(Some(known)) => known,
            // It is gone, or will be.
            Ok(None) | Err(Failure::Broken(_) | Failure::TimedOut) => return Ok(None),
            Err(failure) => return Err(failure.while_doing(&what)),
        };
        match state.as_str() {
            "failed" => {
                _ = bus.call::<_, ()>("ResetFailedUnit", &unit, deadline);
                Ok(None)
            }
            "active" => {
                let inside = match inside(bus, unit, deadline) {
                    Ok(inside) => inside,
                    Err(failure) => return Err(failure.while_doing(&what)),
                };
                if inside.is_empty() && !unit.ends_with(".slice") {
                    let ended = end(bus, unit, &object, &theirs, deadline);
                    ended.map_err(|failure| failure.while_doing(&what))?;
                    return Ok(None);
                }
                if theirs == description {
                    let has_ours = !pids.is_empty() && pids.iter().all(|pid| inside.contains(pid));
                    return Ok(Some(if has_ours { Started::Anew } else { Started::Already }));
                }
                let why = format!("systemd has such a unit already, and it is not ours ({theirs:?})");
                Err(Error::new(ErrorKind::AlreadyExists, why).with_setting("unit").with_value(unit))
            }
            _ => {
                deadline.sleep(PAUSE);
                Ok(None)
            }
        }
    }

    /// Sets properties of a unit that runs, until it ends: all of them or none.
    pub(crate) fn set(&self, unit: &str, properties: &[Property]) -> Result<Told> {
        let what = format!("cannot change {unit}");
        self.persistently(&what, |bus, deadline| {
            let told = message(properties, true);
            match bus.call::<_, ()>("SetUnitProperties", &(unit, true, told), deadline) {
                Ok(()) => Ok(Told::All),
                Err(Failure::Refused { name, message }) => self
                    .lacking_of(&name, &message, properties)
                    .map(Told::Lacks)
                    .ok_or(Failure::Refused { name, message }),
                Err(failure) => Err(failure),
            }
        })
    }

    /// Moves processes into a unit that runs.
    pub(crate) fn attach(&self, unit: &str, pids: &[u32]) -> Result<()> {
        self.attach_below(unit, "", pids)
    }

    /// Moves processes into a cgroup below that of a delegated unit that runs, such as `/leaf`.
    pub(crate) fn attach_below(&self, unit: &str, below: &str, pids: &[u32]) -> Result<()> {
        self.persistently(&format!("cannot move processes into {unit}"), |bus, deadline| {
            bus.call::<_, ()>("AttachProcessesToUnit", &(unit, below, pids), deadline)
        })
    }

    /// Returns when what was asked before has been done: systemd writes to cgroups after it has answered.
    pub(crate) fn settle(&self) -> Result<()> {
        self.persistently("cannot reach systemd", |bus, deadline| {
            found(bus.call::<_, OwnedObjectPath>("GetUnit", &"-.slice", deadline)).map(drop)
        })
    }

    /// Stops a unit and waits until it is gone; whether there was one. `alone` leaves those that depend on it, as the units
    /// in a slice do on it.
    pub(crate) fn stop(&self, unit: &str, alone: bool) -> Result<bool> {
        let mode = if alone { "ignore-dependencies" } else { "replace" };
        let what = format!("cannot stop {unit}");
        self.persistently(&what, |bus, deadline| stop(bus, unit, mode, deadline))
    }

    /// Stops a unit whose description is ours, and waits until it is gone; whether there was one. One of the same name that
    /// others started meanwhile is left alone.
    pub(crate) fn stop_own(&self, unit: &str, is_own: &dyn Fn(&str) -> bool) -> Result<bool> {
        let what = format!("cannot stop {unit}");
        self.persistently(&what, |bus, deadline| {
            let Some(object) = activation(bus, unit, deadline)? else { return Ok(false) };
            match found(bus.property::<String>(&object, UNIT, "Description", deadline))? {
                Some(description) if is_own(&description) => stop_activation(bus, unit, &object, deadline),
                _ => Ok(false),
            }
        })
    }

    /// Whether there is a unit of the name. A scope of ours in which nothing runs is none, and is ended: it may have lost its
    /// cgroup before systemd saw it empty.
    pub(crate) fn is_taken(&self, unit: &str) -> Result<bool> {
        self.persistently(&format!("cannot look {unit} up"), |bus, deadline| {
            let Some(object) = activation(bus, unit, deadline)? else { return Ok(false) };
            let state = found(bus.property::<String>(&object, UNIT, "ActiveState", deadline))?;
            if matches!(state.as_deref(), None | Some("inactive" | "failed" | "deactivating")) {
                return Ok(false);
            }
            if unit.ends_with(".slice") || !inside(bus, unit, deadline)?.is_empty() {
                return Ok(true);
            }
            let theirs = found(bus.property::<String>(&object, UNIT, "Description", deadline))?;
            end(bus, unit, &object, &theirs.unwrap_or_default(), deadline).map(|is_ended| !is_ended)
        })
    }

    /// The description of a unit; `None` if no such unit is loaded.
    pub(crate) fn description(&self, unit: &str) -> Result<Option<String>> {
        self.persistently(&format!("cannot look {unit} up"), |bus, deadline| {
            let Some(object) = found(bus.call::<_, OwnedObjectPath>("GetUnit", &unit, deadline))? else {
                return Ok(None);
            };
            bus.property::<String>(object.as_str(), UNIT, "Description", deadline).map(Some)
        })
    }

    /// systemd's version, such as `257.9-1~deb13u1`.
    pub(crate) fn version(&self) -> Result<String> {
        self.persistently("cannot ask systemd for its version", |bus, deadline| {
            let manager = "org.freedesktop.systemd1.Manager";
            bus.property::<String>("/org/freedesktop/systemd1", manager, "Version", deadline)
        })
    }

    /// The methods that were called since this was asked last, by the present connection.
    #[cfg(test)]
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        let held = self.bus.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|bus| bus.calls()).unwrap_or_default()
    }

    /// Makes a request that can be made twice, again where the connection broke.
    fn persistently<T>(
        &self,
        what: &str,
        request: impl Fn(&Bus, Deadline) -> Result<T, Failure>,
    ) -> Result<T> {
        let deadline = limit::deadline(PATIENCE);
        loop {
            let bus = self.connected(deadline)?;
            match request(&bus, deadline) {
                Err(Failure::Broken(_) | Failure::TimedOut) if !deadline.is_over() => deadline.sleep(PAUSE),
                done => return done.map_err(|failure| failure.while_doing(what)),
            }
        }
    }

    /// The connection, made anew if it broke: with patience, since a bus that was restarted comes back.
    fn connected(&self, deadline: Deadline) -> Result<Arc<Bus>> {
        let what = || format!("cannot reach systemd at {}", self.address);
        let Some(mut held) = lock_until(&self.bus, deadline) else {
            return Err(Failure::TimedOut.while_doing(&what()));
        };
        if let Some(bus) = held.as_ref().filter(|bus| bus.is_open()) {
            return Ok(Arc::clone(bus));
        }
        let reconnects = held.take().is_some();
        loop {
            match Bus::connect(&self.address, deadline) {
                Ok(bus) => {
                    let bus = Arc::new(bus);
                    *held = Some(Arc::clone(&bus));
                    // It may be another systemd.
                    self.lacking.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    return Ok(bus);
                }
                // A bus that is restarted comes back, and so does a systemd that executes itself anew.
                Err(Failure::Unreachable(_)) if reconnects && !deadline.is_over() => {
                    deadline.sleep(10 * PAUSE)
                }
                Err(Failure::Broken(_)) if !deadline.is_over() => deadline.sleep(10 * PAUSE),
                Err(failure) => {
                    return Err(failure.while_doing(&what()));
                }
            }
        }
    }

    /// The property that systemd does not know, if that is what it says; remembered.
    fn lacking_of(&self, name: &str, message: &str, properties: &[Property]) -> Option<String> {
        if !name.ends_with(".PropertyReadOnly") && !name.ends_with(".UnknownProperty") {
            return None;
        }
        let words = || message.split(|c: char| !c.is_ascii_alphanumeric());
        let lacking = properties.iter().find(|property| words().any(|word| word == property.name))?;
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner).insert(lacking.name.to_owned());
        Some(lacking.name.to_owned())
    }
}

/// Waits for the end of a job.
fn wait_for(
    bus: &Bus,
    watch: &super::bus::Watch<'_>,
    unit: &str,
    job: &str,
    deadline: Deadline,
) -> Result<String, Failure> {
    loop {
        match watch.ended(job, Deadline::after(NOTICE.min(deadline.left()))) {
            Err(Failure::TimedOut) if !deadline.is_over() => {
                if found(bus.property::<u32>(job, JOB, "Id", deadline))?.is_some() {
                    continue;
                }
                // It ended unnoticed.
                let Some(object) = found(bus.call::<_, OwnedObjectPath>("GetUnit", &unit, deadline))? else {
                    return Ok("gone".to_owned());
                };
                let state = bus.property::<String>(object.as_str(), UNIT, "ActiveState", deadline)?;
                return Ok(if state == "active" { "done".to_owned() } else { state });
            }
            ended => return ended,
        }
    }
}

/// Stops a unit and waits until it is gone; whether there was one.
fn stop(bus: &Bus, unit: &str, mode: &str, deadline: Deadline) -> Result<bool, Failure> {
    let watch = bus.watch(unit, deadline)?;
    match found(bus.call::<_, OwnedObjectPath>("StopUnit", &(unit, mode), deadline))? {
        None => Ok(false),
        Some(job) => wait_for(bus, &watch, unit, job.as_str(), deadline).map(|_| true),
    }
}

/// The object of a unit as it runs now, by its invocation ID: a unit of the same name that starts later is another object.
fn activation(bus: &Bus, unit: &str, deadline: Deadline) -> Result<Option<String>, Failure> {
    let Some(object) = found(bus.call::<_, OwnedObjectPath>("GetUnit", &unit, deadline))? else {
        return Ok(None);
    };
    let id = found(bus.property::<Vec<u8>>(object.as_str(), UNIT, "InvocationID", deadline))?;
    // One that does not run has none.
    Ok(id.map(|id| match id.len() {
        16 => id.iter().fold(String::from(BY_INVOCATION), |path, byte| format!("{path}{byte:02x}")),
        _ => object.to_string(),
    }))
}

/// Stops one activation of a unit and waits until it is gone; whether it was there.
fn stop_activation(bus: &Bus, unit: &str, object: &str, deadline: Deadline) -> Result<bool, Failure> {
    let watch = bus.watch(unit, deadline)?;
    match found(bus.call_at::<_, OwnedObjectPath>(object, UNIT, "Stop", &"replace", deadline))? {
        None => Ok(false),
        Some(job) => wait_for(bus, &watch, unit, job.as_str(), deadline).map(|_| true),
    }
}

/// Ends a scope in which nothing runs, if it is one of ours; waits a moment for one of others, which may end by itself.
fn end(bus: &Bus, unit: &str, object: &str, description: &str, deadline: Deadline) -> Result<bool, Failure> {
    if description.starts_with(OURS) {
        return stop_activation(bus, unit, object, deadline).map(|_| true);
    }
    deadline.sleep(PAUSE);
    Ok(false)
}

/// The processes of a unit.
fn inside(bus: &Bus, unit: &str, deadline: Deadline) -> Result<Vec<u32>, Failure> {
    type Process = (String, u32, String);
    let list = found(bus.call::<_, Vec<Process>>("GetUnitProcesses", &unit, deadline))?;
    Ok(list.unwrap_or_default().into_iter().map(|(_, pid, _)| pid).collect())
}

/// What is not there is no error.
fn found<T>(answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Failure::Refused { name, .. })
            if name.ends_with(".NoSuchUnit")
                || name.ends_with(".NoUnitForInvocationID")
                || name.ends_with(".UnknownObject")
                || name.ends_with(".NoSuchJob") =>
        {
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// Properties as they are sent. Lists of devices are added to what systemd has of them: an empty one before replaces it.
fn message(properties: &[Property], replace: bool) -> Vec<(&'static str, Variant<'static>)> {
    let mut sent = Vec::with_capacity(properties.len());
    for property in properties {
        let value = match &property.value {
            Value::Bool(value) => Variant::from(*value),
            Value::Number(number) => Variant::from(*number),
            Value::Text(text) => Variant::from(text.clone()),
            Value::Set(set) => Variant::from(bits(set)),
            Value::PerDevice(entries) => Variant::from(entries.clone()),
            Value::Devices(entries) => {
                if replace {
                    sent.push((property.name, Variant::from(Vec::<(String, String)>::new())));
                }
                Variant::from(entries.clone())
            }
        };
        sent.push((property.name, value));
    }
    sent
}

/// The bits of a set, eight to a byte: bit 0 of byte 0 is CPU 0.
fn bits(set: &CpuSet) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in set.iter() {
        let (byte, bit) = (member as usize / 8, member % 8);
        if bytes.len() <= byte {
            bytes.resize(byte + 1, 0_u8);
        }
        if let Some(byte) = bytes.get_mut(byte) {
            *byte |= 1 << bit;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_a_string_of_bits() {
        let bits = |set: &str| bits(&set.parse().unwrap());
        assert_eq!(bits("0"), [1]);
        assert_eq!(bits("0-3,8"), [0b1111, 1]);
        assert_eq!(bits("64"), [0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(bits(""), [0_u8; 0]);
    }
}
