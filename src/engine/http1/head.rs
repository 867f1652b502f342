//! Heads of requests and answers, read in place by httparse; nothing is copied.
//!
//! A head is parsed once, when its end has been seen. This file decides what a head says; what
//! becomes of it is decided in `proxy`, how it is written anew in `rewrite`.

use std::mem::MaybeUninit;

use super::{
    field::{self, Field, FieldSet},
    framing::{Body, Framing, FramingError, Version},
};
use crate::limits;

/// Room for the fields of one head, on the stack and not initialised.
pub type FieldSpace<'b> = [MaybeUninit<httparse::Header<'b>>; limits::FIELDS_CEILING];

/// A fresh [`FieldSpace`].
#[inline]
pub fn field_space<'b>() -> FieldSpace<'b> {
    [const { MaybeUninit::uninit() }; limits::FIELDS_CEILING]
}

/// Why a head was not understood. The device's fault means 400 (or what the variant says) and
/// close; the server's means 502.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// Not HTTP/1.0 or HTTP/1.1 as RFC 9112 writes it.
    Malformed,
    /// A line ends in LF without CR: two parsers may see two different heads.
    BareLineFeed,
    /// More fields than allowed: 431.
    TooManyFields,
    /// The end of the message cannot be told.
    Framing(FramingError),
    /// No `Host` in HTTP/1.1, or more than one.
    Host,
    /// More names in `Connection` than a head could need.
    Connection,
}

impl From<FramingError> for HeadError {
    fn from(error: FramingError) -> Self {
        Self::Framing(error)
    }
}

/// Looks for the empty line that ends a head.
///
/// `scanned` bytes were looked at before and are not looked at again, so a head that arrives byte
/// by byte costs one pass. Returns the head's length, empty line included, once it is complete.
///
/// # Errors
/// `HeadError::BareLineFeed` for a line that does not end in CRLF (RFC 9112 §2.2 lets us refuse).
#[inline]
pub fn find_end(bytes: &[u8], scanned: usize) -> Result<Option<usize>, HeadError> {
    for offset in memchr::memchr_iter(b'\n', &bytes[scanned..]) {
        let line_feed = scanned + offset;
        match &bytes[..line_feed] {
            [.., b'\r', b'\n', b'\r'] => return Ok(Some(line_feed + 1)),
            [.., b'\r'] => {}
            _ => return Err(HeadError::BareLineFeed),
        }
    }
    Ok(None)
}

/// Length of the empty lines before a request line, which are skipped (RFC 9112 §2.2).
pub fn leading_empty_lines(bytes: &[u8]) -> usize {
    bytes
        .chunks_exact(2)
        .take_while(|pair| *pair == b"\r\n")
        .count()
        * 2
}

/// A method as far as the gateway cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `HEAD`: its answer has no body.
    Head,
    /// `GET` and `DELETE`: a body means nothing in them (RFC 9110 §9.3.1, §9.3.5).
    Bodiless,
    /// `PUT`
    Put,
    /// `OPTIONS`, the only one with an asterisk for a target.
    Options,
    /// `CONNECT` and `TRACE`: refused with 405.
    Refused,
    /// Everything else, such as POST.
    Other,
}

impl Method {
    fn classify(name: &str) -> Self {
        match name {
            "GET" | "DELETE" => Self::Bodiless,
            "PUT" => Self::Put,
            "HEAD" => Self::Head,
            "OPTIONS" => Self::Options,
            // Case tells methods apart (RFC 9110 §9.1), but not for every server.
            _ if name.eq_ignore_ascii_case("CONNECT") => Self::Refused,
            _ if name.eq_ignore_ascii_case("TRACE") => Self::Refused,
            _ => Self::Other,
        }
    }

    /// Whether repeating it does no harm (RFC 9110 §9.2.2).
    pub fn is_idempotent(self) -> bool {
        matches!(
            self,
            Self::Head | Self::Bodiless | Self::Put | Self::Options
        )
    }
}

/// What the `Connection` fields of a head ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
}

/// Whether a connection goes on after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persist {
    /// It ends.
    Close,
    /// It may carry another.
    Keep,
}

impl ConnectionOptions {
    fn persist(self, version: Version) -> Persist {
        match version {
            _ if self.close => Persist::Close,
            Version::Http11 => Persist::Keep,
            Version::Http10 if self.keep_alive => Persist::Keep,
            Version::Http10 => Persist::Close,
        }
    }
}

