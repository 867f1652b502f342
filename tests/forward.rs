//! What a server gets of a device's request: identity, path, login, fields, framing.

#![allow(clippy::unwrap_used)]

mod common;

use common::{
    device,
    gateway::{Gateway, acme},
    upstream::Upstream,
};

const STAMPED: [&str; 3] = [
    "X_Talk2M_Account",
    "X_Talk2M_Device",
    "X_Talk2M_SerialNumber",
];

#[test]
fn identity_is_stamped_and_forgeries_never_arrive() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let answer = device::ask(
        "127.0.0.7",
        gateway.address(),
        "GET /a HTTP/1.1\r\nHost: m2u\r\nX-Talk2M-Device: forged\r\nx_talk2m-device: forged\r\n\
         X.Talk2M.Device: forged\r\nX_Talk2M_Device: forged\r\nX~TALK2M~anything: forged\r\n\
         Connection: X_Talk2M_Account, X_Talk2M_Device\r\nX-Own: kept\r\n\r\n",
    );
    assert_eq!(answer.status(), 200);
    let request = upstream.request();
    assert_eq!(request.identity_like(), STAMPED);
    assert_eq!(request.all("X_Talk2M_Account"), ["acme"]);
    assert_eq!(request.all("X_Talk2M_Device"), ["press-07"]);
    assert_eq!(request.all("X_Talk2M_SerialNumber"), ["press-07-serial"]);
    assert_eq!(request.field("X-Own"), Some("kept"));
    assert!(!request.head.contains("forged"), "{}", request.head);
    gateway.stop();
}
