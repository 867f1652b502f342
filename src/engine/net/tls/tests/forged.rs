//! Records that no server of good faith sends, made with its keys: what is opened beside rustls must be
//! what rustls would have opened, in the same order, and nothing else.

use std::{
    future::Future,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::Mutex,
    task::{Context, Waker},
};

use ::aws_lc_rs::{
    aead::{self, Aad, LessSafeKey, UnboundKey},
    hkdf,
};
use monoio::{IoUringDriver, RuntimeBuilder};
use rustls::{
    ConnectionTrafficSecrets, KeyLog, PeerMisbehaved,
    crypto::cipher::{Nonce, make_tls12_aad, make_tls13_aad},
};

use super::{super::super::sys::Side, *};
use crate::limits::{TLS_HELD_BYTES_MAX, TLS_TICKETS_MAX};

const DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

/// The secrets of a server that keeps none.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(String, Vec<u8>)>>);

impl KeyLog for Told {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut told = self.0.lock().expect("one thread");
        told.push((label.to_owned(), secret.to_vec()));
    }
}

impl Told {
    fn last(&self, label: &str) -> Vec<u8> {
        let told = self.0.lock().expect("one thread");
        let found = told.iter().rev().find(|(name, _)| name == label);
        found.expect("a secret").1.clone()
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label without a context (RFC 8446 §7.1).
fn expand(secret: &[u8], label: &str, length: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let length_bytes = (length as u16).to_be_bytes();
    let info = [
        &length_bytes,
        &[label.len() as u8][..],
        label.as_bytes(),
        &[0],
    ];
    let secret = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret);
    let mut expanded = vec![0; length];
    let expansion = secret.expand(&info, Length(length)).expect("a length");
    expansion.fill(&mut expanded).expect("a length");
    expanded
}

/// What a server seals records with.
struct Forge {
    /// What TLS 1.3 makes the next key from.
    secret: Option<Vec<u8>>,
    key: LessSafeKey,
    iv: [u8; 12],
    number: u64,
}

impl Forge {
    /// With a traffic secret of TLS 1.3.
    fn tls13(secret: Vec<u8>, number: u64) -> Self {
        let key = expand(&secret, "key", 16);
        let iv = expand(&secret, "iv", 12);
        Self {
            key: Self::key(&key),
            iv: iv.try_into().expect("a length"),
            secret: Some(secret),
            number,
        }
    }

    /// With what a server of TLS 1.2 has after its handshake.
    fn tls12(server: ServerConnection) -> Self {
        let secrets = server.dangerous_extract_secrets().expect("allowed");
        let (number, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = secrets.tx else {
            panic!("AES-128 alone was offered");
        };
        Self {
            secret: None,
            key: Self::key(key.as_ref()),
            iv: iv.as_ref().try_into().expect("a length"),
            number,
        }
    }

    fn key(bytes: &[u8]) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&aead::AES_128_GCM, bytes).expect("a length"))
    }

    /// The next record, with so many zeros of padding where the version has any.
    fn seal(&mut self, kind: u8, text: &[u8], padding: usize) -> Vec<u8> {
        let number = self.number;
        self.number += 1;
        if self.secret.is_some() {
            let mut sealed = [text, &[kind]].concat();
            sealed.resize(sealed.len() + padding, 0);
            let aad = make_tls13_aad(sealed.len() + 16);
            let nonce = Nonce::new(&Iv::new(self.iv), number).0;
            let nonce = aead::Nonce::assume_unique_for_key(nonce);
            self.key
                .seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed)
                .expect("a record");
            return [&aad[..], &sealed].concat();
        }
        let explicit = (number ^ 0x5A5A).to_be_bytes();
        let mut nonce = self.iv;
        nonce[4..].copy_from_slice(&explicit);
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let aad = make_tls12_aad(number, kind.into(), ProtocolVersion::TLSv1_2, text.len());
        let mut sealed = text.to_vec();
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed)
            .expect("a record");
        let length = (explicit.len() + sealed.len()) as u16;
        let header = [&[kind, 3, 3], &length.to_be_bytes()[..]].concat();
        [&header[..], &explicit, &sealed].concat()
    }

    fn data(&mut self, text: &[u8]) -> Vec<u8> {
        self.seal(DATA, text, 0)
    }

    /// Says that new keys follow, and takes them (RFC 8446 §4.6.3).
    fn renew(&mut self) -> Vec<u8> {
        let record = self.seal(HANDSHAKE, &[24, 0, 0, 1, 0], 0);
        let secret = self.secret.take().expect("TLS 1.3");
        *self = Self::tls13(expand(&secret, "traffic upd", 32), 0);
        record
    }

    /// A ticket that is good for nothing (RFC 8446 §4.6.1).
    fn ticket(&mut self) -> Vec<u8> {
        let body = [0, 0, 0, 1, 0, 0, 0, 0, 1, 7, 0, 1, 7, 0, 0];
        let header = [4, 0, 0, body.len() as u8];
        self.seal(HANDSHAKE, &[&header[..], &body].concat(), 0)
    }
}

