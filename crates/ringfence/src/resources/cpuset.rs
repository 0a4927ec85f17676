//! Sets of CPUs or memory nodes, in the kernel's list format.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result, text};

/// Bytes of the longest list: all even numbers, or any others, take a quarter of it.
const LONGEST_LIST: usize = 128 << 10;

/// A set of CPUs or memory nodes: numbers from 0 to [`CpuSet::LAST`].
///
/// Written and read in the kernel's list format (`Documentation/admin-guide/kernel-parameters.rst`, "cpu lists"):
/// `0-3,8`, where commas or white space separate, and `0-31:1/4` takes the first of every four. What is displayed is
/// canonical, as the kernel echoes it: `0-3,4-7` becomes `0-7`. Sets are equal if they have the same numbers.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuSet {
    /// Bit n of word w is number 64·w + n. The last word is never 0, so that equal sets have equal words.
    words: Vec<u64>,
}

impl CpuSet {
    /// The highest number: no kernel is built for more than 8192 CPUs (x86's `NR_CPUS` with `MAXSMP`).
    pub const LAST: u32 = 8191;

    /// The empty set.
    pub const fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// The set of these numbers, in any order; a number above [`CpuSet::LAST`] is an error.
    pub fn from_numbers(numbers: impl IntoIterator<Item = u32>) -> Result<Self> {
        let mut set = Self::new();
        for number in numbers {
            if number > Self::LAST {
                return Err(Flaw::TooHigh.error(number));
            }
            set.insert(number);
        }
        Ok(set)
    }

    /// Whether `number` is in the set.
    pub fn contains(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether every number of this set is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.words.iter().enumerate().all(|(at, word)| word & !other.word(at) == 0)
    }

    /// The numbers in either set.
    pub fn union(&self, other: &Self) -> Self {
        let length = self.words.len().max(other.words.len());
        Self::from_words((0..length).map(|at| self.word(at) | other.word(at)))
    }

    /// The numbers in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let length = self.words.len().min(other.words.len());
        Self::from_words((0..length).map(|at| self.word(at) & other.word(at)))
    }

    /// The numbers that `other` has not.
    pub fn difference(&self, other: &Self) -> Self {
        Self::from_words(self.words.iter().enumerate().map(|(at, word)| word & !other.word(at)))
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        // At most 64 bits in each of 128 words: the cast loses nothing.
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is no number.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The numbers, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).step_by(64).zip(&self.words).flat_map(|(base, word)| {
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| base.saturating_add(bit))
        })
    }

    /// The runs of neighbours, in ascending order.
    fn runs(&self) -> impl Iterator<Item = RangeInclusive<u32>> + '_ {
        let mut numbers = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = numbers.next()?;
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| next.checked_sub(1) == Some(last)) {
                last = next;
            }
            Some(first..=last)
        })
    }

    fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    fn from_words(words: impl Iterator<Item = u64>) -> Self {
        let mut words: Vec<u64> = words.collect();
        while words.pop_if(|last| *last == 0).is_some() {}
        Self { words }
    }

    /// Callers have checked that `number` is at most [`CpuSet::LAST`].
    fn insert(&mut self, number: u32) {
        let (at, bit) = place(number);
        if self.words.len() <= at {
            self.words.resize(at.saturating_add(1), 0);
        }
        if let Some(word) = self.words.get_mut(at) {
            *word |= bit;
        }
    }

    /// Makes this the set of a list, as [`CpuSet::from_str`] reads it, in the memory that it has; false if the list is
    /// malformed, and the set is then of no use.
    pub(crate) fn refill(&mut self, list: &str) -> bool {
        self.read(list).is_ok()
    }

    /// Refuses a text that is longer than any list has to be: each of its items may stand for thousands of numbers.
    pub(crate) fn check_length(list: &str) -> Result<()> {
        if list.len() <= LONGEST_LIST {
            return Ok(());
        }
        let start: String = list.chars().take(24).collect();
        Err(Error::invalid("list", format!("{start}…"), format!("a list has at most {LONGEST_LIST} bytes")))
    }

    /// Allocates nothing but the words that are missing.
    fn read(&mut self, list: &str) -> Result<(), Flaw> {
        self.words.clear();
        list.split(|c: char| c == ',' || c.is_ascii_whitespace())
            .filter(|item| !item.is_empty())
            .try_for_each(|item| self.insert_item(item))
    }

    /// Adds what one item of a list names: `4`, `0-3` or `0-31:1/4`.
    fn insert_item(&mut self, item: &str) -> Result<(), Flaw> {
        let (range, stride) = match item.split_once(':') {
            Some((range, stride)) => (range, Some(stride)),
            None => (item, None),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            // The kernel takes a stride after a range only.
            None if stride.is_some() => return Err(Flaw::Malformed),
            None => (number(range)?, number(range)?),
        };
        let (used, group) = match stride.map(|stride| stride.split_once('/')) {
            Some(Some((used, group))) => (number(used)?, number(group)?),
            Some(None) => return Err(Flaw::Malformed),
            None => (1, 1),
        };
        if last > Self::LAST {
            return Err(Flaw::TooHigh);
        }
        if first > last {
            return Err(Flaw::Backwards);
        }
        if group == 0 || used > group {
            return Err(Flaw::Stride);
        }
        for number in first..=last {
            // `group` is not 0 and `number` not below `first`: neither operation can fail.
            if number.abs_diff(first).checked_rem(group).is_some_and(|offset| offset < used) {
                self.insert(number);
            }
        }
        Ok(())
    }
}

