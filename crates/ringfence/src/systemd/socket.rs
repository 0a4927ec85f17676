//! A socket of a message bus: connecting, authenticating, sending and receiving, all with deadlines.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use zbus::Message;

use super::bus::Failure;
use crate::kernel::dbus::{self, FIXED};
use crate::kernel::poll::Deadline;

/// How long to wait before a socket whose queue is full is tried again.
const PAUSE: Duration = Duration::from_millis(10);
const CHUNK: usize = 1 << 16;
/// A line of the authentication is no longer than this.
const LONGEST_LINE: usize = 1 << 14;

/// A connection over which messages go. Never blocks beyond a deadline.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

/// Bytes that arrived and are no whole message yet.
#[derive(Debug, Default)]
pub(super) struct Decoder(Vec<u8>);

impl Decoder {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next message, if all of it has arrived.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Failure> {
        let Some(header) = self.0.first_chunk::<FIXED>() else { return Ok(None) };
        let no_message = || Failure::Broken("what arrived is no D-Bus message".to_owned());
        let length = dbus::message_length(header).ok_or_else(no_message)?;
        if self.0.len() < length {
            return Ok(None);
        }
        let rest = self.0.split_off(length);
        let message = dbus::parse(std::mem::replace(&mut self.0, rest))?;
        Ok(Some(message))
    }
}

impl Socket {
    /// Connects to the first of the addresses that answers, and authenticates.
    pub(super) fn connect(addresses: &str, deadline: Deadline) -> Result<Self, Failure> {
        let mut failed = Failure::Unreachable("the address is empty".to_owned());
        for address in addresses.split(';').filter(|address| !address.is_empty()) {
            match Self::connect_to(address, deadline) {
                Ok(socket) => {
                    socket.authenticate(deadline)?;
                    return Ok(socket);
                }
                Err(failure) => failed = failure,
            }
        }
        Err(failed)
    }

    fn connect_to(address: &str, deadline: Deadline) -> Result<Self, Failure> {
        let unreachable = |why: &str| Failure::Unreachable(why.to_owned());
        let address = unix_address(address)
            .ok_or_else(|| unreachable("expected unix:path=SOCKET or unix:abstract=NAME"))?
            .map_err(|errno| unreachable(&errno.to_string()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| unreachable(&errno.to_string()))?;
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => return Ok(Self(socket)),
                Err(Errno::INTR) => {}
                // Its queue is full.
                Err(Errno::AGAIN) if deadline.is_over() => return Err(Failure::TimedOut),
                Err(Errno::AGAIN) => deadline.sleep(PAUSE),
                Err(errno) => return Err(unreachable(&errno.to_string())),
            }
        }
    }

    /// As the user that the kernel says this process is. That user is not named, because its number may be another one in the
    /// user namespace of the bus.
    fn authenticate(&self, deadline: Deadline) -> Result<(), Failure> {
        self.send(b"\0AUTH EXTERNAL\r\n", deadline)?;
        let mut answer = self.line(deadline)?;
        if answer.starts_with(b"DATA") {
            self.send(b"DATA\r\n", deadline)?;
            answer = self.line(deadline)?;
        }
        if !answer.starts_with(b"OK") {
            let why =
                format!("the bus refuses this user: {}", String::from_utf8_lossy(&answer).escape_debug());
            return Err(Failure::Unreachable(why));
        }
        self.send(b"BEGIN\r\n", deadline)
    }

    /// A line of the authentication, behind which the bus says nothing before it is asked.
    fn line(&self, deadline: Deadline) -> Result<Vec<u8>, Failure> {
        let mut line = Vec::new();
        loop {
            line.extend(self.receive(deadline)?.ok_or(Failure::TimedOut)?);
            if let Some(text) = line.strip_suffix(b"\r\n") {
                return Ok(text.to_vec());
            }
            if line.len() > LONGEST_LINE {
                return Err(Failure::Broken("what answers is no message bus".to_owned()));
            }
            if deadline.is_over() {
                return Err(Failure::TimedOut);
            }
        }
    }

    /// Sends all of it, or nothing.
    ///
    /// # Errors
    /// [`Failure::TimedOut`] if nothing was sent. A part that was sent breaks the connection.
    pub(super) fn send(&self, bytes: &[u8], deadline: Deadline) -> Result<(), Failure> {
        let mut left = bytes;
        while !left.is_empty() {
            // An embedder may have the default action for SIGPIPE.
            match rustix::net::send(&self.0, left, SendFlags::NOSIGNAL) {
                Ok(sent) => left = left.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if deadline.is_over() && left.len() == bytes.len() => {
                    return Err(Failure::TimedOut);
                }
                Err(Errno::AGAIN) if deadline.is_over() => {
                    return Err(Failure::Broken("the bus took a part of a message alone".to_owned()));
                }
                Err(Errno::AGAIN) => self.wait_for(PollFlags::OUT, deadline)?,
                Err(errno) => return Err(Failure::Broken(errno.to_string())),
            }
        }
        Ok(())
    }

    /// What has arrived, as soon as something has; `None` when the deadline comes first.
    pub(super) fn receive(&self, deadline: Deadline) -> Result<Option<Vec<u8>>, Failure> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((0, _)) => return Err(Failure::Broken("the bus closed it".to_owned())),
                Ok((received, _)) => {
                    buffer.truncate(received);
                    return Ok(Some(buffer));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if deadline.is_over() => return Ok(None),
                Err(Errno::AGAIN) => self.wait_for(PollFlags::IN, deadline)?,
                Err(errno) => return Err(Failure::Broken(errno.to_string())),
            }
        }
    }

    fn wait_for(&self, what: PollFlags, deadline: Deadline) -> Result<(), Failure> {
        let left = deadline.left();
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(self.0.as_fd(), what)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Failure::Broken(errno.to_string())),
        }
    }
}

/// The socket of an address such as `unix:path=/run/dbus/system_bus_socket,guid=…`; `None` for one of another kind.
fn unix_address(address: &str) -> Option<rustix::io::Result<SocketAddrUnix>> {
    let options = address.strip_prefix("unix:")?;
    let value = |key: &str| options.split(',').find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
    match (value("path"), value("abstract")) {
        (Some(path), _) => {
            let path = PathBuf::from(OsString::from_vec(unescaped(path)?.into_owned()));
            Some(SocketAddrUnix::new(path))
        }
        (None, Some(name)) => Some(SocketAddrUnix::new_abstract_name(&unescaped(name)?)),
        (None, None) => None,
    }
}

/// Bytes that the address has as `%2f`; `None` for half of one.
fn unescaped(text: &str) -> Option<Cow<'_, [u8]>> {
    if !text.contains('%') {
        return Some(text.as_bytes().into());
    }
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_a_path_or_an_abstract_name() {
        let path = |address: &str| {
            unix_address(address).map(|known| known.unwrap().path_bytes().map(<[u8]>::to_vec))
        };
        assert_eq!(path("unix:path=/a/b"), Some(Some(b"/a/b".to_vec())));
        assert_eq!(path("unix:guid=0123,path=/a%20b%2Fc"), Some(Some(b"/a b/c".to_vec())));
        let name = unix_address("unix:abstract=/tmp/x,guid=1").unwrap().unwrap();
        assert_eq!(name.abstract_name(), Some(&b"/tmp/x"[..]));
        for other in ["tcp:host=localhost,port=1", "unix:dir=/tmp", "unix:path=/a%2", "nonsense", ""] {
            assert!(unix_address(other).is_none(), "{other}");
        }
    }
}
