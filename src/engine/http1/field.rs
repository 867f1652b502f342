//! The header policy as a table: which field is kept, dropped, or the gateway's own business.
//!
//! Decides by name alone; values are judged where they mean something (`head`, `framing`).

/// What a field name means to the gateway, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Passes unchanged, in order, in its own spelling.
    Ordinary,
    /// Hop-by-hop, or a forgery of what only a proxy may say: dropped.
    Dropped,
    /// Reads like a framing field to a lenient server, but is none: refused.
    Disguised,
    /// `Authorization`: replaced where the server has a central login.
    Authorization,
    /// `WWW-Authenticate`: passes; may announce a login that holds for the whole connection.
    Challenge,
    /// `Connection`: consumed, and what it nominates is dropped with it.
    Connection,
    /// `Content-Length`: consumed, rendered anew.
    ContentLength,
    /// `Date`: passes; made if an answer has none.
    Date,
    /// `Content-Location` and `Location`: mapped back in answers.
    Location,
    /// `Expect`: passes; may announce `100-continue`.
    Expect,
    /// `Host`: replaced by the server's authority.
    Host,
    /// `Transfer-Encoding`: consumed, rendered anew.
    TransferEncoding,
    /// `X-Request-Id`: passes; made if absent.
    RequestId,
}

/// What a field name means in a request from a device.
///
/// Names are compared as origins fold them for CGI, WSGI or PHP: case lost, and every character
/// that is no letter or digit read as `_` (specification, section 2.3).
#[inline]
pub fn classify_request(name: &[u8]) -> Field {
    match name.len() {
        2 if folds_to(name, b"te") => Field::Dropped,
        4 if name.eq_ignore_ascii_case(b"host") => Field::Host,
        // CGI hands it on as HTTP_PROXY, and a script's own requests then go where the device says
        // (CVE-2016-5385).
        5 if name.eq_ignore_ascii_case(b"proxy") => Field::Dropped,
        6 if name.eq_ignore_ascii_case(b"expect") => Field::Expect,
        7 if is_any(name, &[b"trailer", b"upgrade"]) => Field::Dropped,
        9 if name.eq_ignore_ascii_case(b"forwarded") || folds_to(name, b"x_real_ip") => {
            Field::Dropped
        }
        10 if name.eq_ignore_ascii_case(b"connection") => Field::Connection,
        10 if name.eq_ignore_ascii_case(b"keep-alive") => Field::Dropped,
        12 if name.eq_ignore_ascii_case(b"x-request-id") => Field::RequestId,
        13 if name.eq_ignore_ascii_case(b"authorization") => Field::Authorization,
        14 if name.eq_ignore_ascii_case(b"content-length") => Field::ContentLength,
        14 if name.eq_ignore_ascii_case(b"http2-settings") => Field::Dropped,
        14 if folds_to(name, b"content_length") => Field::Disguised,
        16 if name.eq_ignore_ascii_case(b"proxy-connection") => Field::Dropped,
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => Field::TransferEncoding,
        17 if folds_to(name, b"transfer_encoding") => Field::Disguised,
        19 if name.eq_ignore_ascii_case(b"proxy-authorization") => Field::Dropped,
        length if length >= 9 && (name[0] | 0x20) == b'x' => classify_extension(name),
        _ => Field::Ordinary,
    }
}

/// The families that only a gateway may write: identity, and who forwarded for whom.
fn classify_extension(name: &[u8]) -> Field {
    const IDENTITY: &[u8] = b"x_talk2m_";
    const FORWARDED: &[u8] = b"x_forwarded";
    if folds_to(&name[..IDENTITY.len()], IDENTITY)
        || (name.len() >= FORWARDED.len() && folds_to(&name[..FORWARDED.len()], FORWARDED))
    {
        Field::Dropped
    } else {
        Field::Ordinary
    }
}

