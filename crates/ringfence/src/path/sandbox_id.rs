//! The name of a sandbox.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The name of a sandbox: letters, digits, `_`, `.` and `-`, 1 to 128 bytes, not `.` or `..`, and not beginning with
/// `-`, which would read as an option.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let good = matches!(text.len(), 1..=128)
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            && !matches!(text, "." | "..")
            && !text.starts_with('-');
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(
            "id",
            text,
            "the name of a sandbox has letters, digits, \"_\", \".\" and \"-\", 1 to 128 bytes, \
             is not \".\" or \"..\", and does not begin with \"-\"",
        ))
    }
}

impl AsRef<str> for SandboxId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl TryFrom<String> for SandboxId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_word() {
        for good in ["a", "vm-1", "a.b_c", "0", "...", "_", &*"x".repeat(128)] {
            assert_eq!(good.parse::<SandboxId>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ü", "a\n", "a:b", &*"x".repeat(129)] {
            let error = bad.parse::<SandboxId>().unwrap_err();
            assert_eq!((error.setting(), error.value()), (Some("id"), Some(bad)));
        }
        assert!(serde_json::from_str::<SandboxId>(r#""../x""#).is_err());
    }
}
