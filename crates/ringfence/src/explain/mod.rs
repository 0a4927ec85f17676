//! Why a limit is what it is: the value in effect, and which ancestor decides it.
//!
//! A cgroup's own file says what was asked of it, not what holds: an ancestor may have less. Here the files of all levels
//! from the root of the hierarchy down to the cgroup are read, and one of these rules says what they come to:
//!
//! | what | in effect | decided by |
//! | --- | --- | --- |
//! | memory, swap, tasks, huge pages | the least limit of all levels | the level that has it |
//! | CPU time | the least quota in proportion to its period | the level that has it |
//! | CPUs, memory nodes | the set that the kernel says is effective | the level from which on it is that set |
//! | throttles of block devices, v2 | the least limit of all levels, by device and kind | the level that has it |
//! | throttles of block devices, v1 | the cgroup's own: v1 takes each cgroup by itself | the cgroup |
//!
//! Of levels with the same limit the one nearest to the cgroup decides. The rules are pure functions of the files'
//! contents; only the reader touches the kernel.

mod key;
mod read;
mod rule;
mod value;

use serde::Serialize;

pub use key::Key;
pub use value::{Bandwidth, PerDevice, Throttles, Value};

use crate::cgroup::Cgroup;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Version;
use key::Rule;
use read::Read;
use rule::{Answer, Malformed};

/// The answer. Its JSON is that of the command's `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// What was asked about, as it was given.
    pub key: String,
    /// The kernel's files of which the values are.
    pub files: Vec<String>,
    /// What holds for the cgroup.
    pub effective: Value,
    /// Whose value that is; `None` where nothing is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<Decider>,
    /// All levels, from the root of the hierarchy to the cgroup.
    pub chain: Vec<Level>,
    /// Which of the ancestors are taken into account.
    pub ancestors: Ancestors,
}

/// Which level decides, by its path below the root of the hierarchy (`/ringfence/vm1`; the root is `/`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Decider {
    /// One level.
    Level(String),
    /// A level for each throttle.
    Throttles(PerDevice<String>),
}

/// One level on the way from the root of the hierarchy to the cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Level {
    /// Its path below the root of the hierarchy.
    pub path: String,
    /// Its own value; of CPUs and memory nodes the set that is effective there. `None` where it has no such file, and so
    /// adds nothing: the root of v2, and levels for which the controller is not enabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// Which of a cgroup's ancestors an [`Explanation`] takes into account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ancestors {
    /// All, up to the machine's root.
    All,
    /// Those that are seen from here: the first level is the root of a cgroup namespace, or of a subtree that was given for
    /// one. There may be less above it.
    Visible,
    /// None: the throttles of v1 are a cgroup's own.
    None,
}

impl Cgroup {
    /// The value in effect, and which ancestor decides it.
    ///
    /// ```no_run
    /// # let host = ringfence::Host::detect()?;
    /// let cgroup = ringfence::Cgroup::open(&host, &"/machine/vm1".parse()?)?;
    /// let memory = cgroup.explain(&"memory.limit".parse()?)?;
    /// println!("{}, decided by {:?}", memory.effective, memory.decided_by);
    /// # Ok::<(), ringfence::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where this host, or its version of cgroups, has no such thing;
    /// [`ErrorKind::NotFound`] if the cgroup is gone.
    pub fn explain(&self, key: &Key) -> Result<Explanation> {
        let controller = key.controller();
        let unsupported =
            |why: String| Error::new(ErrorKind::Unsupported, why).with_setting("key").with_value(key);
        // A v2 controller that is not delegated may be limited above all the same.
        let withheld = || self.host.unified().filter(|_| self.host.withholds(controller, &self.path));
        let found = self.host.hierarchy_of(controller).or_else(withheld).filter(|_| self.exists());
        let Some((index, hierarchy)) = found else {
            return Err(unsupported(self.host.why_without(controller, &self.path)));
        };
        let version = hierarchy.version;
        let files = key.files(version, hierarchy.noprefix);
        if files.is_empty() {
            return Err(unsupported(format!(
                "the {controller} controller is on cgroup v1 here, which has no such limit"
            )));
        }
        let sizes = &self.host.huge_page_sizes;
        if key.page_size().is_some_and(|size| !sizes.contains(&size)) {
            let sizes: Vec<_> = sizes.iter().map(ToString::to_string).collect();
            let why = format!("this host has no huge pages of this size, but [{}]", sizes.join(", "));
            return Err(unsupported(why));
        }

        let read = read::read(self, index, controller, &files)?;
        if read.no_such_file {
            return Err(unsupported(format!("this kernel has no {}", files.join(" and "))));
        }
        let Answer { effective, decided_by, own } = rule::decide(key, version, &read.levels)
            .map_err(|malformed| not_understood(malformed, &read, &files, self))?;
        let ancestors = match (key.rule(), version) {
            (Rule::Throttles(_), Version::V1) => Ancestors::None,
            _ if read.from_the_top => Ancestors::All,
            _ => Ancestors::Visible,
        };
        let levels = read.levels.into_iter().zip(own);
        Ok(Explanation {
            key: key.to_string(),
            files,
            effective,
            decided_by,
            chain: levels.map(|(level, value)| Level { path: level.path, value }).collect(),
            ancestors,
        })
    }
}

/// What holds, by these contents of the key's files at each level; `None` for what no kernel writes.
#[cfg(fuzzing)]
pub(crate) fn effective(
    key: &Key,
    version: Version,
    levels: &[Vec<Option<Vec<u8>>>],
) -> Option<(Value, Vec<Option<Value>>)> {
    let contents = |files: &Vec<_>| read::Contents { path: String::new(), files: files.clone() };
    let answer = rule::decide(key, version, &levels.iter().map(contents).collect::<Vec<_>>()).ok()?;
    Some((answer.effective, answer.own))
}

fn not_understood(malformed: Malformed, read: &Read, files: &[String], cgroup: &Cgroup) -> Error {
    let Malformed { level, file } = malformed;
    let contents = read.levels.get(level).and_then(|level| level.file(file)).unwrap_or_default();
    let dir = read.dirs.get(level).map(|dir| dir.full(&cgroup.host)).unwrap_or_default();
    Error::new(ErrorKind::Kernel, "this is not what the kernel writes into such a file")
        .with_value(String::from_utf8_lossy(contents).trim_end())
        .with_path(dir.join(files.get(file).map_or("", String::as_str)))
}
