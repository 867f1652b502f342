//! How an exchange reads as a line of the access log.
//!
//! Bytes to bytes, on the core that served the exchange: no I/O, no lock, no allocation. What most
//! lines have in common (the second, digits, text that needs no escape) never goes through `fmt`.

use std::{
    io::Write,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::decimal::{put_fraction, put_number, put_octets, put_three_digits};
use crate::limits;

/// Bytes of a time down to its second, and of a point, such as `2025-11-24T16:00:00.`.
const SECOND_BYTES: usize = 20;

/// One exchange.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// When the request's head was complete.
    pub begun: Instant,
    /// From then until the answer was out.
    pub took: Duration,
    /// The device's address.
    pub source: IpAddr,
    /// The account's *ref* and the device's name, if they are known.
    pub sender: Option<(&'a str, &'a str)>,
    /// Method and path without its query, as the device wrote them, if a head was read.
    pub request: Option<(&'a [u8], &'a [u8])>,
    /// Status that the device saw; 0 if its connection was closed without an answer.
    pub status: u16,
    /// If the gateway answered itself or broke an answer off: the error token, and the name that the
    /// counts have for the failure, which tells apart what shares a token.
    pub error: Option<(&'static str, &'static str)>,
    /// Body bytes from the device.
    pub received: u64,
    /// Body bytes to the device.
    pub sent: u64,
}

impl Entry<'_> {
    /// Appends the entry as one JSON object and a newline.
    pub fn write_json(&self, clock: &mut Clock, out: &mut Vec<u8>) {
        put(out, "{\"time\":\"");
        clock.put(out, self.begun);
        put(out, "\",\"source\":\"");
        put_address(out, self.source);
        if let Some((account, device)) = self.sender {
            put(out, "\",\"account\":\"");
            put_string(out, account.as_bytes());
            put(out, "\",\"device\":\"");
            put_string(out, device.as_bytes());
        }
        if let Some((method, path)) = self.request {
            put(out, "\",\"method\":\"");
            put_string(out, shown(method));
            put(out, "\",\"path\":\"");
            put_string(out, shown(path));
        }
        put(out, "\",\"status\":");
        put_number(out, self.status);
        if let Some((token, cause)) = self.error {
            put(out, ",\"error\":\"");
            put(out, token);
            put(out, "\",\"cause\":\"");
            put(out, cause);
            put(out, "\"");
        }
        put(out, ",\"received\":");
        put_number(out, self.received);
        put(out, ",\"sent\":");
        put_number(out, self.sent);
        put(out, ",\"ms\":");
        put_millis(out, self.took);
        put(out, "}\n");
    }

    /// Appends the entry as a line for people.
    pub fn write_text(&self, clock: &mut Clock, out: &mut Vec<u8>) {
        clock.put(out, self.begun);
        put(out, " ");
        put_address(out, self.source);
        put(out, " ");
        match self.sender {
            Some((account, device)) => {
                put_quoted(out, account.as_bytes());
                put(out, " ");
                put_quoted(out, device.as_bytes());
            }
            None => put(out, "- -"),
        }
        put(out, " ");
        match self.request {
            Some((method, path)) => {
                put_plain(out, shown(method));
                put(out, " ");
                put_plain(out, shown(path));
            }
            None => put(out, "- -"),
        }
        put(out, " ");
        put_number(out, self.status);
        put(out, " ");
        match self.error {
            Some((token, cause)) => {
                put(out, token);
                put(out, "/");
                put(out, cause);
            }
            None => put(out, "-"),
        }
        put(out, " in=");
        put_number(out, self.received);
        put(out, " out=");
        put_number(out, self.sent);
        put(out, " ");
        put_millis(out, self.took);
        put(out, "ms\n");
    }
}

/// Tells the time of day of a core's instants, and remembers how the last second reads.
///
/// An exchange reads one clock instead of two; the system's is followed at every [`Clock::read`].
#[derive(Debug)]
pub struct Clock {
    /// When the system's clock was read.
    read_at: Instant,
    /// What it said, since 1970.
    said: Duration,
    /// The second that `text` shows, since 1970.
    second: Option<u64>,
    text: [u8; SECOND_BYTES],
}

impl Clock {
    /// The system's clock, just read.
    pub fn now() -> Self {
        Self::at(Instant::now(), SystemTime::now())
    }

    fn at(read_at: Instant, said: SystemTime) -> Self {
        Self {
            read_at,
            said: since_1970(said),
            second: None,
            text: [0; SECOND_BYTES],
        }
    }

    /// Reads the system's clock, which may have been set since.
    pub fn read(&mut self) {
        self.read_at = Instant::now();
        self.said = since_1970(SystemTime::now());
    }

