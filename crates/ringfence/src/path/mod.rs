//! The names a caller may use for a cgroup.
//!
//! | form | meaning |
//! | --- | --- |
//! | `slice:prefix:name` | a systemd unit: `prefix-name.scope` in that slice; without a slice in `system.slice`, or of a user's manager in `user.slice`; `-` is the root slice |
//! | `/a/b` | below the root of each hierarchy |
//! | `a/b` | below a default parent, `/ringfence` unless the caller has another |
//!
//! All checks are lexical and made when the text is parsed: a [`CgroupPath`] that exists can be carried out.

mod component;
mod sandbox_id;
mod subpath;
mod systemd;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub(crate) use component::{DRAINED, EVACUATED};
pub use sandbox_id::SandboxId;
pub use subpath::Subpath;
pub(crate) use systemd::DEFAULT_SLICE;
pub use systemd::SystemdName;

use crate::{Error, Result};

/// The setting that errors about a path name: OCI's word for it.
const SETTING: &str = "cgroupsPath";

/// A cgroups path, as OCI's `cgroupsPath` has it. Its form picks the driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum CgroupPath {
    /// `slice:prefix:name`: a unit of systemd.
    Systemd(SystemdName),
    /// `/a/b`: below the root of each hierarchy; inside a cgroup namespace, below the root of the namespace.
    Absolute(Subpath),
    /// `a/b`: below a default parent.
    Relative(Subpath),
}

impl CgroupPath {
    /// The parent of relative paths where the caller names no other: `/ringfence`.
    pub fn default_parent() -> Self {
        Self::Absolute(Subpath::default_parent())
    }

    /// The unit for a name, where the caller names no path: `ringfence.slice:ringfence:NAME`.
    ///
    /// # Errors
    /// The name makes a unit that systemd would refuse.
    pub fn default_unit(name: &str) -> Result<Self> {
        SystemdName::new(systemd::DEFAULT_SLICE, "ringfence", name).map(Self::Systemd)
    }

    /// Whether this names a unit of systemd.
    pub fn is_systemd(&self) -> bool {
        matches!(self, Self::Systemd(_))
    }

    /// The unit that it names, if it names one.
    pub(crate) fn as_systemd(&self) -> Option<&SystemdName> {
        match self {
            Self::Systemd(name) => Some(name),
            Self::Absolute(_) | Self::Relative(_) => None,
        }
    }

    /// Where the cgroupfs driver puts the cgroup in each hierarchy. A relative path goes below `parent`; `prefix`,
    /// such as Kata's `kata_`, goes before the last component.
    ///
    /// # Errors
    /// This path or `parent` has systemd's form, or the prefix makes a name that no cgroup can have.
    pub fn resolve(&self, parent: &CgroupPath, prefix: Option<&str>) -> Result<Subpath> {
        let path = match self {
            Self::Relative(path) => parent.for_cgroupfs()?.join(path),
            _ => self.for_cgroupfs()?.clone(),
        };
        match prefix {
            None | Some("") => Ok(path),
            Some(prefix) => path.with_name_prefix(prefix),
        }
    }

    /// The path as it was given, for the cgroupfs driver.
    ///
    /// # Errors
    /// It has systemd's form: taken literally, it would be a directory outside of every slice and its limits.
    pub fn for_cgroupfs(&self) -> Result<&Subpath> {
        match self {
            Self::Absolute(path) | Self::Relative(path) => Ok(path),
            Self::Systemd(_) => Err(Error::invalid(
                SETTING,
                self,
                "this names a systemd unit (slice:prefix:name), and the cgroupfs driver takes a path: \
                 /a/b below the root, or a/b below the default parent",
            )),
        }
    }

    /// The unit, for the systemd driver.
    ///
    /// # Errors
    /// It has not systemd's form.
    pub fn for_systemd(&self) -> Result<&SystemdName> {
        match self {
            Self::Systemd(name) => Ok(name),
            Self::Absolute(_) | Self::Relative(_) => Err(Error::invalid(
                SETTING,
                self,
                "this is a path, and the systemd driver takes slice:prefix:name, \
                 such as machine.slice:ringfence:vm1",
            )),
        }
    }
}

