//! The serde form of OCI's `LinuxResources`: how its JSON says "absent" and "no limit".
//!
//! Errors are raised while a value is being read, not afterwards, so that `serde_json` can say where it stands.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An object. A derived type alone would take an array too, field by field.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(Fields(PhantomData)).map(Self)
    }
}

/// An object, or `null` for an empty one.
pub(super) fn section<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    let object: Option<Object<T>> = Option::deserialize(deserializer)?;
    Ok(object.map(|Object(section)| section).unwrap_or_default())
}

/// A map of objects, or `null` for an empty one.
pub(super) fn sections<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects: BTreeMap<String, Object<T>> = map(deserializer)?;
    Ok(objects.into_iter().map(|(key, Object(section))| (key, section)).collect())
}

/// A list or map, or `null` for an empty one: what Go writes for a nil slice or map.
pub(super) fn collection<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A map, or `null` for an empty one. A key that comes twice is refused, as a field of a section is.
pub(super) fn map<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Map<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, T>()? {
                if entries.contains_key(&key) {
                    return Err(de::Error::custom(format_args!("duplicate field `{key}`")));
                }
                entries.insert(key, value);
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_any(Map(PhantomData))
}

/// An object of a list that is a map to us: it has its key in it.
pub(super) trait Item: Sized {
    type Key: Ord;
    type Value;

    fn into_entry(self) -> (Self::Key, Self::Value);
    fn from_entry(key: &Self::Key, value: &Self::Value) -> Self;
}

/// A list of objects, or `null` for an empty one. Of two with one key the later stays: runtimes write them in order.
pub(super) fn read_list<'de, I, D>(deserializer: D) -> Result<BTreeMap<I::Key, I::Value>, D::Error>
where
    I: Item + Deserialize<'de>,
    D: Deserializer<'de>,
{
    let items: Vec<Object<I>> = collection(deserializer)?;
    Ok(items.into_iter().map(|Object(item)| item.into_entry()).collect())
}

/// The map as a list again.
pub(super) fn write_list<I, S>(map: &BTreeMap<I::Key, I::Value>, serializer: S) -> Result<S::Ok, S::Error>
where
    I: Item + Serialize,
    S: Serializer,
{
    serializer.collect_seq(map.iter().map(|(key, value)| I::from_entry(key, value)))
}

/// Whether a section has nothing in it, so that it need not be written.
pub(super) fn is_empty<T: Default + PartialEq>(section: &T) -> bool {
    *section == T::default()
}

/// Takes a whole number from `least` to `most`, or null for none. `expected` is what a refusal says of it.
struct Number<T> {
    least: i128,
    most: i128,
    expected: &'static str,
    /// What a number from 0 stands for.
    meaning: fn(u64) -> Option<T>,
    /// What -1 stands for, where `least` lets it through.
    minus_one: Option<T>,
}

impl<T> Number<T> {
    fn take<E: de::Error>(self, number: i128, unexpected: Unexpected<'_>) -> Result<Option<T>, E> {
        if !(self.least..=self.most).contains(&number) {
            return Err(E::invalid_value(unexpected, &self));
        }
        Ok(match u64::try_from(number) {
            Ok(number) => (self.meaning)(number),
            Err(_) => self.minus_one,
        })
    }
}

