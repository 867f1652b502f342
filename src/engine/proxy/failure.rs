//! Everything that can go wrong with an exchange, and what the device sees then
//! (specification, section 5).
//!
//! The token is the same word on the wire (RFC 9209 §2.3) and in the log. Sentences say what to do
//! and never quote what a device or a server sent.

use std::io;

use rustls::{AlertDescription, CertificateError};

use crate::{
    engine::{
        http1::{
            head::{HeadError, Persist},
            rewrite::{DATE_FIELD_BYTES, put_decimal},
        },
        net::stream::StreamError,
        upstream::connect::ConnectError,
    },
    observe::metrics::FAILURES_MAX,
};

/// Seconds after which a device may try again.
const RETRY_AFTER_SECONDS: u64 = 5;

/// Why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The request's head is not understood, or could be read two ways.
    MalformedHead,
    /// The request's body breaks the chunked coding.
    MalformedBody,
    /// The path would leave the server's base path.
    EscapesBase,
    /// `CONNECT` or `TRACE`.
    MethodRefused,
    /// No device is known at the source address.
    NoLease,
    /// More than one device claims the source address.
    DisputedLease,
    /// Nobody has confirmed yet whose the source address is: since the gateway started, or since a hub may
    /// have given it to another device.
    UnconfirmedLease,
    /// The source address is another device's than when the connection was made.
    MovedLease,
    /// The account has no server for this slot.
    NoSuchSlot,
    /// The host is none of the gateway's names.
    NotOurName,
    /// The head did not arrive in time.
    HeadTimeout,
    /// The body stalled.
    BodyTimeout,
    /// The body is longer than the server's limit.
    BodyTooLarge,
    /// The request line is longer than a whole head may be.
    TargetTooLong,
    /// The head is longer, or has more fields, than allowed.
    HeadTooLarge,
    /// The device, or all devices, have too many connections.
    TooManyConnections,
    /// The device went away; nobody is left to answer.
    DeviceGone,
    /// The device took no more of its answer; its connection is reset.
    DeviceStalled,
    /// The server's name does not resolve.
    Dns,
    /// The server's address lies in a network that is refused.
    AddressProhibited,
    /// No descriptor or no memory is left for a connection to the server.
    Exhausted,
    /// There is no way to the server.
    Unroutable,
    /// The server's host refused the connection.
    ConnectionRefused,
    /// The server closed or reset the connection before it answered.
    ConnectionTerminated,
    /// The server's certificate names other hosts.
    CertificateName,
    /// The server's certificate, or one above it, is out of date, or not valid yet.
    CertificateDate,
    /// The server's certificate does not lead to a root that is trusted.
    CertificateIssuer,
    /// The server's certificate, or one above it, has been revoked.
    CertificateRevoked,
    /// No list in force says of the server's certificate whether it has been revoked.
    RevocationUnknown,
    /// The server's certificate is unfit in another way.
    CertificateUnfit,
    /// The server did not accept our certificate, or our having none.
    ClientCertificate,
    /// The server ended the handshake with an alert.
    TlsAlert,
    /// TLS failed in another way.
    TlsProtocol,
    /// The server's answer is not HTTP.
    ResponseMalformed,
    /// The head of the server's answer is too large.
    ResponseHeadTooLarge,
    /// The server's answer ended too early; the device sees a closed connection.
    ResponseIncomplete,
    /// The server could not be reached in time.
    ConnectionTimeout,
    /// The server took no more of the request.
    WriteTimeout,
    /// The server did not answer in time.
    ResponseTimeout,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The device's, or its configuration's.
    Downstream,
    /// The gateway's own.
    Gateway,
    /// The server's, or the way there.
    Upstream,
}

/// A failure as the table has it.
struct Row {
    status: u16,
    reason: &'static str,
    token: &'static str,
    side: Side,
    persist: Persist,
    sentence: &'static str,
}