/// A request head, read in place.
#[derive(Debug)]
pub struct Request<'h, 'b> {
    /// The method as written.
    pub method_name: &'b [u8],
    /// What the method means here.
    pub method: Method,
    /// The target as written.
    pub target: &'b [u8],
    /// Version of the request line.
    pub version: Version,
    /// All fields, in order.
    pub fields: &'h [httparse::Header<'b>],
    /// Positions of the fields that pass on.
    pub kept: FieldSet,
    /// Positions among `kept` of `Authorization`.
    pub authorization: FieldSet,
    /// The only `Host` value.
    pub host: Option<&'b [u8]>,
    /// Whether an `Authorization` logs the whole connection in, and not this request alone.
    pub binds_connection: bool,
    /// Whether an `X-Request-Id` passes on.
    pub has_request_id: bool,
    /// Whether the device may wait for an interim answer before it sends the body.
    pub expects: bool,
    /// The body that follows.
    pub body: Body,
    /// Whether the device's connection may go on.
    pub persist: Persist,
}

impl<'h, 'b> Request<'h, 'b> {
    /// Whether the method gives a body a meaning (RFC 9110 §9.3.3, §9.3.4; RFC 5789 §2). A server that expects
    /// none, or does not know the method, may take it for the next request.
    pub fn defines_content(&self) -> bool {
        matches!(self.method_name, b"POST" | b"PUT" | b"PATCH")
    }

    /// Reads a complete request head.
    ///
    /// `bytes` ends with the empty line that [`find_end`] saw.
    ///
    /// # Errors
    /// `HeadError`: the device's fault; the row of the failure table, then close.
    #[inline]
    pub fn parse(
        bytes: &'b [u8],
        space: &'h mut FieldSpace<'b>,
        fields_max: usize,
    ) -> Result<Self, HeadError> {
        let space = &mut space[..fields_max.min(limits::FIELDS_CEILING)];
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(bytes, space) {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
            _ => return Err(HeadError::Malformed),
        }
        let (Some(method), Some(target), Some(version)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(HeadError::Malformed);
        };
        let version = if version == 0 {
            Version::Http10
        } else {
            Version::Http11
        };
        Self::digest(method, target, version, parsed.headers)
    }

    fn digest(
        method: &'b str,
        target: &'b str,
        version: Version,
        fields: &'h [httparse::Header<'b>],
    ) -> Result<Self, HeadError> {
        let mut kept = FieldSet::default();
        let mut authorization = FieldSet::default();
        let mut host = None;
        let mut binds_connection = false;
        let mut has_request_id = false;
        let mut expects = false;
        let mut framing = Framing::default();
        let mut has_connection = false;
        for (index, header) in fields.iter().enumerate() {
            let field = field::classify_request(header.name.as_bytes());
            match field {
                Field::Ordinary | Field::Date | Field::Location | Field::Challenge => {
                    kept.insert(index);
                }
                // Means nothing in HTTP/1.0 (RFC 9110 §10.1.1).
                Field::Expect if version == Version::Http10 => {}
                Field::Expect => {
                    kept.insert(index);
                    expects = true;
                }
                Field::Dropped => {}
                Field::ContentLength | Field::TransferEncoding | Field::Disguised => {
                    framing.take(field, header.value)?;
                }
                Field::Authorization => {
                    kept.insert(index);
                    authorization.insert(index);
                    binds_connection |= is_connection_login(header.value);
                }
                Field::Connection => has_connection = true,
                Field::Host => {
                    if host.replace(header.value).is_some() {
                        return Err(HeadError::Host);
                    }
                }
                Field::RequestId => {
                    kept.insert(index);
                    has_request_id = true;
                }
            }
        }
        let mut options = ConnectionOptions::default();
        if has_connection {
            options = drop_nominated(fields, &mut kept)?;
            let is_kept = |wanted| {
                fields.iter().enumerate().any(|(index, header)| {
                    kept.contains(index)
                        && field::classify_request(header.name.as_bytes()) == wanted
                })
            };
            has_request_id &= is_kept(Field::RequestId);
            // A server that never hears of the expectation will not answer it.
            expects &= is_kept(Field::Expect);
        }
        if host.is_none() && version == Version::Http11 {
            return Err(HeadError::Host);
        }
        Ok(Self {
            method_name: method.as_bytes(),
            method: Method::classify(method),
            target: target.as_bytes(),
            version,
            fields,
            kept,
            authorization,
            host,
            binds_connection,
            has_request_id,
            expects,
            body: framing.request_body(version)?,
            persist: options.persist(version),
        })
    }
}

