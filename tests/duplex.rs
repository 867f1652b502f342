//! Both directions at once: early answers, echoing servers, pipelined requests, mapped locations.

#![allow(clippy::unwrap_used)]

mod common;

use std::io;

use common::{
    device::Device,
    gateway::{Gateway, acme},
    upstream::{Conversation, Step, Upstream},
    wait_until, wire,
};

const PRESS: &str = "127.0.0.7";
const POST_CHUNKED: &str = "POST / HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n";

/// The next chunk of a body; empty at its end, whose empty line is left unread.
fn chunk(conversation: &mut Conversation) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.extend(conversation.read(1)?);
    }
    let digits = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
    let size = usize::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    let mut payload = conversation.read(size + 2)?;
    payload.truncate(size);
    Ok(payload)
}

/// Echoes a chunked body piece by piece, while it comes.
fn echo_pieces(conversation: &mut Conversation) -> Step {
    while conversation.head()?.is_some() {
        conversation.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            let piece = chunk(conversation)?;
            let mut echo = format!("{:x}\r\n", piece.len()).into_bytes();
            echo.extend_from_slice(&piece);
            echo.extend(b"\r\n");
            conversation.write(echo)?;
            if piece.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

#[test]
fn an_echo_flows_while_the_body_still_comes() {
    let upstream = Upstream::start(echo_pieces);
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(POST_CHUNKED);
    let head = wire::read_head(&mut press.stream()).unwrap().unwrap();
    assert_eq!(head.status(), 200);
    // The request was not complete when the answer began.
    assert_eq!(head.field("Connection"), Some("close"));
    for number in 0..50 {
        let piece = format!("piece {number}");
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        press.send(&chunk);
        assert_eq!(press.receive_bytes(chunk.len()), chunk.as_bytes());
    }
    press.send("0\r\n\r\n");
    assert_eq!(press.receive_rest().unwrap(), b"0\r\n\r\n");
    gateway.stop();
}

#[test]
fn a_large_echo_does_not_stall_either_direction() {
    let upstream = Upstream::start(echo_pieces);
    let gateway = Gateway::with(&acme(&upstream.url()));
    let press = Device::connect(PRESS, gateway.address());
    let body: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let sender = std::thread::spawn({
        let (mut stream, body) = (press.stream().try_clone().unwrap(), body.clone());
        move || {
            use std::io::Write;
            stream.write_all(POST_CHUNKED.as_bytes()).unwrap();
            for piece in body.chunks(33_333) {
                write!(stream, "{:x}\r\n", piece.len()).unwrap();
                stream.write_all(piece).unwrap();
                stream.write_all(b"\r\n").unwrap();
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
    });
    let mut stream = io::BufReader::new(press.stream());
    let mut answer = wire::read_head(&mut stream).unwrap().unwrap();
    wire::read_response_body(&mut stream, &mut answer, false).unwrap();
    sender.join().unwrap();
    assert!(answer.body == body);
    gateway.stop();
}

#[test]
fn a_device_that_ends_its_body_after_the_answer_begins_is_not_kept_waiting() {
    let upstream = Upstream::start(|conversation| {
        let mut request = conversation.head()?.expect("a request");
        conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nta")?;
        conversation.body(&mut request)?;
        conversation.write("ke")?;
        conversation.read_rest().map(|_| ())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(format!("{POST_CHUNKED}2\r\nhi\r\n"));
    let head = wire::read_head(&mut press.stream()).unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(press.receive_bytes(2), b"ta");
    press.send("0\r\n\r\n");
    assert_eq!(press.receive_rest().unwrap(), b"ke");
    assert_eq!(upstream.request().text(), "hi");
    gateway.stop();
}

#[test]
fn an_early_answer_reaches_the_device_at_once() {
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno\n")?;
        // It goes on reading what it does not want; the gateway ends the connection nevertheless.
        conversation.read_rest().map(|_| ())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(format!(
            "POST / HTTP/1.1\r\nHost: m2u\r\n{framing}\r\n\r\n2\r\nhi\r\n"
        ));
        let answer = press.receive();
        assert_eq!((answer.status(), &*answer.text()), (403, "no\n"));
        assert_eq!(answer.field("Connection"), Some("close"));
        assert!(press.is_closed());
    }
    wait_until("the server's connections to end", || upstream.open() == 0);
    gateway.stop();
}

#[test]
fn an_early_answer_survives_a_server_that_closes_on_the_rest() {
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nno\n")?;
        // Closing with unread bytes in the buffer resets the connection.
        Ok(())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    for _ in 0..20 {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 2000000\r\n\r\n");
        // The device sends on, whether anybody wants it or not.
        let body = vec![b'x'; 2_000_000];
        let sender = std::thread::spawn({
            use std::io::Write;
            let mut stream = press.stream().try_clone().unwrap();
            move || stream.write_all(&body).is_ok()
        });
        let answer = press.receive();
        assert_eq!((answer.status(), &*answer.text()), (401, "no\n"));
        drop(press);
        let _ = sender.join().unwrap();
    }
    gateway.stop();
}

#[test]
fn a_request_that_fails_cuts_an_answer_off_that_lasts_until_the_close() {
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.1 200 OK\r\n\r\nhello")?;
        conversation.read_rest().map(|_| ())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let begin = "5\r\nhello\r\n";
    for broken in ["zz\r\n", ""] {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(POST_CHUNKED);
        assert_eq!(press.receive_head().undated().head, head);
        assert_eq!(press.receive_bytes(begin.len()), begin.as_bytes());
        press.send(broken);
        press.finish();
        // No last chunk: the gateway ended the answer, not its server.
        assert_eq!(press.receive_rest().unwrap_or_default(), b"");
        wait_until("the server to see the end", || upstream.open() == 0);
    }
    gateway.stop();
}

/// How a body that nobody reads is framed: copied on its way, or moved inside the kernel.
const FRAMED: [&str; 2] = ["Transfer-Encoding: chunked", "Content-Length: 60000000"];

/// Uploads so many pieces that nobody reads; answers what of the answer has come by its end, having told
/// of each piece.
fn upload_for_nobody(gateway: &Gateway, framed: &str, pieces: usize, heard: impl Fn()) -> Vec<u8> {
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(format!("POST / HTTP/1.1\r\nHost: m2u\r\n{framed}\r\n\r\n"));
    let piece = [b'x'; 60_000];
    let piece = match framed.ends_with("chunked") {
        true => [&b"ea60\r\n"[..], &piece, b"\r\n"].concat(),
        false => piece.to_vec(),
    };
    let sender = std::thread::spawn({
        use std::io::Write;
        let mut stream = press.stream().try_clone().unwrap();
        move || (0..pieces).all(|_| stream.write_all(&piece).is_ok())
    });
    let mut rest = Vec::new();
    while let Ok(piece) = press.receive_piece()
        && !piece.is_empty()
    {
        rest.extend(piece);
        heard();
    }
    drop(press);
    sender.join().unwrap();
    rest
}

#[test]
fn half_an_answer_is_no_whole_one_because_the_upload_met_the_reset_first() {
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.1 200 OK\r\n\r\nhalf of")?;
        // By then the upload is under way.
        conversation.read(1_000_000)?;
        conversation.reset()
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    for framed in FRAMED.repeat(10) {
        let rest = upload_for_nobody(&gateway, framed, 1_000, || ());
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", rest.escape_ascii());
    }
    gateway.stop();
}

#[test]
fn an_answer_that_the_gateway_ended_for_the_uploads_sake_is_no_whole_one() {
    let (hear, heard) = std::sync::mpsc::channel();
    let heard = std::sync::Mutex::new(heard);
    let upstream = Upstream::start(move |conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.1 200 OK\r\n\r\nhalf of")?;
        // Goes on as the device hears it, reads nothing, and meets the end that the gateway makes of that.
        while heard.lock().unwrap().recv().is_ok() {
            conversation.write(".")?;
        }
        Ok(())
    });
    let configuration = format!(
        "{}[timeouts]\nbody = \"1s\"\n{}",
        common::gateway::PREAMBLE,
        acme(&upstream.url())
    );
    let gateway = Gateway::start(&configuration);
    let rest = upload_for_nobody(&gateway, FRAMED[0], 1_000, || {
        hear.send(()).unwrap_or_default();
    });
    drop(hear);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", rest.escape_ascii());
    let cut_off = || gateway.counts().get("failed.response_incomplete") == Some(&1);
    wait_until("the count", cut_off);
    gateway.stop();
}

#[test]
fn an_early_answer_that_ends_in_order_is_whole() {
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\nno\n")?;
        conversation.socket().shutdown(std::net::Shutdown::Write)?;
        // Closing with unread bytes in the buffer resets what is left of the connection.
        Ok(())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    for framed in FRAMED.repeat(10) {
        let rest = upload_for_nobody(&gateway, framed, 100, || ());
        assert!(
            rest.ends_with(b"3\r\nno\n\r\n0\r\n\r\n"),
            "{}",
            rest.escape_ascii()
        );
    }
    gateway.stop();
}

#[test]
fn an_early_answer_passes_a_body_that_nobody_reads() {
    let (done, told) = std::sync::mpsc::channel::<()>();
    let told = std::sync::Mutex::new(told);
    let upstream = Upstream::start(move |conversation| {
        conversation.head()?;
        conversation
            .write("HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 5\r\n\r\nfull\n")?;
        // Neither reads nor closes until the device has its answer.
        told.lock().unwrap().recv().map_err(io::Error::other)
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 50000000\r\n\r\n");
    let sender = std::thread::spawn({
        use std::io::Write;
        let mut stream = press.stream().try_clone().unwrap();
        // More than the buffers on the way hold: what nobody wants is read and thrown away, or a
        // device that sends all before it reads would lose its answer to a reset.
        move || stream.write_all(&vec![b'x'; 50_000_000])
    });
    let answer = press.receive();
    assert_eq!((answer.status(), &*answer.text()), (507, "full\n"));
    assert_eq!(answer.field("Connection"), Some("close"));
    sender.join().unwrap().unwrap();
    done.send(()).unwrap();
    gateway.stop();
}
