//! Reading the files of all levels.

use std::sync::Arc;

use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::driver::dirs::Dirs;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Version};
use crate::kernel::dir::CgroupDir;
use crate::plan::Dir;

/// One level's files, in the order of the key's.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Below the root of the hierarchy; the root is `/`.
    pub(super) path: String,
    /// `None`: there is no such file.
    pub(super) files: Vec<Option<Vec<u8>>>,
}

impl Contents {
    pub(super) fn file(&self, number: usize) -> Option<&[u8]> {
        self.files.get(number)?.as_deref()
    }
}

/// What was read.
#[derive(Debug)]
pub(super) struct Read {
    /// From the root of the hierarchy down to the cgroup.
    pub(super) levels: Vec<Contents>,
    /// The directories of the levels, for errors.
    pub(super) dirs: Vec<Dir>,
    /// The first level is the machine's root.
    pub(super) from_the_top: bool,
    /// The controller is enabled for the cgroup, and yet there is no such file anywhere.
    pub(super) no_such_file: bool,
}

/// Reads these files of the cgroup and of all its ancestors.
pub(super) fn read(
    cgroup: &Cgroup,
    hierarchy: usize,
    controller: Controller,
    files: &[String],
) -> Result<Read> {
    let host = &cgroup.host;
    let own = Dir::new(hierarchy, Arc::clone(&cgroup.path));
    let version = cgroup.version(&own);
    if !cgroup.dirs.iter().any(|(dir, _)| *dir == own) {
        let why = format!("the cgroup does not exist in the hierarchy of the {controller} controller");
        return Err(Error::new(ErrorKind::NotFound, why).with_path(own.full(host)));
    }

    let mut open = Dirs::new(host, cgroup.dirs.clone());
    let mut levels = Vec::new();
    let mut dirs: Vec<_> = std::iter::successors(Some(own), Dir::parent).collect();
    dirs.reverse();
    let (mut from_the_top, mut no_such_file) = (false, true);
    for (number, dir) in dirs.iter().enumerate() {
        let opened = open.get(dir).map_err(|errno| failed("cannot open the cgroup", dir, cgroup, errno))?;
        let contents = files.iter().map(|file| {
            read_if_there(&opened, file).map_err(|errno| {
                failed("cannot read what is in force", dir, cgroup, errno)
                    .with_path(dir.full(host).join(file))
            })
        });
        let contents = contents.collect::<Result<Vec<_>>>()?;
        no_such_file &= contents.iter().all(Option::is_none);
        if number == 0 {
            from_the_top = is_the_top(&opened, version);
        }
        if number + 1 == dirs.len() {
            // A directory that was removed has no files either.
            if !opened.has("cgroup.procs") {
                return Err(failed("", dir, cgroup, Errno::NODEV));
            }
            // A controller of v1 has its files in every cgroup, one of v2 where it is enabled.
            no_such_file &= version == Version::V1 || is_enabled(&opened, controller);
        }
        levels.push(Contents { path: format!("/{}", dir.path), files: contents });
    }
    Ok(Read { levels, dirs, from_the_top, no_such_file })
}

fn read_if_there(dir: &CgroupDir, file: &str) -> Result<Option<Vec<u8>>, Errno> {
    let mut contents = Vec::with_capacity(256);
    match dir.read_into(file, &mut contents) {
        Ok(()) => Ok(Some(contents)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether a hierarchy's root, as it is seen, is the machine's. That alone has no `cgroup.events` on v2, and alone has a
/// `release_agent` on v1.
fn is_the_top(root: &CgroupDir, version: Version) -> bool {
    match version {
        Version::V1 => root.has("release_agent"),
        Version::V2 => !root.has("cgroup.events"),
    }
}

fn is_enabled(dir: &CgroupDir, controller: Controller) -> bool {
    dir.read("cgroup.controllers").is_ok_and(|text| Controller::list_from_v2(&text).contains(&controller))
}

fn failed(what: &'static str, dir: &Dir, cgroup: &Cgroup, errno: Errno) -> Error {
    let error = Error::kernel(what, dir.full(&cgroup.host), errno);
    match errno {
        Errno::NOENT | Errno::NODEV => {
            error.with_kind(ErrorKind::NotFound).with_message("the cgroup was removed")
        }
        _ => error,
    }
}
