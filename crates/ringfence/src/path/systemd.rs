//! Names of systemd units, and the cgroups that systemd makes for them.

use std::fmt;

use super::component::NAME_MAX;
use super::{SETTING, Subpath};
use crate::{Error, Result};

const SLICE: &str = ".slice";
const ROOT_SLICE: &str = "-.slice";

/// The slice of sandboxes for which the caller names none.
pub(crate) const DEFAULT_SLICE: &str = "ringfence.slice";

/// The slice of units for which the caller names none, as systemd has it: of the system's manager, and of a user's.
const SYSTEM_SLICE: &str = "system.slice";
const USER_SLICE: &str = "user.slice";

/// `slice:prefix:name`: a scope below a slice, or, where the name ends in `.slice`, a slice.
///
/// An empty slice is `system.slice` (of a user's manager `user.slice`), and `-` the root slice, as in runc.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SystemdName {
    slice: String,
    prefix: String,
    name: String,
}

impl SystemdName {
    /// A unit from the three parts of its path.
    ///
    /// # Errors
    /// A name that systemd would refuse, or a slice that is neither empty, nor `-`, nor written `a-b-c.slice`.
    pub fn new(slice: &str, prefix: &str, name: &str) -> Result<Self> {
        let slice = if slice == "-" { ROOT_SLICE } else { slice };
        let made = Self { slice: slice.to_owned(), prefix: prefix.to_owned(), name: name.to_owned() };
        made.check().map_err(|why| Error::invalid(SETTING, &made, why))?;
        Ok(made)
    }

    /// The slice: `kubepods-pod1.slice`; the root is `-.slice`. Empty if the caller named none; the state of a sandbox
    /// has the slice of the manager instead.
    pub fn slice(&self) -> &str {
        &self.slice
    }

    /// What stands before the name, often who made the unit (`cri`); may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of the sandbox, or of a slice.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The unit: `prefix-name.scope`, `name.scope` without a prefix, or the name itself if it ends in `.slice`.
    pub fn unit(&self) -> String {
        if self.is_slice() {
            self.name.clone()
        } else if self.prefix.is_empty() {
            format!("{}.scope", self.name)
        } else {
            format!("{}-{}.scope", self.prefix, self.name)
        }
    }

    /// Whether the unit is a slice: it carries limits and has no processes of its own.
    pub fn is_slice(&self) -> bool {
        self.name.ends_with(SLICE)
    }

    /// This unit with the slice that the manager gives it, if none was named.
    pub(crate) fn in_slice_of_manager(mut self, user: bool) -> Self {
        if self.slice.is_empty() {
            self.slice = if user { USER_SLICE } else { SYSTEM_SLICE }.to_owned();
        }
        self
    }

    /// The slice, `system.slice` if none was named.
    fn slice_or_system(&self) -> &str {
        if self.slice.is_empty() { SYSTEM_SLICE } else { &self.slice }
    }

    /// The cgroup of the slice below systemd's root: `a-b.slice` is `a.slice/a-b.slice`. None for `-.slice`, the root.
    /// If no slice was named, that of `system.slice`.
    pub fn slice_path(&self) -> Option<Subpath> {
        let components = expand(self.slice_or_system());
        (!components.is_empty()).then(|| Subpath::from_checked(&components))
    }

    /// The cgroup of the unit below systemd's root. A unit that is a slice lies where its own name says: systemd takes
    /// no other slice for it. If no slice was named, it is `system.slice`.
    ///
    /// For names that resemble interface files (`memory.x`) versions of systemd differ; this is what 257 does. A unit
    /// that runs tells its cgroup itself (`ControlGroup`).
    pub fn cgroup(&self) -> Subpath {
        let mut components = expand(if self.is_slice() { &self.name } else { self.slice_or_system() });
        if !self.is_slice() {
            components.push(escape(&self.unit()));
        }
        Subpath::from_checked(&components)
    }

    /// Whether it is a scope in the slice of those for which the caller names none.
    pub(crate) fn is_in_default_slice(&self) -> bool {
        !self.is_slice() && self.slice == DEFAULT_SLICE
    }

    /// The unit whose cgroup this is, if it looks like one.
    pub(crate) fn of_cgroup(path: &str) -> Option<Self> {
        let (above, unit) = path.rsplit_once('/').unwrap_or(("", path));
        if unit.ends_with(SLICE) {
            return Self::new("-.slice", "", unit).ok();
        }
        let slice = above.rsplit('/').next().filter(|slice| slice.ends_with(SLICE)).unwrap_or("-.slice");
        Self::new(slice, "", unit.strip_suffix(".scope")?).ok()
    }

