//! The bounds of documents from outside, the same for every kind of document.

use std::io::Read;

use crate::{Error, ErrorKind, Result};

/// The longest document that is read, in bytes: 16 MiB.
pub const LONGEST_DOCUMENT: usize = 16 << 20;

/// How deep the elements of an XML document may be nested; serde_json has the same bound for JSON.
#[cfg(feature = "libvirt")]
pub(crate) const DEEPEST: usize = 128;

/// Reads a document of at most [`LONGEST_DOCUMENT`] bytes: a file, or standard input. Reads no more than one byte beyond
/// that, so that a source without an end is an error too.
///
/// # Errors
/// The source cannot be read, its text is longer, or is not UTF-8.
pub fn read_document(source: impl Read) -> Result<String> {
    let cannot = |error: std::io::Error| {
        Error::new(ErrorKind::InvalidInput, format!("cannot read the file: {error}")).with_source(error)
    };
    let mut bytes = Vec::new();
    // A length fits in 64 bits.
    let most = (LONGEST_DOCUMENT as u64).saturating_add(1);
    source.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    check_length(&bytes)?;
    String::from_utf8(bytes).map_err(|error| {
        Error::new(ErrorKind::InvalidInput, format!("cannot read the file: it is not UTF-8: {error}"))
            .with_source(error)
    })
}

/// Refuses a document that is too long before anything is parsed.
pub(crate) fn check_length(text: impl AsRef<[u8]>) -> Result<()> {
    if text.as_ref().len() <= LONGEST_DOCUMENT {
        return Ok(());
    }
    let why = format!("too long: a document has at most {LONGEST_DOCUMENT} bytes (16 MiB)");
    Err(Error::new(ErrorKind::InvalidInput, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what is read of it.
    struct Endless(usize);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(b' ');
            self.0 += buffer.len();
            Ok(buffer.len())
        }
    }

    #[test]
    fn a_source_without_an_end_is_read_up_to_the_bound() {
        let mut source = Endless(0);
        let error = read_document(&mut source).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("16 MiB"), "{error}");
        assert!(source.0 <= LONGEST_DOCUMENT + 1, "{} bytes were read", source.0);
    }

    #[test]
    fn a_document_of_the_longest_length_is_read_and_one_that_is_no_text_is_not() {
        let whole = " ".repeat(LONGEST_DOCUMENT);
        assert_eq!(read_document(whole.as_bytes()).unwrap(), whole);
        let error = read_document(&b"\xff"[..]).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }
}
