//! The golden files, replayed through the engine: whole and followed by another request in the same
//! send, cut in two at every byte, and byte by byte.
//!
//! What is cut is what the case is about: the device's bytes in `refuse` and `forward`, the server's
//! in `answer`. Inputs of more than [`CUTS_ALL`] bytes are cut at every byte of their beginning and
//! end, and here and there between. How the gateway groups the bytes of a chunked body is no part
//! of a case: such bodies are compared as one chunk.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::{
    PATIENCE, engine,
    golden::{self, Case, Step},
    pace, wire,
};
use m2u::{
    config::settings::{ServerLimits, Slot},
    engine::Engine,
    limits::PARKED_BYTES,
    snapshot::route::{Route, Secret, Stamp, Upstream},
};

/// Inputs up to so many bytes are cut at every byte.
const CUTS_ALL: usize = 700;
/// Benches that work at the same time, each with an engine and a server of its own.
const BENCHES: usize = 8;
/// Failures after which a run gives up.
const FAILURES_MAX: usize = 40;
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: m2u\r\n\r\n";
const NEXT_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nnext";
const DEFAULT_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// How the bytes of one side are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pieces {
    /// Each block at once.
    Whole,
    /// In two pieces, the first so many bytes long, counted over all blocks.
    Cut(usize),
    /// Each byte by itself.
    Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Refuse,
    Forward,
    Answer,
}

/// Fails a replay with a message; the case and the pieces are named by the caller.
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// What is found wrong with one replay.
type Outcome<T = ()> = Result<T, String>;

#[test]
fn hostile_requests_are_refused_and_no_server_hears_of_them() {
    replay_all(Kind::Refuse, "refuse", 450);
}

#[test]
fn requests_arrive_as_they_should() {
    replay_all(Kind::Forward, "forward", 250);
}

#[test]
fn answers_arrive_whole_or_visibly_broken() {
    replay_all(Kind::Answer, "answer", 190);
}

/// Replays every case of a folder that must hold at least `cases_min`.
fn replay_all(kind: Kind, folder: &str, cases_min: usize) {
    let cases = golden::load(folder);
    let mut themes: BTreeMap<&str, usize> = BTreeMap::new();
    for case in &cases {
        *themes.entry(&case.theme).or_default() += 1;
    }
    for (theme, count) in &themes {
        println!("{folder}/{theme}: {count} cases");
    }
    println!("{folder}: {} cases", cases.len());
    assert!(
        cases.len() >= cases_min,
        "only {} cases in {folder}",
        cases.len()
    );

    let (next, replays) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for position in 0..BENCHES {
            let (cases, next, replays, failures) = (&cases, &next, &replays, &failures);
            scope.spawn(move || {
                let mut bench = Bench::start(position);
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for pieces in all_pieces(kind, case) {
                        replays.fetch_add(1, Ordering::Relaxed);
                        if let Err(problem) = bench.replay(kind, case, pieces) {
                            let title = case.title();
                            failures
                                .lock()
                                .unwrap()
                                .push(format!("{title}, {pieces:?}: {problem}"));
                            // What a failed replay left behind is not held against the next one.
                            bench.stop();
                            bench = Bench::start(position);
                            break;
                        }
                    }
                    if failures.lock().unwrap().len() >= FAILURES_MAX {
                        break;
                    }
                }
                bench.stop();
            });
        }
    });
    println!("{folder}: {} replays", replays.into_inner());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every way in which a case is replayed.
fn all_pieces(kind: Kind, case: &Case) -> Vec<Pieces> {
    let length = case
        .steps
        .iter()
        .map(|step| match step {
            Step::Device(bytes) if kind != Kind::Answer => bytes.len(),
            Step::Server(bytes) if kind == Kind::Answer => bytes.len(),
            _ => 0,
        })
        .sum::<usize>();
    let near_an_end = |cut: &usize| *cut < 200 || *cut + 200 > length;
    let cuts = (1..length).filter(|cut| length <= CUTS_ALL || near_an_end(cut) || cut % 997 == 0);
    let mut all = vec![Pieces::Whole];
    all.extend(cuts.map(Pieces::Cut));
    if length <= CUTS_ALL {
        all.push(Pieces::Bytes);
    }
    all
}

