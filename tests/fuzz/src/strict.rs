//! An independent, strict reader of HTTP/1 messages (RFC 9112).
//!
//! Shares nothing with the gateway: line by line where the gateway walks byte by byte, copying where
//! the gateway reads in place. It accepts what every server reads in the same way, and beyond that
//! only what [`Reading::Received`] names: what the gateway takes from others but never writes.

/// What is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// What the gateway wrote: no chunk extension, no blank, no trailer, no leading zero.
    Written,
    /// What the gateway was sent: chunk extensions, blanks behind a chunk's size, and trailers are
    /// read over, within the gateway's limits.
    Received,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They may be the beginning of one.
    Incomplete,
    /// They never will be, for this reason.
    Wrong(&'static str),
}

/// Reads on, or says why not.
pub type Read<T> = Result<T, Fault>;

/// One field, as it was written; the value without the blanks around it.
pub type Field<'a> = (&'a [u8], &'a [u8]);

/// A request line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLine<'a> {
    /// The method.
    pub method: &'a [u8],
    /// The target.
    pub target: &'a [u8],
    /// The 0 or 1 behind `HTTP/1.`.
    pub minor: u8,
}

/// A status line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusLine<'a> {
    /// The 0 or 1 behind `HTTP/1.`.
    pub minor: u8,
    /// Three digits.
    pub status: u16,
    /// The reason, possibly empty.
    pub reason: &'a [u8],
}

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a, L> {
    /// Its first line.
    pub line: L,
    /// Its fields, in order.
    pub fields: Vec<Field<'a>>,
    /// How its body is framed.
    pub framing: Framing,
    /// Its body, without the chunked coding.
    pub body: Vec<u8>,
    /// Bytes of the whole message.
    pub length: usize,
}

/// How the body of a message is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No field says that there is one.
    Absent,
    /// By `Content-Length`.
    Length(u64),
    /// By the chunked coding.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// Bytes of a chunk's size line, CRLF left out, that the gateway takes.
const CHUNK_LINE_MAX: usize = 512;
/// Bytes of a trailer section, its last CRLF left out, that the gateway takes.
const TRAILERS_MAX: usize = 8_192;

/// Reads the request at the beginning of `bytes`.
///
/// # Errors
/// [`Fault`]
pub fn request(bytes: &[u8], reading: Reading) -> Read<Message<'_, RequestLine<'_>>> {
    let (lines, begin) = head(bytes)?;
    let line = request_line(lines[0])?;
    let fields = lines[1..]
        .iter()
        .map(|line| field(line))
        .collect::<Read<Vec<_>>>()?;
    let framing = request_framing(line.minor, &fields)?;
    let (body, behind) = body(&bytes[begin..], framing, reading)?;
    Ok(Message {
        line,
        fields,
        framing,
        body,
        length: begin + behind,
    })
}

/// Reads the answer at the beginning of `bytes`, to a `HEAD` request or another. `ended` says that
/// the connection ended in an orderly way behind the last byte.
///
/// # Errors
/// [`Fault`]
pub fn response(
    bytes: &[u8],
    reading: Reading,
    to_head: bool,
    ended: bool,
) -> Read<Message<'_, StatusLine<'_>>> {
    // Some servers send one CRLF too many behind a body or an interim answer.
    let surplus = match reading {
        Reading::Received if bytes.starts_with(b"\r\n") => 2,
        _ => 0,
    };
    let bytes = &bytes[surplus..];
    let (lines, begin) = head(bytes)?;
    let line = status_line(lines[0])?;
    let fields = lines[1..]
        .iter()
        .map(|line| field(line))
        .collect::<Read<Vec<_>>>()?;
    let framing = response_framing(&line, &fields, reading, to_head)?;
    let (body, behind) = match framing {
        Framing::UntilClose if ended => (bytes[begin..].to_vec(), bytes.len() - begin),
        _ => body(&bytes[begin..], framing, reading)?,
    };
    Ok(Message {
        line,
        fields,
        framing,
        body,
        length: surplus + begin + behind,
    })
}

