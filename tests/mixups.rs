//! Many devices at once, over kept-alive connections: every answer carries its own device's
//! identity, and none carries another's.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use common::{
    certificates::{Authority, Validity, quoted},
    device::Device,
    gateway::{Gateway, PREAMBLE},
    upstream::{Conversation, Step, Upstream},
};

const CONNECTIONS: usize = 64;
const REQUESTS: usize = 100_000;

/// Answers with what the request says of its sender, and with the target's number.
fn name_the_sender(conversation: &mut Conversation) -> Step {
    while let Some(head) = conversation.head()? {
        let field = |name| head.field(name).unwrap_or("none").to_owned();
        let body = format!(
            "{} {} {} {}",
            field("X_Talk2M_Account"),
            field("X_Talk2M_Device"),
            field("X_Talk2M_SerialNumber"),
            head.target(),
        );
        conversation.forget();
        conversation.answer(body)?;
    }
    Ok(())
}

/// Device `number` belongs to one of two accounts, and speaks to one of two servers of it.
struct Sender {
    number: usize,
}

impl Sender {
    fn account(&self) -> &'static str {
        if self.number.is_multiple_of(2) {
            "acme"
        } else {
            "beta"
        }
    }

    fn host(&self) -> &'static str {
        if (self.number / 2).is_multiple_of(2) {
            "m2u"
        } else {
            "m2u2"
        }
    }

    fn address(&self) -> String {
        format!("127.1.0.{}", self.number + 1)
    }

    /// Asks `requests` times on one connection.
    fn run(&self, gateway: std::net::SocketAddr, requests: usize, answered: &AtomicUsize) {
        let mut device = Device::connect(&self.address(), gateway);
        let (number, account, host) = (self.number, self.account(), self.host());
        for request in 0..requests {
            let answer = device.ask(format!(
                "GET /{number}/{request} HTTP/1.1\r\nHost: {host}\r\nX-Talk2M-Device: forged\r\n\r\n"
            ));
            let expected = format!("{account} device-{number} serial-{number} /{number}/{request}");
            assert_eq!((answer.status(), answer.text()), (200, expected));
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_hundred_thousand_requests_carry_their_own_identity() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let plain = Upstream::start(name_the_sender);
    let tls = Upstream::start_tls(Authority::server_config(&leaf, None), name_the_sender);

    let mut config = PREAMBLE.to_owned();
    for account in ["acme", "beta"] {
        write!(
            config,
            "[[account]]\nref = \"{account}\"\n\
             [[account.server]]\nurl = \"http://{}\"\n\
             [[account.server]]\nslot = \"m2u2\"\nurl = \"https://{}\"\nca = {}\n",
            plain.address,
            tls.address,
            quoted(&authority.pem()),
        )
        .unwrap();
        for sender in (0..CONNECTIONS).map(|number| Sender { number }) {
            if sender.account() == account {
                write!(
                    config,
                    "[[account.device]]\nname = \"device-{0}\"\nserial = \"serial-{0}\"\n\
                     address = [\"{1}\"]\n",
                    sender.number,
                    sender.address(),
                )
                .unwrap();
            }
        }
    }
    let gateway = Gateway::start(&config);
    let address = gateway.address();
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            let share = REQUESTS / CONNECTIONS + usize::from(number < REQUESTS % CONNECTIONS);
            let answered = &answered;
            scope.spawn(move || Sender { number }.run(address, share, answered));
        }
    });
    assert_eq!(answered.into_inner(), REQUESTS);
    // Two servers and two cores with pools of their own: nobody opens a connection per request.
    let connections = plain.connections() + tls.connections();
    assert!(
        connections <= 4 * CONNECTIONS,
        "{connections} upstream connections"
    );
    gateway.stop();
}