    /// The scope beside this one for processes that are drained.
    pub(crate) fn drained(&self) -> String {
        format!("{}-drained.scope", self.unit().trim_end_matches(".scope"))
    }

    /// The cgroup of the unit, below where systemd keeps its units.
    pub(crate) fn below(&self, root: &str) -> String {
        let cgroup = self.cgroup();
        if root.is_empty() { cgroup.as_str().to_owned() } else { format!("{root}/{}", cgroup.as_str()) }
    }

    fn check(&self) -> Result<(), String> {
        if !self.slice.is_empty() {
            check_slice(&self.slice)?;
        }
        if self.is_slice() {
            check_slice(&self.name)?;
            if self.name == ROOT_SLICE {
                return Err("\"-.slice\" is the root slice: it names no cgroup of its own".to_owned());
            }
            return check_unit(&self.prefix);
        }
        if self.name.is_empty() {
            return Err("the name after the second \":\" is empty".to_owned());
        }
        check_unit(&self.unit())
    }
}

impl fmt::Display for SystemdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.slice, self.prefix, self.name)
    }
}

/// The characters and the length that systemd allows. `@` is left out: it makes a template, which slices and scopes
/// cannot be.
fn check_unit(unit: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\');
    if let Some(bad) = unit.chars().find(|c| !allowed(*c)) {
        return Err(format!(
            "the unit {unit:?} contains {bad:?}; systemd allows letters, digits and \":-_.\\\" in the names of \
             scopes and slices"
        ));
    }
    // The cgroup's name may be one byte longer than the unit's.
    if escape(unit).len() > NAME_MAX {
        return Err(format!(
            "the name of the unit has {} bytes; systemd allows at most {NAME_MAX}",
            unit.len()
        ));
    }
    Ok(())
}

fn check_slice(slice: &str) -> Result<(), String> {
    let Some(stem) = slice.strip_suffix(SLICE) else {
        return Err(format!(
            "expected slice:prefix:name with a slice such as machine.slice (empty: the manager's own, \"-\": the root \
             slice), and the slice {slice:?} does not end in \".slice\""
        ));
    };
    if slice.contains('/') {
        return Err(format!(
            "the slice {slice:?} contains \"/\": a slice is a name such as a-b.slice, not a path"
        ));
    }
    check_unit(slice)?;
    if stem != "-" && stem.split('-').any(str::is_empty) {
        return Err(format!(
            "the slice {slice:?} has an empty part: it is written a-b-c.slice, one part between two \"-\""
        ));
    }
    Ok(())
}

/// The cgroups on the way to a slice that was checked: `a-b.slice` lies in `a.slice`.
fn expand(slice: &str) -> Vec<String> {
    let stem = slice.strip_suffix(SLICE).unwrap_or(slice);
    if stem == "-" {
        return Vec::new();
    }
    let ends = stem.match_indices('-').map(|(end, _)| end).chain([stem.len()]);
    ends.filter_map(|end| stem.get(..end)).map(|stem| escape(&format!("{stem}{SLICE}"))).collect()
}