/// Splits a head into its lines, and says where it ends. A line ends in CRLF, and holds neither.
///
/// # Errors
/// [`Fault`]
pub fn head(bytes: &[u8]) -> Read<(Vec<&[u8]>, usize)> {
    let mut lines = Vec::new();
    let mut begin = 0;
    loop {
        let (line, next) = crlf_line(bytes, begin)?;
        begin = next;
        match (line.is_empty(), lines.is_empty()) {
            (true, true) => return Err(Fault::Wrong("no first line")),
            (true, false) => return Ok((lines, begin)),
            (false, _) => lines.push(line),
        }
    }
}

/// The line that begins at `begin`, and where the next one does.
fn crlf_line(bytes: &[u8], begin: usize) -> Read<(&[u8], usize)> {
    let rest = &bytes[begin..];
    let end = rest.windows(2).position(|pair| pair == b"\r\n");
    let line = &rest[..end.ok_or(Fault::Incomplete)?];
    if line
        .iter()
        .any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f)
    {
        return Err(Fault::Wrong("a control character"));
    }
    Ok((line, begin + line.len() + 2))
}

/// Reads `METHOD SP TARGET SP HTTP/1.x`.
///
/// # Errors
/// [`Fault::Wrong`]
pub fn request_line(line: &[u8]) -> Read<RequestLine<'_>> {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else {
        return Err(Fault::Wrong("not three parts in the request line"));
    };
    if !is_token(method) {
        return Err(Fault::Wrong("a method that is no token"));
    }
    // Not of RFC 3986, but servers take it: text in UTF-8.
    let target_is_text = std::str::from_utf8(target).is_ok();
    if target.is_empty() || target.contains(&b'\t') || !target_is_text {
        return Err(Fault::Wrong("no target"));
    }
    Ok(RequestLine {
        method,
        target,
        minor: minor(version)?,
    })
}

/// Reads `HTTP/1.x SP DIGIT DIGIT DIGIT SP reason`; the last blank may be missing.
///
/// # Errors
/// [`Fault::Wrong`]
pub fn status_line(line: &[u8]) -> Read<StatusLine<'_>> {
    let wrong = Fault::Wrong("a malformed status line");
    let (version, rest) = line.split_at_checked(8).ok_or(wrong)?;
    let minor = minor(version)?;
    let [
        b' ',
        a @ b'1'..=b'9',
        b @ b'0'..=b'9',
        c @ b'0'..=b'9',
        reason @ ..,
    ] = rest
    else {
        return Err(wrong);
    };
    let reason = match reason {
        [] => reason,
        [b' ', reason @ ..] => reason,
        _ => return Err(wrong),
    };
    let digit = |byte: &u8| u16::from(byte - b'0');
    Ok(StatusLine {
        minor,
        status: digit(a) * 100 + digit(b) * 10 + digit(c),
        reason,
    })
}

fn minor(version: &[u8]) -> Read<u8> {
    match version {
        b"HTTP/1.0" => Ok(0),
        b"HTTP/1.1" => Ok(1),
        _ => Err(Fault::Wrong("another version")),
    }
}

/// Reads `name: value`; no folding, no blank before the colon.
///
/// # Errors
/// [`Fault::Wrong`]
pub fn field(line: &[u8]) -> Read<Field<'_>> {
    let colon = line.iter().position(|byte| *byte == b':');
    let colon = colon.ok_or(Fault::Wrong("a field without a colon"))?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err(Fault::Wrong("a name that is no token"));
    }
    Ok((name, trim(value)))
}

/// Which body follows a request's head (RFC 9112 §6.3), doubt being refused.
///
/// # Errors
/// [`Fault::Wrong`]
pub fn request_framing(minor: u8, fields: &[Field<'_>]) -> Read<Framing> {
    let folding = |wanted: &str| {
        let folds = fields.iter().filter(|(name, _)| fold(name) == wanted);
        folds.copied().collect::<Vec<_>>()
    };
    let (lengths, codings) = (folding("content_length"), folding("transfer_encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Framing::Absent),
        ([length], []) => plain_length(length),
        ([], [coding]) if minor == 1 => plain_coding(coding),
        ([], [_]) => Err(Fault::Wrong("a coding in HTTP/1.0")),
        _ => Err(Fault::Wrong("several framing fields")),
    }
}

fn plain_length((name, value): &Field<'_>) -> Read<Framing> {
    if !name.eq_ignore_ascii_case(b"content-length") {
        return Err(Fault::Wrong("a disguised length"));
    }
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Wrong("a length that is not digits"));
    }
    let text = String::from_utf8_lossy(value);
    let length = text
        .parse()
        .map_err(|_| Fault::Wrong("a length past 64 bits"))?;
    Ok(Framing::Length(length))
}

