//! The `Date` of answers that come without one (RFC 9110 §6.6.1), rendered once a second.
//!
//! Knows no clock; is told the time.

use std::{
    cell::Cell,
    io::Write,
    time::{Duration, SystemTime},
};

use httpdate::HttpDate;

use super::http1::rewrite::DATE_FIELD_BYTES;

/// The last second of the year 9999: what follows has no four digits (RFC 9110 §5.6.7).
const LAST_SECOND: u64 = 253_402_300_799;

/// Renders the field, and remembers how the last second read.
#[derive(Debug)]
pub struct DateField {
    /// The second that `text` shows, since 1970.
    second: Cell<u64>,
    text: Cell<[u8; DATE_FIELD_BYTES]>,
}

impl Default for DateField {
    /// One that shows 1970, as of yet.
    fn default() -> Self {
        Self {
            second: Cell::new(0),
            text: Cell::new(render(0)),
        }
    }
}

impl DateField {
    /// The field at `time`: name, value and the end of the line. A clock that is set to before 1970, or beyond the
    /// year 9999, is taken to say the nearest second that can be told.
    pub fn at(&self, time: SystemTime) -> [u8; DATE_FIELD_BYTES] {
        let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH);
        let second = since_1970.unwrap_or_default().as_secs().min(LAST_SECOND);
        if self.second.replace(second) != second {
            self.text.set(render(second));
        }
        self.text.get()
    }
}

#[cold]
fn render(second: u64) -> [u8; DATE_FIELD_BYTES] {
    let mut text = [0; DATE_FIELD_BYTES];
    let date = HttpDate::from(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
    // The form is of one length, so that it always fits.
    let _ = write!(&mut text[..], "Date: {date}\r\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_reads_as_the_rfc_has_it() {
        let field = DateField::default();
        let at = |second, nanos| {
            let time = SystemTime::UNIX_EPOCH + Duration::new(second, nanos);
            String::from_utf8(field.at(time).to_vec()).expect("ASCII")
        };
        // The example of RFC 9110 §5.6.7, to both ends of its second, then the next one and back.
        let example = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        assert_eq!(at(784_111_777, 0), example);
        assert_eq!(at(784_111_777, 999_999_999), example);
        assert_eq!(at(784_111_778, 0), example.replace(":37", ":38"));
        assert_eq!(at(784_111_777, 0), example);
        assert_eq!(at(0, 0), "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n");
    }

    #[test]
    fn a_clock_that_is_set_wrong_breaks_nothing() {
        let field = DateField::default();
        let beyond = SystemTime::UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 1);
        assert_eq!(
            &field.at(beyond),
            b"Date: Fri, 31 Dec 9999 23:59:59 GMT\r\n"
        );
        let before = field.at(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(&before, b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n");
    }
}