/// An engine, the server behind it, and an address for devices.
struct Bench {
    engine: Engine,
    gateway: SocketAddr,
    server: TcpListener,
    source: SocketAddr,
}

impl Bench {
    fn start(position: usize) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let timeout = Some(PATIENCE);
        socket2::SockRef::from(&server)
            .set_read_timeout(timeout)
            .unwrap();
        let address = server.local_addr().unwrap();
        let engine = engine::start_on(position, "127.0.0.0/8", routes(address));
        let gateway = engine.addresses()[0].0;
        // An address of its own keeps it below the limit of connections.
        let source = SocketAddr::from(([127, 0, 1, position as u8 + 1], 0));
        Self {
            engine,
            gateway,
            server,
            source,
        }
    }

    fn stop(self) {
        self.engine.drain(Duration::ZERO);
        self.engine.join().unwrap();
    }

    fn replay(&self, kind: Kind, case: &Case, pieces: Pieces) -> Outcome {
        let mut replay = Replay {
            bench: self,
            kind,
            device: self.connect(),
            server: None,
            pieces,
            sent: 0,
            to_head: false,
        };
        match kind {
            Kind::Refuse => replay.refuse(case),
            Kind::Forward => replay.forward(case),
            Kind::Answer => replay.answer(case),
        }
    }

    fn connect(&self) -> BufReader<TcpStream> {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&self.source.into()).unwrap();
        socket.connect(&self.gateway.into()).unwrap();
        prepared(socket.into())
    }

    /// The gateway's next connection to the server.
    fn accept(&self) -> Outcome<BufReader<TcpStream>> {
        let accepted = self.server.accept();
        let (socket, _) = accepted.map_err(|error| format!("no connection came: {error}"))?;
        Ok(prepared(socket))
    }

    /// A connection that the gateway has made and that nobody has accepted yet.
    fn waiting(&self) -> Option<BufReader<TcpStream>> {
        self.server.set_nonblocking(true).unwrap();
        let accepted = self.server.accept();
        self.server.set_nonblocking(false).unwrap();
        accepted.ok().map(|(socket, _)| {
            socket.set_nonblocking(false).unwrap();
            prepared(socket)
        })
    }
}

fn prepared(socket: TcpStream) -> BufReader<TcpStream> {
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(socket)
}

/// The servers of the only account: all the same one, each reached in a way of its own.
fn routes(address: SocketAddr) -> Vec<Route> {
    let plain = |slot: &[u8]| {
        let slot = Slot::parse(slot).unwrap();
        let mut route = engine::route(slot, address, None);
        let upstream = Upstream {
            host: "ingest.acme.example".into(),
            port: 80,
            ..Arc::into_inner(route.upstream).unwrap()
        };
        route.upstream = upstream.into();
        route.host_field = b"Host: ingest.acme.example\r\n".as_slice().into();
        route.base_path = b"".as_slice().into();
        route.hyphen_aliases = false;
        route.authorization = None;
        route
    };
    vec![
        plain(b"m2u"),
        Route {
            base_path: b"/base".as_slice().into(),
            ..plain(b"m2u2")
        },
        Route {
            authorization: Some(Secret::new(*b"Authorization: Basic YWNtZTpzZWNyZXQ=\r\n")),
            ..plain(b"m2u3")
        },
        Route {
            hyphen_aliases: true,
            ..plain(b"m2u4")
        },
        Route {
            stamp: Stamp::Concealed,
            ..plain(b"m2u5")
        },
        Route {
            limits: ServerLimits {
                body_bytes: 8,
                ..ServerLimits::default()
            },
            ..plain(b"m2u6")
        },
    ]
}

/// One case on its way, in one kind of pieces.
struct Replay<'b> {
    bench: &'b Bench,
    kind: Kind,
    device: BufReader<TcpStream>,
    /// The gateway's connection to the server.
    server: Option<BufReader<TcpStream>>,
    pieces: Pieces,
    /// Bytes of the side that is cut which were sent so far.
    sent: usize,
    /// Whether the device asked by `HEAD`.
    to_head: bool,
}