/// The name of a unit's cgroup: systemd puts `_` before what could be the name of an interface file. systemd 252 takes
/// what stands before the last dot for the controller, 257 what stands before the first: `memory.x.scope` differs.
fn escape(unit: &str) -> String {
    /// What systemd takes for controllers, whether the kernel has them or not.
    const CONTROLLERS: &[&str] = &[
        "bpf-bind-network-interface",
        "bpf-devices",
        "bpf-firewall",
        "bpf-foreign",
        "bpf-restrict-network-interfaces",
        "bpf-socket-bind",
        "blkio",
        "cgroup",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "io",
        "memory",
        "pids",
    ];
    let looks_like_a_file = unit.starts_with(['_', '.'])
        || unit.split_once('.').is_some_and(|(before, _)| CONTROLLERS.contains(&before));
    if looks_like_a_file { format!("_{unit}") } else { unit.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(slice: &str, prefix: &str, name: &str) -> SystemdName {
        SystemdName::new(slice, prefix, name).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_unit_is_a_scope_in_its_slice_unless_its_name_is_a_slice() {
        for (given, unit, cgroup) in [
            (("a.slice", "cri", "vm1"), "cri-vm1.scope", "a.slice/cri-vm1.scope"),
            (("a.slice", "", "vm1"), "vm1.scope", "a.slice/vm1.scope"),
            (("a-b-c.slice", "p", "x"), "p-x.scope", "a.slice/a-b.slice/a-b-c.slice/p-x.scope"),
            (("-.slice", "p", "x"), "p-x.scope", "p-x.scope"),
            (("-", "p", "x"), "p-x.scope", "p-x.scope"),
            (("", "p", "x"), "p-x.scope", "system.slice/p-x.scope"),
            (("", "", "a.slice"), "a.slice", "a.slice"),
            (("a.slice", "cri", "a-pod1.slice"), "a-pod1.slice", "a.slice/a-pod1.slice"),
            (("a.slice", "p", "x.scope"), "p-x.scope.scope", "a.slice/p-x.scope.scope"),
        ] {
            let name = name(given.0, given.1, given.2);
            assert_eq!((&*name.unit(), name.cgroup().as_str()), (unit, cgroup));
        }
        assert_eq!(name("-.slice", "", "x").slice_path(), None);
        assert_eq!(name("a-b.slice", "", "x").slice_path().unwrap().as_str(), "a.slice/a-b.slice");
    }

    #[test]
    fn a_unit_without_a_slice_is_in_that_of_its_manager() {
        for (user, slice) in [(false, "system.slice"), (true, "user.slice")] {
            let unit = name("", "p", "x").in_slice_of_manager(user);
            assert_eq!((unit.slice(), unit.cgroup().as_str()), (slice, &*format!("{slice}/p-x.scope")));
            assert_eq!(name("a.slice", "p", "x").in_slice_of_manager(user).slice(), "a.slice");
            assert_eq!(name("-", "p", "x").in_slice_of_manager(user).slice(), "-.slice");
        }
    }

    #[test]
    fn a_slice_has_no_empty_part_and_no_slash() {
        for (slice, reason) in [
            (".slice", "empty part"),
            ("-a.slice", "empty part"),
            ("a-.slice", "empty part"),
            ("a--b.slice", "empty part"),
            ("--.slice", "empty part"),
            ("/a.slice", "not a path"),
            ("a.slice/a-b.slice", "not a path"),
            ("a", "does not end in"),
            ("machine", "does not end in"),
            ("a@b.slice", "'@'"),
            ("ü.slice", "'ü'"),
        ] {
            let error = SystemdName::new(slice, "p", "x").unwrap_err().to_string();
            assert!(error.contains(reason), "{slice}: {error}");
        }
    }

    #[test]
    fn a_unit_has_only_the_characters_of_systemd_and_at_most_255_bytes() {
        assert_eq!(name("a.slice", "a_b.c", "x\\x2dy").unit(), "a_b.c-x\\x2dy.scope");
        for (prefix, unit) in [
            ("", ""),
            ("p", ""),
            ("p", "a b"),
            ("p", "a/b"),
            ("p", "a@"),
            ("p/q", "x"),
            ("p", "x\n"),
            ("p/", "a-b.slice"),
        ] {
            assert!(SystemdName::new("a.slice", prefix, unit).is_err(), "{prefix} {unit}");
        }
        assert!(SystemdName::new("a.slice", "", &"x".repeat(249)).is_ok());
        let error = SystemdName::new("a.slice", "", &"x".repeat(250)).unwrap_err();
        assert!(error.to_string().contains("256 bytes"), "{error}");
        assert!(SystemdName::new("a.slice", "p", "-.slice").is_err());
    }

    #[test]
    fn systemd_escapes_cgroups_that_could_be_interface_files() {
        for (unit, cgroup) in [
            ("_x", "_x".to_owned() + ".scope"),
            ("memory.x", "memory.x.scope".to_owned()),
            ("cpu", "cpu.scope".to_owned()),
            (".x", ".x.scope".to_owned()),
            ("cgroup.x", "cgroup.x.scope".to_owned()),
        ] {
            assert_eq!(name("-.slice", "", unit).cgroup().as_str(), format!("_{cgroup}"));
        }
        assert_eq!(name("-.slice", "", "io-x").cgroup().as_str(), "io-x.scope");
        assert_eq!(name("io-x.slice", "", "v").cgroup().as_str(), "_io.slice/io-x.slice/v.scope");
    }
}
