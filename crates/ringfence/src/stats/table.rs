//! A sorted map that is filled anew with every sample.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::parse;

/// A sorted map, for what the kernel lists by name or by device.
///
/// It keeps its keys when it is cleared: the next sample has the same ones, and allocates nothing. The kernel lists them in
/// the same order too, so that each is first looked for where it was the last time.
#[derive(Clone)]
pub struct Table<K, V> {
    /// Sorted. `None`: a key of an earlier sample.
    rows: Vec<(K, Option<V>)>,
    /// The row of each update of the last sample, in its order.
    order: Vec<usize>,
    /// How many updates there were since the last [`clear`](Self::clear); `None` where rows have moved since then.
    updates: Option<usize>,
}

impl<K: Ord, V> Table<K, V> {
    /// The value of `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let row = self.position(key).ok()?;
        self.rows.get(row)?.1.as_ref()
    }

    fn position<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.rows.binary_search_by(|(known, _)| known.borrow().cmp(key))
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
        let is_it = |row: &&usize| self.rows.get(**row).is_some_and(|(known, _)| known.borrow() == key);
        let row = match self.updates.and_then(|updates| self.order.get(updates)).filter(is_it) {
            Some(row) => *row,
            None => self.find(key),
        };
        if let Some(updates) = &mut self.updates {
            *updates += 1;
        }
        if let Some((_, value)) = self.rows.get_mut(row) {
            change(value.get_or_insert_default());
        }
    }

    /// The row of a key, made if there is none, and remembered for the next sample.
    fn find<Q: Ord + ToOwned<Owned = K> + ?Sized>(&mut self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        match self.position(key) {
            Ok(row) => {
                if let Some(updates) = self.updates {
                    self.order.truncate(updates);
                    self.order.push(row);
                }
                row
            }
            Err(row) => {
                self.rows.insert(row, (key.to_owned(), None));
                self.order.clear();
                self.updates = None;
                row
            }
        }
    }
}

impl Table<String, u64> {
    /// Takes the values of a flat keyed file. As long as its lines are those of the last sample, nothing is looked for.
    pub(super) fn fill(&mut self, contents: &[u8]) {
        let mut rest = contents;
        while let Some((row, text)) = self.expected(rest)
            && let Some((value, behind)) = parse::number_of_line(text)
            && let Some((_, known)) = self.rows.get_mut(row)
        {
            *known = Some(value);
            self.updates = self.updates.map(|updates| updates + 1);
            rest = behind;
        }
        for (name, value) in parse::flat_keyed_text(rest) {
            self.update(name, |known| *known = value);
        }
    }

    /// The row that comes next if all is as it was, where the next line is of it, and the rest of that line.
    fn expected<'a>(&self, rest: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let row = *self.order.get(self.updates?)?;
        let (name, _) = self.rows.get(row)?;
        Some((row, rest.strip_prefix(name.as_bytes())?.strip_prefix(b" ")?))
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
        self.updates = Some(0);
    }

    /// Takes out the values of which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        for (_, value) in &mut self.rows {
            value.take_if(|value| !keep(value));
        }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: Vec::new(), order: Vec::new(), updates: Some(0) }
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
        let rows = rows.into_iter().map(|(key, value)| (key, Some(value))).collect();
        Ok(Self { rows, ..Self::default() })
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

    #[test]
    fn a_file_that_changes_between_two_samples_is_taken_as_one_that_is_new() {
        let files: [&[u8]; 14] = [
            b"b 1\na 2\nc 3\n",
            b"b 4\na 5\nc 6\n",
            b"b 7\nc 8\n",
            b"b 9\na 10\nc 11\n",
            b"b x\na 12\nc 13\n",
            b"b 14\na\nc 15\n",
            b"b 16\naa 17\nc 18\n",
            b"b 19\naa 20 20\nc 18446744073709551616\n",
            b"b 21\n\xff 22\nc 23\n",
            b"b \naa 24\nc 18446744073709551615",
            b"b 25\nb 26\naa 27\n",
            b"b 28\nb 29\naa 30",
            b"",
            b"b 31\nb 32\naa 33\nd 34\n",
        ];
        let mut table = Table::default();
        for contents in files {
            table.clear();
            table.fill(contents);
            let mut new = Table::default();
            parse::flat_keyed_text(contents)
                .for_each(|(name, value)| new.update(name, |known| *known = value));
            assert_eq!(table, new, "{}", String::from_utf8_lossy(contents));
        }
    }

    #[test]
    fn whatever_the_order_in_which_keys_come_each_has_its_own_value() {
        let samples: [&[(&str, u64)]; 7] = [
            &[("c", 1), ("a", 2), ("b", 3)],
            &[("c", 4), ("a", 5), ("b", 6)],
            &[("a", 7), ("c", 8)],
            &[("a", 9), ("c", 10), ("aa", 11), ("b", 12)],
            &[("a", 13), ("c", 14), ("aa", 15), ("b", 16)],
            &[("c", 17), ("c", 18), ("a", 19)],
            &[],
        ];
        let mut table = Table::<String, u64>::default();
        for sample in samples {
            table.clear();
            sample.iter().for_each(|(key, value)| table.update(*key, |kept| *kept = *value));
            let expected: BTreeMap<String, u64> =
                sample.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
            assert!(table.iter().eq(&expected), "{sample:?}: {table:?}");
            expected.iter().for_each(|(key, value)| assert_eq!(table.get(key.as_str()), Some(value)));
        }
    }
}