impl FromStr for CgroupPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((slice, prefix, name)) = as_unit(text) {
            return SystemdName::new(slice, prefix, name).map(Self::Systemd);
        }
        let clean = Subpath::clean(text)?;
        let path = if text.starts_with('/') { Self::Absolute(clean) } else { Self::Relative(clean) };
        if as_unit(&path.to_string()).is_some() {
            let why =
                "without its . and .. this would be slice:prefix:name, which is no path but a systemd unit";
            return Err(Error::invalid(SETTING, text, why));
        }
        Ok(path)
    }
}

/// The parts of a text of systemd's form: exactly three. That the first one is a slice is checked later: `machine:x:y` is
/// a unit that was written wrong, never a directory of that name. A first part with a `/` that is no slice is a path's.
fn as_unit(text: &str) -> Option<(&str, &str, &str)> {
    let mut parts = text.split(':');
    match (parts.next()?, parts.next()?, parts.next()?, parts.next()) {
        (slice, prefix, name, None) if slice.ends_with(".slice") || !slice.contains('/') => {
            Some((slice, prefix, name))
        }
        _ => None,
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Systemd(name) => name.fmt(f),
            Self::Absolute(path) => write!(f, "/{path}"),
            Self::Relative(path) => path.fmt(f),
        }
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.to_string()
    }
}

impl TryFrom<String> for CgroupPath {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> CgroupPath {
        text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn resolve(text: &str) -> String {
        parse(text).resolve(&CgroupPath::default_parent(), None).unwrap().to_string()
    }

    #[test]
    fn the_form_of_the_text_decides_what_it_names() {
        assert!(matches!(parse("a.slice:cri:vm1"), CgroupPath::Systemd(_)));
        assert!(matches!(parse("-.slice::vm1"), CgroupPath::Systemd(_)));
        assert!(matches!(parse("/a/b"), CgroupPath::Absolute(_)));
        assert!(matches!(parse("a/b"), CgroupPath::Relative(_)));
        // Exactly three parts.
        assert!(matches!(parse("-:cri:vm1"), CgroupPath::Systemd(_)));
        assert!(matches!(parse(":cri:vm1"), CgroupPath::Systemd(_)));
        assert!(matches!(parse("a/b:c:d"), CgroupPath::Relative(_)));
        assert!(matches!(parse("/a:b:c"), CgroupPath::Absolute(_)));
        assert!(matches!(parse("a.slice:b"), CgroupPath::Relative(_)));
        assert!(matches!(parse("a.slice:b:c:d"), CgroupPath::Relative(_)));
        assert!(matches!(parse("a:b.slice:c:d"), CgroupPath::Relative(_)));
    }

    #[test]
    fn three_parts_of_which_the_first_is_no_slice_are_an_error() {
        for text in
            ["machine:x:y", "a:b:c", "a:b.slice:c", "--:x:y", "a:b:c/d", "./machine:x:y", "b/../machine:x:y"]
        {
            let error = text.parse::<CgroupPath>().unwrap_err();
            assert!(error.to_string().contains("slice"), "{text}: {error}");
            assert_eq!((error.setting(), error.value()), (Some("cgroupsPath"), Some(text)));
            let error = serde_json::from_value::<CgroupPath>(text.into()).unwrap_err();
            assert!(error.to_string().contains("slice"), "{text}: {error}");
        }
    }

    #[test]
    fn paths_are_cleaned_and_never_climb_out() {
        for (given, below_the_root) in [
            ("a", "ringfence/a"),
            ("a/b", "ringfence/a/b"),
            ("a//b/", "ringfence/a/b"),
            ("./a/./b", "ringfence/a/b"),
            ("a/../b", "ringfence/b"),
            ("../../a", "ringfence/a"),
            ("a/../../../b", "ringfence/b"),
            ("/a/b", "a/b"),
            ("//a", "a"),
            ("/../a", "a"),
            ("/a/../../b", "b"),
            ("io.containerd.x", "ringfence/io.containerd.x"),
            ("a b/ü", "ringfence/a b/ü"),
        ] {
            assert_eq!(resolve(given), below_the_root, "{given}");
        }
    }

    #[test]
    fn what_names_no_cgroup_of_its_own_is_refused() {
        for text in ["", ".", "/", "//", "..", "../..", "/..", "a/..", "/a/b/../..", "./."] {
            let error = text.parse::<CgroupPath>().unwrap_err();
            assert!(error.to_string().contains("names no cgroup"), "{text:?}: {error}");
            assert_eq!(error.setting(), Some("cgroupsPath"));
        }
    }

