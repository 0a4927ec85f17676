//! Reading JSON so that nothing gets lost: what nobody read is returned, and an error says which field it met.

use std::fmt;
use std::mem;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer};
use serde_ignored::Path;
use serde_json::Value;

use super::oci;
use crate::document::check_length;
use crate::{Error, ErrorKind, Result};

/// A field that nobody read, and what it holds.
pub(super) type Unread = (Place, Value);

/// Reads `text`, which is an object.
///
/// # Errors
/// Bad JSON, and a field with a value that it cannot take. Setting and value of the error are the field's; the message
/// gives the line and the column.
pub(super) fn read<T: DeserializeOwned + Default>(text: &str) -> Result<(T, Vec<Unread>)> {
    check_length(text)?;
    let mut json = serde_json::Deserializer::from_str(text);
    let read = noting_unread(&mut json).and_then(|read| json.end().map(|()| read));
    let (value, unread) = read.map_err(|error| refused(text, &error))?;
    if unread.is_empty() {
        return Ok((value, Vec::new()));
    }
    let whole: Value = serde_json::from_str(text).map_err(|error| refused(text, &error))?;
    Ok((value, with_values(unread, &whole)))
}

fn noting_unread<'de, D, T>(deserializer: D) -> Result<(T, Vec<Place>), D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    let mut unread = Vec::new();
    let mut note = |path: Path<'_>| unread.push(Place::of(&path));
    let value = oci::section(serde_ignored::Deserializer::new(deserializer, &mut note))?;
    Ok((value, unread))
}

fn with_values(places: Vec<Place>, whole: &Value) -> Vec<Unread> {
    places
        .into_iter()
        .map(|place| {
            let value = place.find(whole).cloned().unwrap_or_default();
            (place, value)
        })
        .collect()
}

fn refused(text: &str, error: &serde_json::Error) -> Error {
    // serde_json's sentence ends in "at line 3 column 12".
    let mut refusal = Error::new(ErrorKind::InvalidInput, error.to_string());
    let place = Place::at(text, error.line(), error.column());
    if error.is_data() {
        let whole: Option<Value> = serde_json::from_str(text).ok();
        match whole.as_ref().and_then(|whole| place.find(whole)) {
            Some(Value::String(value)) => refusal = refusal.with_value(value),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => refusal = refusal.with_value(value),
            _ => {}
        }
    }
    if !place.steps.is_empty() {
        refusal = refusal.with_setting(place.to_string());
    }
    refusal
}

/// A place in a JSON document. Displayed as `devices[2].major`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl Place {
    /// The field `key` of the object at this place.
    pub(super) fn field(&self, key: &str) -> Self {
        let mut steps = self.steps.clone();
        steps.push(Step::Key(key.to_owned()));
        Self { steps }
    }

    /// This place as seen from inside the object that `keys` lead to, if it is there.
    pub(super) fn within(&self, keys: &[&str]) -> Option<Self> {
        let (outside, inside) = self.steps.split_at_checked(keys.len())?;
        let leads =
            outside.iter().zip(keys).all(|(step, key)| matches!(step, Step::Key(name) if name == key));
        leads.then(|| Self { steps: inside.to_vec() })
    }

    fn find<'v>(&self, whole: &'v Value) -> Option<&'v Value> {
        self.steps.iter().try_fold(whole, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Index(index) => value.get(index),
        })
    }

    fn of(path: &Path<'_>) -> Self {
        let (parent, step) = match path {
            Path::Root => return Self::default(),
            Path::Seq { parent, index } => (parent, Some(Step::Index(*index))),
            Path::Map { parent, key } => (parent, Some(Step::Key(key.clone()))),
            Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
                (parent, None)
            }
        };
        let mut place = Self::of(parent);
        place.steps.extend(step);
        place
    }

    /// The place that serde_json had read up to when it stopped at `line` and `column`.
    ///
    /// All before is sound JSON, so that brackets, commas and keys are enough to follow.
    fn at(text: &str, line: usize, column: usize) -> Self {
        let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        let read =
            text.as_bytes().get(..before.saturating_add(column)).unwrap_or(text.as_bytes()).trim_ascii_end();
        // An error of an array's element as a whole is noticed behind the separator that follows it; one of a whole
        // object or array that should be something else, behind its opening bracket.
        let read =
            read.strip_suffix(b",").or_else(|| read.strip_suffix(b"]")).unwrap_or(read).trim_ascii_end();
        let mut rest = read.strip_suffix(b"{").or_else(|| read.strip_suffix(b"[")).unwrap_or(read);

        let mut steps = Vec::new();
        let mut key_is_next = false;
        while let Some((byte, tail)) = rest.split_first() {
            rest = tail;
            match byte {
                b'{' => {
                    steps.push(Step::Key(String::new()));
                    key_is_next = true;
                }
                b'[' => {
                    steps.push(Step::Index(0));
                    key_is_next = false;
                }
                b'}' | b']' => {
                    steps.pop();
                    key_is_next = false;
                }
                b',' => match steps.last_mut() {
                    Some(Step::Index(index)) => *index = index.saturating_add(1),
                    Some(Step::Key(_)) => key_is_next = true,
                    None => {}
                },
                b'"' => {
                    let (string, tail) = rest.split_at_checked(length_of_string(rest)).unwrap_or((rest, &[]));
                    rest = tail.strip_prefix(b"\"").unwrap_or(tail);
                    if mem::take(&mut key_is_next)
                        && let Some(Step::Key(key)) = steps.last_mut()
                    {
                        *key = String::from_utf8_lossy(string).into_owned();
                    }
                }
                _ => {}
            }
        }
        if key_is_next {
            steps.pop();
        }
        Self { steps }
    }
}

