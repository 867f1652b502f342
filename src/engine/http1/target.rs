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

/// Whether `..` segments lead above the point where the path begins, in the eyes of the most
/// lenient server: one that decodes once or twice, takes `\` for `/`, and drops `;parameters`.
///
/// A query is no path: dots in it don't count.
pub fn escapes_base(path: &[u8]) -> bool {
    // Without two dots in a row, written or encoded, no segment can lead upwards.
    if memchr::memmem::find(path, b"..").is_none() && memchr::memchr(b'%', path).is_none() {
        return false;
    }
    let mut depth = 0_i32;
    let mut segment = Segment::default();
    let mut rest = path;
    loop {
        let byte = next_byte(&mut rest);
        match byte {
            Some(b'/' | b'\\') | Some(b'?') | None => {
                depth += segment.step();
                if depth < 0 {
                    return true;
                }
                if matches!(byte, Some(b'?') | None) {
                    return false;
                }
                segment = Segment::default();
            }
            Some(byte) => segment.push(byte),
        }
    }
}

/// What matters of a path segment.
#[derive(Default)]
struct Segment {
    dots: usize,
    others: bool,
    in_parameters: bool,
}

impl Segment {
    fn push(&mut self, byte: u8) {
        match byte {
            _ if self.in_parameters => {}
            b';' => self.in_parameters = true,
            b'.' => self.dots += 1,
            _ => self.others = true,
        }
    }

    /// How many levels the segment leads down.
    fn step(&self) -> i32 {
        match (self.others, self.dots) {
            (false, 0 | 1) => 0,
            (false, 2) => -1,
            _ => 1,
        }
    }
}

/// The next byte of a path with what an attacker would hide decoded, twice if it was encoded twice.
fn next_byte(rest: &mut &[u8]) -> Option<u8> {
    let (&first, mut tail) = rest.split_first()?;
    let mut byte = first;
    if first == b'%' {
        // `%25` is an encoded percent sign: what follows it may be the rest of a second encoding.
        let mut digits = tail;
        while let Some(more) = digits.strip_prefix(b"25") {
            digits = more;
        }
        if let Some((decoded, more)) = decode(digits) {
            (byte, tail) = (decoded, more);
        }
    }
    *rest = tail;
    // An encoded question mark is part of the path.
    Some(if first == b'%' && byte == b'?' {
        b'_'
    } else {
        byte
    })
}

/// Decodes two hexadecimal digits if they stand for a byte that has a meaning here.
fn decode(digits: &[u8]) -> Option<(u8, &[u8])> {
    let (pair, tail) = digits.split_at_checked(2)?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    matches!(byte, b'.' | b'/' | b'\\' | b';').then_some((byte, tail))
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
        ] {
            assert!(!escapes_base(path.as_bytes()), "{path}");
        }
    }
}
