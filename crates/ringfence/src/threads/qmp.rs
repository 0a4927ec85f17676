//! QEMU's machine protocol (QMP), as far as it takes to ask for threads.
//!
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>. A monitor serves one client at a time: while another is
//! connected, QEMU does not greet the next.

mod message;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub(crate) use self::message::{Decoder, Message, io_threads, vcpus};
use super::{IoThread, VcpuThread};
use crate::kernel::poll::Deadline;
use crate::{Error, ErrorKind, Result};

/// How long to wait before the socket is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection to a QMP monitor of QEMU (`-qmp unix:PATH,server=on,wait=off`), greeted and ready for commands.
pub struct Qmp {
    stream: UnixStream,
    path: PathBuf,
    decoder: Decoder,
    /// That of the last command.
    id: u64,
    /// How long each command may take.
    within: Duration,
}

impl Qmp {
    /// Connects, and tries again until QEMU listens and has greeted. Each command afterwards may take as long, too.
    ///
    /// # Errors
    /// QEMU did not listen or did not greet in time, what is there is no QMP monitor, or the path is none for a socket.
    pub fn connect(path: impl AsRef<Path>, within: Duration) -> Result<Self> {
        let mut qmp = Self::connect_by(path.as_ref(), Deadline::after(within), || Ok(()))?;
        qmp.within = within;
        Ok(qmp)
    }

    /// As [`Qmp::connect`], for as long as `go_on` has nothing against it.
    pub(super) fn connect_by(
        path: &Path,
        deadline: Deadline,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        let stream = loop {
            go_on()?;
            match connect(path) {
                Ok(stream) => break stream,
                Err(errno @ (Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN)) if deadline.is_over() => {
                    let why = match errno {
                        Errno::AGAIN => {
                            "others wait for this monitor already: it serves one client at a time"
                        }
                        _ => "no QEMU listens on this socket (-qmp unix:PATH,server=on,wait=off)",
                    };
                    return Err(refused(why, path).with_kind(ErrorKind::TimedOut).with_errno(errno));
                }
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => deadline.sleep(PAUSE),
                Err(Errno::NAMETOOLONG) => {
                    return Err(Error::invalid(
                        "qmp",
                        path.display(),
                        "the path of a socket has at most 107 bytes",
                    ));
                }
                Err(errno) => return Err(refused("cannot connect to QEMU's monitor", path).with_errno(errno)),
            }
        };
        let within = deadline.left();
        let mut qmp = Self { stream, path: path.to_owned(), decoder: Decoder::default(), id: 0, within };
        match qmp.receive(deadline) {
            Ok(Message::Greeting) => {}
            Ok(_) => return Err(qmp.refused("this is no QMP monitor: it does not greet")),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Err(error.with_message(
                    "the monitor does not greet: QEMU serves one client at a time, and another may be connected",
                ));
            }
            Err(error) => return Err(error),
        }
        qmp.execute("qmp_capabilities", deadline)?;
        Ok(qmp)
    }

    /// The vCPUs and their threads, by number (`query-cpus-fast`, since QEMU 2.12). A thread ID is as QEMU sees it in its own
    /// PID namespace. With `-accel tcg,thread=single` one thread runs them all.
    ///
    /// # Errors
    /// QEMU refuses, or does not answer in time.
    pub fn vcpus(&mut self) -> Result<Vec<VcpuThread>> {
        self.vcpus_by(Deadline::after(self.within))
    }

    /// The I/O threads (`-object iothread,id=ID`), by ID (`query-iothreads`).
    ///
    /// # Errors
    /// As [`Qmp::vcpus`].
    pub fn io_threads(&mut self) -> Result<Vec<IoThread>> {
        self.io_threads_by(Deadline::after(self.within))
    }

    pub(super) fn vcpus_by(&mut self, deadline: Deadline) -> Result<Vec<VcpuThread>> {
        let answer = self.execute("query-cpus-fast", deadline)?;
        vcpus(answer).map_err(|error| error.with_path(&self.path))
    }

    pub(super) fn io_threads_by(&mut self, deadline: Deadline) -> Result<Vec<IoThread>> {
        let answer = self.execute("query-iothreads", deadline)?;
        io_threads(answer).map_err(|error| error.with_path(&self.path))
    }

    fn execute(&mut self, command: &'static str, deadline: Deadline) -> Result<serde_json::Value> {
        self.id = self.id.wrapping_add(1);
        let request = format!("{{\"execute\": \"{command}\", \"id\": {}}}\n", self.id);
        let left = self.left(deadline)?;
        let sent = self
            .stream
            .set_write_timeout(Some(left))
            .and_then(|()| self.stream.write_all(request.as_bytes()));
        sent.map_err(|error| self.failed(&error))?;
        loop {
            match self.receive(deadline)? {
                // What has no ID answers the only command that is under way.
                Message::Return { id, value } if id.is_none_or(|id| id == self.id) => return Ok(value),
                Message::Error { id, text } if id.is_none_or(|id| id == self.id) => {
                    return Err(self.refused(format!("QEMU refused {command}: {text}")));
                }
                // Events, and answers to a command whose time was over.
                _ => {}
            }
        }
    }

    fn receive(&mut self, deadline: Deadline) -> Result<Message> {
        let mut chunk = vec![0; 1 << 16];
        loop {
            if let Some(message) = self.decoder.next().map_err(|error| error.with_path(&self.path))? {
                return Ok(message);
            }
            let left = self.left(deadline)?;
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(0) => return Err(self.refused("QEMU closed its monitor, or has ended")),
                Ok(length) => self.decoder.feed(chunk.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    fn left(&self, deadline: Deadline) -> Result<Duration> {
        let left = deadline.left();
        if left.is_zero() { Err(self.timed_out()) } else { Ok(left) }
    }

    fn timed_out(&self) -> Error {
        self.refused("QEMU's monitor did not answer in time").with_kind(ErrorKind::TimedOut)
    }

    fn failed(&self, error: &io::Error) -> Error {
        match Errno::from_io_error(error) {
            Some(Errno::AGAIN) => self.timed_out(),
            Some(Errno::PIPE | Errno::CONNRESET) => self.refused("QEMU closed its monitor, or has ended"),
            Some(errno) => self.refused("cannot talk to QEMU's monitor").with_errno(errno),
            None => self.refused(format!("cannot talk to QEMU's monitor: {error}")),
        }
    }

    fn refused(&self, why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        refused(why, &self.path)
    }
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qmp").field("path", &self.path).finish_non_exhaustive()
    }
}

fn refused(why: impl Into<std::borrow::Cow<'static, str>>, path: &Path) -> Error {
    Error::new(ErrorKind::Vmm, why).with_path(path)
}

/// Connects without waiting: a blocking connect(2) waits for ever where others are in the queue.
fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests;