impl Failure {
    /// Every failure, in the table's order.
    #[rustfmt::skip]
    pub const ALL: [Self; 39] = [
        Self::MalformedHead, Self::MalformedBody, Self::EscapesBase, Self::MethodRefused,
        Self::NoLease, Self::DisputedLease, Self::UnconfirmedLease, Self::MovedLease, Self::NoSuchSlot,
        Self::NotOurName, Self::HeadTimeout, Self::BodyTimeout,
        Self::BodyTooLarge, Self::TargetTooLong, Self::HeadTooLarge, Self::TooManyConnections,
        Self::DeviceGone, Self::DeviceStalled, Self::Dns, Self::AddressProhibited,
        Self::Exhausted, Self::Unroutable,
        Self::ConnectionRefused, Self::ConnectionTerminated, Self::CertificateName, Self::CertificateDate,
        Self::CertificateIssuer, Self::CertificateRevoked, Self::RevocationUnknown, Self::CertificateUnfit,
        Self::ClientCertificate, Self::TlsAlert,
        Self::TlsProtocol, Self::ResponseMalformed, Self::ResponseHeadTooLarge,
        Self::ResponseIncomplete, Self::ConnectionTimeout, Self::WriteTimeout,
        Self::ResponseTimeout,
    ];

    /// Its name in the metrics and the log, which tell apart what one token stands for.
    pub fn name(self) -> &'static str {
        match self {
            Self::MalformedHead => "malformed_head",
            Self::MalformedBody => "malformed_body",
            Self::EscapesBase => "escapes_base",
            Self::MethodRefused => "method_refused",
            Self::NoLease => "no_lease",
            Self::DisputedLease => "disputed_lease",
            Self::UnconfirmedLease => "unconfirmed_lease",
            Self::MovedLease => "moved_lease",
            Self::NoSuchSlot => "no_such_slot",
            Self::NotOurName => "not_our_name",
            Self::HeadTimeout => "head_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyConnections => "too_many_connections",
            Self::DeviceGone => "device_gone",
            Self::DeviceStalled => "device_stalled",
            Self::Dns => "dns",
            Self::AddressProhibited => "address_prohibited",
            Self::Exhausted => "exhausted",
            Self::Unroutable => "unroutable",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTerminated => "connection_terminated",
            Self::CertificateName => "certificate_name",
            Self::CertificateDate => "certificate_date",
            Self::CertificateIssuer => "certificate_issuer",
            Self::CertificateRevoked => "certificate_revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::CertificateUnfit => "certificate_unfit",
            Self::ClientCertificate => "client_certificate",
            Self::TlsAlert => "tls_alert",
            Self::TlsProtocol => "tls_protocol",
            Self::ResponseMalformed => "response_malformed",
            Self::ResponseHeadTooLarge => "response_head_too_large",
            Self::ResponseIncomplete => "response_incomplete",
            Self::ConnectionTimeout => "connection_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::ResponseTimeout => "response_timeout",
        }
    }

    /// What a failed send to the device means.
    pub fn from_device(error: &StreamError) -> Self {
        match error {
            StreamError::TimedOut => Self::DeviceStalled,
            _ => Self::DeviceGone,
        }
    }

    /// Status of the answer.
    pub fn status(self) -> u16 {
        self.row().status
    }

    /// Error token of `Proxy-Status` and of the log.
    pub fn token(self) -> &'static str {
        self.row().token
    }

    /// Who is at fault.
    pub fn side(self) -> Side {
        self.row().side
    }

    /// Whether the device's connection may go on, provided that its request was read to its end.
    pub fn persist(self) -> Persist {
        self.row().persist
    }

    /// One sentence that says what to do.
    pub fn sentence(self) -> &'static str {
        self.row().sentence
    }

    #[rustfmt::skip]
    fn row(self) -> Row {
        use Persist::{Close, Keep};
        use Side::{Downstream, Gateway, Upstream};
        let (status, token, side, persist, sentence) = match self {
            Self::MalformedHead => (400, "http_request_error", Downstream, Close,
                "The request's head is malformed or ambiguous; send HTTP/1.0 or HTTP/1.1 as RFC 9112 has it."),
            Self::MalformedBody => (400, "http_request_error", Downstream, Close,
                "The request's body breaks the chunked coding; check the sizes that the device sends."),
            Self::EscapesBase => (400, "http_request_error", Downstream, Close,
                "The path leads above the server's base path; send a path without '..'."),
            Self::MethodRefused => (405, "http_request_error", Downstream, Close,
                "This gateway takes neither CONNECT nor TRACE; send GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS."),
            Self::NoLease => (403, "http_request_denied", Downstream, Close,
                "No device is known at this address; ask the gateway's operator to add the device."),
            Self::DisputedLease => (403, "http_request_denied", Downstream, Close,
                "More than one device claims this address; ask the gateway's operator about it."),
            Self::UnconfirmedLease => (503, "destination_unavailable", Gateway, Close,
                "Whose address this is has still to be confirmed; try again later."),
            Self::MovedLease => (503, "destination_unavailable", Gateway, Close,
                "This address is another device's since the connection was made; make a new one."),
            Self::NoSuchSlot => (404, "destination_not_found", Downstream, Keep,
                "The account has no server for this name; ask its administrator to configure one."),
            Self::NotOurName => (421, "destination_not_found", Downstream, Keep,
                "This gateway answers to m2u, m2u2 ... m2u999 only; check the host in the device's URL."),
            Self::HeadTimeout => (408, "http_request_timeout", Downstream, Close,
                "The request's head took too long; send it again."),
            Self::BodyTimeout => (408, "http_request_timeout", Downstream, Close,
                "The request's body stalled; send it again."),
            Self::BodyTooLarge => (413, "http_request_error", Downstream, Close,
                "The request's body is over the server's limit; send smaller pieces."),
            Self::TargetTooLong => (414, "http_request_error", Downstream, Close,
                "The request line is over the limit; send a shorter URL."),
            Self::HeadTooLarge => (431, "http_request_error", Downstream, Close,
                "The request's head is over the limit; send fewer or shorter fields."),
            Self::TooManyConnections => (429, "connection_limit_reached", Downstream, Close,
                "Too many connections are open; try again later."),
            Self::DeviceGone => (400, "http_request_error", Downstream, Close,
                "The connection was closed before the request ended."),
            Self::DeviceStalled => (408, "http_request_timeout", Downstream, Close,
                "The answer was not taken in time; read it to its end."),
            Self::Dns => (502, "dns_error", Upstream, Keep,
                "The server's name does not resolve; check the URL of the account's server."),
            Self::AddressProhibited => (502, "destination_ip_prohibited", Upstream, Keep,
                "The server's address lies in a refused network; ask the gateway's operator to allow it."),
            Self::Exhausted => (503, "proxy_internal_error", Gateway, Keep,
                "The gateway has no descriptors, ports or memory left; try again later, and tell its operator."),
            Self::Unroutable => (502, "destination_ip_unroutable", Upstream, Keep,
                "The server's address cannot be reached from the gateway; check it and the network."),
            Self::ConnectionRefused => (502, "connection_refused", Upstream, Keep,
                "The server refused the connection; check that it runs and listens."),
            Self::ConnectionTerminated => (502, "connection_terminated", Upstream, Keep,
                "The server closed the connection before it answered; look at the server's log."),
            Self::CertificateName => (502, "tls_certificate_error", Upstream, Keep,
                "The server's certificate is for another host; check the server's URL, and its certificate."),
            Self::CertificateDate => (502, "tls_certificate_error", Upstream, Keep,
                "A certificate of the server's is out of date, or not valid yet; renew it, or set m2u's clock."),
            Self::CertificateIssuer => (502, "tls_certificate_error", Upstream, Keep,
                "The server's certificate is of no trusted authority; name its ca, or have it sent with its chain."),
            Self::CertificateRevoked => (502, "tls_certificate_error", Upstream, Keep,
                "A certificate of the server's has been revoked; give the server a new one."),
            Self::RevocationUnknown => (502, "tls_certificate_error", Upstream, Keep,
                "No valid list says whether the server's certificate is revoked; renew the lists in its crl."),
            Self::CertificateUnfit => (502, "tls_certificate_error", Upstream, Keep,
                "The server's certificate is not for a server, or of an unfit kind; have it made anew."),
            Self::ClientCertificate => (502, "tls_certificate_error", Upstream, Keep,
                "The server did not accept the gateway's client certificate, or wants one; name one that it trusts."),
            Self::TlsAlert => (502, "tls_alert_received", Upstream, Keep,
                "The server broke the TLS handshake off; look at the server's log."),
            Self::TlsProtocol => (502, "tls_protocol_error", Upstream, Keep,
                "TLS with the server failed; check that it speaks TLS 1.2 or 1.3 on this port."),
            Self::ResponseMalformed => (502, "http_protocol_error", Upstream, Keep,
                "The server's answer is not valid HTTP/1.1; look at the server."),
            Self::ResponseHeadTooLarge => (502, "http_response_header_section_size", Upstream, Keep,
                "The head of the server's answer is over the limit; look at the server."),
            Self::ResponseIncomplete => (502, "http_response_incomplete", Upstream, Close,
                "The server's answer ended too early; look at the server."),
            Self::ConnectionTimeout => (504, "connection_timeout", Upstream, Keep,
                "The server could not be reached in time; check its address and its load."),
            Self::WriteTimeout => (504, "connection_write_timeout", Upstream, Keep,
                "The server did not take the request in time; look at the server."),
            Self::ResponseTimeout => (504, "http_response_timeout", Upstream, Keep,
                "The server did not answer in time; look at the server."),
        };
        Row { status, reason: reason(status), token, side, persist, sentence }
    }

    /// Appends the whole answer; its connection goes on only if `persist` says so too. `date` is the whole field.
    pub fn write(
        self,
        out: &mut Vec<u8>,
        to_head: bool,
        persist: Persist,
        date: &[u8; DATE_FIELD_BYTES],
    ) {
        let row = self.row();
        let mut put = |text: &str| out.extend_from_slice(text.as_bytes());
        put("HTTP/1.1 ");
        let digits = [row.status / 100, row.status / 10 % 10, row.status % 10];
        digits
            .iter()
            .for_each(|digit| put(DIGITS[usize::from(*digit)]));
        put(" ");
        put(row.reason);
        put("\r\nContent-Type: text/plain; charset=utf-8\r\nProxy-Status: m2u; error=");
        put(row.token);
        put("\r\n");
        if self == Self::MethodRefused {
            put("Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n");
        }
        if matches!(row.status, 429 | 503) {
            put("Retry-After: ");
            put_decimal(out, RETRY_AFTER_SECONDS);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"Content-Length: ");
        put_decimal(out, row.sentence.len() as u64 + 1);
        out.extend_from_slice(match persist {
            Persist::Close => b"\r\nConnection: close\r\n",
            Persist::Keep => b"\r\nConnection: keep-alive\r\n",
        });
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n");
        if !to_head {
            out.extend_from_slice(row.sentence.as_bytes());
            out.push(b'\n');
        }
    }

    /// What a failed receive from, or send to, a server means before its answer began.
    pub fn from_upstream(error: &StreamError, timed_out: Self) -> Self {
        match error {
            StreamError::TimedOut => timed_out,
            StreamError::Io(_) | StreamError::Truncated => Self::ConnectionTerminated,
            StreamError::Tls(error) => Self::from_tls(error),
        }
    }

    fn from_tls(error: &rustls::Error) -> Self {
        use AlertDescription as Alert;
        use rustls::Error;
        match error {
            Error::InvalidCertificate(error) => Self::from_certificate(error),
            Error::NoCertificatesPresented | Error::UnsupportedNameType => Self::CertificateUnfit,
            Error::InvalidCertRevocationList(_) => Self::RevocationUnknown,
            Error::AlertReceived(
                Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::CertificateRequired,
            ) => Self::ClientCertificate,
            Error::AlertReceived(_) => Self::TlsAlert,
            _ => Self::TlsProtocol,
        }
    }

    fn from_certificate(error: &CertificateError) -> Self {
        use CertificateError as Error;
        match error {
            Error::NotValidForName | Error::NotValidForNameContext { .. } => Self::CertificateName,
            Error::Expired
            | Error::ExpiredContext { .. }
            | Error::NotValidYet
            | Error::NotValidYetContext { .. } => Self::CertificateDate,
            // Another key signed than the one that is trusted: a stale root's of the same name, say.
            Error::UnknownIssuer | Error::BadSignature => Self::CertificateIssuer,
            Error::Revoked => Self::CertificateRevoked,
            Error::UnknownRevocationStatus
            | Error::ExpiredRevocationList
            | Error::ExpiredRevocationListContext { .. } => Self::RevocationUnknown,
            _ => Self::CertificateUnfit,
        }
    }
}

