//! Properties of units, as `org.freedesktop.systemd1` has them. Pure.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::resources::CpuSet;

/// No limit, in systemd's words.
pub(crate) const INFINITY: u64 = u64::MAX;

/// The value of a property, by its D-Bus type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `ay`: bit 0 of byte 0 is CPU 0.
    Set(CpuSet),
    /// `a(st)`: by device. Entries are added to those that systemd has.
    PerDevice(Vec<(String, u64)>),
    /// `a(ss)`: device and access. Replaces those that systemd has.
    Devices(Vec<(String, String)>),
}

/// A property and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Property {
    pub(crate) name: &'static str,
    pub(crate) value: Value,
}

impl Property {
    pub(crate) fn new(name: &'static str, value: Value) -> Self {
        Self { name, value }
    }

    pub(crate) fn number(name: &'static str, number: u64) -> Self {
        Self::new(name, Value::Number(number))
    }

    pub(crate) fn text(name: &'static str, text: impl Into<String>) -> Self {
        Self::new(name, Value::Text(text.into()))
    }

    pub(crate) fn yes(name: &'static str) -> Self {
        Self::new(name, Value::Bool(true))
    }
}

/// Adds properties; what is told twice of one counts as it was told last, of lists by device.
pub(crate) fn tell(properties: &mut Vec<Property>, more: impl IntoIterator<Item = Property>) {
    for new in more {
        let known = properties.iter_mut().find(|known| known.name == new.name);
        match (known, new.value) {
            (Some(Property { value: Value::PerDevice(known), .. }), Value::PerDevice(entries)) => {
                known.retain(|(device, _)| !entries.iter().any(|(new, _)| new == device));
                known.extend(entries);
            }
            (Some(known), value) => known.value = value,
            (None, value) => properties.push(Property { name: new.name, value }),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(INFINITY) => serializer.serialize_str("max"),
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Set(set) => serializer.collect_str(set),
            Self::PerDevice(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (device, number) in entries {
                    map.serialize_entry(device, &Self::Number(*number))?;
                }
                map.end()
            }
            Self::Devices(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (device, access) in entries {
                    map.serialize_entry(device, access)?;
                }
                map.end()
            }
        }
    }
}

impl std::fmt::Display for Property {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |entries: Vec<String>| entries.join(", ");
        let value = match &self.value {
            Value::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
            Value::Number(INFINITY) => "infinity".to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Text(text) => format!("{text:?}"),
            Value::Set(set) => set.to_string(),
            Value::PerDevice(entries) => list(
                entries
                    .iter()
                    .map(|(device, number)| match *number {
                        INFINITY => format!("{device} infinity"),
                        number => format!("{device} {number}"),
                    })
                    .collect(),
            ),
            Value::Devices(entries) => {
                list(entries.iter().map(|(device, access)| format!("{device} {access}")).collect())
            }
        };
        write!(f, "{}={value}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_twice_counts_as_it_was_told_last() {
        let mut properties = vec![Property::number("CPUWeight", 5)];
        let per_device = |device: &str, number| {
            Property::new("IOReadBandwidthMax", Value::PerDevice(vec![(device.to_owned(), number)]))
        };
        tell(&mut properties, [Property::number("CPUWeight", 0), per_device("a", 1), per_device("b", 2)]);
        tell(&mut properties, [per_device("a", 3)]);
        let entries = Value::PerDevice(vec![("b".to_owned(), 2), ("a".to_owned(), 3)]);
        assert_eq!(
            properties,
            [Property::number("CPUWeight", 0), Property::new("IOReadBandwidthMax", entries)]
        );
    }
}
