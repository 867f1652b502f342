//! A question's bytes -> an answer's bytes. No I/O, no clock, nothing remembered.
//!
//! Only m2u's own names are answered for. Everything else that is a question is refused in a few
//! bytes, and what is none gets no answer: a forged sender never receives much more than was sent
//! in its name, and two responders never talk to each other.

use std::iter;

use hickory_proto::{
    ProtoError,
    op::{
        DEFAULT_MAX_PAYLOAD_LEN, Edns, Header, Message, MessageType, Metadata, OpCode, Query,
        ResponseCode, emit_message_parts,
    },
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::SOA},
    serialize::binary::{BinDecodable, BinDecoder, BinEncoder, DecodeError},
};

use super::zone::{Addresses, Zone};
use crate::limits;

/// OPT and TSIG: all that a question has behind it.
const ADDITIONALS_MAX: u16 = 2;

const _: () = assert!(DEFAULT_MAX_PAYLOAD_LEN as usize == limits::DNS_ANSWER_BYTES_MAX);

/// What a question came by, which decides how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream of messages with their lengths before them.
    Tcp,
}

/// What came of a message; the last two leave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A name of ours: its addresses, or that it has none of the kind that was asked for.
    Answered,
    /// Likewise, but not all addresses had room; the asker comes again by TCP.
    Truncated,
    /// Not ours to answer: another name, another class.
    Refused,
    /// Another operation than a query.
    NotImplemented,
    /// A later version of EDNS than there is.
    BadVersion,
    /// A message, but not one question.
    FormatError,
    /// No message.
    Malformed,
    /// An answer to something that was never asked.
    Unasked,
}

impl Outcome {
    /// Every outcome, in the order of the counts.
    pub const ALL: [Self; 8] = [
        Self::Answered,
        Self::Truncated,
        Self::Refused,
        Self::NotImplemented,
        Self::BadVersion,
        Self::FormatError,
        Self::Malformed,
        Self::Unasked,
    ];

    /// Its name in the counts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Truncated => "truncated",
            Self::Refused => "refused",
            Self::NotImplemented => "not_implemented",
            Self::BadVersion => "bad_version",
            Self::FormatError => "format_error",
            Self::Malformed => "dropped_malformed",
            Self::Unasked => "dropped_unasked",
        }
    }

    /// Whether the message is dropped.
    pub fn is_dropped(self) -> bool {
        matches!(self, Self::Malformed | Self::Unasked)
    }
}

/// Answers `message` from `zone` into `wire`, which is empty if the message is to be dropped.
pub fn answer(message: &[u8], zone: &Zone, transport: Transport, wire: &mut Vec<u8>) -> Outcome {
    wire.clear();
    let judged =
        Question::read(message).and_then(|question| question.answer(zone, transport, wire));
    let outcome = judged.unwrap_or_else(|stray| stray.answer(wire));
    if outcome.is_dropped() {
        wire.clear();
    }
    outcome
}

/// A message that is not one question of class and operation that we know.
enum Stray {
    /// Nothing that may be answered.
    Dropped(Outcome),
    /// Its header alone makes sense.
    Headed(Metadata, ResponseCode, Outcome),
}

impl Stray {
    fn answer(self, wire: &mut Vec<u8>) -> Outcome {
        let (metadata, code, outcome) = match self {
            Self::Dropped(outcome) => return outcome,
            Self::Headed(metadata, code, outcome) => (metadata, code, outcome),
        };
        let mut metadata = Metadata::response_from_request(&metadata);
        metadata.response_code = code;
        match write(&metadata, None, &Records::default(), None, wire) {
            Ok(()) => outcome,
            Err(_) => Outcome::Malformed,
        }
    }
}

impl From<DecodeError> for Stray {
    fn from(_: DecodeError) -> Self {
        Self::Dropped(Outcome::Malformed)
    }
}

impl From<ProtoError> for Stray {
    fn from(_: ProtoError) -> Self {
        Self::Dropped(Outcome::Malformed)
    }
}

/// One question.
struct Question {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
}

