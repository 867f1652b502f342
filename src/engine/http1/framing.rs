//! Which body follows a head (RFC 9112 §6.3), and how a value of `Content-Length` is read.
//!
//! Where the RFC permits a repair, a request is refused instead: a repaired message can still be
//! read two ways by the next server.

use super::field::Field;

/// The body that a head announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// None, and no field says so.
    Absent,
    /// Exactly so many bytes.
    Length(u64),
    /// In the chunked coding.
    Chunked,
    /// Everything until the server closes; answers only.
    UntilClose,
}

/// HTTP version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// Why the end of a message could not be told without doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramingError {
    /// `Content-Length` that is not one plain decimal number.
    BadLength,
    /// More than one `Content-Length`, equal or not.
    RepeatedLength,
    /// `Transfer-Encoding` that is anything but one `chunked`.
    UnknownCoding,
    /// `Transfer-Encoding` in an HTTP/1.0 message, where it means nothing.
    CodingInHttp10,
    /// Both, which is how requests are smuggled.
    LengthAndCoding,
    /// A name that a lenient server reads as one of the two.
    Disguised,
}

/// Collects the framing fields of one head.
#[derive(Debug, Clone, Copy, Default)]
pub struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    /// Like `take`, for an answer: a length that is said twice is said once (RFC 9110 §8.6), since
    /// the gateway writes its own.
    ///
    /// # Errors
    /// `FramingError`: the server's fault; 502.
    pub fn take_of_response(&mut self, field: Field, value: &[u8]) -> Result<(), FramingError> {
        let repeats = field == Field::ContentLength
            && self.length.is_some()
            && parse_length(value) == self.length;
        if repeats {
            Ok(())
        } else {
            self.take(field, value)
        }
    }

    /// Takes in a field already classified as `ContentLength`, `TransferEncoding` or `Disguised`.
    ///
    /// # Errors
    /// `FramingError`: the sender's fault; 400 and close for a device, 502 for a server.
    pub fn take(&mut self, field: Field, value: &[u8]) -> Result<(), FramingError> {
        match field {
            Field::ContentLength => {
                if self.length.is_some() {
                    return Err(FramingError::RepeatedLength);
                }
                self.length = Some(parse_length(value).ok_or(FramingError::BadLength)?);
            }
            Field::TransferEncoding => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(FramingError::UnknownCoding);
                }
                self.chunked = true;
            }
            Field::Disguised => return Err(FramingError::Disguised),
            _ => {}
        }
        Ok(())
    }

    /// The body of a request.
    ///
    /// # Errors
    /// `FramingError`: the device's fault; 400, then close.
    pub fn request_body(self, version: Version) -> Result<Body, FramingError> {
        match self.checked(version)? {
            Self { chunked: true, .. } => Ok(Body::Chunked),
            Self {
                length: Some(length),
                ..
            } => Ok(Body::Length(length)),
            _ => Ok(Body::Absent),
        }
    }

    /// The body of an answer with `status`, to a `HEAD` request or another.
    ///
    /// # Errors
    /// `FramingError`: the server's fault; 502.
    pub fn response_body(
        self,
        version: Version,
        status: u16,
        to_head: bool,
    ) -> Result<Body, FramingError> {
        let framing = self.checked(version)?;
        if to_head || status < 200 || status == 204 || status == 304 {
            return Ok(Body::Absent);
        }
        match framing {
            Self { chunked: true, .. } => Ok(Body::Chunked),
            Self {
                length: Some(length),
                ..
            } => Ok(Body::Length(length)),
            _ => Ok(Body::UntilClose),
        }
    }

    /// What the fields announced, whether or not a body follows: `HEAD` and 304 pass it on.
    pub fn announced(self) -> Body {
        match self {
            Self { chunked: true, .. } => Body::Chunked,
            Self {
                length: Some(length),
                ..
            } => Body::Length(length),
            _ => Body::Absent,
        }
    }

    fn checked(self, version: Version) -> Result<Self, FramingError> {
        match self {
            Self {
                chunked: true,
                length: Some(_),
            } => Err(FramingError::LengthAndCoding),
            Self { chunked: true, .. } if version == Version::Http10 => {
                Err(FramingError::CodingInHttp10)
            }
            framing => Ok(framing),
        }
    }
}

/// Reads a `Content-Length` (RFC 9110 §8.6): digits only, no list, no sign, no overflow.
pub fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::http1::field::classify_request;

    fn request(fields: &[(&str, &str)], version: Version) -> Result<Body, FramingError> {
        let mut framing = Framing::default();
        for (name, value) in fields {
            framing.take(classify_request(name.as_bytes()), value.as_bytes())?;
        }
        framing.request_body(version)
    }

    #[test]
    fn lengths_are_plain_digits() {
        assert_eq!(parse_length(b"0"), Some(0));
        assert_eq!(parse_length(b"0042"), Some(42));
        assert_eq!(parse_length(b"18446744073709551615"), Some(u64::MAX));
        for bad in [
            "",
            "+1",
            "-1",
            " 1",
            "1 ",
            "0x10",
            "1,1",
            "1.0",
            "18446744073709551616",
            "1a",
        ] {
            assert_eq!(parse_length(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn requests_that_can_be_read_two_ways_are_refused() {
        use FramingError as E;
        use Version::{Http10, Http11};
        let (cl, te) = ("Content-Length", "Transfer-Encoding");
        for (fields, version, error) in [
            (vec![(cl, "1"), (te, "chunked")], Http11, E::LengthAndCoding),
            (vec![(te, "chunked"), (cl, "1")], Http11, E::LengthAndCoding),
            (vec![(cl, "1"), (cl, "1")], Http11, E::RepeatedLength),
            (
                vec![(te, "chunked"), (te, "chunked")],
                Http11,
                E::UnknownCoding,
            ),
            (vec![(te, "gzip, chunked")], Http11, E::UnknownCoding),
            (vec![(te, "chunked, identity")], Http11, E::UnknownCoding),
            (vec![(te, "identity")], Http11, E::UnknownCoding),
            (vec![(te, "")], Http11, E::UnknownCoding),
            (vec![(te, "chunked")], Http10, E::CodingInHttp10),
            (vec![("Transfer_Encoding", "chunked")], Http11, E::Disguised),
        ] {
            assert_eq!(request(&fields, version), Err(error), "{fields:?}");
        }
        assert_eq!(request(&[(te, "Chunked")], Http11), Ok(Body::Chunked));
        assert_eq!(request(&[(cl, "7")], Http10), Ok(Body::Length(7)));
        assert_eq!(request(&[], Http11), Ok(Body::Absent));
    }

    #[test]
    fn answers_without_a_body_have_none_whatever_they_announce() {
        let framing = Framing {
            length: Some(5),
            chunked: false,
        };
        for (status, to_head) in [(200, true), (204, false), (304, false), (100, false)] {
            assert_eq!(
                framing.response_body(Version::Http11, status, to_head),
                Ok(Body::Absent)
            );
        }
        assert_eq!(
            framing.response_body(Version::Http11, 200, false),
            Ok(Body::Length(5))
        );
        let silent = Framing::default();
        assert_eq!(
            silent.response_body(Version::Http10, 200, false),
            Ok(Body::UntilClose)
        );
    }
}