    #[test]
    fn relative_paths_go_below_the_parent_that_the_caller_has() {
        for parent in ["/vc", "vc"] {
            assert_eq!(parse("../a").resolve(&parse(parent), None).unwrap().as_str(), "vc/a");
            assert_eq!(parse("/a").resolve(&parse(parent), None).unwrap().as_str(), "a");
        }
        let error = parse("a").resolve(&parse("a.slice::b"), None).unwrap_err();
        assert_eq!(error.value(), Some("a.slice::b"));
    }

    #[test]
    fn a_prefix_goes_before_the_last_component() {
        let prefixed = |text: &str, prefix| parse(text).resolve(&CgroupPath::default_parent(), Some(prefix));
        assert_eq!(prefixed("/a/b", "kata_").unwrap().as_str(), "a/kata_b");
        assert_eq!(prefixed("b", "kata_").unwrap().as_str(), "ringfence/kata_b");
        assert_eq!(prefixed("b", "").unwrap().as_str(), "ringfence/b");
        for (text, prefix) in
            [("b", "x/"), ("b", "../"), ("b", "cgroup."), ("procs", "cgroup."), ("b", "x\0")]
        {
            assert!(prefixed(text, prefix).is_err(), "{prefix:?} {text:?}");
        }
        assert!(prefixed(&"b".repeat(250), "123456").is_err());
    }

    #[test]
    fn each_driver_refuses_the_form_of_the_other_and_says_what_it_takes() {
        let unit = parse("kubepods.slice:cri:vm1");
        assert!(unit.for_cgroupfs().unwrap_err().to_string().contains("cgroupfs driver takes a path"));
        assert!(unit.resolve(&CgroupPath::default_parent(), None).is_err());
        assert_eq!(unit.for_systemd().unwrap().unit(), "cri-vm1.scope");
        for text in ["/a", "a", "a:b:c:d", "/a:b:c"] {
            let error = parse(text).for_systemd().unwrap_err();
            assert!(error.to_string().contains("takes slice:prefix:name"), "{error}");
        }
    }

    #[test]
    fn a_path_that_becomes_a_unit_when_it_is_cleaned_is_neither() {
        for text in ["a:b/../x.slice:cri:vm1", "a:/../.slice:b:c", "x.slice:cri:y:/../vm1/../x.slice:cri:vm1"]
        {
            let error = text.parse::<CgroupPath>().unwrap_err();
            assert!(error.to_string().contains("systemd unit"), "{text}: {error}");
        }
    }

    #[test]
    fn in_json_a_path_is_its_text() {
        for text in ["/a/b", "a/b", "/a:b:c", "a-b.slice:cri:vm1", ":cri:vm1", "-.slice:cri:vm1"] {
            let json = serde_json::to_string(&parse(text)).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<CgroupPath>(&json).unwrap(), parse(text));
        }
        assert!(serde_json::from_str::<CgroupPath>(r#""..""#).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics_or_leaves_the_parent(
            text in "(/|\\.|\\.\\.|a|:|\\.slice|-|tasks|\\PC){0,12}", prefix in "\\PC{0,4}",
        ) {
            let Ok(path) = text.parse::<CgroupPath>() else { return Ok(()) };
            prop_assert_eq!(&path.to_string().parse::<CgroupPath>().unwrap(), &path);
            if let CgroupPath::Systemd(name) = &path {
                prop_assert!(name.cgroup().components().all(|part| !part.is_empty() && part != ".."));
                return Ok(());
            }
            for prefix in [None, Some(prefix.as_str())] {
                let Ok(below) = path.resolve(&CgroupPath::default_parent(), prefix) else { continue };
                prop_assert!(below.components().all(|part| !matches!(part, "" | "." | "..")));
                if matches!(path, CgroupPath::Relative(_)) {
                    prop_assert!(below.as_str().starts_with("ringfence/"));
                }
            }
        }

        #[test]
        fn arbitrary_strings_do_not_panic(text in any::<String>()) {
            let _ = text.parse::<CgroupPath>();
            let _ = text.parse::<SandboxId>();
        }
    }
}