    /// Appends the time at `instant`: RFC 3339, in UTC. Nothing beyond the year 9999.
    fn put(&mut self, out: &mut Vec<u8>, instant: Instant) {
        let time = match instant.checked_duration_since(self.read_at) {
            Some(later) => self.said.saturating_add(later),
            None => self.said.saturating_sub(self.read_at - instant),
        };
        if self.second != Some(time.as_secs()) {
            self.second = self.show(time.as_secs());
        }
        if self.second.is_none() {
            return;
        }
        match time.subsec_nanos() {
            0 => out.extend_from_slice(&self.text[..SECOND_BYTES - 1]),
            nanos => {
                out.extend_from_slice(&self.text);
                put_fraction(out, nanos);
            }
        }
        put(out, "Z");
    }

    /// Renders a second; `None` if it is beyond the year 9999.
    #[cold]
    fn show(&mut self, second: u64) -> Option<u64> {
        let time = OffsetDateTime::from_unix_timestamp(second.try_into().ok()?).ok()?;
        time.format_into(&mut self.text.as_mut_slice(), &Rfc3339)
            .ok()?;
        // What stands in the place of the point is the Z.
        self.text[SECOND_BYTES - 1] = b'.';
        Some(second)
    }
}

/// A clock that is set to before 1970 is taken to say 1970.
fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// As much of what a device wrote as a line has room for.
fn shown(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(limits::LOG_VALUE_BYTES_MAX)]
}

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// Milliseconds and three digits, rounded to the nearest microsecond.
fn put_millis(out: &mut Vec<u8>, took: Duration) {
    let took = took.saturating_add(Duration::from_nanos(500));
    let micros = took.subsec_micros();
    let millis = took.as_secs().saturating_mul(1_000);
    put_number(out, millis.saturating_add(u64::from(micros / 1_000)));
    put(out, ".");
    put_three_digits(out, micros % 1_000);
}

fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put_octets(out, address.octets()),
        IpAddr::V6(address) => {
            // Writing to a vector can't fail.
            let _ = write!(out, "{address}");
        }
    }
}

/// As a JSON string (RFC 8259 §7).
fn put_quoted(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, "\"");
    put_string(out, bytes);
    put(out, "\"");
}

/// What stands between the quotes of a JSON string. What is not UTF-8 is shown as if it were
/// Latin-1.
fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let rest = put_steps::<16>(out, bytes);
    let rest = put_steps::<4>(out, rest);
    let rest = put_steps::<1>(out, rest);
    if !rest.is_empty() {
        put_escapes(out, rest);
    }
}

/// What stands between the quotes of a JSON string from its first escape on. Only ASCII goes before
/// it, so that it alone decides whether the whole is UTF-8.
#[cold]
fn put_escapes(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => text
            .chars()
            .for_each(|character| put_escaped(out, character)),
        Err(_) => bytes
            .iter()
            .for_each(|byte| put_escaped(out, char::from(*byte))),
    }
}

/// Appends what a JSON string shows as it is, in steps of so many bytes; answers the rest.
///
/// A step has no branch for each byte, and no copy of unknown length.
#[inline]
fn put_steps<'b, const BYTES: usize>(out: &mut Vec<u8>, mut bytes: &'b [u8]) -> &'b [u8] {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') & (*byte != b'"') & (*byte != b'\\');
    while let Some((step, rest)) = bytes.split_first_chunk::<BYTES>()
        && step.iter().fold(true, |all, byte| all & is_plain(byte))
    {
        out.extend_from_slice(step);
        bytes = rest;
    }
    bytes
}

