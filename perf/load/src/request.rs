//! The bytes of a request, written once and sent by every connection.
//!
//! No device's name is in them: who speaks is told by the source address alone.

use crate::options::{Kind, Options};

/// What a device might send to pass for another.
const FORGED: &str = "X_Talk2M_Device: forged\r\n\
    X-Talk2M-Device: forged\r\n\
    x.talk2m.device: forged\r\n\
    X_Talk2M_Account: forged\r\n\
    X_Talk2M_SerialNumber: forged\r\n";

/// Head and body as they go out on the wire.
pub(crate) fn render(options: &Options) -> Vec<u8> {
    let method = match options.kind {
        Kind::Post | Kind::Chunked => "POST",
        Kind::Get => "GET",
    };
    let mut head = format!(
        "{method} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: eWON\r\nAccept: */*\r\n",
        options.path, options.host
    );
    if options.forge {
        head.push_str(FORGED);
    }
    if options.close {
        head.push_str("Connection: close\r\n");
    }
    match options.kind {
        Kind::Post => head.push_str(&format!(
            "Content-Type: application/octet-stream\r\nContent-Length: {}\r\n",
            options.size
        )),
        Kind::Chunked => head
            .push_str("Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n"),
        Kind::Get => {}
    }
    head.push_str("\r\n");

    let mut wire = head.into_bytes();
    match options.kind {
        Kind::Post => push_body(&mut wire, options.size),
        Kind::Chunked => {
            let mut left = options.size;
            while left > 0 {
                let chunk = left.min(options.chunk);
                wire.extend_from_slice(format!("{chunk:x}\r\n").as_bytes());
                push_body(&mut wire, chunk);
                wire.extend_from_slice(b"\r\n");
                left -= chunk;
            }
            wire.extend_from_slice(b"0\r\n\r\n");
        }
        Kind::Get => {}
    }
    wire
}

/// Lines of a historical log, as devices export them.
fn push_body(wire: &mut Vec<u8>, size: usize) {
    const LINE: &[u8] = b"99;1788519748;04/09/2026 13:02:28;0;43;3\r\n";
    wire.extend(LINE.iter().copied().cycle().take(size));
}
