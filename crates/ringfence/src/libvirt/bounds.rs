//! Limits of an XML document, checked before it is parsed: more would make parsing take more than linear time.

use crate::document::DEEPEST;
use crate::{Error, ErrorKind, Result};

/// Declarations of namespaces: the parser copies those in force for each element that has one of its own.
const MOST_NAMESPACES: usize = 128;
/// Attributes of one element: the parser compares each with all before it.
const MOST_ATTRIBUTES: usize = 128;
/// Elements, texts and comments, for the memory that they take.
pub(super) const MOST_NODES: u32 = 1 << 20;

/// Refuses too many namespaces, attributes of one element, or levels. Whether it is XML is left to the parser.
pub(super) fn check(xml: &str) -> Result<()> {
    let refused = |why: String| Err(Error::new(ErrorKind::InvalidInput, why));
    if xml.matches("xmlns").nth(MOST_NAMESPACES).is_some() {
        return refused(format!("declares more than {MOST_NAMESPACES} namespaces (xmlns)"));
    }
    let (mut rest, mut depth) = (xml, 0_usize);
    while let Some((_, markup)) = rest.split_once('<') {
        let skipped = [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>")];
        if let Some((begin, end)) = skipped.into_iter().find(|(begin, _)| markup.starts_with(begin)) {
            let inside = markup.strip_prefix(begin).unwrap_or(markup);
            rest = inside.split_once(end).map_or("", |(_, after)| after);
            continue;
        }
        let tag = Tag::of(markup);
        if tag.attributes > MOST_ATTRIBUTES {
            return refused(format!("has an element with more than {MOST_ATTRIBUTES} attributes"));
        }
        rest = tag.after;
        if markup.starts_with('/') {
            depth = depth.saturating_sub(1);
        } else if !tag.is_closed {
            depth = depth.saturating_add(1);
        }
        if depth > DEEPEST {
            return refused(format!("nests elements more than {DEEPEST} levels deep"));
        }
    }
    Ok(())
}

/// The text between `<` and `>`.
struct Tag<'x> {
    attributes: usize,
    is_closed: bool,
    after: &'x str,
}

impl<'x> Tag<'x> {
    fn of(markup: &'x str) -> Self {
        let (mut quote, mut attributes, mut last) = (None, 0_usize, b' ');
        for (at, byte) in markup.bytes().enumerate() {
            match (quote, byte) {
                (Some(open), _) if open == byte => quote = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => quote = Some(byte),
                (None, b'=') => attributes = attributes.saturating_add(1),
                (None, b'>') => {
                    let after = markup.get(at.saturating_add(1)..).unwrap_or_default();
                    return Self { attributes, is_closed: last == b'/', after };
                }
                (None, _) => {}
            }
            last = byte;
        }
        Self { attributes, is_closed: false, after: "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize, attributes: &str) -> String {
        format!("{}{}", format!("<a{attributes}>").repeat(levels), "</a>".repeat(levels))
    }

    #[test]
    fn levels_namespaces_and_attributes_are_counted_before_parsing() {
        let many = |count: usize| (0..count).map(|at| format!(" a{at}='>'")).collect::<String>();
        for (xml, why) in [
            (nested(128, ""), None),
            (nested(129, ""), Some("128 levels")),
            (nested(100_000, " xmlns:a='b'"), Some("128 namespaces")),
            (nested(128, " xmlns='b'"), None),
            (format!("<a{}/>", many(128)), None),
            (format!("<a{}/>", many(129)), Some("128 attributes")),
            ("<a/>".repeat(1000), None),
            ("<!-- <a> -->".repeat(1000), None),
            ("<![CDATA[<a>]]>".repeat(1000), None),
            ("<?a <a> ?>".repeat(1000), None),
            ("<a b='/'>".repeat(129), Some("levels")),
            ("<".repeat(1000), None),
            ("<a b='".to_owned(), None),
        ] {
            let start: String = xml.chars().take(30).collect();
            match (check(&xml), why) {
                (Ok(()), None) => {}
                (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{start}: {error}"),
                (checked, _) => panic!("{start}…: {checked:?}"),
            }
        }
    }
}