/// A session that has shaken hands with a server whose keys are at hand.
struct Victim {
    near: Session,
    forge: Forge,
}

impl Victim {
    fn new(is_tls13: bool) -> Self {
        let provider = if is_tls13 {
            offered(100)
        } else {
            offered_of_tls12()
        };
        let mut setup = setup(provider, false);
        let told = Arc::new(Told::default());
        setup.far.key_log = Arc::clone(&told) as Arc<dyn KeyLog>;
        setup.far.enable_secret_extraction = true;
        setup.far.send_tls13_tickets = 0;
        let mut pair = Pair::new(&Arc::new(setup.near), &Arc::new(setup.far));
        pair.write(b"asked");
        pair.send();
        pair.receive();
        pair.read(1);
        assert_eq!(pair.arrived, b"asked");
        let forge = match is_tls13 {
            true => Forge::tls13(told.last("SERVER_TRAFFIC_SECRET_0"), 0),
            false => Forge::tls12(pair.far),
        };
        let near = pair.near;
        assert!(near.incoming.is_empty());
        Self { near, forge }
    }

    /// Has `wire` come, and reads whatever it brings into a buffer with plenty of room.
    fn read(&mut self, wire: &[u8]) -> (Vec<u8>, Result<(), rustls::Error>) {
        self.near.incoming.extend_from_slice(wire);
        let mut sink = Vec::with_capacity(40_000);
        let result = self.near.advance(&mut sink, 40_000, &[]).map(|_| ());
        sink.append(&mut self.near.spill);
        (sink, result)
    }

    /// Reads a record of data, the first or one more.
    fn read_data(&mut self, text: &[u8]) {
        let record = self.forge.data(text);
        assert_eq!(self.read(&record), (text.to_vec(), Ok(())));
    }

    /// Whether the next record of data would be opened beside rustls.
    fn opens(&self) -> bool {
        let key = self.near.opening.as_ref();
        self.near.is_settled && key.is_some_and(|key| key.may_open())
    }

    /// One whose next record of data will be opened beside rustls.
    fn opening(is_tls13: bool) -> Self {
        let mut victim = Self::new(is_tls13);
        victim.read_data(b"first");
        assert!(victim.opens());
        victim
    }
}

#[test]
fn what_rustls_refuses_is_refused() {
    type Make = fn(&mut Forge) -> Vec<u8>;
    let cases: [(&str, bool, Make); 11] = [
        ("an unknown type", true, |forge| {
            let record = forge.data(b"evil");
            [&[99], &record[1..]].concat()
        }),
        ("a change of cipher spec", true, |forge| {
            let record = forge.data(b"evil");
            [&[20], &record[1..]].concat()
        }),
        ("another protocol", true, |forge| {
            let record = forge.data(b"evil");
            [&record[..1], &[2], &record[2..]].concat()
        }),
        ("another version", false, |forge| {
            let record = forge.data(b"evil");
            [&record[..2], &[1], &record[3..]].concat()
        }),
        ("an alert that says it is data", false, |forge| {
            let record = forge.seal(ALERT, b"evil", 0);
            [&[DATA], &record[1..]].concat()
        }),
        ("too much data", true, |forge| forge.data(&[b'e'; 16_385])),
        ("too much data", false, |forge| forge.data(&[b'e'; 16_385])),
        ("too much padding", true, |forge| {
            forge.seal(DATA, b"evil", 16_381)
        }),
        ("padding alone", true, |forge| forge.seal(0, b"", 100)),
        ("a number that was used", true, |forge| {
            forge.number -= 1;
            forge.data(b"evil")
        }),
        ("a number that is not its turn", false, |forge| {
            forge.number += 1;
            forge.data(b"evil")
        }),
    ];
    for (case, is_tls13, make) in cases {
        let mut victim = Victim::opening(is_tls13);
        let evil = make(&mut victim.forge);
        let good = victim.forge.data(b"behind it");
        let (data, result) = victim.read(&[evil, good].concat());
        assert!(data.is_empty() && result.is_err(), "{case}: {result:?}");
    }
}