impl Replay<'_> {
    /// The gateway answers by itself, and no server hears of it.
    fn refuse(&mut self, case: &Case) -> Outcome {
        let mut bytes = case.sent();
        let keeps = case.says("keep");
        let head_bytes = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        self.to_head = bytes.starts_with(b"HEAD ");
        bytes.extend_from_slice(NEXT);
        // Once the head has gone by itself, the server may have seen it before the body was.
        let may_be_heard = match (self.pieces, head_bytes) {
            (_, None) => false,
            // The gateway reads as much at once and no more.
            _ if bytes.len() > PARKED_BYTES => true,
            (Pieces::Whole, _) => false,
            (Pieces::Cut(cut), Some(head_bytes)) => cut >= head_bytes + 4,
            (Pieces::Bytes, Some(head_bytes)) => bytes.len() > head_bytes + 4 + NEXT.len(),
        };
        self.send_of_device(&bytes);
        self.await_answer(may_be_heard || keeps)?;
        self.expect_own_answer(case)?;
        if keeps {
            self.expect_next(false)?;
        } else {
            self.expect_end_of_device()?;
        }
        while let Some(mut server) = self.bench.waiting() {
            check!(may_be_heard, "a server heard of it");
            let heard = read_message(&mut server, Side::Request);
            check!(
                !matches!(heard, Ok(Message { is_whole: true, .. })),
                "a server got it whole: {heard:?}"
            );
        }
        Ok(())
    }

    /// Waits until the device has something to read; that the server has, fails at once.
    fn await_answer(&mut self, may_be_heard: bool) -> Outcome {
        let step = Duration::from_millis(500);
        let stream = self.device.get_ref();
        stream.set_read_timeout(Some(step)).unwrap();
        let mut waited = Duration::ZERO;
        while waited < PATIENCE {
            let heard = !may_be_heard && self.bench.waiting().is_some();
            check!(!heard, "a server heard of it");
            match stream.peek(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => waited += step,
                _ => break,
            }
        }
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(())
    }

    /// The server gets what it should, answers each request with 200, and the device gets that.
    fn forward(&mut self, case: &Case) -> Outcome {
        let last = case
            .steps
            .iter()
            .rposition(|step| matches!(step, Step::Device(_)));
        for (index, step) in case.steps.iter().enumerate() {
            match step {
                Step::Device(bytes) => {
                    let mut bytes = bytes.clone();
                    if Some(index) == last {
                        bytes.extend_from_slice(NEXT);
                    }
                    self.send_of_device(&bytes);
                }
                Step::ToServer(expected) => self.take_requests(expected, case)?,
                _ => return Err("no step of a forward case".into()),
            }
        }
        if case.refusal().is_some() {
            self.expect_own_answer(case)?;
        }
        if case.says("keep") {
            return self.expect_next(false);
        }
        self.expect_end_of_device()?;
        check!(self.bench.waiting().is_none(), "the server heard more");
        Ok(())
    }

    /// Takes the requests that `expected` holds one after the other, and answers each.
    fn take_requests(&mut self, expected: &[u8], case: &Case) -> Outcome {
        let mut expected_rest = expected;
        while !expected_rest.is_empty() {
            let expected = read_message(&mut expected_rest, Side::Request).unwrap();
            let mut server = self.bench.accept()?;
            let got = read_message(&mut server, Side::Request).map_err(|e| e.to_string())?;
            same(&got, &expected)?;
            // Nothing of a later request is sent before this one is answered.
            check!(server.buffer().is_empty(), "more came behind the request");
            check!(self.bench.waiting().is_none(), "another request came early");
            let to_head = got.bytes.starts_with(b"HEAD ");
            let answer: &[u8] = match to_head {
                true => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
            };
            server
                .get_mut()
                .write_all(answer)
                .map_err(|e| e.to_string())?;
            let got = read_message(&mut self.device, Side::Answer { to_head });
            let got = got.map_err(|error| format!("no answer: {error}"))?;
            let is_ok = got.bytes.starts_with(b"HTTP/1.1 200 OK\r\n") && got.is_whole;
            check!(is_ok, "the device got {}", show(&got.bytes));
            let is_last = expected_rest.is_empty() && case.refusal().is_none();
            let says_close = contains(&got.bytes, b"\r\nConnection: close\r\n");
            let must_close = is_last && case.says("close");
            check!(
                says_close == must_close,
                "the device got {}",
                show(&got.bytes)
            );
        }
        Ok(())
    }

    /// The server answers, and the device gets what is left of that.
    fn answer(&mut self, case: &Case) -> Outcome {
        if !matches!(case.steps[0], Step::Device(_)) {
            self.send(DEFAULT_REQUEST);
        }
        for step in &case.steps {
            match step {
                Step::Device(bytes) => {
                    self.to_head |= bytes.starts_with(b"HEAD ");
                    self.send(bytes);
                }
                Step::ToServer(expected) => self.take(expected)?,
                Step::Server(bytes) => {
                    self.hear_request()?;
                    let (pieces, begin) = (self.pieces, self.sent);
                    self.sent += bytes.len();
                    if let Some(server) = &mut self.server {
                        send(server.get_mut(), bytes, pieces, begin);
                    }
                }
                Step::ToDevice(expected) => self.expect_answers(expected, case)?,
                Step::Close => {
                    self.hear_request()?;
                    if let Some(server) = self.server.take() {
                        server
                            .get_ref()
                            .shutdown(Shutdown::Both)
                            .unwrap_or_default();
                    }
                }
                Step::Reset => {
                    self.hear_request()?;
                    if let Some(server) = self.server.take() {
                        let socket = socket2::SockRef::from(server.get_ref());
                        socket.set_linger(Some(Duration::ZERO)).unwrap();
                    }
                }
            }
        }
        self.end_answer(case)
    }

    /// Checks what becomes of both connections: the next request gets its own answer.
    fn end_answer(&mut self, case: &Case) -> Outcome {
        let mut keeps = case.says("keep");
        if case.refusal().is_some() {
            keeps = !self.expect_own_answer(case)?;
        }
        let is_broken = case.says("broken");
        if is_broken {
            keeps = self.expect_broken(case)?;
        }
        if !keeps && !is_broken && !case.says("cut") && !case.says("reset") {
            self.expect_end_of_device()?;
        }
        if !keeps {
            self.device = self.bench.connect();
        }
        // What the server still had to say has arrived by now; a test must hold if it has not.
        pace(Duration::from_millis(1));
        self.send(NEXT);
        self.expect_next(case.says("reuse"))
    }

    /// Accepts the request unless that has happened.
    fn hear_request(&mut self) -> Outcome {
        if self.server.is_none() {
            let mut server = self.bench.accept()?;
            let got = read_message(&mut server, Side::Request).map_err(|e| e.to_string())?;
            check!(got.is_whole, "the server got {}", show(&got.bytes));
            self.server = Some(server);
        }
        Ok(())
    }

    /// Takes exactly what the server must get now: a request, its head, or more of its body.
    fn take(&mut self, expected: &[u8]) -> Outcome {
        if let Some(server) = &mut self.server {
            let mut got = vec![0; expected.len()];
            server.read_exact(&mut got).map_err(|e| e.to_string())?;
            check!(got == expected, "the server got {}", show(&got));
            return Ok(());
        }
        let mut server = self.bench.accept()?;
        let parsed = read_message(&mut &*expected, Side::Request).unwrap();
        let got = match parsed.is_whole {
            true => read_message(&mut server, Side::Request).map_err(|e| e.to_string())?,
            false => Message {
                bytes: read_head(&mut server).map_err(|e| e.to_string())?,
                is_whole: false,
            },
        };
        self.server = Some(server);
        same(&got, &parsed)
    }

    /// The device gets the answers that `expected` holds, interim ones included.
    fn expect_answers(&mut self, expected: &[u8], case: &Case) -> Outcome {
        let mut rest = expected;
        let side = Side::Answer {
            to_head: self.to_head,
        };
        while !rest.is_empty() {
            let expected = read_message(&mut rest, side).unwrap();
            let got = read_message(&mut self.device, side);
            if case.says("reset") && rest.is_empty() {
                // A reset may overtake what was sent before it.
                check!(got.is_err(), "no reset, but {got:?}");
                return Ok(());
            }
            let got = got.map_err(|error| format!("no answer: {error}"))?;
            same(&got, &expected)?;
            let is_cut = case.says("cut") && rest.is_empty();
            check!(
                got.is_whole != is_cut,
                "the device got {}",
                show(&got.bytes)
            );
        }
        Ok(())
    }

    /// The gateway's own answer with the verdict's status and token; answers whether it closes.
    fn expect_own_answer(&mut self, case: &Case) -> Outcome<bool> {
        let (status, token) = case.refusal().ok_or("no verdict of the gateway")?;
        let to_head = self.to_head;
        let got = read_message(&mut self.device, Side::Answer { to_head });
        let got = got.map_err(|error| format!("no answer: {error}"))?;
        let line = format!("HTTP/1.1 {status} ");
        let field = format!("\r\nProxy-Status: m2u; error={token}\r\n");
        let is_it =
            got.bytes.starts_with(line.as_bytes()) && contains(&got.bytes, field.as_bytes());
        check!(is_it && got.is_whole, "the device got {}", show(&got.bytes));
        let is_dated = contains(&got.bytes, b"\r\nDate: *\r\n");
        check!(is_dated, "no date in {}", show(&got.bytes));
        let closes = contains(&got.bytes, b"\r\nConnection: close\r\n");
        if self.kind != Kind::Answer {
            check!(closes != case.says("keep"), "{}", show(&got.bytes));
        }
        Ok(closes)
    }

    /// A 502, or an answer that breaks off; answers whether the connection goes on.
    fn expect_broken(&mut self, case: &Case) -> Outcome<bool> {
        let got = read_message(&mut self.device, Side::Answer { to_head: false });
        let got = got.map_err(|error| format!("no answer: {error}"))?;
        let field = format!("\r\nProxy-Status: m2u; error={}\r\n", case.verdict[1]);
        if got.bytes.starts_with(b"HTTP/1.1 502 ") {
            let has = |field: &[u8]| contains(&got.bytes, field);
            let is_it = got.is_whole && has(field.as_bytes()) && has(b"\r\nDate: ");
            check!(is_it, "the device got {}", show(&got.bytes));
            return Ok(!contains(&got.bytes, b"\r\nConnection: close\r\n"));
        }
        check!(!got.is_whole, "the device got {}", show(&got.bytes));
        Ok(false)
    }

    /// The request that was sent last arrives and is answered: on the connection that the server
    /// has, or on another.
    fn expect_next(&mut self, reuses: bool) -> Outcome {
        let (mut server, is_old) = self.next_connection()?;
        check!(is_old == reuses, "next: on the old connection: {is_old}");
        let got = read_message(&mut server, Side::Request).map_err(|e| format!("next: {e}"))?;
        let line: &[u8] = b"GET /next HTTP/1.1\r\n";
        check!(
            got.bytes.starts_with(line) && got.is_whole,
            "next: the server got {}",
            show(&got.bytes)
        );
        let written = server.get_mut().write_all(NEXT_ANSWER);
        written.map_err(|e| format!("next: {e}"))?;
        let got = read_message(&mut self.device, Side::Answer { to_head: false });
        let got = got.map_err(|error| format!("next: no answer: {error}"))?;
        let expected = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nDate: *\r\n\r\nnext";
        check!(
            got.bytes == expected,
            "next: the device got {}",
            show(&got.bytes)
        );
        Ok(())
    }

    /// The connection on which the next request comes, and whether it is the one that the server
    /// has.
    fn next_connection(&mut self) -> Outcome<(BufReader<TcpStream>, bool)> {
        let Some(old) = self.server.take() else {
            return Ok((self.bench.accept()?, false));
        };
        let mut waited = Duration::ZERO;
        while waited < PATIENCE {
            if let Some(server) = self.bench.waiting() {
                return Ok((server, false));
            }
            let step = Duration::from_micros(500);
            old.get_ref().set_read_timeout(Some(step)).unwrap();
            let peeked = old.get_ref().peek(&mut [0]);
            if matches!(peeked, Ok(1)) {
                old.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
                return Ok((old, true));
            }
            if !matches!(&peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return Ok((self.bench.accept()?, false));
            }
            waited += step;
        }
        Err("next: no request came".into())
    }

    fn expect_end_of_device(&mut self) -> Outcome {
        let mut rest = Vec::new();
        let result = self.device.read_to_end(&mut rest);
        check!(
            result.is_ok() && rest.is_empty(),
            "{result:?}, behind the last answer: {}",
            show(&rest)
        );
        Ok(())
    }

    /// The device sends in the pieces of this replay.
    fn send_of_device(&mut self, bytes: &[u8]) {
        let begin = self.sent;
        self.sent += bytes.len();
        send(self.device.get_mut(), bytes, self.pieces, begin);
    }

    /// The device sends at once.
    fn send(&mut self, bytes: &[u8]) {
        // A gateway that has ended the connection is found out by what comes next.
        self.device.get_mut().write_all(bytes).unwrap_or_default();
    }
}

