//! Request targets (RFC 9112 §3.2): which authority and which path a request line names.
//!
//! Path and query stay the device's, byte for byte: nothing is decoded or normalised, only looked
//! at with the eyes of a lenient server.

/// A target, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The authority of an absolute-form target, which wins over `Host`.
    pub authority: Option<&'a [u8]>,
    /// Path and query as the device wrote them. After an authority the leading slash may be
    /// missing; `*` alone asks about the server as a whole.
    pub path: &'a [u8],
}

/// A target of no form that a gateway takes: 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadTarget;

const SCHEME: &[u8] = b"http://";

/// Reads a target in origin, absolute or asterisk form.
///
/// # Errors
/// [`BadTarget`]: another scheme, a user in the authority, a fragment, or a byte that no target
/// has; the device's fault, 400, then close.
pub fn parse(target: &[u8]) -> Result<Target<'_>, BadTarget> {
    if target
        .iter()
        .any(|byte| *byte <= b' ' || *byte == 0x7f || *byte == b'#')
    {
        return Err(BadTarget);
    }
    if target.first() == Some(&b'/') || target == b"*" {
        return Ok(Target {
            authority: None,
            path: target,
        });
    }
    match target.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => {
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
            let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
            if authority.is_empty() {
                return Err(BadTarget);
            }
            Ok(Target {
                authority: Some(authority),
                path,
            })
        }
        _ => Err(BadTarget),
    }
}

/// Whether `..` segments lead above the point where the path begins in the eyes of any server: one
/// that decodes once, twice or not at all, takes `\` for `/`, drops `;parameters`, ends a name at a
/// NUL, or reads over-long UTF-8, `%u0041`, or characters that look like a dot or a slash.
///
/// What one server takes for a separator is part of a name to another. So `..` leads upwards behind
/// every separator that anybody sees, while only a plain slash lets one more name lead down.
///
/// A query is no path: dots in it don't count.
pub fn escapes_base(path: &[u8]) -> bool {
    // Without two dots in a row, written or encoded, no segment can lead upwards.
    let is_plain = memchr::memchr(b'%', path).is_none() && path.is_ascii();
    if is_plain && memchr::memmem::find(path, b"..").is_none() {
        return false;
    }
    let mut depth = 0_i32;
    let mut segment = Segment::default();
    let mut rest = path;
    while let Some(character) = Character::take(&mut rest) {
        match character.meaning {
            b'?' if character.is_plain => break,
            // The end of the path to whoever decodes it first, and part of a name to all others.
            b'?' | b'#' if depth + segment.step() < 0 => return true,
            b'/' | b'\\' => {
                depth += segment.step();
                if depth < 0 {
                    return true;
                }
                segment = segment.next(character.is_plain && character.meaning == b'/');
            }
            byte => segment.push(byte),
        }
    }
    depth + segment.step() < 0
}

/// What matters of a path segment, or of a part that only some servers take for one.
#[derive(Default)]
struct Segment {
    dots: usize,
    others: bool,
    /// Whether what comes is dropped by some: it stands behind a semicolon or a NUL.
    is_dropped: bool,
    /// Whether a part of the same plain segment has led down already, or is the last for some.
    is_spent: bool,
}

impl Segment {
    fn push(&mut self, byte: u8) {
        match byte {
            _ if self.is_dropped => {}
            // Taken out by some (WHATWG URL, §4.4).
            b'\t' | b'\n' | b'\r' => {}
            b';' | 0 => self.is_dropped = true,
            b'.' => self.dots += 1,
            _ => self.others = true,
        }
    }

    /// How many levels the segment leads down.
    fn step(&self) -> i32 {
        match (self.others, self.dots) {
            (false, 0 | 1) => 0,
            (false, 2) => -1,
            _ => i32::from(!self.is_spent),
        }
    }

    /// The segment behind a separator: one that all servers see, or only some.
    fn next(&self, all_see_it: bool) -> Self {
        Self {
            is_spent: !all_see_it && (self.is_spent || self.is_dropped || self.step() > 0),
            ..Self::default()
        }
    }
}

/// A character of a path, with what an attacker would hide decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Character {
    /// The ASCII character that some server takes it for; `_` for what means nothing here.
    meaning: u8,
    /// Whether it was written as it is.
    is_plain: bool,
}

impl Character {
    fn take(rest: &mut &[u8]) -> Option<Self> {
        let first = Unit::take(rest, NESTING_MAX)?;
        let more = match first.value {
            0xc0..=0xdf => 1,
            0xe0..=0xef => 2,
            0xf0..=0xf7 => 3,
            value => {
                return Some(Self {
                    meaning: meaning(value),
                    is_plain: first.is_plain,
                });
            }
        };
        Some(Self {
            meaning: continued(first.value, more, rest),
            is_plain: false,
        })
    }
}

/// What a UTF-8 character means that begins with `first` and has `more` bytes; over-long forms are
/// read like any other (RFC 3629 §3 forbids that, and servers have done it).
fn continued(first: u32, more: usize, rest: &mut &[u8]) -> u8 {
    let mut ahead = *rest;
    let mut value = first & (0x3f >> more);
    for _ in 0..more {
        match Unit::take(&mut ahead, NESTING_MAX) {
            Some(unit) if matches!(unit.value, 0x80..=0xbf) => {
                value = value << 6 | unit.value & 0x3f;
            }
            // Some mask a byte without a look at it. Where that hides nothing it is left alone.
            Some(unit) if first <= 0xc1 && !unit.is_plain => {
                let masked = meaning(value << 6 | unit.value & 0x3f);
                if !matches!(masked, b'.' | b'/' | b'\\' | b'\t' | b'\n' | b'\r' | 0) {
                    return b'_';
                }
                *rest = ahead;
                return masked;
            }
            _ => return b'_',
        }
    }
    *rest = ahead;
    meaning(value)
}