impl<T> Visitor<'_> for Number<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_unit<E>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Option<T>, E> {
        self.take(number.into(), Unexpected::Unsigned(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Option<T>, E> {
        self.take(number.into(), Unexpected::Signed(number))
    }
}

/// A limit of OCI's type int64: 0 is absent, -1 is [`Limit::Max`](crate::Limit::Max).
///
/// `Limit::Value(0)` has no form of its own: it is written as 0 and would be read as absent.
pub(super) mod limit {
    use serde::{Deserializer, Serializer};

    use super::Number;
    use crate::Limit;

    pub(crate) fn serialize<S: Serializer>(limit: &Option<Limit>, serializer: S) -> Result<S::Ok, S::Error> {
        match limit {
            Some(Limit::Value(value)) => serializer.serialize_u64(*value),
            Some(Limit::Max) => serializer.serialize_i64(-1),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Limit>, D::Error> {
        deserializer.deserialize_any(Number {
            least: -1,
            most: i64::MAX.into(),
            expected: "-1 for no limit, or a whole number from 0 to 9223372036854775807",
            meaning: |number| (number != 0).then_some(Limit::Value(number)),
            minus_one: Some(Limit::Max),
        })
    }
}

/// The limit of `pids`, where 0 is no absence: it means 1, as the runtimes have it.
pub(super) mod pids {
    use serde::{Deserializer, Serializer};

    use super::Number;
    use crate::Limit;

    pub(crate) fn serialize<S: Serializer>(limit: &Option<Limit>, serializer: S) -> Result<S::Ok, S::Error> {
        super::limit::serialize(limit, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Limit>, D::Error> {
        deserializer.deserialize_any(Number {
            least: -1,
            most: i64::MAX.into(),
            expected: "-1 for no limit, or a whole number of tasks",
            meaning: |number| Some(Limit::Value(number.max(1))),
            minus_one: Some(Limit::Max),
        })
    }
}

/// A number of OCI's type uint64 where 0 is absent.
pub(super) mod nonzero {
    use serde::{Deserializer, Serialize, Serializer};

    use super::Number;

    pub(crate) fn serialize<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        number.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        deserializer.deserialize_any(Number {
            least: 0,
            most: u64::MAX.into(),
            expected: "a whole number that is not negative",
            meaning: |number| (number != 0).then_some(number),
            minus_one: None,
        })
    }
}

/// A number of OCI's type uint64 where 0 is a value like others.
pub(super) mod number {
    use serde::Deserializer;

    use super::Number;

    pub(crate) use super::nonzero::serialize;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        deserializer.deserialize_any(Number {
            least: 0,
            most: u64::MAX.into(),
            expected: "a whole number that is not negative",
            meaning: Some,
            minus_one: None,
        })
    }
}

/// A limit of OCI's type uint64, which has no word for no limit: its greatest number stands for it, and -1 where the
/// caller's type is signed.
pub(super) mod huge_pages {
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    use super::Number;
    use crate::Limit;

    pub(crate) fn serialize<S: Serializer>(limit: &Limit, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(match limit {
            Limit::Value(value) => *value,
            Limit::Max => u64::MAX,
        })
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Limit, D::Error> {
        let limit = deserializer.deserialize_any(Number {
            least: -1,
            most: u64::MAX.into(),
            expected: "a whole number of bytes",
            meaning: |number| Some(if number == u64::MAX { Limit::Max } else { Limit::Value(number) }),
            minus_one: Some(Limit::Max),
        })?;
        limit.ok_or_else(|| D::Error::custom("takes a whole number of bytes"))
    }
}

/// A limit of OCI's type uint32, which has no word for no limit: its greatest number stands for it.
pub(super) mod max32 {
    use serde::{Deserializer, Serializer};

    use super::Number;
    use crate::Limit;

    pub(crate) fn serialize<S: Serializer>(limit: &Option<Limit>, serializer: S) -> Result<S::Ok, S::Error> {
        match limit {
            Some(Limit::Value(value)) => serializer.serialize_u64(*value),
            Some(Limit::Max) => serializer.serialize_u32(u32::MAX),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Limit>, D::Error> {
        deserializer.deserialize_any(Number {
            least: 0,
            most: u32::MAX.into(),
            expected: "a whole number of 32 bits that is not negative",
            meaning: |number| {
                Some(if number == u64::from(u32::MAX) { Limit::Max } else { Limit::Value(number) })
            },
            minus_one: None,
        })
    }
}

/// A set of CPUs or memory nodes, where "" is absent.
pub(super) mod set {
    use std::fmt;

    use serde::de::{self, Visitor};
    use serde::{Deserializer, Serialize, Serializer};

    use crate::{CpuSet, Error};

    pub(crate) fn serialize<S: Serializer>(set: &Option<CpuSet>, serializer: S) -> Result<S::Ok, S::Error> {
        set.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<CpuSet>, D::Error> {
        struct List;

        impl Visitor<'_> for List {
            type Value = Option<CpuSet>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list such as \"0-3,8\"")
            }

            fn visit_unit<E>(self) -> Result<Option<CpuSet>, E> {
                Ok(None)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<CpuSet>, E> {
                if text.is_empty() {
                    return Ok(None);
                }
                text.parse().map(Some).map_err(|error: Error| E::custom(error.message()))
            }
        }

        deserializer.deserialize_any(List)
    }
}