/// The bytes before the quotation mark that ends a string.
fn length_of_string(rest: &[u8]) -> usize {
    let mut escaped = false;
    rest.iter()
        .position(|byte| {
            let ends = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            ends
        })
        .unwrap_or(rest.len())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            match step {
                Step::Key(key) if at == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the reader stands after all of `text`.
    fn place(text: &str) -> String {
        let lines = text.lines().count();
        Place::at(text, lines, text.lines().last().map_or(0, str::len)).to_string()
    }

    #[test]
    fn a_place_is_found_from_the_text_that_leads_to_it() {
        for (text, found) in [
            ("", ""),
            ("{", ""),
            (r#"{"a": 1"#, "a"),
            (r#"{"a": 1, "#, "a"),
            (r#"{"a": {"b": [1, {"c": "x"}, 2], "d": -5"#, "a.d"),
            ("{\"a\": {\n  \"b\": [1,\n {\"c\": true", "a.b[1].c"),
            (r#"{"a": {"b": [1, {"c": 2}"#, "a.b[1]"),
            (r#"{"a": {"b": [1, {"c": 2},"#, "a.b[1]"),
            (r#"{"a": {"b": [1, {"c": 2}]"#, "a.b[1]"),
            (r#"{"a": {"b": 1}"#, "a"),
            (r#"{"a": {"b": 1}, "c": ["#, "c"),
            (r#"{"a": {"b": 1}, "c": []"#, "c"),
            (r#"{"a": {"b": 1}, "c": {"#, "c"),
            (r#"{"a": "{[,\"}", "b": "\\", "c,\"{": 1"#, r#"c,\"{"#),
        ] {
            assert_eq!(place(text), found, "{text}");
        }
    }

    #[test]
    fn an_element_that_is_refused_after_it_was_read_is_named_wherever_it_stands() {
        #[derive(Default, Deserialize)]
        struct Document {
            #[serde(rename = "rules")]
            _rules: Vec<Small>,
        }

        #[derive(Deserialize)]
        struct Given {
            size: u64,
        }

        #[derive(Deserialize)]
        #[serde(try_from = "Given")]
        struct Small;

        impl TryFrom<Given> for Small {
            type Error = &'static str;

            fn try_from(given: Given) -> Result<Self, Self::Error> {
                if given.size < 10 { Ok(Self) } else { Err("too large") }
            }
        }

        for (text, place) in [
            (r#"{"rules": [{"size": 10}, {"size": 1}]}"#, "rules[0]"),
            (r#"{"rules": [{"size": 1}, {"size": 10} , {"size": 1}]}"#, "rules[1]"),
            (r#"{"rules": [{"size": 1}, {"size": 10}]}"#, "rules[1]"),
            ("{\"rules\": [\n  {\"size\": 1},\n  {\"size\": 10}\n]}", "rules[1]"),
            ("{\"rules\": [\n  {\"size\": 10},\n  {\"size\": 1}\n]}", "rules[0]"),
            (r#"{"rules": [{"size": 1}, {}]}"#, "rules[1]"),
            (r#"{"rules": [{"size": 1}, {"size": "x"}, {"size": 10}]}"#, "rules[1].size"),
        ] {
            let Err(error) = read::<Document>(text) else { panic!("{text} was read") };
            assert_eq!(error.setting(), Some(place), "{text}");
        }
    }

    #[test]
    fn no_text_or_position_makes_the_search_for_a_place_panic() {
        let text = "{\"a\": {\"b\": [1, {\"é\\\"\": \"x\n\"}, 2], \"d\": -5}}]]}}\"";
        for line in 0..4 {
            for column in 0..80 {
                let _ = Place::at(text, line, column);
            }
        }
        let _ = Place::at(text, usize::MAX, usize::MAX);
    }
}
