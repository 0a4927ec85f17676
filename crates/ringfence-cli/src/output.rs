//! What is printed: results on stdout as tables or JSON, diagnostics on stderr.

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt::Display;
use std::io::{self, ErrorKind as IoErrorKind, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use ringfence::terminal::{Escaped, EscapedLines, escape_json};
use ringfence::{Error, ErrorKind, Report, Result};
use serde::Serialize;

/// The form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; may change.
    Table,
    /// For programs: one document.
    Json,
    /// For programs: one line per item.
    Jsonl,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    fn is_on(self, stream: &impl IsTerminal) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && stream.is_terminal()
            }
        }
    }
}

/// Where results and diagnostics go, and in which form.
#[derive(Debug, Clone)]
pub struct Output {
    format: Option<Format>,
    color: Color,
    quiet: bool,
    verbose: bool,
    closed: Arc<AtomicBool>,
}

impl Output {
    /// `format` is `None` where nobody asked for one.
    pub fn new(format: Option<Format>, color: Color) -> Self {
        Self { format, color, quiet: false, verbose: false, closed: Arc::default() }
    }

    /// The same, which says less or more than results and errors.
    pub fn telling(self, quiet: bool, verbose: bool) -> Self {
        Self { quiet, verbose, ..self }
    }

    /// The same, with another form where nobody asked for one.
    pub fn or(self, format: Format) -> Self {
        Self { format: self.format.or(Some(format)), ..self }
    }

    pub fn format(&self) -> Format {
        self.format.unwrap_or(Format::Table)
    }

    /// Nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// One thing. Control characters of `text` are escaped, newlines excepted.
    pub fn object(&self, object: &impl Serialize, text: impl Display) -> Result<()> {
        match self.format() {
            Format::Table => self.words(text),
            Format::Json => self.print(&pretty(object)?),
            Format::Jsonl => self.print(&line(object)?),
        }
    }

    /// One thing that people see as tables, with an empty line between them.
    pub fn tables(&self, object: &impl Serialize, tables: &[Table]) -> Result<()> {
        match self.format() {
            Format::Table => {
                let tables: Vec<_> = tables.iter().map(|table| self.table(table)).collect();
                self.print(&tables.join("\n"))
            }
            Format::Json | Format::Jsonl => self.object(object, ""),
        }
    }

    /// Many things of one kind.
    pub fn list<T: Serialize>(&self, list: &[T], table: impl FnOnce() -> Table) -> Result<()> {
        match self.format() {
            Format::Table => self.print(&self.table(&table())),
            Format::Json => self.print(&pretty(&list)?),
            Format::Jsonl => list.iter().try_for_each(|item| self.print(&line(item)?)),
        }
    }

    /// A table as it looks on stdout.
    fn table(&self, table: &Table) -> String {
        table.display(self.color.is_on(&io::stdout()))
    }

    /// One thing on one line of JSON.
    pub fn line(&self, object: &impl Serialize) -> Result<()> {
        self.print(&line(object)?)
    }

    /// Lines for people, with control characters escaped.
    pub fn words(&self, words: impl Display) -> Result<()> {
        self.print(&EscapedLines(&words.to_string()).to_string())
    }

    /// What was done, in words where words are wanted.
    pub fn done(&self, object: &impl Serialize, words: impl Display) -> Result<()> {
        match self.format() {
            Format::Table if self.quiet => Ok(()),
            _ => self.object(object, words),
        }
    }

    /// Writes to stdout as it is: the caller has escaped what comes from outside.
    fn print(&self, text: &str) -> Result<()> {
        if self.is_closed() {
            return Ok(());
        }
        let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let mut stdout = io::stdout().lock();
        match write!(stdout, "{text}{newline}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == IoErrorKind::BrokenPipe => {
                self.closed.store(true, Ordering::Relaxed)
            }
            Err(error) => {
                return Err(Error::new(ErrorKind::Kernel, "cannot write the results").with_source(error));
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// What could not be done, for people: programs find it in the JSON of the result.
    pub fn report(&self, report: &Report) {
        if self.format() == Format::Table {
            self.report_always(report);
        }
    }

    /// What could not be done, where stdout is for something else.
    pub fn report_always(&self, report: &Report) {
        let mut worth =
            report.lines().iter().filter(|line| !self.quiet && (self.verbose || !line.note)).peekable();
        if self.format() != Format::Table {
            if worth.peek().is_some() {
                _ = writeln!(io::stderr(), "{}", line(&Reported { report }).unwrap_or_default());
            }
            return;
        }
        for line in worth {
            self.diagnostic(line);
        }
    }

    /// A line on stderr, with control characters escaped.
    pub fn diagnostic(&self, words: impl Display) {
        let name = if self.color.is_on(&io::stderr()) { "\x1b[1;31mringfence:\x1b[0m" } else { "ringfence:" };
        // Nobody is left to be told that stderr is closed.
        _ = writeln!(io::stderr(), "{name} {}", Escaped(&words.to_string()));
    }

    /// Something to know, on stderr, where stdout is for something else.
    pub fn tell(&self, object: &impl Serialize, words: impl Display) {
        match self.format() {
            Format::Table => self.diagnostic(words),
            _ => _ = writeln!(io::stderr(), "{}", line(object).unwrap_or_default()),
        }
    }

    /// An error, on stderr.
    pub fn error(&self, error: &Error) {
        match self.format() {
            Format::Table => {
                self.diagnostic(error);
                for cause in causes(error) {
                    _ = writeln!(io::stderr(), "  caused by: {}", Escaped(&cause));
                }
            }
            Format::Json | Format::Jsonl => {
                _ = writeln!(io::stderr(), "{}", line(&Failed { error: error.into() }).unwrap_or_default());
            }
        }
    }
}

fn pretty(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map(exact).map_err(unprintable)
}

/// One line of JSON.
fn line(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map(exact).map_err(unprintable)
}

/// The JSON text with control and format characters written as `\uXXXX`: a terminal does not act on them.
fn exact(json: String) -> String {
    match escape_json(&json) {
        Cow::Owned(escaped) => escaped,
        Cow::Borrowed(_) => json,
    }
}

fn unprintable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::State, "cannot be written as JSON").with_source(error)
}

