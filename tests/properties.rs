//! Whatever a valid request and its answer look like, and in whatever pieces they come: both arrive
//! as they were sent, once, in order, with the device's own identity and nothing else.
//!
//! The seed is always the same, so that a run can be repeated, and is told when a case fails;
//! `M2U_SEED` gives another one, and `M2U_CASES` another number of cases.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::HashMap,
    env,
    fmt::Debug,
    io::{self, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::{
    PATIENCE,
    certificates::{Authority, Validity},
    engine,
    exchanges::{self, Case, Coding, Cuts, Exchange},
    pace,
    upstream::{Conversation, Step, Upstream},
    wire::{self, Message},
};
use m2u::{config::settings::Slot, snapshot::route::UpstreamTls};
use proptest::test_runner::{
    Config, RngAlgorithm, TestCaseError, TestCaseResult, TestRng, TestRunner,
};
use rustls::{ClientConfig, RootCertStore, pki_types::pem::PemObject};

const THREADS: usize = 4;
const CASES: u32 = 4_000;
const SEED: u64 = 20_260_401;

/// What the scripted servers know of the exchanges under way, and saw of them.
#[derive(Default)]
struct Stage {
    scripts: Mutex<HashMap<String, (Exchange, Cuts)>>,
    seen: Mutex<HashMap<String, Vec<Message>>>,
    /// Connections that servers ended by their own will, or that the gateway must not use again.
    ended: AtomicUsize,
}

impl Stage {
    /// Serves as the exchanges say.
    fn serve(&self, conversation: &mut Conversation) -> Step {
        while let Some(mut request) = wire::read_head(conversation)? {
            let id = request.field("X-Id").expect("an id").to_owned();
            let (exchange, cuts) = self.scripts.lock().unwrap()[&id].clone();
            let (interims, words) = exchange.answer_words();
            send(&cuts, &interims, |piece| conversation.write(piece))?;
            wire::read_request_body(conversation, &mut request)?;
            let mut seen = self.seen.lock().unwrap();
            seen.entry(id).or_default().push(request);
            drop(seen);
            if !exchange.server_persists() || !exchange.leaves_no_doubt() {
                self.ended.fetch_add(1, Ordering::SeqCst);
            }
            send(&cuts, &words, |piece| conversation.write(piece))?;
            if !exchange.server_persists() {
                return conversation.say_goodbye();
            }
        }
        Ok(())
    }
}

/// Sends `bytes` in pieces.
fn send(
    cuts: &Cuts,
    bytes: &[u8],
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    for (number, piece) in exchanges::cut(bytes, &cuts.lengths).enumerate() {
        if cuts.paced && (1..20).contains(&number) {
            pace(Duration::from_micros(200));
        }
        write(piece)?;
    }
    Ok(())
}

/// The engine, its two servers, and what they play.
struct Theatre {
    gateway: SocketAddr,
    servers: [SocketAddr; 2],
    stage: Arc<Stage>,
    numbers: AtomicUsize,
}

fn fail(what: &str, seen: impl Debug, expected: impl Debug) -> TestCaseError {
    TestCaseError::fail(format!("{what}: {seen:?}\ninstead of {expected:?}"))
}

fn same<T: PartialEq + Debug>(what: &str, seen: T, expected: T) -> TestCaseResult {
    if seen == expected {
        Ok(())
    } else {
        Err(fail(what, seen, expected))
    }
}

/// Like `same`, for bodies, which are too long to be shown.
fn same_body(what: &str, seen: &[u8], expected: &[u8]) -> TestCaseResult {
    let common = seen.iter().zip(expected).take_while(|(a, b)| a == b);
    let common = common.count();
    if seen == expected {
        Ok(())
    } else {
        let lengths = (seen.len(), expected.len());
        Err(fail(what, lengths, format!("equal up to byte {common}")))
    }
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    fields.iter().map(owned).collect()
}

impl Theatre {
    /// Plays a case and compares what both sides saw.
    fn play(&self, case: &Case) -> TestCaseResult {
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        let ids: Vec<String> = (0..case.exchanges.len())
            .map(|position| format!("{number}-{position}"))
            .collect();
        {
            let mut scripts = self.stage.scripts.lock().unwrap();
            for (id, exchange) in ids.iter().zip(&case.exchanges) {
                scripts.insert(id.clone(), (exchange.clone(), case.server_cuts.clone()));
            }
        }
        let outcome = self.act(case, &ids);
        let mut seen = Vec::new();
        for id in &ids {
            self.stage.scripts.lock().unwrap().remove(id);
            seen.push(self.stage.seen.lock().unwrap().remove(id));
        }
        outcome?;
        for ((exchange, id), seen) in case.exchanges.iter().zip(&ids).zip(seen) {
            match seen.as_deref() {
                Some([request]) => self.compare_request(case.tls, exchange, id, request)?,
                seen => return Err(fail("requests at the server", seen, "one")),
            }
        }
        Ok(())
    }

    /// Plays the device.
    fn act(&self, case: &Case, ids: &[String]) -> TestCaseResult {
        let stream = TcpStream::connect(self.gateway)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(&stream);
        let write =
            |bytes: &[u8]| send(&case.device_cuts, bytes, |piece| (&stream).write_all(piece));
        let requests: Vec<_> = ids
            .iter()
            .zip(&case.exchanges)
            .map(|(id, exchange)| exchange.request(id, case.tls))
            .collect();
        thread::scope(|scope| {
            if case.pipelined {
                let all: Vec<u8> = requests
                    .iter()
                    .flat_map(|(head, body)| [head, body])
                    .flatten()
                    .copied()
                    .collect();
                // What fails to be sent is missed by the server.
                scope.spawn(move || write(&all));
                for exchange in &case.exchanges {
                    let interims = exchange.interims_heard();
                    read_answer(&mut reader, exchange, &interims)?;
                }
            } else {
                for (exchange, (head, body)) in case.exchanges.iter().zip(&requests) {
                    let mut interims = exchange.interims_heard();
                    if exchange.expects && !interims.is_empty() && !body.is_empty() {
                        write(head)?;
                        read_interims(&mut reader, &interims)?;
                        interims.clear();
                        scope.spawn(move || write(body));
                    } else {
                        let whole = [&head[..], body].concat();
                        scope.spawn(move || write(&whole));
                    }
                    read_answer(&mut reader, exchange, &interims)?;
                }
            }
            Ok::<(), TestCaseError>(())
        })?;
        // Whoever is kept says that there is no more; whoever is not hears so.
        if case.exchanges.last().is_some_and(Exchange::persists) {
            stream.shutdown(std::net::Shutdown::Write)?;
        }
        let mut rest = Vec::new();
        io::copy(&mut reader, &mut rest)?;
        same_body("bytes behind the last answer", &rest, b"")
    }

    fn compare_request(
        &self,
        tls: bool,
        exchange: &Exchange,
        id: &str,
        request: &Message,
    ) -> TestCaseResult {
        let line = format!("{} /base{} HTTP/1.1", exchange.method, exchange.path);
        same("request line", request.first_line(), &line)?;
        let mut fields = owned(&request.fields());
        let host = self.servers[usize::from(tls)].to_string();
        let via = format!("1.{} m2u", exchange.minor);
        let mut own = vec![
            ("Host", host.as_str()),
            ("X_Talk2M_Account", "acme"),
            ("X_Talk2M_Device", "press-07"),
            ("X_Talk2M_SerialNumber", "1932-0069-24"),
            ("X-Talk2M-Account", "acme"),
            ("X-Talk2M-Device", "press-07"),
            ("X-Talk2M-SerialNumber", "1932-0069-24"),
            ("Authorization", "Basic YWNtZTpzZWNyZXQ="),
            ("Via", &via),
        ];
        let payload = exchange.payload();
        let length = payload.len().to_string();
        match exchange.coding {
            Coding::Absent | Coding::UntilClose => {}
            Coding::Length => own.push(("Content-Length", &length)),
            Coding::Chunked { .. } => own.push(("Transfer-Encoding", "chunked")),
        }
        if exchange.surprises() {
            own.push(("Connection", "close"));
        }
        for expected in owned(&own) {
            match fields.iter().position(|field| *field == expected) {
                Some(position) => drop(fields.remove(position)),
                None => return Err(fail("fields", &request.head, expected)),
            }
        }
        let made = |(name, value): &(String, String)| name == "X-Request-Id" && value.len() == 32;
        match fields.iter().position(made) {
            Some(position) => drop(fields.remove(position)),
            None => return Err(fail("fields", &request.head, "a request id")),
        }
        // Nothing else is there, and nothing twice.
        same("fields from the device", fields, exchange.passing(id))?;
        same_body("body at the server", &request.body, &payload)
    }
}

fn read_interims(reader: &mut impl io::Read, expected: &[String]) -> TestCaseResult {
    for expected in expected {
        let interim = wire::read_head(reader)?;
        same(
            "interim answer",
            interim.map(|i| i.head).as_ref(),
            Some(expected),
        )?;
    }
    Ok(())
}

fn read_answer(
    reader: &mut impl io::Read,
    exchange: &Exchange,
    interims: &[String],
) -> TestCaseResult {
    read_interims(reader, interims)?;
    let Some(mut answer) = wire::read_head(reader)? else {
        return Err(fail("answer", "the end of the connection", exchange));
    };
    let line = format!(
        "HTTP/1.1 {} {}",
        exchange.answer.status, exchange.answer.reason
    );
    same("status line", answer.first_line(), &line)?;
    let mut fields = owned(&answer.fields());
    // The gateway's own stands behind what the server sent.
    match fields.iter().rposition(|(name, _)| name == "Date") {
        Some(position) if wire::is_now(&fields[position].1) => drop(fields.remove(position)),
        _ => return Err(fail("answer's fields", &answer.head, "a date of now")),
    }
    for expected in exchange.answer_framing() {
        match fields.iter().position(|field| *field == expected) {
            Some(position) => drop(fields.remove(position)),
            None => return Err(fail("answer's fields", &answer.head, expected)),
        }
    }
    same("answer's fields", fields, exchange.answer_passing())?;
    wire::read_response_body(reader, &mut answer, exchange.method == "HEAD")?;
    same_body(
        "body at the device",
        &answer.body,
        &exchange.answer_payload(),
    )
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn everything_arrives_as_it_was_sent() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let stage = Arc::new(Stage::default());
    let serve = || {
        let stage = Arc::clone(&stage);
        move |conversation: &mut Conversation| stage.serve(conversation)
    };
    let plain = Upstream::start(serve());
    let tls = Upstream::start_tls(Authority::server_config(&leaf, None), serve());
    let mut roots = RootCertStore::empty();
    let ca = rustls::pki_types::CertificateDer::from_pem_file(authority.pem()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let trust = UpstreamTls {
        config: Arc::new(client),
        name: "127.0.0.1".try_into().unwrap(),
    };
    let second = Slot::parse(b"m2u2").unwrap();
    let engine = engine::start([
        engine::route(Slot::FIRST, plain.address, None),
        engine::route(second, tls.address, Some(trust)),
    ]);
    let theatre = Theatre {
        gateway: engine.addresses()[0].0,
        servers: [plain.address, tls.address],
        stage,
        numbers: AtomicUsize::new(0),
    };

    let seed = number("M2U_SEED").unwrap_or(SEED);
    let cases = number("M2U_CASES").map_or(CASES, |cases| cases.try_into().unwrap());
    let exchanges = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (theatre, exchanges) = (&theatre, &exchanges);
            scope.spawn(move || {
                let config = Config {
                    cases: cases / THREADS as u32,
                    failure_persistence: None,
                    max_shrink_iters: 500,
                    ..Config::default()
                };
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&seed.to_le_bytes());
                bytes[8] = thread as u8;
                let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
                let mut runner = TestRunner::new_with_rng(config, random);
                let outcome = runner.run(&exchanges::case(), |case| {
                    exchanges.fetch_add(case.exchanges.len(), Ordering::SeqCst);
                    theatre.play(&case)
                });
                if let Err(error) = outcome {
                    panic!("with M2U_SEED={seed}, in thread {thread}: {error}");
                }
            });
        }
    });

    let connections = plain.connections() + tls.connections();
    let ended = theatre.stage.ended.load(Ordering::SeqCst);
    println!(
        "{cases} connections of devices with {} exchanges; {connections} to servers, of which \
         {ended} could not be used again",
        exchanges.load(Ordering::SeqCst)
    );
    // Where nobody ended a connection, it was used again.
    assert!(connections <= ended + 4 * THREADS, "{connections} {ended}");
    engine.drain(Duration::from_secs(5));
    engine.join().unwrap();
}