fn plain_coding((name, value): &Field<'_>) -> Read<Framing> {
    match name.eq_ignore_ascii_case(b"transfer-encoding") {
        true if value.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        true => Err(Fault::Wrong("an unknown coding")),
        false => Err(Fault::Wrong("a disguised coding")),
    }
}

/// Which body follows an answer's head. A server may repeat its length, if it is the same.
///
/// # Errors
/// [`Fault::Wrong`]
pub fn response_framing(
    line: &StatusLine<'_>,
    fields: &[Field<'_>],
    reading: Reading,
    to_head: bool,
) -> Read<Framing> {
    let named = |wanted: &[u8]| {
        let named = fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        named.collect::<Vec<_>>()
    };
    let (lengths, codings) = (named(b"content-length"), named(b"transfer-encoding"));
    let announced = match (&lengths[..], &codings[..]) {
        ([], []) => Framing::UntilClose,
        ([first, others @ ..], []) => {
            let length = plain_length(first)?;
            for other in others {
                if reading == Reading::Written || plain_length(other)? != length {
                    return Err(Fault::Wrong("several lengths"));
                }
            }
            length
        }
        ([], [coding]) if line.minor == 1 => plain_coding(coding)?,
        ([], [_]) => return Err(Fault::Wrong("a coding in HTTP/1.0")),
        _ => return Err(Fault::Wrong("several framing fields")),
    };
    Ok(match line.status {
        _ if to_head => Framing::Absent,
        100..=199 | 204 | 304 => Framing::Absent,
        _ => announced,
    })
}

fn body(bytes: &[u8], framing: Framing, reading: Reading) -> Read<(Vec<u8>, usize)> {
    match framing {
        Framing::Absent => Ok((Vec::new(), 0)),
        Framing::Length(length) => {
            let length = usize::try_from(length).map_err(|_| Fault::Incomplete)?;
            let body = bytes.get(..length).ok_or(Fault::Incomplete)?;
            Ok((body.to_vec(), length))
        }
        Framing::Chunked => chunked(bytes, reading),
        Framing::UntilClose => Err(Fault::Incomplete),
    }
}

/// Reads a body in the chunked coding (RFC 9112 §7.1); answers it, and the bytes it took.
///
/// # Errors
/// [`Fault`]
pub fn chunked(bytes: &[u8], reading: Reading) -> Read<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut begin = 0;
    loop {
        let (line, next) = crlf_line(bytes, begin)?;
        begin = next;
        let size = chunk_size(line, reading)?;
        if size == 0 {
            return Ok((body, trailers(bytes, begin, reading)?));
        }
        let rest = &bytes[begin..];
        let size = usize::try_from(size).map_err(|_| Fault::Incomplete)?;
        let (payload, rest) = rest.split_at_checked(size).ok_or(Fault::Incomplete)?;
        body.extend_from_slice(payload);
        match rest {
            [b'\r', b'\n', ..] => begin += size + 2,
            [] | [b'\r'] => return Err(Fault::Incomplete),
            _ => return Err(Fault::Wrong("no CRLF behind a chunk")),
        }
    }
}

fn chunk_size(line: &[u8], reading: Reading) -> Read<u64> {
    let mut digits = line;
    if reading == Reading::Received {
        if line.len() > CHUNK_LINE_MAX {
            return Err(Fault::Wrong("a long size line"));
        }
        let extensions = line.iter().position(|byte| *byte == b';');
        digits = trim_end(&line[..extensions.unwrap_or(line.len())]);
    } else if line.len() > 1 && line[0] == b'0' {
        return Err(Fault::Wrong("a leading zero"));
    }
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Fault::Wrong("a size that is not hexadecimal"));
    }
    let text = String::from_utf8_lossy(digits);
    u64::from_str_radix(&text, 16).map_err(|_| Fault::Wrong("a size past 64 bits"))
}

/// Reads over the trailer section that begins at `begin`; answers where it ends.
fn trailers(bytes: &[u8], begin: usize, reading: Reading) -> Read<usize> {
    let mut position = begin;
    loop {
        let (line, next) = crlf_line(bytes, position)?;
        if line.is_empty() {
            return Ok(next);
        }
        if reading == Reading::Written {
            return Err(Fault::Wrong("a trailer"));
        }
        field(line)?;
        position = next;
        if position - begin > TRAILERS_MAX {
            return Err(Fault::Wrong("long trailers"));
        }
    }
}