#[derive(Serialize)]
struct Reported<'a> {
    report: &'a Report,
}

#[derive(Serialize)]
struct Failed {
    error: Printed,
}

#[derive(Serialize)]
struct Printed {
    kind: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    setting: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    causes: Vec<String>,
}

impl From<&Error> for Printed {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().as_str(),
            message: error.message().to_owned(),
            setting: error.setting().map(str::to_owned),
            value: error.value().map(str::to_owned),
            path: error.path().map(|path| path.to_string_lossy().into_owned()),
            errno: error.errno(),
            causes: causes(error),
        }
    }
}

/// What stands behind the error, as far as its own sentence does not say it.
fn causes(error: &Error) -> Vec<String> {
    let sentence = error.to_string();
    let chain = std::iter::successors(error.source(), |cause| (*cause).source());
    let is_said = |cause: &String| sentence.contains(&Escaped(cause).to_string());
    chain.map(ToString::to_string).filter(|cause| !is_said(cause)).collect()
}

/// Rows below a heading, in aligned columns.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| Escaped(&cell).to_string()).to_vec());
    }

    fn display(&self, color: bool) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widest = |column| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = padded.collect::<Vec<_>>().join("  ");
            let line = line.trim_end();
            if color && number == 0 {
                text += &format!("\x1b[1m{line}\x1b[0m\n");
            } else {
                text += &format!("{line}\n");
            }
        }
        text
    }
}

/// Bytes for people: `256M`, `1.5G`.
pub fn bytes(bytes: u64) -> String {
    let units = ["K", "M", "G", "T"];
    let Some((unit, shift)) = units.iter().zip([10, 20, 30, 40]).rev().find(|(_, shift)| bytes >> shift > 0)
    else {
        return bytes.to_string();
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    if tenths % 10 == 0 {
        format!("{}{unit}", tenths / 10)
    } else {
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    }
}

/// Microseconds for people, in seconds.
pub fn seconds(us: u64) -> String {
    format!("{}.{:03}s", us / 1_000_000, us % 1_000_000 / 1000)
}

/// A moment of the day in UTC, of microseconds since 1970.
pub fn clock(us: u64) -> String {
    let seconds = us / 1_000_000 % 86_400;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", us / 1000 % 1000)
}

/// What is not there, for people.
pub fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_a_table_are_aligned_and_end_without_blanks() {
        let mut table = Table::new(["ID", "STATE"]);
        table.row(["longer".to_owned(), String::new()]);
        assert_eq!(table.display(false), "ID      STATE\nlonger\n");
    }

    #[test]
    fn control_characters_of_a_cell_are_escaped() {
        let mut table = Table::new(["NAME"]);
        table.row(["a\u{1b}[2J\u{9b}\u{202e}\nb é".to_owned()]);
        assert_eq!(table.display(false), "NAME\na\\u{1b}[2J\\u{9b}\\u{202e}\\nb é\n");
    }

    #[test]
    fn control_characters_of_json_are_escaped() {
        assert_eq!(line(&"\u{1b}\u{7f}\u{9b}\u{202e}é").unwrap(), r#""\u001b\u007f\u009b\u202eé""#);
        assert_eq!(pretty(&["\u{9b}"]).unwrap(), "[\n  \"\\u009b\"\n]");
    }

    #[test]
    fn sizes_are_short_and_never_rounded_up() {
        for (given, printed) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1K"),
            (1536 << 20, "1.5G"),
            ((1 << 30) - 1, "1023.9M"),
            (u64::MAX, "16777215.9T"),
        ] {
            assert_eq!(bytes(given), printed);
        }
    }

    #[test]
    fn an_error_as_json_has_only_the_keys_that_are_known() {
        let error = Error::invalid("memory.limit", "x", "a size");
        let printed = line(&Failed { error: (&error).into() }).unwrap();
        let expected =
            r#"{"error":{"kind":"invalid_input","message":"a size","setting":"memory.limit","value":"x"}}"#;
        assert_eq!(printed, expected);
    }
}