/// Sends a block before which `begin` bytes were sent. The gateway may end the connection meanwhile.
fn send(stream: &mut TcpStream, bytes: &[u8], pieces: Pieces, begin: usize) {
    let mut write = |piece: &[u8]| stream.write_all(piece).unwrap_or_default();
    match pieces {
        Pieces::Cut(cut) if (begin + 1..begin + bytes.len()).contains(&cut) => {
            let (first, second) = bytes.split_at(cut - begin);
            write(first);
            // The gateway will as a rule see the pieces apart; a case must hold if it does not.
            pace(Duration::from_millis(1));
            write(second);
        }
        Pieces::Bytes => bytes.chunks(1).for_each(write),
        Pieces::Whole | Pieces::Cut(_) => write(bytes),
    }
}

/// A message in the one form in which messages are compared.
#[derive(Debug)]
struct Message {
    /// Head and body; a chunked body as one chunk, a made request id, or date, as `*`.
    bytes: Vec<u8>,
    /// Whether it came to its end.
    is_whole: bool,
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Request,
    Answer { to_head: bool },
}

fn same(got: &Message, expected: &Message) -> Outcome {
    check!(
        got.bytes == expected.bytes,
        "got {}\n  instead of {}",
        show(&got.bytes),
        show(&expected.bytes)
    );
    Ok(())
}