#[test]
fn what_rustls_opens_is_opened() {
    for is_tls13 in [true, false] {
        let mut victim = Victim::opening(is_tls13);
        let mut expected = Vec::new();
        for (size, padding) in [(1, 0), (0, 0), (16_384, 0), (1, 16_383), (7, 100), (0, 50)] {
            let text = vec![b'x'; size];
            let record = victim.forge.seal(DATA, &text, padding);
            let (data, result) = victim.read(&record);
            assert!(
                data == text && result.is_ok(),
                "{size} {padding} {result:?}"
            );
            expected.extend(text);
        }
        // Too short for a tag: refused, as one that does not open.
        for payload in 0..24 {
            let mut victim = Victim::opening(is_tls13);
            let record = [&[DATA, 3, 3, 0, payload], &[0; 24][..payload.into()]].concat();
            let (data, result) = victim.read(&record);
            assert_eq!((data.len(), result), (0, Err(rustls::Error::DecryptError)));
        }
    }
}

#[test]
fn nothing_is_data_behind_the_goodbye() {
    for is_tls13 in [true, false] {
        for is_apart in [true, false] {
            let mut victim = Victim::opening(is_tls13);
            let mut wire = victim.forge.data(b"good");
            wire.extend(victim.forge.seal(ALERT, &[1, 0], 0));
            let evil = victim.forge.data(b"evil");
            if !is_apart {
                wire.extend(&evil);
            }
            assert_eq!(victim.read(&wire), (b"good".to_vec(), Ok(())));
            assert!(victim.near.closed);
            if is_apart {
                assert_eq!(victim.read(&evil), (Vec::new(), Ok(())));
            }
            assert_eq!(victim.read(&[]), (Vec::new(), Ok(())));
        }
    }
}

#[test]
fn what_did_not_fit_comes_before_what_follows() {
    let mut victim = Victim::opening(true);
    let wire = [victim.forge.data(b"one "), victim.forge.data(b"two ")].concat();
    victim.near.incoming.extend_from_slice(&wire);
    victim
        .near
        .advance(&mut Vec::new(), 0, &[])
        .expect("a session");
    assert_eq!(victim.near.spill, b"one two ");
    let three = victim.forge.data(b"three");
    victim.near.incoming.extend_from_slice(&three);
    let mut sink = Vec::with_capacity(40_000);
    victim
        .near
        .advance(&mut sink, 40_000, &[])
        .expect("a session");
    assert!(sink.is_empty(), "nothing passes what waits");
    victim.near.drain_spill(&mut sink, 40_000);
    victim
        .near
        .advance(&mut sink, 40_000, &[])
        .expect("a session");
    assert_eq!(sink, b"one two three");
}

#[test]
fn a_key_that_another_connection_left_opens_nothing() {
    let mut victim = Victim::opening(true);
    let provider = share_keys(aws_lc_rs::default_provider());
    let is_aes_256 =
        |suite: &&SupportedCipherSuite| suite.suite() == CipherSuite::TLS13_AES_256_GCM_SHA384;
    let suite = provider.cipher_suites.iter().find(is_aes_256);
    let suite = suite
        .and_then(SupportedCipherSuite::tls13)
        .expect("a suite");
    let (key, iv) = (AeadKey::from([7; 32]), Iv::from([7; 12]));
    drop(suite.aead_alg.decrypter(key, iv));
    victim.read_data(b"second");
    victim.read(&[]).1.expect("a session");
    assert!(victim.opens());
    assert!(OpeningKey::take_newest().is_none(), "a key is left behind");
}