/// The word and the bit in it that stand for `number`.
fn place(number: u32) -> (usize, u64) {
    ((number / 64) as usize, 1 << (number % 64))
}

fn number(digits: &str) -> Result<u32, Flaw> {
    // `u32::from_str` takes a sign, the kernel does not.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Flaw::Malformed);
    }
    digits.parse().map_err(|_| Flaw::TooHigh)
}

/// What is wrong with a list.
#[derive(Debug, Clone, Copy)]
enum Flaw {
    Malformed,
    TooHigh,
    Backwards,
    Stride,
}

impl Flaw {
    fn error(self, given: impl fmt::Display) -> Error {
        let why = match self {
            Self::Malformed => "takes numbers and ranges separated by commas, such as 0-3,8",
            Self::TooHigh => {
                return Error::invalid("list", given, format!("takes numbers up to {}", CpuSet::LAST));
            }
            Self::Backwards => "a range begins with its lowest number",
            Self::Stride => "of A-B:USED/GROUP, USED is at most GROUP and GROUP at least 1",
        };
        Error::invalid("list", given, why)
    }
}

impl FromStr for CpuSet {
    type Err = Error;

    /// Reads a list as the kernel does (`bitmap_parselist`), except `all` and `N`, which mean something else on every
    /// host. A text without numbers is the empty set.
    fn from_str(text: &str) -> Result<Self> {
        Self::check_length(text)?;
        let mut set = Self::new();
        set.read(text).map_err(|flaw| flaw.error(text))?;
        Ok(set)
    }
}

