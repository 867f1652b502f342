//! Questions for m2u's own names, through the whole way from bytes to bytes, by UDP and TCP.
//!
//! Nothing panics, nobody gets more than they may, and what is said of a name is what the zone says.
//! Answers are read by hand here: a few fields at places that the question gives.

use std::net::IpAddr;

use m2u::{
    config::settings::{Dns, Slot},
    control::dns::{
        answer::{Outcome, Transport, answer},
        zone::Zone,
    },
    limits,
};

const HEADER_BYTES: usize = 12;
const OPT_BYTES: usize = 11;

/// Panics if an answer is out of bounds or untrue; answers whether the name was one of ours.
pub fn check(message: &[u8]) -> bool {
    let mut ours = false;
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut wire = Vec::new();
        let outcome = ZONE.with(|zone| answer(message, zone, transport, &mut wire));
        ours |= matches!(outcome, Outcome::Answered | Outcome::Truncated);
        if outcome.is_dropped() {
            assert!(wire.is_empty());
            continue;
        }
        check_answer(message, &wire, transport, outcome);
    }
    ours
}

thread_local! {
    /// Short lists, a long one, and one of a single family.
    static ZONE: Zone = zone();
}

fn zone() -> Zone {
    let slot = |name: &str| Slot::parse(name.as_bytes()).expect("a slot");
    let many = limits::DNS_ADDRESSES_PER_NAME_MAX as u8;
    let dns = Dns {
        listen: Vec::new(),
        addresses: vec![[10, 8, 0, 2].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 2].into()],
        slots: [
            (slot("m2u2"), vec![IpAddr::from([10, 8, 0, 3])]),
            (
                slot("m2u3"),
                (0..many).map(|n| [10, 9, 0, n].into()).collect(),
            ),
        ]
        .into(),
    };
    let slots = ["m2u2", "m2u3"].map(slot);
    Zone::build(Some("talk2m.com"), slots.into_iter(), &dns)
}

fn check_answer(message: &[u8], wire: &[u8], transport: Transport, outcome: Outcome) {
    assert!(message.len() >= HEADER_BYTES && wire.len() >= HEADER_BYTES);
    assert_eq!(wire[..2], message[..2], "another question's number");
    assert!(message[2] & 0x80 == 0 && wire[2] & 0x80 != 0);
    assert_eq!(
        wire[2] & 0x79,
        message[2] & 0x79,
        "operation and RD come back"
    );
    let code = wire[3] & 0x0f;
    let counts = [4, 6, 8, 10].map(|at| u16::from_be_bytes([wire[at], wire[at + 1]]));
    let [questions, answers, authorities, additionals] = counts;
    let is_truncated = wire[2] & 0x02 != 0;
    assert_eq!(is_truncated, outcome == Outcome::Truncated);
    if transport == Transport::Udp {
        assert!(wire.len() <= limits::DNS_ANSWER_BYTES_MAX);
        assert!(additionals > 0 || wire.len() <= limits::DNS_PLAIN_ANSWER_BYTES_MAX);
    }
    match outcome {
        Outcome::Answered | Outcome::Truncated => {
            assert_eq!((code, questions), (0, 1));
            assert!(
                answers > 0 || authorities == 1,
                "no data, and no proof of it"
            );
            let name = name(&wire[HEADER_BYTES..]);
            let slot = name.split('.').next().expect("a label");
            assert!(["m2u", "m2u2", "m2u3"].contains(&slot), "{name}");
            assert!(
                name == slot || name == format!("{slot}.talk2m.com"),
                "{name}"
            );
            assert!(slot == "m2u3" || answers <= 1);
            let begin = HEADER_BYTES + name.len() + 2 + 4;
            check_addresses(&wire[begin..], answers, slot);
        }
        Outcome::Refused => assert_eq!((code, questions, answers, authorities), (5, 1, 0, 0)),
        Outcome::BadVersion => assert_eq!((code, questions, additionals), (0, 1, 1)),
        Outcome::FormatError => assert_eq!((code, wire.len()), (1, HEADER_BYTES)),
        Outcome::NotImplemented => assert_eq!((code, wire.len()), (4, HEADER_BYTES)),
        Outcome::Malformed | Outcome::Unasked => unreachable!("dropped"),
    }
    let is_ours = matches!(outcome, Outcome::Answered | Outcome::Truncated);
    // A pointer into the header is the only way to make a question longer than it was.
    let echoed = message.len() + HEADER_BYTES + OPT_BYTES;
    assert!(is_ours || wire.len() <= echoed, "an answer that amplifies");
}

/// The name at the beginning of `wire`, in lower case; an answer's question is never compressed.
fn name(mut wire: &[u8]) -> String {
    let mut labels = Vec::new();
    loop {
        let (length, rest) = wire.split_first().expect("a label");
        if *length == 0 {
            return labels.join(".");
        }
        let (label, rest) = rest.split_at(usize::from(*length));
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        wire = rest;
    }
}

/// Each record points to the question's name, and has an address of its slot.
fn check_addresses(mut records: &[u8], count: u16, slot: &str) {
    for _ in 0..count {
        assert_eq!(records[..2], [0xc0, HEADER_BYTES as u8]);
        let kind = u16::from_be_bytes([records[2], records[3]]);
        assert_eq!(records[4..10], [0, 1, 0, 0, 0, 60]);
        let length = usize::from(u16::from_be_bytes([records[10], records[11]]));
        let data = &records[12..12 + length];
        match (kind, slot) {
            (1, "m2u") => assert_eq!(data, [10, 8, 0, 2]),
            (1, "m2u2") => assert_eq!(data, [10, 8, 0, 3]),
            (1, _) => assert_eq!(data[..3], [10, 9, 0]),
            (28, "m2u") => assert_eq!((data[0], data[15]), (0xfd, 2)),
            (6, _) => {}
            other => panic!("a record that nobody wrote: {other:?}"),
        }
        records = &records[12 + length..];
    }
}