fn put_escaped(out: &mut Vec<u8>, character: char) {
    match character {
        '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
        character => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// As it is, but for what a terminal would act on.
fn put_plain(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'!'..=b'~' => out.push(*byte),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEGUN: Duration = Duration::from_millis(1_764_000_000_250);

    fn entry() -> (Entry<'static>, Clock) {
        let begun = Instant::now();
        let entry = Entry {
            begun,
            took: Duration::from_micros(12_345),
            source: [10, 8, 0, 7].into(),
            sender: Some(("acme", "press \"07\"")),
            request: Some((b"POST", b"/in\x1b\xff")),
            status: 502,
            error: Some(("dns_error", "dns")),
            received: 10,
            sent: 20,
        };
        (entry, Clock::at(begun, SystemTime::UNIX_EPOCH + BEGUN))
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_json_line_is_one_object_with_its_fields_in_this_order() {
        let (entry, mut clock) = entry();
        let line = written(|out| entry.write_json(&mut clock, out));
        let expected = concat!(
            r#"{"time":"2025-11-24T16:00:00.25Z","source":"10.8.0.7","account":"acme","#,
            r#""device":"press \"07\"","method":"POST","path":"/in\u001bÿ","status":502,"#,
            r#""error":"dns_error","cause":"dns","received":10,"sent":20,"ms":12.345}"#,
            "\n"
        );
        assert_eq!(line, expected);
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["device"], "press \"07\"");
        assert_eq!(line["path"], "/in\u{1b}\u{ff}");
        assert_eq!(line["ms"], 12.345);
    }

    #[test]
    fn a_text_line_holds_nothing_that_a_terminal_acts_on() {
        let (entry, mut clock) = entry();
        let line = written(|out| entry.write_text(&mut clock, out));
        let expected = "2025-11-24T16:00:00.25Z 10.8.0.7 \"acme\" \"press \\\"07\\\"\" POST \
                        /in\\x1b\\xff 502 dns_error/dns in=10 out=20 12.345ms\n";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_longest_line_has_a_bound() {
        let long = [0x01; 70_000];
        let name = "\u{1}".repeat(limits::IDENTITY_VALUE_BYTES_MAX);
        let (entry, mut clock) = entry();
        let entry = Entry {
            took: Duration::MAX,
            source: [0xffff; 8].into(),
            sender: Some((&name, &name)),
            request: Some((&long, &long)),
            error: Some((
                "http_response_header_section_size",
                "response_head_too_large",
            )),
            received: u64::MAX,
            sent: u64::MAX,
            ..entry
        };
        let line = written(|out| entry.write_json(&mut clock, out));
        assert!(line.len() <= limits::LOG_LINE_BYTES_MAX, "{}", line.len());
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
    }

    #[test]
    fn a_time_beyond_the_year_9999_is_left_out() {
        let begun = Instant::now();
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        let mut clock = Clock::at(begun, last);
        assert_eq!(written(|out| clock.put(out, begun)), "9999-12-31T23:59:59Z");
        let beyond = begun + Duration::from_secs(1);
        assert_eq!(written(|out| clock.put(out, beyond)), "");
        assert_eq!(written(|out| clock.put(out, begun)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn a_clock_follows_the_system_s_when_it_is_read() {
        let mut clock = Clock::at(Instant::now(), SystemTime::UNIX_EPOCH);
        let before = SystemTime::now();
        clock.read();
        assert!(clock.said >= since_1970(before));
        let shown = written(|out| clock.put(out, Instant::now()));
        assert!(!shown.starts_with("1970"), "{shown}");
    }

    /// A text in pieces that need no escape, and pieces that do, valid or not.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let plain = proptest::collection::vec(b' '..=b'~', 0..40);
        let valid = any::<String>().prop_map(String::into_bytes);
        let piece = prop_oneof![plain, valid, proptest::collection::vec(any::<u8>(), 0..3)];
        proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn a_string_reads_as_it_does_character_by_character(bytes in text()) {
            let text = match std::str::from_utf8(&bytes) {
                Ok(text) => text.to_owned(),
                Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
            };
            let expected = written(|out| {
                out.push(b'"');
                text.chars().for_each(|character| put_escaped(out, character));
                out.push(b'"');
            });
            let quoted = written(|out| put_quoted(out, &bytes));
            prop_assert_eq!(&quoted, &expected);
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).expect("JSON"), text);
        }

        /// Steps of up to three seconds in either direction: some stay in a second, some leave it.
        #[test]
        fn times_read_as_they_do_one_by_one(
            first in 10_u64..250_000_000_000,
            steps in proptest::collection::vec((0..3_u64, prop_oneof![
                Just(0),
                Just(999_999_999),
                (0..1_000_u64).prop_map(|millis| millis * 1_000_000),
                0..1_000_000_000_u64,
            ], any::<bool>()), 1..20),
        ) {
            let base = Instant::now() + Duration::from_secs(10);
            let said = SystemTime::UNIX_EPOCH + Duration::from_secs(first);
            let mut clock = Clock::at(base, said);
            for (seconds, nanos, is_earlier) in steps {
                let step = Duration::from_secs(seconds) + Duration::from_nanos(nanos);
                let (instant, time) = match is_earlier {
                    true => (base - step, said - step),
                    false => (base + step, said + step),
                };
                let expected = OffsetDateTime::from(time).format(&Rfc3339).expect("a year");
                prop_assert_eq!(written(|out| clock.put(out, instant)), expected);
            }
        }

        #[test]
        fn addresses_read_as_the_standard_library_writes_them(address: IpAddr) {
            prop_assert_eq!(written(|out| put_address(out, address)), address.to_string());
        }

        #[test]
        fn milliseconds_are_rounded_to_the_nearest_microsecond(nanos in 0..u64::MAX / 2) {
            let micros = (u128::from(nanos) + 500) / 1_000;
            let expected = format!("{}.{:03}", micros / 1_000, micros % 1_000);
            let shown = written(|out| put_millis(out, Duration::from_nanos(nanos)));
            prop_assert_eq!(shown, expected);
        }
    }
}