/// What stands behind the question in an answer.
#[derive(Default)]
struct Records {
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl Question {
    /// Reads a message. Counts are judged before anything is allocated for them.
    fn read(message: &[u8]) -> Result<Self, Stray> {
        if message.len() > limits::DNS_QUERY_BYTES_MAX {
            return Err(Stray::Dropped(Outcome::Malformed));
        }
        let mut decoder = BinDecoder::new(message);
        let Header { metadata, counts } = Header::read(&mut decoder)?;
        let headed = |code, outcome| Err(Stray::Headed(metadata, code, outcome));
        if metadata.message_type == MessageType::Response {
            return Err(Stray::Dropped(Outcome::Unasked));
        }
        if metadata.op_code != OpCode::Query {
            return headed(ResponseCode::NotImp, Outcome::NotImplemented);
        }
        // RFC 9619 for the first; nothing that we know has records in a question's other sections.
        let is_one_question = counts.queries == 1 && counts.answers == 0 && counts.authorities == 0;
        if !is_one_question || counts.additionals > ADDITIONALS_MAX {
            return headed(ResponseCode::FormErr, Outcome::FormatError);
        }
        let query = Query::read(&mut decoder)?;
        let count = usize::from(counts.additionals);
        let edns = match Message::read_records(&mut decoder, count, true, metadata.op_code) {
            Ok((_, edns, _)) => edns,
            Err(DecodeError::DuplicateEdns) => {
                return headed(ResponseCode::FormErr, Outcome::FormatError);
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            metadata,
            query,
            edns,
        })
    }

    fn answer(
        self,
        zone: &Zone,
        transport: Transport,
        wire: &mut Vec<u8>,
    ) -> Result<Outcome, Stray> {
        let mut metadata = Metadata::response_from_request(&self.metadata);
        let (outcome, mut records) = if self.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            metadata.response_code = ResponseCode::BADVERS;
            (Outcome::BadVersion, Records::default())
        } else if let Some(addresses) = self.resolve(zone) {
            metadata.authoritative = true;
            (Outcome::Answered, self.records(addresses))
        } else {
            metadata.response_code = ResponseCode::Refused;
            (Outcome::Refused, Records::default())
        };
        let edns = self.edns.as_ref().map(echo);
        write(&metadata, Some(&self.query), &records, edns.as_ref(), wire)?;
        let bytes_max = self.bytes_max(transport);
        if wire.len() <= bytes_max {
            return Ok(outcome);
        }
        // What has room stays: some devices never come again by TCP, and need one address only.
        records.leave_out(wire.len() - bytes_max);
        metadata.truncation = true;
        wire.clear();
        write(&metadata, Some(&self.query), &records, edns.as_ref(), wire)?;
        Ok(Outcome::Truncated)
    }

    fn resolve<'z>(&self, zone: &'z Zone) -> Option<&'z Addresses> {
        let is_internet = self.query.query_class == DNSClass::IN;
        is_internet
            .then(|| zone.resolve(&self.query.name))
            .flatten()
    }

    /// What the name has of the kind that is asked for; else the proof that it has none, which is
    /// never "no such name": for many askers that would mean the other family too.
    fn records(&self, addresses: &Addresses) -> Records {
        let name = &self.query.name;
        let record = |data| Record::from_rdata(name.clone(), limits::DNS_ANSWER_TTL, data);
        let v4 = || addresses.v4.iter().map(|ip| record(RData::from(*ip)));
        let v6 = || addresses.v6.iter().map(|ip| record(RData::from(*ip)));
        let soa = || record(RData::SOA(authority(name)));
        let answers: Vec<Record> = match self.query.query_type {
            RecordType::A => v4().collect(),
            RecordType::AAAA => v6().collect(),
            RecordType::SOA => vec![soa()],
            // One kind is enough (RFC 8482 §4.1), and smaller than all.
            RecordType::ANY if addresses.v4.is_empty() => v6().collect(),
            RecordType::ANY => v4().collect(),
            _ => Vec::new(),
        };
        let authorities = match answers.is_empty() {
            true => vec![soa()],
            false => Vec::new(),
        };
        Records {
            answers,
            authorities,
        }
    }

    fn bytes_max(&self, transport: Transport) -> usize {
        match (transport, &self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => limits::DNS_PLAIN_ANSWER_BYTES_MAX,
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload()).clamp(
                limits::DNS_PLAIN_ANSWER_BYTES_MAX,
                limits::DNS_ANSWER_BYTES_MAX,
            ),
        }
    }
}

impl Records {
    /// Leaves out as many addresses as have `excess` bytes.
    fn leave_out(&mut self, excess: usize) {
        // A pointer to the name, type, class, TTL and length, before the address.
        const HEAD_BYTES: usize = 12;
        let bytes = match self.answers.first().map(|record| &record.data) {
            Some(RData::AAAA(_)) => HEAD_BYTES + 16,
            _ => HEAD_BYTES + 4,
        };
        let fewer = self.answers.len().saturating_sub(excess.div_ceil(bytes));
        self.answers.truncate(fewer);
    }
}