/// Where the metrics count a failure.
const _: () = assert!(Failure::ALL.len() <= FAILURES_MAX);

const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// The reason phrase of a status that the table names (RFC 9110 §15).
fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

impl From<HeadError> for Failure {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::TooManyFields => Self::HeadTooLarge,
            HeadError::Malformed
            | HeadError::BareLineFeed
            | HeadError::Framing(_)
            | HeadError::Host
            | HeadError::Connection => Self::MalformedHead,
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unresolved => Self::Dns,
            ConnectError::Prohibited(_) => Self::AddressProhibited,
            ConnectError::Exhausted => Self::Exhausted,
            ConnectError::Unroutable(error) if error.kind() == io::ErrorKind::TimedOut => {
                Self::ConnectionTimeout
            }
            ConnectError::Unroutable(_) => Self::Unroutable,
            ConnectError::Refused => Self::ConnectionRefused,
            ConnectError::TimedOut => Self::ConnectionTimeout,
            ConnectError::Terminated => Self::ConnectionTerminated,
            ConnectError::Tls(error) => Self::from_tls(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustls::CertRevocationListError;

    use super::*;
    use crate::engine::date::DateField;

    #[test]
    fn every_failure_has_its_own_count_and_name() {
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index);
            let same = |other: &Failure| other.name() == failure.name();
            assert_eq!(Failure::ALL.iter().filter(|other| same(other)).count(), 1);
        }
    }

    fn date() -> [u8; DATE_FIELD_BYTES] {
        DateField::default().at(SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn an_answer_is_complete_and_says_its_token() {
        let mut out = Vec::new();
        Failure::TooManyConnections.write(&mut out, false, Persist::Close, &date());
        let text = String::from_utf8(out).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(
            head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nProxy-Status: m2u; error=connection_limit_reached\r\n"));
        assert!(head.contains("\r\nRetry-After: 5\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        assert!(head.contains("\r\nConnection: close\r\n"));
        let date = String::from_utf8(date().to_vec()).expect("ASCII");
        assert!(
            head.ends_with(&format!("\r\n{}", date.trim_end())),
            "{head}"
        );
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let mut out = Vec::new();
        Failure::NoSuchSlot.write(&mut out, true, Persist::Keep, &date());
        assert!(out.ends_with(b"GMT\r\n\r\n"), "{}", out.escape_ascii());
    }

    #[test]
    fn a_certificate_that_either_side_refuses_has_one_token_and_its_own_name() {
        use CertificateError as Certificate;
        use rustls::Error;
        for (error, name) in [
            (
                Error::InvalidCertificate(Certificate::UnknownIssuer),
                "certificate_issuer",
            ),
            (
                Error::InvalidCertificate(Certificate::InvalidPurpose),
                "certificate_unfit",
            ),
            (
                Error::InvalidCertRevocationList(CertRevocationListError::BadSignature),
                "revocation_unknown",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                "client_certificate",
            ),
        ] {
            let failure = Failure::from(ConnectError::Tls(error));
            assert_eq!(
                (failure.status(), failure.token(), failure.name()),
                (502, "tls_certificate_error", name)
            );
        }
    }
}
