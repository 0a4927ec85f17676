//! The JSON form of a device rule: OCI runtime specification, "Allowed Device list".

use serde::{Deserialize, Serialize};

use super::{Access, DeviceKind, DeviceRule, Numbers, RuleKind};
use crate::{Error, Result};

/// The fields as OCI has them, not checked yet.
///
/// A field that nobody reads is an error: a misspelt number would open every device instead of one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinuxDeviceCgroup {
    allow: bool,
    /// Absent: every device.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    /// Absent or -1: every number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    major: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    minor: Option<i64>,
    /// Absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access: Option<Access>,
}

impl TryFrom<LinuxDeviceCgroup> for DeviceRule {
    type Error = Error;

    fn try_from(raw: LinuxDeviceCgroup) -> Result<Self> {
        let kind = match raw.kind.as_deref() {
            None | Some("a" | "") => RuleKind::All,
            Some("b") => RuleKind::Only(DeviceKind::Block),
            // OCI's "unbuffered character device": mknod(1) makes the same node of both.
            Some("c" | "u") => RuleKind::Only(DeviceKind::Char),
            Some(other) => {
                let allowed = "a device rule is for a (every device), b (block), c or u (character)";
                return Err(Error::invalid("devices.type", other, allowed));
            }
        };
        let numbers = Numbers {
            major: number("devices.major", raw.major)?,
            minor: number("devices.minor", raw.minor)?,
        };
        let access = raw.access.unwrap_or(Access::ALL);
        let rule = Self { allow: raw.allow, kind, numbers, access, path: None };
        rule.validate().map(|()| rule)
    }
}

fn number(setting: &'static str, given: Option<i64>) -> Result<Option<u32>> {
    match given {
        None | Some(-1) => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(number) if number != Numbers::KERNELS_ANY => Ok(Some(number)),
            _ => Err(Error::invalid(setting, number, "0 to 4294967294; absent or -1 for every number")),
        },
    }
}

impl From<DeviceRule> for LinuxDeviceCgroup {
    fn from(rule: DeviceRule) -> Self {
        Self {
            allow: rule.allow,
            kind: Some(rule.kind.to_string()),
            major: rule.numbers.major.map(i64::from),
            minor: rule.numbers.minor.map(i64::from),
            access: Some(rule.access),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_as_oci_has_it() {
        for (json, sentence) in [
            (r#"{"allow":false,"access":"rwm"}"#, "deny a *:* rwm"),
            (r#"{"allow":false}"#, "deny a *:* rwm"),
            (r#"{"allow":true,"type":"a","major":-1,"minor":null}"#, "allow a *:* rwm"),
            (r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}"#, "allow c 1:3 r"),
            (r#"{"allow":true,"type":"u","major":1,"access":"m"}"#, "allow c 1:* m"),
            (r#"{"allow":true,"type":"b","major":-1,"minor":7}"#, "allow b *:7 rwm"),
        ] {
            let rule: DeviceRule = serde_json::from_str(json).unwrap();
            assert_eq!(rule.sentence(), sentence, "{json}");
            let again: DeviceRule = serde_json::from_str(&serde_json::to_string(&rule).unwrap()).unwrap();
            assert_eq!(again, rule, "{json}");
        }
    }

    #[test]
    fn a_rule_for_every_device_that_names_some_is_refused() {
        for json in [
            r#"{"allow":true,"major":1,"minor":3,"access":"rwm"}"#,
            r#"{"allow":true,"type":"a","minor":0}"#,
            r#"{"allow":true,"type":"a","access":"r"}"#,
            r#"{"allow":true,"access":"rw"}"#,
        ] {
            let error = serde_json::from_str::<DeviceRule>(json).expect_err(json);
            assert!(error.to_string().contains("every device"), "{json}: {error}");
        }
    }

    #[test]
    fn types_numbers_and_accesses_that_do_not_exist_are_refused() {
        for (json, named) in [
            (r#"{"allow":true,"type":"p","major":1,"minor":3}"#, "devices.type"),
            (r#"{"allow":true,"type":"c","major":-2}"#, "devices.major"),
            (r#"{"allow":true,"type":"c","major":4294967295}"#, "devices.major"),
            (r#"{"allow":true,"type":"c","minor":9223372036854775807}"#, "devices.minor"),
            (r#"{"allow":true,"type":"c","access":""}"#, "devices.access"),
            (r#"{"allow":true,"type":"c","access":"rx"}"#, "devices.access"),
            (r#"{"type":"c"}"#, "allow"),
        ] {
            let error = serde_json::from_str::<DeviceRule>(json).expect_err(json);
            assert!(error.to_string().contains(named), "{json}: {error}");
        }
    }

    #[test]
    fn a_field_that_nobody_reads_is_refused_and_does_not_widen_the_rule() {
        let error = serde_json::from_str::<DeviceRule>(r#"{"allow":true,"type":"c","mayor":1}"#).unwrap_err();
        assert!(error.to_string().contains("mayor"), "{error}");
    }
}