/// An answer's head, read in place.
#[derive(Debug)]
pub struct Response<'h, 'b> {
    /// Protocol version.
    pub version: Version,
    /// Status code, 100 to 999.
    pub status: u16,
    /// Reason phrase as written, possibly empty.
    pub reason: &'b [u8],
    /// All fields, in order.
    pub fields: &'h [httparse::Header<'b>],
    /// Positions of the fields that pass on.
    pub kept: FieldSet,
    /// Positions among `kept` of `Location` and `Content-Location`.
    pub locations: FieldSet,
    /// Whether a `Date` passes on.
    pub has_date: bool,
    /// The body that follows.
    pub body: Body,
    /// The framing the fields announced, for answers that have no body.
    pub announced: Body,
    /// Whether the server's connection may go on: never once it may be logged in as one device, and
    /// never behind a body that is announced where none may come.
    pub persist: Persist,
}

impl<'h, 'b> Response<'h, 'b> {
    /// Reads a complete answer head; `to_head` says that it answers a `HEAD` request.
    ///
    /// # Errors
    /// `HeadError`: the server's fault; 502.
    #[inline]
    pub fn parse(
        bytes: &'b [u8],
        space: &'h mut FieldSpace<'b>,
        fields_max: usize,
        to_head: bool,
    ) -> Result<Self, HeadError> {
        let space = &mut space[..fields_max.min(limits::FIELDS_CEILING)];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, bytes, space) {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
            _ => return Err(HeadError::Malformed),
        }
        let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
            return Err(HeadError::Malformed);
        };
        if status < 100 {
            return Err(HeadError::Malformed);
        }
        let version = if version == 0 {
            Version::Http10
        } else {
            Version::Http11
        };
        let reason = parsed.reason.unwrap_or_default().as_bytes();
        Self::digest(status, reason, version, parsed.headers, to_head)
    }

    fn digest(
        status: u16,
        reason: &'b [u8],
        version: Version,
        fields: &'h [httparse::Header<'b>],
        to_head: bool,
    ) -> Result<Self, HeadError> {
        let mut kept = FieldSet::default();
        let mut locations = FieldSet::default();
        let mut date = None;
        let mut framing = Framing::default();
        let mut has_connection = false;
        let mut binds_connection = false;
        for (index, header) in fields.iter().enumerate() {
            let field = field::classify_response(header.name.as_bytes());
            match field {
                Field::Dropped => {}
                Field::Connection => has_connection = true,
                Field::ContentLength | Field::TransferEncoding => {
                    framing.take_of_response(field, header.value)?;
                }
                Field::Date => {
                    kept.insert(index);
                    date = Some(index);
                }
                Field::Location => {
                    kept.insert(index);
                    locations.insert(index);
                }
                Field::Challenge => {
                    kept.insert(index);
                    // One field may hold several challenges (RFC 9110 §11.6.1).
                    let mut challenges = header.value.split(|byte| *byte == b',');
                    binds_connection |= challenges.any(is_connection_login);
                }
                _ => kept.insert(index),
            }
        }
        let options = if has_connection {
            drop_nominated(fields, &mut kept)?
        } else {
            ConnectionOptions::default()
        };
        let body = framing.response_body(version, status, to_head)?;
        let announced = framing.announced();
        // A 204 or an interim answer must not announce a body, a 304 and an answer to HEAD may. But
        // a server that is wrong about one sends it, often in a later segment, and it would be read
        // as the answer to the next request, of another device. A connection is cheaper than that.
        let may_follow =
            body == Body::Absent && !matches!(announced, Body::Absent | Body::Length(0));
        Ok(Self {
            version,
            status,
            reason,
            fields,
            kept,
            locations,
            has_date: date.is_some_and(|index| kept.contains(index)),
            body,
            announced,
            persist: match may_follow || binds_connection {
                true => Persist::Close,
                false => options.persist(version),
            },
        })
    }

    /// Whether this is an interim answer, which another one follows (RFC 9110 §15.2).
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }
}

/// Whether a login is of a kind that holds for the connection it was sent on (RFC 4559 §6): a
/// request of another device must never follow on it.
fn is_connection_login(value: &[u8]) -> bool {
    let value = value.trim_ascii_start();
    let end = value
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | b','));
    let scheme = &value[..end.unwrap_or(value.len())];
    scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
}

/// Names that `Connection` may list besides `close` and `keep-alive`.
const NOMINATIONS_MAX: usize = 32;