/// A field name as CGI, WSGI and PHP see it: lower-case, all but letters and digits an underscore.
pub fn fold(name: &[u8]) -> String {
    let fold = |byte: &u8| match byte {
        b'A'..=b'Z' => char::from(byte + 32),
        b'a'..=b'z' | b'0'..=b'9' => char::from(*byte),
        _ => '_',
    };
    name.iter().map(fold).collect()
}

/// Whether these are one or more characters of a token (RFC 9110 §5.6.2).
fn is_token(bytes: &[u8]) -> bool {
    let separators = b"\"(),/:;<=>?@[\\]{}";
    let fits = |byte: &u8| (0x21..0x7f).contains(byte) && !separators.contains(byte);
    !bytes.is_empty() && bytes.iter().all(fits)
}

/// What the `Connection` fields list, lower-case.
pub fn connection_options(fields: &[Field<'_>]) -> Vec<String> {
    let connections = fields
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"));
    let tokens = connections.flat_map(|(_, value)| value.split(|byte| *byte == b','));
    tokens
        .map(|token| String::from_utf8_lossy(trim(token)).to_ascii_lowercase())
        .collect()
}

/// Without blanks and tabs at either end.
pub fn trim(value: &[u8]) -> &[u8] {
    let begin = value.iter().position(|byte| !matches!(byte, b' ' | b'\t'));
    begin.map_or(&[], |begin| trim_end(&value[begin..]))
}

fn trim_end(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| !matches!(byte, b' ' | b'\t'));
    &value[..end.map_or(0, |last| last + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_to_its_end() {
        let wire =
            b"POST /a HTTP/1.1\r\nHost: m2u\r\nA: \t b c \r\nContent-Length: 3\r\n\r\nabcdef";
        let message = request(wire, Reading::Written).expect("a request");
        assert_eq!(
            (message.line.method, message.line.target),
            (&b"POST"[..], &b"/a"[..])
        );
        assert_eq!(message.fields[1], (&b"A"[..], &b"b c"[..]));
        assert_eq!(
            (&message.body[..], message.length),
            (&b"abc"[..], wire.len() - 3)
        );
        for cut in 0..message.length {
            let partial = request(&wire[..cut], Reading::Written);
            assert_eq!(partial.err(), Some(Fault::Incomplete), "cut at {cut}");
        }
        let answer = response(b"HTTP/1.1 200 OK\r\n\r\nabc", Reading::Written, false, true);
        assert_eq!(answer.expect("an answer").body, b"abc");
    }

    #[test]
    fn what_is_read_over_when_received_is_wrong_when_written() {
        for (wire, body) in [
            ("3;a=\"b\"\r\nabc\r\n0\r\n\r\n", "abc"),
            ("3 \t\r\nabc\r\n0\r\n\r\n", "abc"),
            ("03\r\nabc\r\n0\r\n\r\n", "abc"),
            ("0\r\nA: b\r\n\r\n", ""),
        ] {
            let read = chunked(wire.as_bytes(), Reading::Received);
            assert_eq!(read, Ok((body.into(), wire.len())), "{wire}");
            let read = chunked(wire.as_bytes(), Reading::Written);
            assert!(matches!(read, Err(Fault::Wrong(_))), "{wire}");
        }
    }

    #[test]
    fn doubt_is_refused() {
        for fields in [
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Content_Length: 3\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "A : b\r\n",
            " A: b\r\n",
            "A: b\rc\r\n",
            "A: b\nc: d\r\n",
        ] {
            let wire = format!("POST / HTTP/1.1\r\nHost: m2u\r\n{fields}\r\nabc");
            let read = request(wire.as_bytes(), Reading::Received);
            assert!(matches!(read, Err(Fault::Wrong(_))), "{fields}");
        }
        for body in [
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabcd\r\n",
            "x\r\n",
            "-3\r\n",
            "\r\n",
        ] {
            let read = chunked(body.as_bytes(), Reading::Received);
            assert!(matches!(read, Err(Fault::Wrong(_))), "{body}");
        }
    }
}
