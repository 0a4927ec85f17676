//! What a QMP monitor says: pure functions of bytes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::threads::{IoThread, VcpuThread};
use crate::{Error, ErrorKind, Result};

/// The most bytes of one message: some 250 tell of a vCPU.
const MOST: usize = 4 << 20;

/// One message of the monitor.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    /// What it says first.
    Greeting,
    /// Something happened; may come at any time.
    Event,
    /// The answer to the command of this ID.
    Return { id: Option<u64>, value: Value },
    /// It could not do the command of this ID.
    Error { id: Option<u64>, text: String },
}

/// Cuts what is read into messages. Each is an object of JSON, in one line or several (`pretty=on`).
#[derive(Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    /// Whether a line has ended since a message was last looked for: none ends before that.
    has_line: bool,
}

impl Decoder {
    /// Takes what was read.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.has_line |= bytes.contains(&b'\n');
    }

    /// The next whole message.
    ///
    /// # Errors
    /// What was read is no message, or is longer than any.
    pub(crate) fn next(&mut self) -> Result<Option<Message>> {
        let blank = self.buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.buffer.drain(..blank);
        match self.buffer.first() {
            None => return Ok(None),
            Some(b'{') => {}
            Some(_) => return Err(garbage("the monitor says what is no JSON object")),
        }
        if self.buffer.len() > MOST {
            return Err(garbage("the monitor's answer has no end"));
        }
        if !self.has_line {
            return Ok(None);
        }
        let mut values = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                let length = values.byte_offset();
                self.buffer.drain(..length);
                Message::of(value).map(Some)
            }
            Some(Err(error)) if !error.is_eof() => {
                Err(garbage("the monitor says what is no JSON").with_source(error))
            }
            _ => {
                self.has_line = false;
                Ok(None)
            }
        }
    }
}

impl Message {
    fn of(mut value: Value) -> Result<Self> {
        let id = value.get("id").and_then(Value::as_u64);
        if let Some(error) = value.get("error") {
            // It may say anything: no more than a few lines of it.
            let text: String = error
                .get("desc")
                .and_then(Value::as_str)
                .unwrap_or("no reason is given")
                .chars()
                .take(500)
                .collect();
            return Ok(Self::Error { id, text });
        }
        if let Some(value) = value.get_mut("return") {
            return Ok(Self::Return { id, value: value.take() });
        }
        if value.get("QMP").is_some() {
            Ok(Self::Greeting)
        } else if value.get("event").is_some() {
            Ok(Self::Event)
        } else {
            Err(garbage("the monitor says what is no message of QMP"))
        }
    }
}

fn garbage(why: &'static str) -> Error {
    Error::new(ErrorKind::Vmm, why)
}

/// An element of what `query-cpus-fast` returns (`CpuInfoFast`); there is more in it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CpuInfo {
    cpu_index: u32,
    thread_id: u32,
}

/// An element of what `query-iothreads` returns (`IOThreadInfo`).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct IoThreadInfo {
    id: String,
    thread_id: u32,
}

/// The vCPUs in the answer to `query-cpus-fast`, by number.
pub(crate) fn vcpus(answer: Value) -> Result<Vec<VcpuThread>> {
    let cpus: Vec<CpuInfo> = read(answer, "query-cpus-fast")?;
    let count = cpus.len();
    let by_index: BTreeMap<u32, u32> = cpus.into_iter().map(|cpu| (cpu.cpu_index, cpu.thread_id)).collect();
    if by_index.len() < count {
        return Err(garbage("QEMU's answer to query-cpus-fast has a vCPU twice"));
    }
    Ok(by_index.into_iter().map(|(index, tid)| VcpuThread { index, tid }).collect())
}

/// The I/O threads in the answer to `query-iothreads`, by ID.
pub(crate) fn io_threads(answer: Value) -> Result<Vec<IoThread>> {
    let threads: Vec<IoThreadInfo> = read(answer, "query-iothreads")?;
    let count = threads.len();
    let by_id: BTreeMap<String, u32> = threads.into_iter().map(|it| (it.id, it.thread_id)).collect();
    if by_id.len() < count {
        return Err(garbage("QEMU's answer to query-iothreads has a thread twice"));
    }
    Ok(by_id.into_iter().map(|(id, tid)| IoThread { id, tid }).collect())
}