#[test]
fn what_has_come_and_was_not_handed_out_is_held() {
    let mut victim = Victim::opening(true);
    let wire = [victim.forge.data(b"one "), victim.forge.data(b"two ")].concat();
    let (whole, part) = wire.split_at(wire.len() / 2 + 5);
    victim.near.incoming.extend_from_slice(whole);
    let before = victim.near.held();
    assert_eq!(before, whole.len());
    let mut sink = Vec::with_capacity(40_000);
    victim.near.advance(&mut sink, 3, &[]).expect("a session");
    assert_eq!((&sink[..], victim.near.held()), (&b"one"[..], 1 + 5));
    victim.near.drain_spill(&mut sink, 40_000);
    victim.near.incoming.extend_from_slice(part);
    victim
        .near
        .advance(&mut sink, 40_000, &[])
        .expect("a session");
    assert_eq!((&sink[..], victim.near.held()), (&b"one two "[..], 0));
}

#[test]
fn no_more_is_opened_than_fits() {
    for is_tls13 in [true, false] {
        for (capacity, room) in [
            (9, 9),
            (8, 8),
            (100, 9),
            (100, 8),
            (100, 17),
            (7, 7),
            (3, 3),
        ] {
            let mut victim = Victim::opening(is_tls13);
            let wire = [victim.forge.data(b"12345678"), victim.forge.data(b"90")].concat();
            victim.near.incoming.extend_from_slice(&wire);
            let mut sink = Vec::with_capacity(capacity);
            victim
                .near
                .advance(&mut sink, room, &[])
                .expect("a session");
            assert!(sink.len() <= room && sink.capacity() == capacity);
            victim.near.drain_spill(&mut sink, 100);
            victim.near.advance(&mut sink, 100, &[]).expect("a session");
            sink.append(&mut victim.near.spill);
            assert_eq!(sink, b"1234567890");
        }
    }
}

#[test]
fn a_ticket_and_new_keys_amid_data_change_no_byte_of_it() {
    let mut victim = Victim::opening(true);
    for _ in 0..40 {
        let forge = &mut victim.forge;
        let wire = [
            forge.data(b"1"),
            forge.data(b"2"),
            forge.ticket(),
            forge.data(b"3"),
            forge.data(b"4"),
            forge.renew(),
            forge.data(b"5"),
            forge.data(b"6"),
        ];
        let mut data = Vec::new();
        for piece in wire.concat().chunks(33) {
            let (some, result) = victim.read(piece);
            assert_eq!(result, Ok(()));
            data.extend(some);
        }
        assert_eq!(data, b"123456");
    }
}

#[test]
fn a_server_that_renews_its_keys_and_sends_data_may_do_so_for_ever() {
    let mut victim = Victim::opening(true);
    for round in 0..100 {
        for wire in [victim.forge.renew(), victim.forge.ticket()] {
            assert_eq!(victim.read(&wire), (Vec::new(), Ok(())), "{round}");
        }
        victim.read_data(b"data");
    }
}

#[test]
fn tickets_without_end_are_refused_whatever_comes_with_them() {
    let mut victim = Victim::opening(true);
    for _ in 0..TLS_TICKETS_MAX {
        let ticket = victim.forge.ticket();
        assert_eq!(victim.read(&ticket), (Vec::new(), Ok(())));
        victim.read_data(b"data");
    }
    let wire = [victim.forge.ticket(), victim.forge.data(b"more")].concat();
    let (data, result) = victim.read(&wire);
    assert!(
        matches!(result, Err(rustls::Error::General(_))),
        "{result:?}"
    );
    assert!(data.is_empty() || data == b"more");
}

#[test]
fn a_server_that_asks_for_another_handshake_is_told_that_there_is_none() {
    let mut victim = Victim::opening(false);
    let (near, mut far) = UnixStream::pair().expect("a pair");
    let watch = Deadlines::new().watch(near.as_raw_fd());
    // HelloRequest (RFC 5246 §7.4.1.1).
    let asks = victim.forge.seal(HANDSHAKE, &[0; 4], 0);
    assert_eq!(victim.read(&asks), (Vec::new(), Ok(())));
    // Behind what is being sent, and no other way.
    victim.near.is_sending = true;
    let sealed = victim.near.sealed;
    victim.near.answer(&watch);
    assert_eq!(victim.near.sealed, sealed);
    victim.near.is_sending = false;
    victim.near.answer(&watch);
    assert_eq!(victim.near.sealed, 0);
    drop((watch, near));
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).expect("an answer");
    assert_eq!((answer.len(), answer[0]), (sealed, ALERT));
}

