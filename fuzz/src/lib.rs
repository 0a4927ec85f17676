//! What several fuzz targets share.

pub mod documents;
pub mod plans;
pub mod stats;

use std::collections::{BTreeMap, BTreeSet};

use ringfence::devices::{Access, DeviceKind};
use ringfence::resources::Memory;
use ringfence::{DeviceRule, Error, ErrorKind, Host, Limit, Mode, Resources};
use serde_json::{Map, Value};

/// The parts of an input, which a NUL divides; those that are missing are empty.
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |byte| *byte == 0);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// The hosts for which a plan can be made without being there.
pub fn standard_hosts() -> impl Iterator<Item = Host> {
    [Mode::V1, Mode::Hybrid, Mode::V2]
        .into_iter()
        .flat_map(|mode| [false, true].map(|systemd| Host::standard(mode, systemd)))
}

/// An error of a parser blames the input, and says something.
pub fn assert_refused(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    assert!(!error.message().is_empty() && !error.to_string().is_empty());
}

/// What is written as OCI JSON reads back the same. A limit of 0, which files
/// can give, has no form of its own there.
pub fn assert_round_trip(resources: &Resources) {
    let Memory { limit, reservation, swap, kernel, kernel_tcp, .. } = &resources.memory;
    if [limit, reservation, swap, kernel, kernel_tcp, &resources.pids.limit].contains(&&Some(Limit::Value(0)))
    {
        return;
    }
    let text = resources.to_oci_json().expect("all that can be held can be written");
    let (read, report) = Resources::from_oci_json(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(report.is_empty(), "{text}: {report}");
    assert_eq!(read, *resources, "{text}");
    assert_eq!(read.to_oci_json().expect("as above"), text);
}

/// Every value in a document with its place, such as `devices[2].major`, and the values inside of it.
pub fn places(document: &Value) -> Vec<(String, &Value)> {
    fn walk<'v>(place: Option<String>, value: &'v Value, found: &mut Vec<(String, &'v Value)>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(key, value)| walk(Some(field(place.as_deref(), key)), value, found));
            }
            Value::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    walk(Some(format!("{}[{index}]", place.as_deref().unwrap_or_default())), value, found);
                }
            }
            _ => {}
        }
        found.push((place.unwrap_or_default(), value));
    }
    let mut found = Vec::new();
    walk(None, document, &mut found);
    found
}

fn field(place: Option<&str>, key: &str) -> String {
    place.map_or_else(|| key.to_owned(), |place| format!("{place}.{key}"))
}

/// The settings that resources give, by the names that steps and reports have for them, and their values. What OCI keeps
/// in a list is named by its key: `blockIO.weightDevice.8:0.weight`, `hugepageLimits.2MB`; device rules are one setting.
pub fn settings(resources: &Resources) -> BTreeMap<String, Value> {
    fn walk(place: &str, value: Value, found: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) => {
                fields.into_iter().for_each(|(name, value)| walk(&format!("{place}.{name}"), value, found));
            }
            Value::Array(items) if !items.iter().all(Value::is_object) || place == ".devices" => {
                found.insert(place.trim_start_matches('.').to_owned(), Value::Array(items));
            }
            Value::Array(items) => items.into_iter().for_each(|item| element(place, item, found)),
            value => {
                found.insert(place.trim_start_matches('.').to_owned(), value);
            }
        }
    }
    fn element(list: &str, item: Value, found: &mut BTreeMap<String, Value>) {
        let key = match (&item["major"], &item["minor"], &item["pageSize"], &item["name"]) {
            (Value::Number(major), Value::Number(minor), ..) => format!("{major}:{minor}"),
            (_, _, Value::String(key), _) | (_, _, _, Value::String(key)) => key.clone(),
            _ => panic!("{list} has an element without a key: {item}"),
        };
        let Value::Object(fields) = item else { return };
        for (name, value) in fields {
            match name.as_str() {
                "major" | "minor" | "pageSize" | "name" => {}
                "rate" | "limit" | "priority" => walk(&format!("{list}.{key}"), value, found),
                _ => walk(&format!("{list}.{key}.{name}"), value, found),
            }
        }
    }
    let document = serde_json::from_str(&resources.to_oci_json().expect("JSON")).expect("JSON");
    let mut found = BTreeMap::new();
    walk("", document, &mut found);
    found
}

