//! The line formats of cgroup files: pure functions of bytes.
//!
//! What is malformed is left out, and hides nothing that is not: a line, a value, a number beyond 64 bits.

use crate::resources::Limit;

/// The lines that are text.
pub(crate) fn lines(contents: &[u8]) -> impl Iterator<Item = &str> {
    // All of them are, as a rule.
    let (text, mixed) = match std::str::from_utf8(contents) {
        Ok(text) => (text, &[][..]),
        Err(_) => ("", contents),
    };
    let single = mixed.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    split(text, b'\n').chain(single)
}

/// As `split_once`, and faster where what is looked for is near.
fn cut(text: &str, at: u8) -> Option<(&str, &str)> {
    let position = text.bytes().position(|byte| byte == at)?;
    Some((text.get(..position)?, text.get(position + 1..)?))
}

/// As `split`, in the same way.
fn split(text: &str, at: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let (first, behind) = cut(text, at).map_or((text, None), |(first, behind)| (first, Some(behind)));
        rest = behind;
        Some(first)
    })
}

/// A file that is one number.
pub(crate) fn value(contents: &[u8]) -> Option<u64> {
    number(contents.trim_ascii_end())
}

/// A file that is one number or `max`.
pub(crate) fn limit(contents: &[u8]) -> Option<Limit> {
    number_or_max(contents.trim_ascii_end())
}

/// A limit in bytes, which may be a number that stands for no limit.
pub(crate) fn bytes_limit(contents: &[u8]) -> Option<Limit> {
    limit(contents).map(|limit| match limit {
        Limit::Value(bytes) => Limit::from_bytes(bytes),
        Limit::Max => Limit::Max,
    })
}

/// Lines of `NAME NUMBER` ("flat keyed"); each byte is looked at once.
pub(super) fn flat_keyed(contents: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    let mut rest = contents;
    std::iter::from_fn(move || {
        loop {
            let end = rest.iter().position(|byte| matches!(byte, b' ' | b'\n'))?;
            let (name, behind) = rest.split_at_checked(end)?;
            if let Some((number, next)) = behind.strip_prefix(b" ").and_then(number_of_line) {
                rest = next;
                return Some((name, number));
            }
            let newline = behind.iter().position(|byte| *byte == b'\n')?;
            rest = behind.get(newline + 1..)?;
        }
    })
}

/// The same, of those whose names are text.
pub(super) fn flat_keyed_text(contents: &[u8]) -> impl Iterator<Item = (&str, u64)> {
    flat_keyed(contents).filter_map(|(name, number)| Some((std::str::from_utf8(name).ok()?, number)))
}

/// The number to which the rest of a line comes down, and what is behind the line.
pub(super) fn number_of_line(text: &[u8]) -> Option<(u64, &[u8])> {
    match leading_number(text)? {
        (number, []) => Some((number, &[])),
        (number, [b'\n', behind @ ..]) => Some((number, behind)),
        _ => None,
    }
}

/// The decimal number, without a sign, with which a text begins, and what is behind it.
pub(super) fn leading_number(text: &[u8]) -> Option<(u64, &[u8])> {
    let (mut number, mut rest) = (None, text);
    while let [digit @ b'0'..=b'9', behind @ ..] = rest {
        number = Some(number.unwrap_or(0_u64).checked_mul(10)?.checked_add(u64::from(digit - b'0'))?);
        rest = behind;
    }
    Some((number?, rest))
}

/// Lines of `NAME NUMBER`, where the number can be `max`.
pub(super) fn flat_keyed_limits(contents: &[u8]) -> impl Iterator<Item = (&str, Limit)> {
    words(contents).filter_map(|(name, text)| Some((name, number_or_max(text)?)))
}

/// The number of one line of a flat keyed file.
pub(super) fn value_of(contents: &[u8], name: &str) -> Option<u64> {
    flat_keyed(contents).find_map(|(other, value)| (other == name.as_bytes()).then_some(value))
}

/// The `NAME=TEXT` words of the rest of a line of `KEY NAME=TEXT …` ("nested keyed").
pub(crate) fn assignments(rest: &str) -> impl Iterator<Item = (&str, &str)> {
    split(rest, b' ').filter_map(|word| cut(word, b'='))
}

/// A decimal number, without a sign.
pub(crate) fn number(text: impl AsRef<[u8]>) -> Option<u64> {
    leading_number(text.as_ref()).filter(|(_, behind)| behind.is_empty()).map(|(number, _)| number)
}

/// A decimal number, or `max`.
pub(crate) fn number_or_max(text: impl AsRef<[u8]>) -> Option<Limit> {
    if text.as_ref() == b"max" { Some(Limit::Max) } else { number(text).map(Limit::Value) }
}

/// Lines of two words.
fn words(contents: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    lines(contents).filter_map(|line| cut(line, b' ')).filter(|(_, second)| cut(second, b' ').is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_a_whole_number_and_nothing_else() {
        let table: [(&[u8], Option<u64>); 9] = [
            (b"0\n", Some(0)),
            (b"18446744073709551615\n", Some(u64::MAX)),
            (b"18446744073709551616\n", None),
            (b"7", Some(7)),
            (b"-1\n", None),
            (b"+1\n", None),
            (b"", None),
            (b"1 2\n", None),
            (b"\xff\n", None),
        ];
        for (contents, expected) in table {
            assert_eq!(value(contents), expected, "{contents:?}");
        }
    }

    #[test]
    fn no_limit_is_max_in_the_words_of_either_version() {
        type Parse = fn(&[u8]) -> Option<Limit>;
        let table: [(Parse, &[u8], Option<Limit>); 11] = [
            (limit, b"max\n", Some(Limit::Max)),
            (limit, b"0\n", Some(Limit::Value(0))),
            (limit, b"maximum\n", None),
            (bytes_limit, b"9223372036854771712\n", Some(Limit::Max)), // pages of 4 KiB
            (bytes_limit, b"9223372036854710272\n", Some(Limit::Max)), // pages of 64 KiB
            (bytes_limit, b"max\n", Some(Limit::Max)),
            // Huge pages of 2 MB and of 1 GB on v1, and both on v2 of Linux 6.18 until a limit is written.
            (bytes_limit, b"9223372036852678656\n", Some(Limit::Max)),
            (bytes_limit, b"9223372035781033984\n", Some(Limit::Max)),
            (bytes_limit, b"9223372036854775807\n", Some(Limit::Max)),
            (bytes_limit, b"268435456\n", Some(Limit::Value(268435456))),
            (bytes_limit, b"-1\n", None),
        ];
        for (parse, contents, expected) in table {
            assert_eq!(parse(contents), expected, "{:?}", String::from_utf8_lossy(contents));
        }
    }

    #[test]
    fn a_malformed_line_does_not_hide_the_others() {
        let contents =
            b"anon 1\nfile\n\n slab x\n\xff\xfe 3\nshmem 4 4\nsock 18446744073709551616\nkernel 5\nunfinished 6";
        assert_eq!(
            flat_keyed_text(contents).collect::<Vec<_>>(),
            [("anon", 1), ("kernel", 5), ("unfinished", 6)]
        );
    }
}