#[test]
fn an_answer_that_comes_while_a_body_is_sent_follows_it() {
    let Victim { near, mut forge } = Victim::opening(false);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let socket = std::net::TcpStream::connect(address).expect("connect");
    let (mut far, _) = listener.accept().expect("accept");
    // More than both systems hold.
    let body = vec![b'x'; 16_000_000];
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new()
        .build()
        .expect("a ring");
    let received = runtime.block_on(async {
        socket.set_nonblocking(true).expect("a socket");
        let socket = TcpStream::from_std(socket).expect("a socket");
        let (_reader, socket, watch) = stream::split(socket, &Deadlines::new());
        let session = Rc::new(RefCell::new(near));
        let mut writer = TlsWriter {
            socket,
            session: Rc::clone(&session),
        };
        let mut write = Box::pin(writer.write_all(body, 0, Duration::from_secs(600)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(write.as_mut().poll(&mut context).is_pending());
        {
            let session = &mut *session.borrow_mut();
            let asks = forge.seal(HANDSHAKE, &[0; 4], 0);
            session.incoming.extend_from_slice(&asks);
            let told = session.advance(&mut Vec::with_capacity(100), 100, &[]);
            assert_eq!(told, Ok(Progress::Ready));
            session.answer(&watch);
            assert!(session.sealed > 0, "nothing overtakes what is being sent");
        }
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            far.read_to_end(&mut received).expect("all of it");
            received
        });
        let (result, _) = write.await;
        assert!(result.is_ok() && session.borrow().sealed == 0);
        watch.shutdown(Side::Write);
        reader.join().expect("all of it")
    });
    let mut kinds = Vec::new();
    let mut rest = &received[..];
    while let [kind, _, _, high, low, ..] = rest {
        kinds.push(*kind);
        rest = &rest[5 + usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    assert_eq!(kinds.pop(), Some(ALERT));
    assert!(kinds.len() > 900 && kinds.iter().all(|kind| *kind == DATA));
}

#[test]
fn empty_records_among_others_are_no_flood() {
    for is_tls13 in [true, false] {
        let mut victim = Victim::opening(is_tls13);
        for round in 0..100 {
            let empty = victim.forge.data(b"");
            assert_eq!(victim.read(&empty), (Vec::new(), Ok(())), "{round}");
            victim.read_data(b"data");
            victim.read_data(b"more");
        }
        let flood: Vec<u8> = (0..33).flat_map(|_| victim.forge.data(b"")).collect();
        let refused = Err(PeerMisbehaved::TooManyEmptyFragments.into());
        assert_eq!(victim.read(&flood), (Vec::new(), refused));
    }
}

/// rustls would lose count behind such a record: bytes that it has opened would be taken for the beginning of
/// a record to come, and lent to the ring while it still counts on them.
#[test]
fn an_empty_piece_of_a_handshake_message_is_refused() {
    for (is_tls13, padding) in [(true, 0), (true, 100), (false, 0)] {
        let mut victim = Victim::opening(is_tls13);
        let empty = victim.forge.seal(HANDSHAKE, b"", padding);
        let data = victim.forge.data(b"HTTP/1.1 ");
        let refused = Err(InvalidMessage::InvalidEmptyPayload.into());
        let (sink, result) = victim.read(&[empty, data].concat());
        assert_eq!((&sink[..], &result), (&b""[..], &refused));
        assert!(victim.near.sealed > 0, "no alert");
        drop(victim.near.lend());
        let sealed = victim
            .near
            .advance(&mut Vec::new(), 0, b"a piece")
            .map(|_| ());
        assert_eq!(sealed, refused);
    }
}

/// rustls joins the pieces of a handshake message where they came, so that a server chooses what stands
/// behind the header of a record that was opened already.
#[test]
fn pieces_of_a_handshake_message_are_no_record_of_data() {
    let mut victim = Victim::opening(true);
    let forge = &mut victim.forge;
    // Sealed with zeros, it shows what goes into a message of 1,000 bytes.
    let number = forge.number + 2;
    let at_number = |forge: &mut Forge, text: &[u8]| {
        let before = std::mem::replace(&mut forge.number, number);
        let record = forge.data(text);
        forge.number = before;
        record
    };
    let mut text = [0; 40];
    let stream = at_number(forge, &text);
    for (byte, wanted) in [4, 0, 3, 232].into_iter().enumerate() {
        text[byte] = stream[5 + byte] ^ wanted;
    }
    let evil = at_number(forge, &text);
    let pieces = evil[5..].split_at(text.len());
    let wire = [
        forge.seal(HANDSHAKE, pieces.0, 0),
        forge.seal(HANDSHAKE, pieces.1, 0),
    ];
    assert_eq!(victim.read(&wire.concat()), (Vec::new(), Ok(())));
    let next = victim.forge.data(b"next");
    let refused = Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
    assert_eq!(victim.read(&next), (Vec::new(), refused));
}

/// As a receive brings them, one after the other.
#[test]
fn pieces_that_make_no_message_are_not_kept_for_ever() {
    let mut victim = Victim::new(true);
    let padding = TLS_RECORD_BYTES - 1;
    // A ticket of 60,000 bytes begins, a byte in each record.
    let message = [
        &[
            4,
            0,
            60_000_u16.to_be_bytes()[0],
            60_000_u16.to_be_bytes()[1],
        ][..],
        &[0; 60_000],
    ]
    .concat();
    let mut kept_max = 0;
    let failed = message.iter().find_map(|byte| {
        let record = victim.forge.seal(HANDSHAKE, &[*byte], padding);
        let received = record.len();
        victim.near.take_back(record, received);
        kept_max = kept_max.max(victim.near.incoming.len());
        victim.near.advance(&mut Vec::new(), 1, &[]).err()
    });
    let too_large = rustls::InvalidMessage::HandshakePayloadTooLarge;
    assert_eq!(failed, Some(rustls::Error::InvalidMessage(too_large)));
    assert!(
        kept_max <= TLS_HELD_BYTES_MAX + TLS_WIRE_RECORD_BYTES_MAX,
        "{kept_max}"
    );
}

#[test]
fn nothing_is_data_before_the_servers_name_is_proved() {
    let mut setup = setup(offered(100), false);
    let told = Arc::new(Told::default());
    setup.far.key_log = Arc::clone(&told) as Arc<dyn KeyLog>;
    let name = ServerName::try_from("server.example").expect("a name");
    let mut near = Session::new(Arc::new(setup.near), name).expect("a client");
    let mut far = ServerConnection::new(Arc::new(setup.far)).expect("a server");
    near.advance(&mut Vec::new(), 0, &[]).expect("a session");
    let hello = near.outgoing[..near.sealed].to_vec();
    far.read_tls(&mut &*hello).expect("memory");
    far.process_new_packets().expect("a client");
    let mut flight = Vec::new();
    far.write_tls(&mut flight).expect("memory");
    // The server's greeting, a change of cipher spec, and extensions of our own, of which there are none.
    let mut end = 0;
    for _ in 0..2 {
        end += 5 + usize::from(u16::from_be_bytes([flight[end + 3], flight[end + 4]]));
    }
    let mut forge = Forge::tls13(told.last("SERVER_HANDSHAKE_TRAFFIC_SECRET"), 0);
    let mut sink = Vec::with_capacity(40_000);
    near.incoming.extend_from_slice(&flight[..end]);
    let extensions = forge.seal(HANDSHAKE, &[8, 0, 0, 2, 0, 0], 0);
    near.incoming.extend(extensions);
    let progress = near.advance(&mut sink, 40_000, &[]);
    assert_eq!(progress, Ok(Progress::Blocked));
    assert!(near.opening.is_some());
    near.incoming.extend(forge.data(b"evil"));
    let refused = near.advance(&mut sink, 40_000, &[]);
    assert!(matches!(
        refused,
        Err(rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. })
    ));
    assert!(sink.is_empty() && near.spill.is_empty());
}