/// Each of our names is a zone of its own: what lies beside it under the domain is not ours.
fn authority(name: &Name) -> SOA {
    const HOUR: i32 = 3_600;
    // Nobody reads mail for it.
    let mailbox = Name::root();
    let negative = limits::DNS_ANSWER_TTL;
    SOA::new(
        name.clone(),
        mailbox,
        1,
        HOUR,
        HOUR / 6,
        24 * HOUR,
        negative,
    )
}

/// The OPT record that answers one (RFC 6891 §6.1.1); options are for others.
fn echo(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(DEFAULT_MAX_PAYLOAD_LEN);
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    edns
}

fn write(
    metadata: &Metadata,
    query: Option<&Query>,
    records: &Records,
    edns: Option<&Edns>,
    wire: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    let mut encoder = BinEncoder::new(wire);
    emit_message_parts(
        metadata,
        &mut query.into_iter(),
        &mut records.answers.iter(),
        &mut records.authorities.iter(),
        &mut iter::empty::<&Record>(),
        edns,
        None,
        &mut encoder,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::{collection::vec, prelude::any, proptest};

    use super::*;
    use crate::config::settings::{Dns, Slot};

    /// `m2u` with both families, `m2u2` with one, `m2u3` with as many addresses as may be.
    fn zone() -> Zone {
        let slot = |name: &str| Slot::parse(name.as_bytes()).expect("a slot");
        let many = (0..limits::DNS_ADDRESSES_PER_NAME_MAX as u8).map(|n| [10, 9, 0, n].into());
        let dns = Dns {
            listen: Vec::new(),
            addresses: ["10.8.0.2", "fd00::2"]
                .map(|ip| ip.parse().expect(ip))
                .into(),
            slots: [
                (slot("m2u2"), vec![IpAddr::from([10, 8, 0, 3])]),
                (slot("m2u3"), many.collect()),
            ]
            .into(),
        };
        let slots = ["m2u2", "m2u3"].map(slot);
        Zone::build(Some("talk2m.com"), slots.into_iter(), &dns)
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(0x4d32, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        message
    }

    fn with_edns(mut message: Message, payload: u16) -> Message {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
        message
    }

    fn wire(message: &Message) -> Vec<u8> {
        message.to_vec().expect("a message")
    }

    fn ask_by(transport: Transport, message: &[u8]) -> (Outcome, Vec<u8>) {
        let mut wire = b"what was before".to_vec();
        let outcome = answer(message, &zone(), transport, &mut wire);
        assert_eq!(outcome.is_dropped(), wire.is_empty());
        (outcome, wire)
    }

    /// The answer by UDP.
    fn ask(message: &Message) -> (Outcome, Message) {
        let (outcome, answer) = ask_by(Transport::Udp, &wire(message));
        let answer = Message::from_vec(&answer).expect("an answer");
        assert_eq!(answer.metadata.id, message.metadata.id);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert!(answer.metadata.recursion_desired && !answer.metadata.recursion_available);
        (outcome, answer)
    }

    fn addresses(answer: &Message) -> Vec<IpAddr> {
        let records = answer.answers.iter();
        records.filter_map(|record| record.data.ip_addr()).collect()
    }

    #[test]
    fn our_names_have_their_addresses() {
        for (name, kind, expected) in [
            ("m2u.talk2m.com.", RecordType::A, "10.8.0.2"),
            ("m2u.", RecordType::A, "10.8.0.2"),
            ("m2u.talk2m.com.", RecordType::AAAA, "fd00::2"),
            ("m2u2.talk2m.com.", RecordType::A, "10.8.0.3"),
            ("m2u.talk2m.com.", RecordType::ANY, "10.8.0.2"),
        ] {
            let (outcome, answer) = ask(&question(name, kind));
            assert_eq!(outcome, Outcome::Answered);
            assert_eq!(
                addresses(&answer),
                [expected.parse::<IpAddr>().expect(expected)]
            );
            assert!(answer.metadata.authoritative && !answer.metadata.truncation);
            assert_eq!(answer.answers[0].ttl, 60);
            assert!(answer.authorities.is_empty() && answer.edns.is_none());
        }
    }

    #[test]
    fn a_name_without_addresses_of_a_kind_still_exists() {
        for (name, kind) in [
            ("m2u2.talk2m.com.", RecordType::AAAA),
            ("m2u.talk2m.com.", RecordType::TXT),
            ("m2u.talk2m.com.", RecordType::HTTPS),
            ("m2u.talk2m.com.", RecordType::Unknown(65_280)),
        ] {
            let (outcome, answer) = ask(&question(name, kind));
            assert_eq!(outcome, Outcome::Answered);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(answer.answers.is_empty() && answer.metadata.authoritative);
            let [authority] = &answer.authorities[..] else {
                panic!("one record says how long that holds");
            };
            assert_eq!(
                (authority.record_type(), authority.ttl),
                (RecordType::SOA, 60)
            );
            assert_eq!(authority.name, Name::from_ascii(name).expect("a name"));
        }
        let (_, answer) = ask(&question("m2u.talk2m.com.", RecordType::SOA));
        assert_eq!(answer.answers[0].record_type(), RecordType::SOA);
    }

    #[test]
    fn everything_else_is_refused_in_no_more_bytes_than_were_sent() {
        for name in [
            ".",
            "talk2m.com.",
            "www.talk2m.com.",
            "m2u9.talk2m.com.",
            "example.org.",
        ] {
            for kind in [
                RecordType::A,
                RecordType::ANY,
                RecordType::AXFR,
                RecordType::TXT,
            ] {
                for message in [question(name, kind), with_edns(question(name, kind), 4_096)] {
                    let (outcome, answer) = ask(&message);
                    assert_eq!(outcome, Outcome::Refused);
                    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
                    assert!(!answer.metadata.authoritative);
                    assert_eq!(answer.queries, message.queries);
                    assert_eq!(wire(&answer).len(), wire(&message).len());
                }
            }
        }
        let mut chaos = question("m2u.talk2m.com.", RecordType::TXT);
        for class in [DNSClass::CH, DNSClass::ANY, DNSClass::NONE] {
            chaos.queries[0].query_class = class;
            assert_eq!(ask(&chaos).0, Outcome::Refused);
        }
    }

    #[test]
    fn the_question_comes_back_in_its_own_case() {
        let message = question("M2u.tALk2M.coM.", RecordType::A);
        let (_, answer) = ask_by(Transport::Udp, &wire(&message));
        let asked = wire(&message);
        assert_eq!(answer[12..asked.len()], asked[12..]);
        // The record has no copy of the name, but a pointer to it.
        assert_eq!(answer[asked.len()..][..2], [0xc0, 12]);
        assert_eq!(answer.len(), asked.len() + 16);
    }

    #[test]
    fn edns_is_answered_with_edns() {
        let mut message = with_edns(question("m2u.talk2m.com.", RecordType::A), 4_096);
        message.edns.as_mut().expect("set").set_dnssec_ok(true);
        let (_, answer) = ask(&message);
        let edns = answer.edns.expect("an OPT record");
        assert_eq!(
            (edns.version(), edns.max_payload()),
            (0, DEFAULT_MAX_PAYLOAD_LEN)
        );
        assert!(edns.flags().dnssec_ok);
        message.edns.as_mut().expect("set").set_version(1);
        let (outcome, answer) = ask(&message);
        assert_eq!(outcome, Outcome::BadVersion);
        // The number has two names.
        assert_eq!(u16::from(answer.metadata.response_code), 16);
        assert_eq!(answer.edns.map(|edns| edns.version()), Some(0));
        assert!(answer.answers.is_empty());
    }

    #[test]
    fn an_answer_is_as_long_as_its_asker_can_take() {
        let plain = question("m2u3.talk2m.com.", RecordType::A);
        let all = limits::DNS_ADDRESSES_PER_NAME_MAX;
        for (message, bytes_max) in [
            (plain.clone(), 512),
            (with_edns(plain.clone(), 0), 512),
            (with_edns(plain.clone(), 530), 530),
        ] {
            let (outcome, answer) = ask(&message);
            assert_eq!(outcome, Outcome::Truncated);
            assert!(answer.metadata.truncation);
            let bytes = wire(&answer).len();
            assert!(bytes <= bytes_max && bytes > bytes_max - 16, "{bytes}");
            let some = addresses(&answer);
            assert_eq!(some[0], Ipv4Addr::new(10, 9, 0, 0));
            assert!(some.len() < all);
        }
        let (outcome, answer) = ask(&with_edns(plain.clone(), 1_232));
        assert_eq!(
            (outcome, addresses(&answer).len()),
            (Outcome::Answered, all)
        );
        let (outcome, answer) = ask_by(Transport::Tcp, &wire(&plain));
        assert_eq!(outcome, Outcome::Answered);
        assert_eq!(
            addresses(&Message::from_vec(&answer).expect("one")).len(),
            all
        );
    }

    #[test]
    fn the_longest_question_has_its_answer() {
        let label = "x".repeat(63);
        let domain = [&label[..], &label, &label, &"y".repeat(48)].join(".");
        let slots = Dns {
            listen: Vec::new(),
            addresses: (0..32)
                .map(|n| [0xfd00, 0, 0, 0, 0, 0, 0, n].into())
                .collect(),
            slots: Default::default(),
        };
        let slot = Slot::parse(b"m2u999").expect("a slot");
        let zone = Zone::build(Some(&domain), [slot].into_iter(), &slots);
        let mut out = Vec::new();
        for kind in [RecordType::AAAA, RecordType::A, RecordType::SOA] {
            let message = with_edns(question(&format!("m2u999.{domain}."), kind), 512);
            let outcome = answer(&wire(&message), &zone, Transport::Udp, &mut out);
            assert!(
                matches!(outcome, Outcome::Answered | Outcome::Truncated),
                "{kind}"
            );
            assert!(out.len() <= 512);
        }
    }

    #[test]
    fn what_is_no_single_question_is_told_so_by_its_header_alone() {
        let one = question("m2u.", RecordType::A);
        let [mut none, mut two, mut answered, mut crowded] = [(); 4].map(|()| one.clone());
        let again = one.queries[0].clone();
        let record = Record::from_rdata(again.name.clone(), 1, RData::from(Ipv4Addr::LOCALHOST));
        none.queries.clear();
        two.add_query(again);
        answered.add_answer(record.clone());
        crowded.add_additionals([record.clone(), record.clone(), record]);
        for message in [none, two, answered, crowded] {
            let (outcome, answer) = ask(&message);
            assert_eq!(outcome, Outcome::FormatError);
            assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
            assert_eq!(wire(&answer).len(), 12);
        }
        // Two OPT records (RFC 6891 §6.1.1).
        let mut twice = wire(&with_edns(question("m2u.", RecordType::A), 512));
        let opt = twice[twice.len() - 11..].to_vec();
        twice.extend(opt);
        twice[11] = 2;
        assert_eq!(ask_by(Transport::Udp, &twice).0, Outcome::FormatError);
    }

    #[test]
    fn other_operations_are_not_implemented() {
        for code in [
            OpCode::Status,
            OpCode::Notify,
            OpCode::Update,
            OpCode::Unknown(15),
        ] {
            let mut message = question("m2u.", RecordType::A);
            message.metadata.op_code = code;
            let (outcome, answer) = ask(&message);
            assert_eq!(outcome, Outcome::NotImplemented);
            assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
            assert_eq!(answer.metadata.op_code, code);
            assert!(answer.queries.is_empty());
        }
    }

    #[test]
    fn answers_and_garbage_are_dropped() {
        let whole = wire(&with_edns(
            question("m2u.talk2m.com.", RecordType::A),
            1_232,
        ));
        for cut in 0..whole.len() {
            assert_eq!(
                ask_by(Transport::Udp, &whole[..cut]).0,
                Outcome::Malformed,
                "{cut}"
            );
        }
        let mut unasked = whole.clone();
        unasked[2] |= 0x80;
        assert_eq!(ask_by(Transport::Udp, &unasked).0, Outcome::Unasked);
        let mut looping = whole.clone();
        looping[12..14].copy_from_slice(&[0xc0, 12]);
        assert_eq!(ask_by(Transport::Udp, &looping).0, Outcome::Malformed);
        let mut long = whole;
        long.resize(limits::DNS_QUERY_BYTES_MAX + 1, 0);
        assert_eq!(ask_by(Transport::Udp, &long).0, Outcome::Malformed);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_answered_within_bounds(
            at in 0_usize..60,
            bytes in vec(any::<u8>(), 0..40),
            kind in any::<u16>(),
            is_tcp in any::<bool>(),
        ) {
            let kind = RecordType::from(kind);
            let mut message = wire(&with_edns(question("m2u.talk2m.com.", kind), 1_232));
            let begin = at.min(message.len());
            let end = (begin + bytes.len()).min(message.len());
            message.splice(begin..end, bytes);
            let transport = if is_tcp { Transport::Tcp } else { Transport::Udp };
            let (outcome, answer) = ask_by(transport, &message);
            if outcome.is_dropped() {
                return Ok(());
            }
            assert_eq!(answer[..2], message[..2]);
            assert_ne!(answer[2] & 0x80, 0);
            let is_ours = matches!(outcome, Outcome::Answered | Outcome::Truncated);
            assert!(is_ours || answer.len() <= message.len().max(12));
            assert!(Message::from_vec(&answer).is_ok());
        }
    }
}