fn read<T: for<'de> Deserialize<'de>>(answer: Value, command: &str) -> Result<Vec<T>> {
    serde_json::from_value(answer).map_err(|error| {
        let why = format!("QEMU's answer to {command} is not as it should be: {error}");
        Error::new(ErrorKind::Vmm, why)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const GREETING: &str =
        r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#;

    fn decoded(bytes: &[u8]) -> Result<Vec<Message>> {
        let mut decoder = Decoder::default();
        decoder.feed(bytes);
        let mut messages = Vec::new();
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn each_message_is_what_it_says() {
        let event = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE", "data": {}}"#;
        let error =
            r#"{"id": 7, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}"#;
        let text = format!(
            "{GREETING}\r\n{event}\r\n{{\"return\": {{}}, \"id\": 7}}\r\n{error}\r\n{{\"error\": 1}}\n"
        );
        assert_eq!(
            decoded(text.as_bytes()).unwrap(),
            [
                Message::Greeting,
                Message::Event,
                Message::Return { id: Some(7), value: json!({}) },
                Message::Error { id: Some(7), text: "The command x has not been found".into() },
                Message::Error { id: None, text: "no reason is given".into() },
            ]
        );
    }

    #[test]
    fn a_message_that_is_not_whole_is_waited_for() {
        for part in ["", "\r\n", "{", "{\n", "{\"QMP\": {}\n", "{\"ev"] {
            assert_eq!(decoded(part.as_bytes()).unwrap(), [], "{part:?}");
        }
        let pretty = "{\n    \"return\": [\n    ]\n}\n";
        assert_eq!(decoded(pretty.as_bytes()).unwrap(), [Message::Return { id: None, value: json!([]) }]);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"HTTP",
            b"\xff\xfe",
            b"[]\n",
            b"12\n",
            b"{\"a\": 1}\n",
            b"{]\n",
            b"{\"\xff\": 1}\n",
            b"{\"return\": 1e999}\n",
        ] {
            let error = decoded(bytes).expect_err(&String::from_utf8_lossy(bytes));
            assert_eq!(error.kind(), ErrorKind::Vmm, "{error}");
        }
        let deep = format!("{}\n", "{\"a\":".repeat(100_000));
        assert!(decoded(deep.as_bytes()).is_err());
        assert!(decoded(format!("{{\"a\": \"{}", "x".repeat(MOST)).as_bytes()).is_err());
    }

    #[test]
    fn vcpus_and_io_threads_are_read_in_order_and_what_else_is_there_is_not() {
        let cpu = |index: i64, tid: i64| json!({"thread-id": tid, "props": {"core-id": 0}, "qom-path": "/machine/x", "target": "x86_64", "cpu-index": index});
        let vcpu = |index, tid| VcpuThread { index, tid };
        assert_eq!(vcpus(json!([cpu(1, 12), cpu(0, 11)])).unwrap(), [vcpu(0, 11), vcpu(1, 12)]);
        // One thread for both.
        assert_eq!(vcpus(json!([cpu(1, 11), cpu(0, 11)])).unwrap(), [vcpu(0, 11), vcpu(1, 11)]);
        assert_eq!(vcpus(json!([])).unwrap(), []);
        for bad in
            [json!({}), json!([{}]), json!([cpu(0, -1)]), json!([cpu(-1, 1)]), json!([cpu(0, 1), cpu(0, 2)])]
        {
            let error = vcpus(bad.clone()).expect_err(&bad.to_string());
            assert!(error.message().contains("query-cpus-fast"), "{error}");
        }
        let threads = json!([
            {"id": "io1", "thread-id": 22, "poll-max-ns": 32768, "poll-grow": 0},
            {"id": "io0", "thread-id": 21}
        ]);
        let thread = |id: &str, tid| IoThread { id: id.to_owned(), tid };
        assert_eq!(io_threads(threads).unwrap(), [thread("io0", 21), thread("io1", 22)]);
        assert!(io_threads(json!([{"id": 1, "thread-id": 21}])).is_err());
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_how_messages_arrive(cuts in prop::collection::vec(1usize..40, 1..20)) {
            let text = format!("{GREETING}\r\n{{\"return\": [1, 2], \"id\": 1}}\r\n{{\"event\": \"é\"}}\r\n");
            let (mut decoder, mut messages, mut rest) = (Decoder::default(), Vec::new(), text.as_bytes());
            for cut in cuts.into_iter().cycle() {
                let (chunk, more) = rest.split_at(cut.min(rest.len()));
                decoder.feed(chunk);
                while let Some(message) = decoder.next().unwrap() {
                    messages.push(message);
                }
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(messages, decoded(text.as_bytes()).unwrap());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            _ = decoded(&bytes);
            _ = decoded(&[b"{\"return\": [", &bytes[..], b"]}\n"].concat());
        }
    }
}