fn show(bytes: &[u8]) -> String {
    let shown = bytes.escape_ascii().to_string();
    match shown.char_indices().nth(1_500) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Reads one message plainly, up to its end or to that of the connection.
fn read_message(from: &mut impl BufRead, side: Side) -> io::Result<Message> {
    let mut bytes = read_head(from)?;
    let mut body = Vec::new();
    if !bytes.ends_with(b"\r\n\r\n") {
        let is_whole = false;
        return Ok(Message { bytes, is_whole });
    }
    let head: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let head = wire::Message {
        head,
        body: Vec::new(),
    };
    let bodiless = match side {
        Side::Request => false,
        Side::Answer { to_head } => to_head || matches!(head.status(), 100..=199 | 204 | 304),
    };
    let length = head.field("Content-Length");
    let is_whole = if bodiless {
        true
    } else if head.field("Transfer-Encoding").is_some() {
        let is_whole = ends_well(wire::read_chunks(from, &mut body))?;
        if !body.is_empty() {
            bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
            body.extend_from_slice(b"\r\n");
        }
        if is_whole {
            body.extend_from_slice(b"0\r\n\r\n");
        }
        is_whole
    } else if let Some(length) = length {
        let length: usize = length.parse().map_err(io::Error::other)?;
        from.take(length as u64).read_to_end(&mut body)?;
        body.len() == length
    } else {
        if let Side::Answer { .. } = side {
            from.read_to_end(&mut body)?;
        }
        true
    };
    bytes.extend_from_slice(&body);
    Ok(Message { bytes, is_whole })
}

/// Whether a body came to its end; that the connection came to its own is no error.
fn ends_well(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Bytes before the value, if the line is that of a request id, or of the date of now, that the gateway makes.
fn made_from(line: &[u8]) -> Option<usize> {
    const ID: &[u8] = b"X-Request-Id: ";
    const DATE: &[u8] = b"Date: ";
    if line.len() == ID.len() + 34 && line.starts_with(ID) {
        return Some(ID.len());
    }
    let value = line.strip_prefix(DATE)?.strip_suffix(b"\r\n")?;
    let is_made = str::from_utf8(value).is_ok_and(wire::is_now);
    is_made.then_some(DATE.len())
}

/// Reads up to and with the empty line, or to the end of the connection.
fn read_head(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let line = head.len();
        if from.read_until(b'\n', &mut head)? == 0 {
            break;
        }
        if let Some(value) = made_from(&head[line..]) {
            head.truncate(line + value);
            head.extend_from_slice(b"*\r\n");
        }
    }
    Ok(head)
}