/// What a field name means in an answer from a server (RFC 9110 §7.6.1).
#[inline]
pub fn classify_response(name: &[u8]) -> Field {
    match name.len() {
        2 if name.eq_ignore_ascii_case(b"te") => Field::Dropped,
        4 if name.eq_ignore_ascii_case(b"date") => Field::Date,
        7 if is_any(name, &[b"trailer", b"upgrade"]) => Field::Dropped,
        8 if name.eq_ignore_ascii_case(b"location") => Field::Location,
        10 if name.eq_ignore_ascii_case(b"connection") => Field::Connection,
        10 if name.eq_ignore_ascii_case(b"keep-alive") => Field::Dropped,
        14 if name.eq_ignore_ascii_case(b"content-length") => Field::ContentLength,
        16 if name.eq_ignore_ascii_case(b"proxy-connection") => Field::Dropped,
        16 if name.eq_ignore_ascii_case(b"content-location") => Field::Location,
        16 if name.eq_ignore_ascii_case(b"www-authenticate") => Field::Challenge,
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => Field::TransferEncoding,
        18 if name.eq_ignore_ascii_case(b"proxy-authenticate") => Field::Dropped,
        25 if name.eq_ignore_ascii_case(b"proxy-authentication-info") => Field::Dropped,
        _ => Field::Ordinary,
    }
}

#[inline]
fn is_any(name: &[u8], known: &[&[u8]]) -> bool {
    known.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Whether `name` becomes `folded` once case is lost and all but letters and digits are `_`.
#[inline]
fn folds_to(name: &[u8], folded: &[u8]) -> bool {
    name.len() == folded.len()
        && name
            .iter()
            .zip(folded)
            .all(|(byte, want)| fold(*byte) == *want)
}

#[inline]
fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() {
        byte.to_ascii_lowercase()
    } else {
        b'_'
    }
}

/// A set of field positions in one head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FieldSet([u64; crate::limits::FIELDS_CEILING / 64]);

impl FieldSet {
    /// Adds position `index`.
    #[inline]
    pub fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Takes position `index` out.
    #[inline]
    pub fn remove(&mut self, index: usize) {
        self.0[index / 64] &= !(1 << (index % 64));
    }

    /// Whether position `index` is in.
    #[inline]
    pub fn contains(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folding_of_an_identity_name_is_dropped() {
        for name in [
            "X_Talk2M_Account",
            "x-talk2m-device",
            "X.Talk2M.Device",
            "X_TALK2M-SerialNumber",
            "x!talk2m~anything",
            "X-Talk2M-",
            "x_talk2m_device_",
        ] {
            assert_eq!(classify_request(name.as_bytes()), Field::Dropped, "{name}");
        }
        for name in [
            "XTalk2M-Device",
            "X-Talk2-Device",
            "X-Talk2MDevice",
            "Talk2M-Device",
        ] {
            assert_eq!(classify_request(name.as_bytes()), Field::Ordinary, "{name}");
        }
    }

    #[test]
    fn forwarding_claims_are_dropped_in_every_spelling() {
        for name in [
            "Forwarded",
            "X-Forwarded-For",
            "x_forwarded_proto",
            "X-Real-IP",
            "X_Real.Ip",
        ] {
            assert_eq!(classify_request(name.as_bytes()), Field::Dropped, "{name}");
        }
        assert_eq!(classify_request(b"X-Forwarder"), Field::Ordinary);
    }

    #[test]
    fn framing_names_in_disguise_are_told_apart() {
        assert_eq!(
            classify_request(b"Transfer-Encoding"),
            Field::TransferEncoding
        );
        assert_eq!(classify_request(b"Transfer_Encoding"), Field::Disguised);
        assert_eq!(classify_request(b"content-LENGTH"), Field::ContentLength);
        assert_eq!(classify_request(b"Content.Length"), Field::Disguised);
    }

    #[test]
    fn hop_by_hop_fields_go_both_ways() {
        for name in ["TE", "Trailer", "Upgrade", "Keep-Alive", "Proxy-Connection"] {
            assert_eq!(classify_request(name.as_bytes()), Field::Dropped, "{name}");
            assert_eq!(classify_response(name.as_bytes()), Field::Dropped, "{name}");
        }
        assert_eq!(classify_request(b"Proxy-Authorization"), Field::Dropped);
        assert_eq!(classify_request(b"pROXY"), Field::Dropped);
        assert_eq!(classify_response(b"Proxy"), Field::Ordinary);
        assert_eq!(classify_response(b"Proxy-Authenticate"), Field::Dropped);
    }

    #[test]
    fn a_set_holds_its_positions() {
        let mut set = FieldSet::default();
        for index in [0, 63, 64, 255] {
            set.insert(index);
        }
        set.remove(63);
        let held: Vec<usize> = (0..256).filter(|index| set.contains(*index)).collect();
        assert_eq!(held, [0, 64, 255]);
    }
}
