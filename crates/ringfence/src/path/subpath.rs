//! Where a cgroup is, the same in every hierarchy.

use std::fmt;
use std::path::Path;

use super::{SETTING, component};
use crate::{Error, Result};

/// A path below the root of each hierarchy, without a leading `/` (`ringfence/a`). It has one component at least, and
/// none that is empty, `.`, `..`, or a name that no cgroup can have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subpath(String);

impl Subpath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names on the way, from the root to the cgroup.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// The path without its last component; none directly below the root.
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// `path` below this one.
    pub fn join(&self, path: &Subpath) -> Self {
        Self(format!("{}/{}", self.0, path.0))
    }

    pub(crate) const DEFAULT_PARENT: &str = "ringfence";

    /// Whether this is such a path already.
    pub(crate) fn is_clean(text: &str) -> bool {
        Self::clean(text).is_ok_and(|path| path.as_str() == text)
    }

    pub(super) fn default_parent() -> Self {
        Self(Self::DEFAULT_PARENT.to_owned())
    }

    /// Cleans `text` lexically: `.` and empty components vanish, `..` takes the component before it away and stops at
    /// the top.
    pub(super) fn clean(text: &str) -> Result<Self> {
        let mut components = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(components.pop()),
                part => {
                    component::check(part).map_err(|why| Error::invalid(SETTING, text, why))?;
                    components.push(part);
                }
            }
        }
        if components.is_empty() {
            return Err(Error::invalid(
                SETTING,
                text,
                "it names no cgroup of its own: at least one component is needed besides \".\" and \"..\"",
            ));
        }
        Ok(Self(components.join("/")))
    }

    /// From components that are known to be good.
    pub(super) fn from_checked(components: &[String]) -> Self {
        Self(components.join("/"))
    }

    pub(super) fn with_name_prefix(&self, prefix: &str) -> Result<Self> {
        let invalid = |why| Error::invalid("name prefix", prefix, why);
        if prefix.contains('/') {
            return Err(invalid(
                "it goes before the last component of the path, so it has no \"/\"".to_owned(),
            ));
        }
        let name = format!("{prefix}{}", self.name());
        component::check(&name).map_err(invalid)?;
        Ok(match self.parent() {
            Some(parent) => Self(format!("{parent}/{name}")),
            None => Self(name),
        })
    }
}

impl AsRef<str> for Subpath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<Path> for Subpath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for Subpath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_knows_its_parts() {
        let path = Subpath::clean("/a/b/c").unwrap();
        assert_eq!(path.components().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!((path.name(), path.parent().unwrap().as_str()), ("c", "a/b"));
        let top = Subpath::clean("a").unwrap();
        assert_eq!((top.name(), top.parent()), ("a", None));
    }
}
