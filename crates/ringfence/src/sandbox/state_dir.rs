//! The state directory, by descriptor: what is written there is believed, and decides which processes are killed.
//!
//! It is opened once for an operation. Every component of its path is looked at on the way, and everything in it is reached
//! from its descriptor, so that nobody can exchange it between the check and the use.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::dir::{PLACE, path_of_descriptor};
use crate::kernel::proc;

const PRIVATE: u32 = 0o700;
const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// How many symbolic links of a path are followed, as the kernel does.
const MOST_LINKS: usize = 40;

const CANNOT_MAKE: &str = "cannot make the state directory: choose another one (--state-dir; without privileges it is in \
                           $XDG_RUNTIME_DIR)";

/// An open state directory that only root and this user can write to.
#[derive(Debug)]
pub(super) struct StateDir {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
}

impl StateDir {
    /// Opens the directory; `None` if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::State`] if somebody else could exchange the directory or what is in it.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        match Walk::to(path, false)? {
            Some(fd) => Self::checked(fd, path).map(Some),
            None => Ok(None),
        }
    }

    /// Opens the directory, or makes it, with mode 0700.
    ///
    /// # Errors
    /// As [`StateDir::open`], and what keeps it from being made.
    pub(super) fn make(path: &Path) -> Result<Self> {
        match Walk::to(path, true)? {
            Some(fd) => Self::checked(fd, path),
            None => Err(Error::kernel(CANNOT_MAKE, path, Errno::NOENT).with_kind(ErrorKind::State)),
        }
    }

    fn checked(fd: OwnedFd, path: &Path) -> Result<Self> {
        let found = rustix::fs::fstat(&fd)
            .map_err(|errno| failed("cannot look at the state directory", path, errno))?;
        let refused = |why: String| Err(Error::new(ErrorKind::State, why).with_path(path));
        if !Trust::of_this_process().has(found.st_uid) {
            return refused(format!(
                "the state directory belongs to the user {}, who could forge states: choose another one (--state-dir)",
                found.st_uid
            ));
        }
        if found.st_mode & WRITABLE_BY_OTHERS != 0 {
            return refused(format!(
                "others may write to the state directory (mode {:04o}) and could forge states: chmod go-w, or choose another \
                 one (--state-dir)",
                found.st_mode & 0o7777
            ));
        }
        // Whoever can open it can lock it (flock), and keep everybody else waiting.
        if found.st_mode & 0o077 != 0 {
            _ = rustix::fs::fchmod(&fd, Mode::from_raw_mode(PRIVATE));
        }
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The path as it was given, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to this directory, whatever has its name by now.
    pub(super) fn by_descriptor(&self) -> PathBuf {
        path_of_descriptor(self.fd.as_fd()).into()
    }

    /// Opens a file in it to be read.
    pub(super) fn read(&self, name: &str) -> Result<File, Errno> {
        self.open_file(name, OFlags::RDONLY)
    }

    /// Opens a file that is there.
    pub(super) fn open_file(&self, name: &str, access: OFlags) -> Result<File, Errno> {
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        retried(|| rustix::fs::openat(&self.fd, name, flags, Mode::empty())).map(File::from)
    }

    /// Makes a file that is not there.
    pub(super) fn make_file(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        retried(|| rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))).map(File::from)
    }

    /// Replaces a file: written beside it under the name `temporary`, synced, and renamed.
    pub(super) fn replace(&self, name: &str, temporary: &str, text: &[u8]) -> std::io::Result<()> {
        let write = || -> std::io::Result<()> {
            let mut file = match self.make_file(temporary) {
                // A process was killed while it wrote.
                Err(Errno::EXIST) => {
                    self.remove(temporary)?;
                    self.make_file(temporary)?
                }
                made => made?,
            };
            file.write_all(text)?;
            retried(|| rustix::fs::fsync(&file))?;
            Ok(rustix::fs::renameat(&self.fd, temporary, &self.fd, name)?)
        };
        write().inspect_err(|_| _ = self.remove(temporary))?;
        Ok(retried(|| rustix::fs::fsync(&self.fd))?)
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: &str) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())
    }

    /// The file of a name.
    pub(super) fn stat(&self, name: &str) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The names of all files in it.
    pub(super) fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let listed = self.open_file(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(listed)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// A text that whoever comes first decides, in a symbolic link, which is made with its content in one step: `Ok` if it
    /// was decided now, else the text that was there.
    pub(super) fn decide(&self, name: &str, text: &str) -> Result<Result<(), String>, Errno> {
        loop {
            match rustix::fs::symlinkat(text, &self.fd, name) {
                Ok(()) => return Ok(Ok(())),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            // It may be gone by now.
            if let Some(there) = self.decided(name)? {
                return Ok(Err(there));
            }
        }
    }

    /// The text that was decided.
    pub(super) fn decided(&self, name: &str) -> Result<Option<String>, Errno> {
        match rustix::fs::readlinkat(&self.fd, name, Vec::new()) {
            Ok(text) => Ok(Some(text.to_string_lossy().into_owned())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Removes the directory itself, if it is empty.
    pub(super) fn remove_itself(&self) {
        let same = |named: &Stat| {
            rustix::fs::fstat(&self.fd)
                .is_ok_and(|open| (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino))
        };
        if rustix::fs::lstat(&self.path).is_ok_and(|named| same(&named)) {
            _ = rustix::fs::rmdir(&self.path);
        }
    }

    /// A descriptor to lock.
    pub(super) fn to_lock(&self) -> Result<File, Errno> {
        self.open_file(".", OFlags::RDONLY | OFlags::DIRECTORY)
    }
}

/// Who may own what is on the way to a state directory.
struct Trust {
    user: u32,
    /// In a user namespace everybody who is not mapped, the host's root among them, is shown with this ID.
    unmapped: Option<u32>,
}

impl Trust {
    fn of_this_process() -> Self {
        let overflow = || std::fs::read_to_string("/proc/sys/fs/overflowuid").ok()?.trim().parse().ok();
        let unmapped = if proc::is_in_initial_user_namespace() { None } else { overflow() };
        Self { user: rustix::process::geteuid().as_raw(), unmapped }
    }

    fn has(&self, owner: u32) -> bool {
        owner == self.user || owner == 0
    }

    fn has_on_the_way(&self, owner: u32) -> bool {
        self.has(owner) || Some(owner) == self.unmapped
    }
}

/// The way to a state directory, component by component.
struct Walk<'a> {
    here: OwnedFd,
    /// For messages: the path that was asked for, and the one that was come to.
    wanted: &'a Path,
    at: PathBuf,
    trust: Trust,
    links: usize,
}

impl<'a> Walk<'a> {
    /// Opens the directory at the end of the path; `None` if it is not there, and is not to be made.
    fn to(wanted: &'a Path, make: bool) -> Result<Option<OwnedFd>> {
        let absolute = std::path::absolute(wanted).map_err(|error| {
            Error::new(ErrorKind::State, "the state directory has no absolute path")
                .with_path(wanted)
                .with_source(error)
        })?;
        let root = rustix::fs::openat(CWD, "/", PLACE, Mode::empty());
        let root = root.map_err(|errno| failed("cannot open", Path::new("/"), errno))?;
        let (at, trust) = (PathBuf::from("/"), Trust::of_this_process());
        let mut walk = Walk { here: root, wanted, at, trust, links: 0 };
        let Some(name) = absolute.file_name() else {
            let why = "the root directory is no state directory: choose another one (--state-dir)";
            return Err(Error::new(ErrorKind::State, why).with_path(wanted));
        };
        if !walk.go(absolute.parent().unwrap_or(Path::new("/")), make)? {
            return Ok(None);
        }
        walk.last(name, make)
    }

    fn failed(&self, name: &OsStr, errno: Errno) -> Error {
        let what = match errno {
            Errno::LOOP => {
                "is a symbolic link, and the state directory must not be one: choose another one (--state-dir)"
            }
            _ => CANNOT_OPEN,
        };
        failed(what, &self.at.join(name), errno)
    }

    /// The state directory itself: never through a symbolic link.
    fn last(&self, name: &OsStr, make: bool) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat(&self.here, name, flags, Mode::empty()) {
                Ok(open) => return Ok(Some(open)),
                Err(Errno::NOENT) if !make => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR) if self.is_link(name) => return Err(self.failed(name, Errno::LOOP)),
                Err(errno) => return Err(self.failed(name, errno)),
            }
            if !self.make(name)? {
                return Ok(None);
            }
        }
    }

    fn is_link(&self, name: &OsStr) -> bool {
        let found = rustix::fs::statat(&self.here, name, AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
    }

    /// `false` if there is nothing to make it in any more.
    fn make(&self, name: &OsStr) -> Result<bool> {
        match rustix::fs::mkdirat(&self.here, name, Mode::from_raw_mode(PRIVATE)) {
            Ok(()) | Err(Errno::EXIST) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => {
                Err(Error::kernel(CANNOT_MAKE, self.at.join(name), errno).with_kind(ErrorKind::State))
            }
        }
    }

    /// Goes along a path from here; `false` if it does not lead anywhere.
    fn go(&mut self, path: &Path, make: bool) -> Result<bool> {
        for component in path.components() {
            let went = match component {
                Component::RootDir => {
                    self.enter(OsStr::new("/"))?;
                    self.at = PathBuf::from("/");
                    true
                }
                Component::ParentDir => {
                    self.enter(OsStr::new(".."))?;
                    self.at.pop();
                    true
                }
                Component::Normal(name) => self.step(name, make)?,
                Component::CurDir | Component::Prefix(_) => true,
            };
            if !went {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn enter(&mut self, name: &OsStr) -> Result<()> {
        let opened = rustix::fs::openat(&self.here, name, PLACE, Mode::empty());
        self.here = opened.map_err(|errno| self.failed(name, errno))?;
        Ok(())
    }

    fn step(&mut self, name: &OsStr, make: bool) -> Result<bool> {
        let found = loop {
            match rustix::fs::openat(&self.here, name, PLACE | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(found) => break found,
                Err(Errno::NOENT) if make => {
                    if !self.make(name)? {
                        return Ok(false);
                    }
                }
                Err(Errno::NOENT) => return Ok(false),
                // A directory was asked for.
                Err(Errno::NOTDIR) if self.is_link(name) => return self.follow(name, make),
                Err(errno) => return Err(self.failed(name, errno)),
            }
        };
        let stat = rustix::fs::fstat(&found).map_err(|errno| self.failed(name, errno))?;
        self.at.push(name);
        self.refuse_exchangeable(&stat)?;
        self.here = found;
        Ok(true)
    }

    /// A symbolic link of root or of this user.
    fn follow(&mut self, name: &OsStr, make: bool) -> Result<bool> {
        let stat = rustix::fs::statat(&self.here, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|errno| self.failed(name, errno))?;
        self.links += 1;
        if !self.trust.has_on_the_way(stat.st_uid) {
            return Err(self.exchangeable(&self.at.join(name), stat.st_uid, "is a symbolic link of"));
        }
        if self.links > MOST_LINKS {
            return Err(self.failed(name, Errno::LOOP));
        }
        let target = rustix::fs::readlinkat(&self.here, name, Vec::new());
        let target = target.map_err(|errno| self.failed(name, errno))?;
        self.go(Path::new(OsStr::from_bytes(target.to_bytes())), make)
    }

    /// Refuses a directory on the way in which others could put another one into the place of ours.
    fn refuse_exchangeable(&self, stat: &Stat) -> Result<()> {
        if !self.trust.has_on_the_way(stat.st_uid) {
            return Err(self.exchangeable(&self.at, stat.st_uid, "belongs to"));
        }
        if stat.st_mode & WRITABLE_BY_OTHERS != 0 && stat.st_mode & STICKY == 0 {
            let why = format!(
                "others may write to {} (mode {:04o}), above the state directory, and could exchange it: chmod go-w, or choose \
                 another one (--state-dir)",
                self.at.display(),
                stat.st_mode & 0o7777
            );
            return Err(Error::new(ErrorKind::State, why).with_path(self.wanted));
        }
        Ok(())
    }

    fn exchangeable(&self, path: &Path, owner: u32, how: &str) -> Error {
        let why = format!(
            "{}, on the way to the state directory, {how} the user {owner}, who could exchange it: choose another one \
             (--state-dir)",
            path.display()
        );
        Error::new(ErrorKind::State, why).with_path(self.wanted)
    }
}

const CANNOT_OPEN: &str = "cannot open the state directory";

fn failed(what: &'static str, path: &Path, errno: Errno) -> Error {
    Error::kernel(what, path, errno).with_kind(ErrorKind::State)
}

/// Again where a signal came in between.
fn retried<T>(mut act: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match act() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