/// The ASCII character that some server takes a code point for; `_` for none.
fn meaning(value: u32) -> u8 {
    match value {
        // What Windows and normalisation (NFKC) make of full-width and look-alike characters.
        0x2024 | 0xfe52 | 0xff0e => b'.',
        0x2044 | 0x2215 | 0xff0f => b'/',
        0x2216 | 0xfe68 | 0xff3c => b'\\',
        _ => u8::try_from(value)
            .ok()
            .filter(u8::is_ascii)
            .unwrap_or(b'_'),
    }
}

/// A byte of a path, or what `%u0041` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unit {
    value: u32,
    is_plain: bool,
}

/// Encodings inside an encoding's own digits that are looked into, as in `%%32%65`.
const NESTING_MAX: usize = 2;

impl Unit {
    /// Takes one unit off, decoded as often as it is encoded.
    fn take(rest: &mut &[u8], nesting: usize) -> Option<Self> {
        let (first, tail) = rest.split_first()?;
        *rest = tail;
        let mut unit = Self {
            value: u32::from(*first),
            is_plain: true,
        };
        while unit.value == u32::from(b'%') && nesting > 0 {
            let mut ahead = *rest;
            let Some(value) = Self::take_digits(&mut ahead, nesting - 1) else {
                break;
            };
            *rest = ahead;
            unit = Self {
                value,
                is_plain: false,
            };
        }
        Some(unit)
    }

    /// Takes two hexadecimal digits off, or four behind a `u`.
    fn take_digits(rest: &mut &[u8], nesting: usize) -> Option<u32> {
        let mut take = || char::from_u32(Self::take(rest, nesting)?.value);
        let (mut value, more) = match take()? {
            'u' | 'U' => (0, 4),
            digit => (digit.to_digit(16)?, 1),
        };
        for _ in 0..more {
            value = value << 4 | take()?.to_digit(16)?;
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_taken_apart() {
        for (target, authority, path) in [
            ("/", None, "/"),
            ("/a//b?x=1&y=%20", None, "/a//b?x=1&y=%20"),
            ("*", None, "*"),
            ("http://m2u.talk2m.com/a?b", Some("m2u.talk2m.com"), "/a?b"),
            ("HTTP://m2u:80", Some("m2u:80"), ""),
            ("http://m2u?x", Some("m2u"), "?x"),
            ("/http://m2u2/", None, "/http://m2u2/"),
        ] {
            let authority = authority.map(str::as_bytes);
            let expected = Target {
                authority,
                path: path.as_bytes(),
            };
            assert_eq!(parse(target.as_bytes()), Ok(expected), "{target}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for target in [
            "",
            "a",
            "m2u:80",
            "https://m2u/",
            "http:///x",
            "http:/m2u",
            "ftp://m2u/",
            "/a#b",
            "/a\tb",
            "/a\u{7f}",
            "http://m2u#x",
            "**",
        ] {
            assert_eq!(parse(target.as_bytes()), Err(BadTarget), "{target:?}");
        }
    }

    #[test]
    fn paths_that_lead_above_their_beginning_are_seen() {
        for path in [
            "/..",
            "/../x",
            "/a/../../x",
            "/a/..//../x",
            "/%2e%2e/x",
            "/.%2E/x",
            "/%2e./x",
            "/a/%2e%2e%2f%2e%2e/x",
            "/..\\x",
            "\\..\\x",
            "/..%5cx",
            "/..;v=1/x",
            "/%252e%252e/x",
            "/..%252fx",
            "/.%25252e/x",
            "/a/./../../x",
            "/..?x",
            "..",
            "/%%32%65%%32%65/x",
            "/%25%32%65%25%32%65/x",
            "/%c0%ae%c0%ae/x",
            "/..%c0%afx",
            "/..%c1%9cx",
            "/..%c1%1cx",
            "/%c0%2e%c0%2e/x",
            "/%e0%80%ae./x",
            "/%u002e%u002e/x",
            "/..%u2215x",
            "/%ef%bc%8e%ef%bc%8e/x",
            "/\u{ff0e}\u{ff0e}/x",
            "/..%00x",
            "/..%3fx=1",
            "/..%23",
            "/a/%2e%2e%2f%2e%2e%253f",
            "/%00a/../x",
            "/a%2fb/../../x",
            "/a\\b/../../x",
            "/a%5cb%2f..%2f..",
            "/;%5ca/../x",
            "/%e9%2f%2e%2e/..",
            "/.%09./x",
            "/%0d.%0a./x",
            "/%09/..",
        ] {
            assert!(escapes_base(path.as_bytes()), "{path}");
        }
        for path in [
            "/",
            "/a/../b",
            "/a/b/../../c",
            "/...",
            "/a..b/..",
            "/a?/../../",
            "/a%3f/..",
            "/.../..",
            "",
            "/.",
            "/a;/../b",
            "/%zz",
            "/%",
            "/100%25",
            "/a/%2e%2e",
            "*",
            "/a%00b/..",
            "/%c0a/..",
            "/%c0?/../..",
            "/%c3%a9/..",
            "/\u{e9}/..",
            "/%u00e9/..",
            "/a%2fb/..",
            "/a%2f../b",
            "/%2525252525252525/..",
            "/%%%%%%%/..",
            "/a%09b/..",
        ] {
            assert!(!escapes_base(path.as_bytes()), "{path}");
        }
    }
}