/// Whether an object anywhere in a document has a key twice: `Value` shows the last one only.
pub fn has_duplicate_keys(text: &str) -> bool {
    // A document that says the same as its `Value` has as many colons outside of strings as that has fields.
    fn colons(text: &str) -> usize {
        let (mut count, mut string, mut escaped) = (0, false, false);
        for byte in text.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if string => escaped = true,
                b'"' => string = !string,
                b':' if !string => count += 1,
                _ => {}
            }
        }
        count
    }
    fn fields(value: &Value) -> usize {
        match value {
            Value::Object(map) => map.len() + map.values().map(fields).sum::<usize>(),
            Value::Array(items) => items.iter().map(fields).sum(),
            _ => 0,
        }
    }
    serde_json::from_str::<Value>(text).is_ok_and(|value| colons(text) != fields(&value))
}

/// The document with nothing in it but what leads to `place`, and what is there. The one element of a list that leads
/// there becomes its first.
pub fn alone(document: &Value, place: &str) -> Option<Value> {
    fn within(value: &Value, here: Option<&str>, place: &str) -> Option<Value> {
        if here.unwrap_or_default() == place {
            return Some(value.clone());
        }
        match value {
            Value::Object(fields) => fields.iter().find_map(|(key, value)| {
                let inside = within(value, Some(&field(here, key)), place)?;
                Some(Value::Object(Map::from_iter([(key.clone(), inside)])))
            }),
            Value::Array(items) => items.iter().enumerate().find_map(|(index, value)| {
                let there = format!("{}[{index}]", here.unwrap_or_default());
                Some(Value::Array(vec![within(value, Some(&there), place)?]))
            }),
            _ => None,
        }
    }
    within(document, None, place)
}

/// Device rules, three bytes each, over few numbers so that they meet.
pub fn rules(bytes: &[u8]) -> Vec<DeviceRule> {
    const LETTERS: [&str; 7] = ["r", "w", "m", "rw", "rm", "wm", "rwm"];
    let number = |byte: u8| match byte {
        0xff => None,
        0xfe => Some(4_294_967_294),
        0xfd => Some(65_536),
        other => Some(u32::from(other % 8)),
    };
    let rule = |bytes: &[u8; 3]| {
        let [head, major, minor] = *bytes;
        let allow = head & 1 == 1;
        if head & 0xf0 == 0xf0 {
            return if allow { DeviceRule::allow_all() } else { DeviceRule::deny_all() };
        }
        let kind = if head & 2 == 2 { DeviceKind::Block } else { DeviceKind::Char };
        let access: Access = LETTERS[usize::from(head >> 2) % 7].parse().expect("an access");
        let (major, minor) = (number(major), number(minor));
        match allow {
            true => DeviceRule::allow(kind, major, minor, access),
            false => DeviceRule::deny(kind, major, minor, access),
        }
    };
    bytes.as_chunks().0.iter().map(rule).collect()
}

/// The policy of those rules that can be expressed.
pub fn expressible(rules: &[DeviceRule]) -> ringfence::DevicePolicy {
    let mut policy = ringfence::DevicePolicy::deny_all();
    let mut report = ringfence::Report::default();
    for rule in rules {
        let before = (rules.len() < 100).then(|| policy.clone());
        if policy.apply(rule, &mut report).is_err() {
            assert!(before.is_none_or(|before| before == policy), "a refused rule changes nothing");
        }
    }
    policy
}

/// Accesses to the devices that policies name, and to those beside them; `None` asks for nothing (access(2) with F_OK).
pub fn probes<'a>(
    policies: impl IntoIterator<Item = &'a ringfence::DevicePolicy>,
) -> Vec<(DeviceKind, u32, u32, Option<Access>)> {
    let (mut majors, mut minors) = (BTreeSet::from([9]), BTreeSet::from([9]));
    for exception in policies.into_iter().flat_map(|policy| policy.exceptions()) {
        majors.extend(exception.numbers.major);
        minors.extend(exception.numbers.minor);
    }
    let accesses: Vec<_> = ["r", "w", "m", "rw", "rm", "wm", "rwm"]
        .iter()
        .map(|letters| Some(letters.parse().expect("an access")))
        .chain([None])
        .collect();
    let mut probes = Vec::new();
    for kind in [DeviceKind::Block, DeviceKind::Char] {
        for major in &majors {
            for minor in &minors {
                probes.extend(accesses.iter().map(|access| (kind, *major, *minor, *access)));
            }
        }
    }
    probes
}
