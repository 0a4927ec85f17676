//! D-Bus messages from the bytes that a socket delivers.

use zbus::Message;
use zbus::wire::Endian;
use zbus::wire::serialized::{Context, Data};

/// The length of the fixed part of a header: twelve bytes, and the length of the array of fields.
pub(crate) const FIXED: usize = 16;
/// The longest message that the specification allows: 128 MiB.
const LONGEST: usize = 1 << 27;

fn endian(header: &[u8]) -> Option<Endian> {
    match header.first()? {
        b'l' => Some(Endian::Little),
        b'B' => Some(Endian::Big),
        _ => None,
    }
}

/// The length of the message whose first bytes these are. `None` if it is no message, or longer than any may be.
pub(crate) fn message_length(header: &[u8; FIXED]) -> Option<usize> {
    let endian = endian(header)?;
    let number = |bytes: [u8; 4]| {
        let number = match endian {
            Endian::Little => u32::from_le_bytes(bytes),
            Endian::Big => u32::from_be_bytes(bytes),
        };
        usize::try_from(number).ok()
    };
    let [_, _, _, _, b0, b1, b2, b3, _, _, _, _, f0, f1, f2, f3] = *header;
    let (body, fields) = (number([b0, b1, b2, b3])?, number([f0, f1, f2, f3])?);
    let length = FIXED.checked_add(fields)?.checked_next_multiple_of(8)?.checked_add(body)?;
    (length <= LONGEST).then_some(length)
}

/// The message that these bytes are.
///
/// # Errors
/// They are no valid message.
pub(crate) fn parse(bytes: Vec<u8>) -> zbus::Result<Message> {
    let endian = endian(&bytes).ok_or(zbus::Error::IncorrectEndian)?;
    // SAFETY: zbus does the same with what it receives from its own sockets: the header is checked here, and a body when it
    // is deserialized. Descriptors are never asked for.
    unsafe { Message::from_bytes(Data::new(bytes, Context::new(endian, 0))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_of_a_message_is_in_its_header() {
        let message = Message::method_call("/a", "Call")
            .destination("b.c")
            .build(&("text", [1_u64, 2].as_slice()))
            .unwrap();
        let bytes = message.data().bytes();
        let header: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        assert_eq!(message_length(&header), Some(bytes.len()));
        let parsed = parse(bytes.to_vec()).unwrap();
        assert_eq!(
            parsed.body().deserialize::<(String, Vec<u64>)>().unwrap(),
            ("text".to_owned(), vec![1, 2])
        );
    }

    #[test]
    fn header_of_something_else_is_refused() {
        assert_eq!(message_length(b"HTTP/1.1 400 Bad"), None);
        let mut endless = [0xff; FIXED];
        endless[0] = b'l';
        assert_eq!(message_length(&endless), None);
        assert!(parse(Vec::new()).is_err());
        assert!(parse(b"l".repeat(64)).is_err());
    }
}
