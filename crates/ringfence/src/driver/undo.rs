//! What was done, and taking it back.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;

use super::dirs::Dirs;
use crate::devices::filter::DeviceFilter;
use crate::error::Error;
use crate::plan::{Dir, Undo};

/// What was done so far, in order.
#[derive(Default)]
pub(super) struct Log(Vec<Done>);

enum Done {
    Made { dir: Dir, ancestor: bool },
    Wrote(Dir, Vec<(std::borrow::Cow<'static, str>, String)>),
    Filtered(Dir, DeviceFilter),
}

impl Log {
    pub(super) fn dir(&mut self, dir: &Dir, ancestor: bool) {
        self.0.push(Done::Made { dir: dir.clone(), ancestor });
    }

    pub(super) fn write(&mut self, dir: &Dir, undo: &Undo) {
        if let Undo::Write(writes) = undo {
            self.0.push(Done::Wrote(dir.clone(), writes.clone()));
        }
    }

    pub(super) fn filter(&mut self, dir: &Dir, filter: DeviceFilter) {
        self.0.push(Done::Filtered(dir.clone(), filter));
    }

    /// Nothing is to be undone any more: the program that is attached now.
    pub(super) fn into_filter(self) -> Option<DeviceFilter> {
        self.0.into_iter().find_map(|done| match done {
            Done::Filtered(_, filter) => Some(filter.settled()),
            _ => None,
        })
    }

    /// Takes everything back, last first. Goes on after a failure, and says what could not be taken back.
    pub(super) fn undo(self, dirs: &mut Dirs<'_>) -> Vec<Error> {
        let mut failures = Vec::new();
        for done in self.0.into_iter().rev() {
            match done {
                Done::Made { dir, ancestor } => failures.extend(remove(dirs, &dir, ancestor)),
                Done::Wrote(dir, writes) => {
                    for (file, value) in writes {
                        let written = dirs.get(&dir).and_then(|open| open.write(&file, &value));
                        failures.extend(written.err().map(|errno| {
                            Error::kernel("cannot put the old value back", file.as_ref(), errno)
                                .with_value(value)
                        }));
                    }
                }
                Done::Filtered(dir, filter) => match dirs.get(&dir) {
                    Ok(open) => failures.extend(filter.undo(open.as_fd()).err()),
                    Err(errno) => failures.push(Error::kernel("cannot open the cgroup", &dir.path, errno)),
                },
            }
        }
        failures
    }
}

/// An ancestor that another sandbox has come to use stays. A cgroup that was made a moment ago may be busy for another.
fn remove(dirs: &mut Dirs<'_>, dir: &Dir, ancestor: bool) -> Option<Error> {
    let parent = dirs.get(&dir.parent()?);
    let remove = || parent.as_ref().map_err(|errno| *errno).and_then(|parent| parent.remove_dir(dir.name()));
    let mut result = remove();
    for _ in 0..20 {
        if result != Err(Errno::BUSY) || ancestor {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        result = remove();
    }
    match result {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => None,
        Err(Errno::BUSY | Errno::NOTEMPTY) if ancestor => None,
        Err(errno) => Some(Error::kernel("cannot remove the directory", &dir.path, errno)),
    }
}
