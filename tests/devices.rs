//! Requests as real devices send them, byte for byte, and what servers get of them.

#![allow(clippy::unwrap_used)]

mod common;

use common::{
    device::Device,
    gateway::{Gateway, account, server},
    upstream::{Conversation, Step, Upstream},
    wire::Message,
};

fn created(conversation: &mut Conversation) -> Step {
    while conversation.request()?.is_some() {
        conversation.write("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")?;
    }
    Ok(())
}

/// Sends a device's request in pieces of `cut` bytes; answers what the server got.
fn send(request: &[u8], cut: usize) -> Message {
    let upstream = Upstream::start(created);
    let url = upstream.url();
    let servers = format!("{}{}", server("m2u", &url), server("m2u2", &url));
    let gateway = Gateway::with(&account("acme", &servers, &[("Warrior-91", "127.0.0.7")]));
    let mut device = Device::connect("127.0.0.7", gateway.address());
    for piece in request.chunks(cut) {
        device.send(piece);
    }
    assert_eq!(device.receive().status(), 201);
    gateway.stop();
    let received = upstream.request();
    assert_eq!(received.all("X_Talk2M_Device"), ["Warrior-91"]);
    received
}

#[test]
fn a_java_connector_posts_json() {
    let body = "{\"Tags\":{\"datapoints\": [{\"name\": \"T1\",\"value\": 43,\"type\": 0,\
        \"quality\": 3,\"timestamp\": \"2024-07-24T15:22:56-05:00\"}], \"info\": \
        {\"ewon-name\": \"FLEXY-1932-0069-24\",\"ewon-utc-offset-millis\": \"-18000000\"}}}";
    let request = format!(
        "POST /Thingworx/Things/ConnectorHost/Services/TakeInfo HTTP/1.1\r\n\
         Host: m2u.talk2m.com\r\nContent-Type: application/json\r\nappKey: KEY\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len(),
    );
    for cut in [request.len(), 100, 1] {
        let received = send(request.as_bytes(), cut);
        let line = "POST /Thingworx/Things/ConnectorHost/Services/TakeInfo HTTP/1.1";
        assert_eq!(received.first_line(), line);
        assert_eq!(received.all("appKey"), ["KEY"]);
        assert_eq!(received.text(), body);
    }
}

#[test]
fn basic_uploads_a_historical_log_in_chunks() {
    let body = "------eWONb0undary\r\nContent-Disposition: form-data; name=\"data\"; \
        filename=\"hist.csv\"\r\nContent-Type: application/octet-stream\r\n\r\n\
        \"TagId\";\"TimeInt\";\"TimeStr\";\"IsInitValue\";\"Value\";\"IQuality\"\r\n\
        99;1788519748;\"04/09/2026 13:02:28\";0;1;3\r\n\r\n------eWONb0undary--\r\n";
    let request = format!(
        "POST /ingest?device=Warrior-91 HTTP/1.1\r\nHost: m2u2.talk2m.com\r\n\
         Authorization: Bearer TOKEN\r\n\
         Content-Type: multipart/form-data; boundary=----eWONb0undary\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len(),
    );
    for cut in [request.len(), 50, 1] {
        let received = send(request.as_bytes(), cut);
        assert_eq!(
            received.first_line(),
            "POST /ingest?device=Warrior-91 HTTP/1.1"
        );
        assert_eq!(received.all("Authorization"), ["Bearer TOKEN"]);
        assert_eq!(received.text(), body);
    }
}

#[test]
fn puthttp_sends_a_form_either_way_and_from_old_firmware() {
    for request in [
        "POST /Portal/Upload HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: 15\r\n\r\nMessage=a+b%26c",
        "POST /Portal/Upload HTTP/1.1\r\nHost: m2u\r\n\
         Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 82\r\n\r\n\
         --x\r\nContent-Disposition: form-data; name=\"name[]\"; filename=\"a b\"\r\n\r\nnan\r\n--x--\r\n",
    ] {
        let received = send(request.as_bytes(), request.len());
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        assert_eq!(received.first_line(), "POST /Portal/Upload HTTP/1.1");
        assert_eq!(received.text(), body);
    }
}

#[test]
fn a_device_behind_a_proxy_setting_sends_whole_urls() {
    let received = send(
        b"GET http://m2u2.talk2m.com/a%20b?c=d%26 HTTP/1.1\r\nHost: m2u2.talk2m.com\r\n\
          Proxy-Connection: close\r\n\r\n",
        1_000,
    );
    assert_eq!(received.first_line(), "GET /a%20b?c=d%26 HTTP/1.1");
}

#[test]
fn binary_exports_pass_untouched() {
    let body: Vec<u8> = (0..=255).cycle().take(5_000).collect();
    let head = format!(
        "PUT /export HTTP/1.1\r\nHost: m2u\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let received = send(&[head.as_bytes(), &body].concat(), 777);
    assert!(received.body == body);
}
