//! A sorted map that is filled anew with every sample.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A sorted map, for what the kernel lists by name or by device.
///
/// It keeps its keys when it is cleared: the next sample has the same ones, and allocates nothing.
#[derive(Clone)]
pub struct Table<K, V> {
    /// `None`: a key of an earlier sample.
    rows: BTreeMap<K, Option<V>>,
}

impl<K: Ord, V> Table<K, V> {
    /// The value of `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.rows.get(key)?.as_ref()
    }

    /// Changes the value of `key`, which is the default if there was none.
    pub(super) fn update<Q: Ord + ToOwned<Owned = K> + ?Sized>(
        &mut self,
        key: &Q,
        change: impl FnOnce(&mut V),
    ) where
        K: Borrow<Q>,
        V: Default,
    {
        if let Some(row) = self.rows.get_mut(key) {
            change(row.get_or_insert_default());
        } else {
            change(self.rows.entry(key.to_owned()).or_default().get_or_insert_default());
        }
    }
}

impl<K, V> Table<K, V> {
    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(super) fn clear(&mut self) {
        self.retain(|_| false);
    }

    /// Takes out the values of which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        for row in self.rows.values_mut() {
            row.take_if(|value| !keep(value));
        }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new() }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Serialize, V: Serialize> Serialize for Table<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Deserialize<'de> for Table<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rows = BTreeMap::<K, V>::deserialize(deserializer)?;
        Ok(Self { rows: rows.into_iter().map(|(key, value)| (key, Some(value))).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_sorted_and_equal_by_what_is_in_it_now() {
        let mut table = Table::<String, u64>::default();
        table.update("b", |value| *value = 2);
        table.update("a", |value| *value = 1);
        table.update("b", |value| *value += 1);
        assert_eq!(serde_json::to_string(&table).unwrap(), r#"{"a":1,"b":3}"#);

        table.clear();
        assert!(table.is_empty());
        assert_eq!(table, Table::default());
        assert_eq!(table.get("a"), None);

        table.update("b", |value| *value += 4);
        assert_eq!(table.get("b"), Some(&4), "a key that comes back starts anew");
        assert_eq!(table.iter().count(), 1);
    }
}