/// Reads every `Connection` field and drops what they nominate (RFC 9110 §7.6.1).
fn drop_nominated(
    fields: &[httparse::Header<'_>],
    kept: &mut FieldSet,
) -> Result<ConnectionOptions, HeadError> {
    let mut options = ConnectionOptions::default();
    let mut nominations = 0;
    let connections = fields
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("connection"));
    for token in connections.flat_map(|header| header.value.split(|byte| *byte == b',')) {
        let token = token.trim_ascii();
        if token.is_empty() {
            continue;
        } else if token.eq_ignore_ascii_case(b"close") {
            options.close = true;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            options.keep_alive = true;
        } else {
            nominations += 1;
            if nominations > NOMINATIONS_MAX {
                return Err(HeadError::Connection);
            }
            for (index, header) in fields.iter().enumerate() {
                if header.name.as_bytes().eq_ignore_ascii_case(token) {
                    kept.remove(index);
                }
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<T>(text: &str, look: impl FnOnce(Result<Request<'_, '_>, HeadError>) -> T) -> T {
        let mut space = field_space();
        look(Request::parse(text.as_bytes(), &mut space, 100))
    }

    fn kept_names(request: &Request<'_, '_>) -> Vec<String> {
        let kept = request
            .fields
            .iter()
            .enumerate()
            .filter(|(i, _)| request.kept.contains(*i));
        kept.map(|(_, header)| header.name.to_owned()).collect()
    }

    #[test]
    fn the_end_is_found_at_every_cut() {
        let head = b"GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(find_end(&head[..cut], 0), Ok(None), "{cut}");
            assert_eq!(find_end(head, cut), Ok(Some(head.len())), "{cut}");
        }
    }

    #[test]
    fn a_bare_line_feed_is_refused_at_once() {
        for head in [
            "GET / HTTP/1.1\nHost",
            "GET / HTTP/1.1\r\nHost: m2u\n\r\n",
            "\n",
        ] {
            assert_eq!(
                find_end(head.as_bytes(), 0),
                Err(HeadError::BareLineFeed),
                "{head:?}"
            );
        }
    }

    #[test]
    fn empty_lines_before_a_request_are_counted() {
        assert_eq!(leading_empty_lines(b"\r\n\r\nGET"), 4);
        assert_eq!(leading_empty_lines(b"\r"), 0);
        assert_eq!(leading_empty_lines(b"GET"), 0);
    }

    #[test]
    fn connection_drops_what_it_nominates_and_nothing_of_ours() {
        let head = "POST / HTTP/1.1\r\nHost: m2u\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n\
                    connection: close,x_talk2m_account\r\nX-End: 2\r\n\r\n";
        request(head, |request| {
            let request = request.expect("well-formed");
            assert_eq!(kept_names(&request), ["X-End"]);
            assert_eq!(request.persist, Persist::Close);
        });
    }

    #[test]
    fn malformed_heads_are_refused() {
        for head in [
            "GET / HTTP/1.1\r\nHost : m2u\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: m2u\r\n folded\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: m2u\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: m2u\r\n\r\n",
            "GET / HTTP/1.1\r\n: empty\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: m2u\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: m2u\r\nX: a\rb\r\n\r\n",
        ] {
            request(head, |result| assert!(result.is_err(), "{head:?}"));
        }
    }

    #[test]
    fn host_is_needed_once_in_http_1_1() {
        request("GET / HTTP/1.1\r\n\r\n", |r| {
            assert_eq!(r.err(), Some(HeadError::Host))
        });
        request("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", |r| {
            assert_eq!(r.err(), Some(HeadError::Host));
        });
        request("GET / HTTP/1.0\r\n\r\n", |r| {
            let r = r.expect("HTTP/1.0 needs no Host");
            assert_eq!((r.host, r.persist), (None, Persist::Close));
        });
    }

    #[test]
    fn too_many_fields_are_told_apart_from_malformed_ones() {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: m2u\r\n{}\r\n",
            "A: b\r\n".repeat(100)
        );
        request(&head, |r| {
            assert_eq!(r.err(), Some(HeadError::TooManyFields))
        });
    }

    #[test]
    fn an_answer_is_read_with_its_framing() {
        let head = b"HTTP/1.1 201 Created\r\nLocation: /x\r\nContent-Length: 3\r\n\
                     Connection: close\r\n\r\n";
        let mut space = field_space();
        let answer = Response::parse(head, &mut space, 100, false).expect("well-formed");
        assert_eq!((answer.status, answer.reason), (201, &b"Created"[..]));
        assert_eq!(
            (answer.body, answer.persist),
            (Body::Length(3), Persist::Close)
        );
        assert!(answer.locations.contains(0) && answer.kept.contains(0));
        assert!(!answer.kept.contains(1) && !answer.kept.contains(2));
    }
}