impl fmt::Display for CpuSet {
    /// The canonical list, such as `0-3,8`; nothing at all for the empty set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, run) in self.runs().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            let (first, last) = run.into_inner();
            write!(f, "{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuSet({self})")
    }
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer, "a list such as \"0-3,8\"")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_that_is_longer_than_any_has_to_be_is_refused() {
        let even: Vec<String> = (0..=CpuSet::LAST).step_by(2).map(|number| number.to_string()).collect();
        let even: CpuSet = even.join(",").parse().unwrap();
        assert_eq!(even.iter().count(), 4096);
        let error = "0-8191,".repeat(100_000).parse::<CpuSet>().unwrap_err();
        assert!(error.to_string().contains("131072 bytes") && error.to_string().len() < 200, "{error}");
    }

    #[test]
    fn lists_are_read_as_the_kernel_reads_them_and_shown_as_it_echoes_them() {
        // Each accepted by `cpuset.cpus` of Linux 6.18.
        for (given, echoed) in [
            ("", ""),
            ("\n", ""),
            (",,", ""),
            ("0", "0"),
            ("00001", "1"),
            ("0-3,5", "0-3,5"),
            ("0-3,4-7", "0-7"),
            ("5,0-3\n", "0-3,5"),
            (" 0 1 ", "0-1"),
            ("0,,1", "0-1"),
            ("0-1:1/2", "0"),
            ("0-1:0/2", ""),
            ("0-10:2/4", "0-1,4-5,8-9"),
            ("2-7:1/3", "2,5"),
            ("62-65", "62-65"),
            ("8191", "8191"),
        ] {
            assert_eq!(set(given).to_string(), echoed, "{given:?}");
        }
    }

    #[test]
    fn a_malformed_list_is_refused() {
        for given in [
            "x",
            "-1",
            "+1",
            "1-",
            "-",
            "0 - 1",
            "1-0",
            "0-1:1",
            "0-1:3/2",
            "0-1:1/0",
            "0:1/2",
            "0-1:/",
            "0x1",
            "1.5",
            "0-1-2",
            "all",
            "0-N",
            "٣",
            "8192",
            "0-8192",
            "4294967296",
            "99999999999999999999",
        ] {
            let refused = given.parse::<CpuSet>();
            assert!(refused.is_err(), "{given:?} gave {refused:?}");
        }
        let error = "0-9000".parse::<CpuSet>().unwrap_err();
        assert_eq!(error.to_string(), r#"list = "0-9000": takes numbers up to 8191"#);
    }

    #[test]
    fn a_number_that_is_too_high_is_refused_by_from_numbers() {
        assert_eq!(CpuSet::from_numbers([3, 1, 2, 3]).unwrap(), set("1-3"));
        assert!(CpuSet::from_numbers([CpuSet::LAST + 1]).is_err());
        assert!(!CpuSet::new().contains(u32::MAX));
    }

    #[test]
    fn refilling_a_set_that_was_as_large_allocates_nothing_not_even_for_a_malformed_list() {
        let mut set = set("0-63,8191");
        let allocations = crate::allocations::count(|| {
            assert!(
                set.refill("2,8190\n") && !set.refill("1,x") && !set.refill("9999") && set.refill("0-63")
            );
        });
        assert_eq!(allocations, 0);
        assert_eq!(set.to_string(), "0-63");
    }

    #[test]
    fn the_serde_form_is_the_list() {
        assert_eq!(serde_json::to_string(&set("3,1,2")).unwrap(), r#""1-3""#);
        assert_eq!(serde_json::from_str::<CpuSet>(r#""1-3""#).unwrap(), set("1-3"));
        assert!(serde_json::from_str::<CpuSet>("3").is_err());
    }

    fn numbers() -> impl Strategy<Value = BTreeSet<u32>> {
        prop_oneof![
            proptest::collection::btree_set(0u32..200, 0..40),
            proptest::collection::btree_set(0u32..=CpuSet::LAST, 0..5),
        ]
    }

    fn from(numbers: &BTreeSet<u32>) -> CpuSet {
        CpuSet::from_numbers(numbers.iter().copied()).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_displayed_reads_back_as_the_same_set(numbers in numbers()) {
            let set = from(&numbers);
            prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
        }

        #[test]
        fn a_set_behaves_as_a_set_of_numbers(a in numbers(), b in numbers(), probe in 0u32..9000) {
            let (x, y) = (from(&a), from(&b));
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.is_empty(), a.is_empty());
            prop_assert_eq!(x.contains(probe), a.contains(&probe));
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x == y, a == b);
            prop_assert_eq!(x.union(&y), from(&a.union(&b).copied().collect()));
            prop_assert_eq!(x.intersection(&y), from(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(x.difference(&y), from(&a.difference(&b).copied().collect()));
            prop_assert!(x.intersection(&y).is_subset(&x) && x.is_subset(&x.union(&y)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[-0-9:/, N]{0,20}|.*") {
            let _ = text.parse::<CpuSet>();
        }

        #[test]
        fn a_set_that_is_refilled_has_nothing_left_of_before(before in numbers(), text in "[-0-9:/, ]{0,20}|[0-9]{1,3}(,[0-9]{1,3}){0,3}") {
            let mut set = from(&before);
            prop_assert_eq!(set.refill(&text).then_some(set), text.parse().ok());
        }
    }
}
