//! Bodies on their way to the server: both framings, every size, nothing added and nothing lost.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};

use common::{
    device::{self, Device},
    gateway::{Gateway, acme},
    upstream::Upstream,
};

const PRESS: &str = "127.0.0.7";

/// A server that notes the bytes of one body as they come, framing and all, then answers.
///
/// Done when the noted bytes end in `end`.
fn raw(end: &'static str) -> (Upstream, Arc<Mutex<Vec<u8>>>) {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&noted);
    let upstream = Upstream::start(move |conversation| {
        conversation.head()?;
        loop {
            let byte = conversation.read(1)?;
            let mut notes = notes.lock().unwrap();
            notes.extend(byte);
            if notes.ends_with(end.as_bytes()) {
                return conversation.answer("ok");
            }
        }
    });
    (upstream, noted)
}

#[test]
fn a_body_with_a_length_passes_with_its_length() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    for body in ["", "x", "line\r\nline\r\n\r\n", "0\r\n\r\n"] {
        let before = upstream.requests().len();
        let length = body.len();
        let ask = format!("POST / HTTP/1.1\r\nHost: m2u\r\ncontent-length: {length}\r\n\r\n{body}");
        assert_eq!(device::ask(PRESS, gateway.address(), ask).status(), 200);
        let request = upstream.requests().remove(before);
        assert_eq!(request.all("Content-Length"), [length.to_string()]);
        assert_eq!(request.field("Transfer-Encoding"), None);
        assert_eq!(request.text(), body);
    }
    gateway.stop();
}

#[test]
fn a_request_without_a_body_says_nothing_of_one() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    for method in ["GET", "POST", "DELETE"] {
        let ask = format!("{method} / HTTP/1.1\r\nHost: m2u\r\n\r\n");
        assert_eq!(device::ask(PRESS, gateway.address(), ask).status(), 200);
        let request = upstream.requests().pop().unwrap();
        assert_eq!(request.field("Content-Length"), None);
        assert_eq!(request.field("Transfer-Encoding"), None);
    }
    gateway.stop();
}

#[test]
fn a_chunked_body_stays_chunked_and_loses_its_extensions_and_trailers() {
    let (upstream, noted) = raw("0\r\n\r\n");
    let gateway = Gateway::with(&acme(&upstream.url()));
    let answer = device::ask(
        PRESS,
        gateway.address(),
        "POST / HTTP/1.1\r\nHost: m2u\r\ntransfer-encoding: Chunked\r\nTrailer: X_Talk2M_Device\r\n\
         \r\n5;ext=\"a;b\"\r\nhello\r\n001\r\n \r\n6 ;x\r\nworld!\r\n000\r\n\
         X_Talk2M_Device: forged\r\nX-Sum: 1\r\n\r\n",
    );
    assert_eq!(answer.status(), 200);
    let request = upstream.request();
    assert_eq!(request.all("Transfer-Encoding"), ["chunked"]);
    assert_eq!(request.field("Content-Length"), None);
    assert_eq!(request.field("Trailer"), None);
    let wire = String::from_utf8(noted.lock().unwrap().clone()).unwrap();
    let mut body = Vec::new();
    common::wire::read_chunks(&mut wire.as_bytes(), &mut body).unwrap();
    assert_eq!(body, b"hello world!");
    for gone in ["ext", "X-Sum", "forged"] {
        assert!(!wire.contains(gone), "{wire}");
    }
    gateway.stop();
}

#[test]
fn an_empty_chunked_body_is_one_last_chunk() {
    let (upstream, noted) = raw("0\r\n\r\n");
    let gateway = Gateway::with(&acme(&upstream.url()));
    let ask = "POST / HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(device::ask(PRESS, gateway.address(), ask).status(), 200);
    assert_eq!(*noted.lock().unwrap(), b"0\r\n\r\n");
    gateway.stop();
}

#[test]
fn the_end_of_a_body_is_found_at_every_cut() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let ask = "POST /cut HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n\
               a\r\n0\r\n\r\n12345\r\n3;x\r\nabc\r\n0\r\nT: u\r\n\r\n";
    let mut press = Device::connect(PRESS, gateway.address());
    for cut in 1..ask.len() {
        press.send_cut(ask, cut);
        assert_eq!(press.receive().status(), 200, "{cut}");
        let request = upstream.requests().pop().unwrap();
        assert_eq!(request.text(), "0\r\n\r\n12345abc", "{cut}");
    }
    assert_eq!(upstream.requests().len(), ask.len() - 1);
    gateway.stop();
}

#[test]
fn a_body_of_many_pieces_arrives_whole() {
    let upstream = Upstream::start(|conversation| {
        let Some(mut request) = conversation.head()? else {
            return Ok(());
        };
        conversation.body(&mut request)?;
        conversation.answer(digest(&request.body))
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let body: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let head = "POST / HTTP/1.1\r\nHost: m2u\r\n";

    let mut press = Device::connect(PRESS, gateway.address());
    press.send(format!("{head}Content-Length: {}\r\n\r\n", body.len()));
    body.chunks(100_003).for_each(|piece| press.send(piece));
    assert_eq!(press.receive().text(), digest(&body));

    let mut press = Device::connect(PRESS, gateway.address());
    press.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
    for (position, piece) in body.chunks(70_001).enumerate() {
        // Odd sizes, some of them chunks that lie in one segment with their neighbours.
        let (small, large) = piece.split_at(position % 50 + 1);
        let mut chunks = format!("{:x}\r\n", small.len()).into_bytes();
        chunks.extend_from_slice(small);
        chunks.extend(format!("\r\n{:X}\r\n", large.len()).bytes());
        chunks.extend_from_slice(large);
        chunks.extend(b"\r\n");
        press.send(chunks);
    }
    press.send("0\r\n\r\n");
    assert_eq!(press.receive().text(), digest(&body));
    gateway.stop();
}

#[test]
fn an_http_1_0_body_with_a_length_passes() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("POST /Portal/Upload HTTP/1.0\r\nContent-Length: 9\r\n\r\nMes");
    press.send("sage=x");
    assert_eq!(press.receive().status(), 200);
    assert!(press.is_closed());
    assert_eq!(upstream.request().text(), "Message=x");
    gateway.stop();
}

fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
