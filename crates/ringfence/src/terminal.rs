//! Text from outside (documents, names of cgroups and threads), made safe to print on a terminal.
//!
//! A process chooses its thread's name, a tenant the names of delegated cgroups, and whoever writes a document every key and
//! value in it. Printed as they are, control characters in them move the cursor, clear the screen or answer questions of the
//! terminal; newlines forge lines of output, and bidirectional controls reorder what is read. [`Error`](crate::Error),
//! [`Report`](crate::Report) and [`Plan`](crate::Plan) escape them in their `Display` forms; the fields that these types
//! return, and their JSON, are exact.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Displays a text on one line, with the characters that a terminal acts on as Rust escapes: ESC as `\u{1b}`, a newline as
/// `\n`.
///
/// Escaped are control characters (C0, DEL, C1), line and paragraph separators, and Unicode's format characters
/// (bidirectional controls, characters without width, tags). All others, a backslash too, stay as they are: the form is for
/// people, and cannot be read back.
///
/// ```
/// use ringfence::terminal::Escaped;
///
/// assert_eq!(Escaped("vcpu\u{1b}[2J é").to_string(), "vcpu\\u{1b}[2J é");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaper(f).write_str(self.0)
    }
}

/// Displays a text of several lines: as [`Escaped`], but with its newlines.
#[derive(Debug, Clone, Copy)]
pub struct EscapedLines<'a>(pub &'a str);

impl fmt::Display for EscapedLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.split_inclusive('\n').try_for_each(|line| match line.strip_suffix('\n') {
            Some(line) => writeln!(f, "{}", Escaped(line)),
            None => Escaped(line).fmt(f),
        })
    }
}

/// Writes to a formatter what [`Escaped`] displays.
pub(crate) struct Escaper<'a, 'f>(pub(crate) &'a mut fmt::Formatter<'f>);

impl Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, steering)) = rest.char_indices().find(|(_, c)| steers(*c)) {
            let (before, from) = rest.split_at(at);
            write!(self.0, "{before}{}", steering.escape_default())?;
            rest = from.get(steering.len_utf8()..).unwrap_or_default();
        }
        self.0.write_str(rest)
    }
}

/// The same JSON document, with the characters that a terminal acts on as `\uXXXX`. JSON itself demands that of C0 alone.
///
/// `json` is compact or pretty JSON: outside of its strings are no such characters but newlines, which stay.
///
/// ```
/// assert_eq!(ringfence::terminal::escape_json("[\"\u{9b}2J\"]"), r#"["\u009b2J"]"#);
/// ```
pub fn escape_json(json: &str) -> Cow<'_, str> {
    let acts = |c: char| c != '\n' && steers(c);
    if !json.contains(acts) {
        return json.into();
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if acts(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

/// Whether a terminal, or a reader's eye, is steered by this character: Unicode's categories Cc, Cf, Zl and Zp.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ESC, CSI of C1, DEL, BEL, NUL, a right-to-left override, a zero-width space, a line separator and a tag.
    const HOSTILE: &str = "a\u{1b}[2J\u{9b}2J\u{7f}\u{7}\0\u{202e}\u{200b}\u{2028}\u{e0041}\tb";

    #[test]
    fn control_and_format_characters_are_escaped_and_letters_are_not() {
        let escaped = Escaped(HOSTILE).to_string();
        assert_eq!(escaped, r"a\u{1b}[2J\u{9b}2J\u{7f}\u{7}\u{0}\u{202e}\u{200b}\u{2028}\u{e0041}\tb");
        assert_eq!(Escaped("é 中 🦀 \\ \"").to_string(), "é 中 🦀 \\ \"");
        assert_eq!(Escaped("a\nb\r").to_string(), r"a\nb\r");
    }

    #[test]
    fn lines_stay_lines_and_are_escaped_each() {
        assert_eq!(EscapedLines("a\u{1b}\n\nb\r\n").to_string(), "a\\u{1b}\n\nb\\r\n");
        assert_eq!(EscapedLines("").to_string(), "");
    }

    #[test]
    fn escaped_json_is_the_same_document() {
        let document = serde_json::json!({ "a\u{202e}": [HOSTILE, 1], "é": "\n" });
        for json in [document.to_string(), format!("{document:#}")] {
            let escaped = escape_json(&json);
            assert!(!escaped.contains(|c| c != '\n' && steers(c)), "{escaped}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), document);
        }
        assert!(matches!(escape_json("{\n  \"é\": 1\n}"), Cow::Borrowed(_)));
    }
}
