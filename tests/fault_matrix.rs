//! Every byte position of every exchange's messages, times every way of breaking off there.
//!
//! Each cell of the matrix is one exchange in which one side breaks off; what the device hears, and
//! what the server saw, must be what the failure table says (specification, section 5). Afterwards
//! the gateway must be as it was before: no descriptor, no thread and no memory lost.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use common::{
    PATIENCE,
    cells::{Cell, Outcome, PLAIN, Request, Side, Sighting, TLS, cells},
    certificates::{Authority, Validity, quoted},
    device::{self, Device},
    faults::{Fault, Heard, Reply},
    gateway::{Gateway, PREAMBLE, account, acme},
    shapes::{self, EARLY_BODY_BYTES, INTERIM, Turns},
    upstream::{self, Conversation, Step, Upstream},
    wait_until, wire,
};
use rustls::{ServerConfig, ServerConnection};

const SERVED_FIRST: &str = "/warm";
const SERVED_AFTER: &str = "/after";

/// What servers and devices of one run share.
struct Board {
    cells: Vec<Cell>,
    sightings: Vec<Mutex<Vec<Sighting>>>,
    devices: Vec<OnceLock<String>>,
}

impl Board {
    fn new(cells: Vec<Cell>) -> Arc<Self> {
        Arc::new(Self {
            sightings: cells.iter().map(|_| Mutex::default()).collect(),
            devices: cells.iter().map(|_| OnceLock::new()).collect(),
            cells,
        })
    }

    /// Serves the gateway on one connection, breaking off where the cells say.
    fn serve(&self, conversation: &mut Conversation) -> Step {
        let mut reused = false;
        while let Some(mut message) = wire::read_head(conversation)? {
            match message.target() {
                SERVED_FIRST => conversation.answer("first")?,
                SERVED_AFTER => {
                    return conversation.write(
                        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nafter",
                    );
                }
                _ => return self.play(conversation, &mut message, reused),
            }
            reused = true;
        }
        Ok(())
    }

    fn play(
        &self,
        conversation: &mut Conversation,
        message: &mut wire::Message,
        reused: bool,
    ) -> Step {
        let number = shapes::number_of(message).expect("a number");
        let cell = &self.cells[number];
        let note = |request| {
            let sighting = Sighting {
                reused,
                device: message.field("X_Talk2M_Device").unwrap().to_owned(),
                request,
            };
            let mut sightings = self.sightings[number].lock().unwrap();
            sightings.push(sighting);
            sightings.len() - 1
        };
        let attempt = note(Request::Unread);
        // Whoever is asked once more answers as it should.
        let breaks_off = cell.side == Side::Server && attempt == 0;
        let words = cell.shape.words(number);
        let wire = conversation.seal(words.iter().map(Vec::as_slice).filter(|w| !w.is_empty()))?;
        assert_eq!(wire.len(), cell.shape.answer_wire_bytes());
        let end = if breaks_off {
            cell.position
        } else {
            wire.len()
        };
        let mut said = 0;
        match cell.shape.turns {
            Turns::Heedless => {}
            Turns::Early => {
                wire::read_length(conversation, &mut Vec::new(), EARLY_BODY_BYTES)?;
            }
            Turns::Ordinary | Turns::Expecting => {
                if cell.shape.turns == Turns::Expecting {
                    said = end.min(INTERIM.len());
                    conversation.write_wire(&wire[..said])?;
                }
                if said == end && end < INTERIM.len() && cell.shape.turns == Turns::Expecting {
                    return conversation.break_off(cell.fault);
                }
                let outcome = wire::read_request_body(conversation, message);
                self.sightings[number].lock().unwrap()[attempt].request = match &outcome {
                    Ok(()) => Request::Whole(message.body.clone()),
                    Err(_) => Request::Aborted,
                };
                outcome?;
            }
        }
        conversation.write_wire(&wire[said..end])?;
        if breaks_off {
            conversation.break_off(cell.fault)
        } else {
            Ok(())
        }
    }

    /// Plays one cell as its device; answers what it ended in, or what is wrong.
    fn ask(&self, number: usize, lane: &Lane, gateway: &Gateway) -> Result<Outcome, String> {
        let cell = &self.cells[number];
        let shape = cell.shape;
        self.devices[number].set(lane.name.clone()).unwrap();
        let mut device = Device::connect(&lane.address, gateway.address());
        if shape.warm {
            let first = device.ask(get(SERVED_FIRST, shape.slots().body));
            assert_eq!((first.status(), &*first.text()), (200, "first"));
        }
        let request = shape.request(number, cell.slot());
        let breaks_off = cell.side == Side::Device;
        let end = if breaks_off {
            cell.position
        } else {
            shape.request_bytes_sent()
        };
        let head = shape.request_head_bytes();
        let mut interims = Vec::new();
        let mut early = None;
        let mut behind = Vec::new();
        // A gateway that has given up need not read what still comes.
        if shape.turns == Turns::Expecting && end > head {
            let _ = device.send_if_wanted(&request[..head]);
            let mut reply = device.listen(true, Vec::new());
            interims.append(&mut reply.interims);
            if interims.is_empty() {
                early = Some(reply);
            } else {
                behind = reply.behind;
                let _ = device.send_if_wanted(&request[head..end]);
            }
        } else {
            let _ = device.send_if_wanted(&request[..end]);
        }
        if breaks_off {
            match device.break_off(cell.fault) {
                None => return Ok(Outcome::Unheard),
                Some(rest) => device = rest,
            }
        }
        let reply = early.unwrap_or_else(|| device.listen(false, behind));
        let heard = self.judge(number, reply, interims)?;
        self.hear_the_end(number, &heard, &mut device)?;
        Ok(heard)
    }

    /// Whether a device's reply is what its cell may end in.
    fn judge(
        &self,
        number: usize,
        reply: Reply,
        mut interims: Vec<wire::Message>,
    ) -> Result<Outcome, String> {
        let cell = &self.cells[number];
        interims.extend(reply.interims.iter().cloned());
        let expecting = usize::from(cell.shape.turns == Turns::Expecting);
        let interims_are_sound = interims.len() <= expecting
            && interims
                .iter()
                .all(|interim| interim.head.as_bytes() == INTERIM);
        let reused = {
            let sightings = self.sightings[number].lock().unwrap();
            sightings.first().is_some_and(|first| first.reused)
        };
        let outcomes = cell.outcomes(number, reused, !interims.is_empty());
        outcomes
            .iter()
            .find(|outcome| cell.is(outcome, number, &reply.heard))
            .filter(|_| interims_are_sound && reply.behind.is_empty())
            .cloned()
            .ok_or_else(|| {
                format!("{cell:?}\n  heard {reply:?} after {interims:?}\n  instead of {outcomes:?}")
            })
    }

    /// Behind its answer a device hears nothing, but for the answer to what it asks next.
    fn hear_the_end(
        &self,
        number: usize,
        outcome: &Outcome,
        device: &mut Device,
    ) -> Result<(), String> {
        let cell = &self.cells[number];
        let keeps = match outcome {
            Outcome::Told { keeps, .. } => *keeps,
            Outcome::Whole(_) => cell.shape.persists() && cell.side == Side::Server,
            _ => return Ok(()),
        };
        if keeps {
            device.send(get(SERVED_AFTER, cell.shape.slots().body));
            let next = device.listen(false, Vec::new());
            let Heard::Whole(message) = &next.heard else {
                return Err(format!("{cell:?}\n  {outcome:?}, and then {next:?}"));
            };
            if message.text() != "after" || !next.behind.is_empty() {
                return Err(format!("{cell:?}\n  {outcome:?}, and then {next:?}"));
            }
            device.finish();
        }
        match device.receive_rest() {
            Ok(rest) if rest.is_empty() => Ok(()),
            rest => Err(format!("{cell:?}\n  {outcome:?}, and then {rest:?}")),
        }
    }
}

fn get(target: &str, slot: usize) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: m2u{slot}\r\n\r\n")
}

/// A device that plays one cell after the other.
struct Lane {
    address: String,
    name: String,
}

impl Lane {
    fn new(number: usize) -> Self {
        Self {
            address: format!("127.1.{}.{}", number / 200, number % 200 + 1),
            name: format!("device-{number}"),
        }
    }
}

/// What cells are counted by: shape, side, fault and outcome.
type Row = (&'static str, Side, Fault, String);

/// A gateway with servers that break off, and devices that do.
struct Bench {
    gateway: Gateway,
    plain: Upstream,
    tls: Upstream,
    board: Arc<Board>,
    lanes: Vec<Lane>,
    patience: Patience,
    next: AtomicUsize,
    counts: Mutex<BTreeMap<Row, usize>>,
    _authority: Authority,
}

/// Whether silence is a matter of a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// No timeout may pass.
    Long,
    /// Each slot's own timeout, and that of heads, passes soon.
    Short,
}

impl Patience {
    /// Bytes by which the second half of the faults may make the gateway larger than the first
    /// half did: as much as all devices have under way at once. In the long run, one parked buffer
    /// lost in each fault would be 17 MiB; in the short one, a relay buffer in each 88 MiB.
    fn resident_growth_bytes_max(self) -> usize {
        match self {
            Self::Long => 12 << 20,
            Self::Short => 48 << 20,
        }
    }
}

const CONNECTIONS_PER_ADDRESS: usize = 8;

impl Bench {
    fn start(cells: Vec<Cell>, lanes: usize, patience: Patience) -> Self {
        let board = Board::new(cells);
        let authority = Authority::new("Customer CA");
        let leaf = authority.server(&["127.0.0.1"], Validity::Current);
        let serve = |board: &Arc<Board>| {
            let board = Arc::clone(board);
            move |conversation: &mut Conversation| board.serve(conversation)
        };
        let plain = Upstream::start(serve(&board));
        let tls = Upstream::start_tls(Authority::server_config(&leaf, None), serve(&board));
        let lanes: Vec<Lane> = (0..lanes).map(Lane::new).collect();

        let head = match patience {
            Patience::Long => "60s",
            Patience::Short => "200ms",
        };
        let mut config = format!(
            "{PREAMBLE}[timeouts]\nhead = \"{head}\"\npool = \"1s\"\nresponse = \"60s\"\n\
             body = \"60s\"\nconnect = \"60s\"\n\
             [limits]\nconnections = 2000\nconnections_per_address = {CONNECTIONS_PER_ADDRESS}\n\
             [[account]]\nref = \"acme\"\n"
        );
        let ca = format!("ca = {}\n", quoted(&authority.pem()));
        for (slots, url, trust) in [
            (PLAIN, format!("http://{}", plain.address), ""),
            (TLS, format!("https://{}", tls.address), &*ca),
        ] {
            for (slot, phase) in [(slots.response, "response"), (slots.body, "body")] {
                config +=
                    &format!("[[account.server]]\nslot = \"m2u{slot}\"\nurl = \"{url}\"\n{trust}");
                if patience == Patience::Short {
                    config += &format!("timeouts = {{ {phase} = \"200ms\" }}\n");
                }
            }
        }
        for lane in &lanes {
            config += &format!(
                "[[account.device]]\nname = \"{}\"\nserial = \"1\"\naddress = [\"{}\"]\n",
                lane.name, lane.address
            );
        }
        Self {
            gateway: Gateway::start(&config),
            plain,
            tls,
            board,
            lanes,
            patience,
            next: AtomicUsize::new(0),
            counts: Mutex::default(),
            _authority: authority,
        }
    }

    /// Plays the cells up to number `end`, on all lanes at once.
    fn play(&self, end: usize) {
        let wrong = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for lane in &self.lanes {
                scope.spawn(|| {
                    loop {
                        let number = self.next.fetch_add(1, Ordering::SeqCst);
                        if number >= end {
                            self.next.fetch_min(end, Ordering::SeqCst);
                            return;
                        }
                        match self.board.ask(number, lane, &self.gateway) {
                            Ok(outcome) => self.count(number, &outcome),
                            Err(error) => wrong.lock().unwrap().push(error),
                        }
                    }
                });
            }
        });
        report("devices", &wrong.into_inner().unwrap());
    }

    fn count(&self, number: usize, outcome: &Outcome) {
        let cell = &self.board.cells[number];
        let key = (cell.shape.name, cell.side, cell.fault, outcome.name());
        *self.counts.lock().unwrap().entry(key).or_default() += 1;
    }

    /// Waits until no connection is left, to a device or to a server.
    fn wait_until_idle(&self, descriptors: usize) {
        wait_until("the servers' connections to end", || {
            self.plain.open() + self.tls.open() == 0
        });
        wait_until("descriptors to be given back", || {
            self.gateway.descriptors() == descriptors
        });
    }

    /// Two requests on one connection, and on one connection to each server.
    fn serve_in_order(&self) {
        let lane = &self.lanes[0];
        let mut device = Device::connect(&lane.address, self.gateway.address());
        for (slots, upstream) in [(PLAIN, &self.plain), (TLS, &self.tls)] {
            let connections = upstream.connections();
            for _ in 0..2 {
                let answer = device.ask(get(SERVED_FIRST, slots.body));
                assert_eq!((answer.status(), &*answer.text()), (200, "first"));
            }
            assert_eq!(upstream.connections(), connections + 1);
        }
    }

    /// Every address has all of its connections again, and not one more.
    fn admit_in_order(&self) {
        for lane in &self.lanes {
            let mut held = Vec::new();
            for _ in 0..CONNECTIONS_PER_ADDRESS {
                let mut device = Device::connect(&lane.address, self.gateway.address());
                // Answered by the gateway itself, which has counted the connection by then.
                let answer = device.ask("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
                assert_eq!(answer.status(), 404, "{}", lane.name);
                held.push(device);
            }
            let mut device = Device::connect(&lane.address, self.gateway.address());
            assert_eq!(device.receive().status(), 429, "{}", lane.name);
        }
    }

    /// Compares what the servers saw with what they should have seen.
    fn compare_sightings(&self) {
        let mut wrong = Vec::new();
        for (number, cell) in self.board.cells.iter().enumerate() {
            let sightings = self.board.sightings[number].lock().unwrap();
            let device = self.board.devices[number].get().unwrap();
            if let Some(why) = cell.blame(device, &sightings) {
                wrong.push(format!("{cell:?}\n  {why}: {sightings:?}"));
            }
        }
        report("servers", &wrong);
    }

    fn print_counts(&self) {
        for ((shape, side, fault, outcome), count) in &*self.counts.lock().unwrap() {
            println!("{shape:38} {side:6?} {fault:9?} {count:5} {outcome}");
        }
        let reused = |sightings: &Mutex<Vec<Sighting>>| {
            let sightings = sightings.lock().unwrap();
            sightings.first().is_some_and(|first| first.reused)
        };
        let reused = self.board.sightings.iter().filter(|s| reused(s)).count();
        println!("{reused} requests went to a connection in use before");
        assert!(reused > 0);
    }

    /// Plays everything in two halves and looks for what the gateway may have lost.
    fn run(self) {
        let descriptors = self.gateway.descriptors();
        let threads = self.gateway.threads();
        let total = self.board.cells.len();

        self.play(total / 2);
        self.wait_until_idle(descriptors);
        let half_way = self.gateway.resident_bytes();
        self.play(total);
        self.wait_until_idle(descriptors);
        let at_the_end = self.gateway.resident_bytes();
        println!(
            "{total} faults; {descriptors} descriptors before and after; resident {} KiB after \
             the first half, {} KiB after the second; threads {threads:?}",
            half_way / 1024,
            at_the_end / 1024,
        );

        self.compare_sightings();
        self.print_counts();
        assert!(at_the_end < half_way + self.patience.resident_growth_bytes_max());
        assert_eq!(self.gateway.threads(), threads);
        self.serve_in_order();
        self.admit_in_order();
        let log = self.gateway.stop();
        assert!(!log.contains("error") && !log.contains("warning"), "{log}");
    }
}

fn report(who: &str, wrong: &[String]) {
    let shown: Vec<_> = wrong.iter().take(10).map(String::as_str).collect();
    assert!(
        wrong.is_empty(),
        "{who}: {} cells went wrong:\n{}",
        wrong.len(),
        shown.join("\n")
    );
}

#[test]
fn whoever_breaks_off_anywhere_leaves_no_trace() {
    let cells = cells(&[Fault::Close, Fault::HalfClose, Fault::Reset], 2);
    assert!(cells.len() > 10_000);
    Bench::start(cells, 48, Patience::Long).run();
}

#[test]
fn whoever_falls_silent_anywhere_is_given_up() {
    Bench::start(cells(&[Fault::Stall], 1), 200, Patience::Short).run();
}

/// More handshakes than a server's first flight has bytes.
const HANDSHAKES: usize = 1_000;

/// Speaks a handshake's first flight up to the byte that has this connection's number.
fn begin_handshake(
    conversation: &mut Conversation,
    config: &Arc<ServerConfig>,
    fault: Fault,
    longest: &AtomicUsize,
) -> Step {
    let mut session = ServerConnection::new(Arc::clone(config)).unwrap();
    while !session.wants_write() {
        session.read_tls(conversation)?;
        session.process_new_packets().unwrap();
    }
    let mut flight = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut flight)?;
    }
    longest.fetch_max(flight.len(), Ordering::SeqCst);
    let cut = (conversation.number - 1) % flight.len();
    conversation.write_wire(&flight[..cut])?;
    conversation.break_off(fault)
}

#[test]
fn a_handshake_that_breaks_off_anywhere_is_told() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let config = Authority::server_config(&leaf, None);
    let longest = Arc::new(AtomicUsize::new(0));
    let broken = (502, "connection_terminated");
    let faults = [
        (Fault::Close, broken),
        (Fault::HalfClose, broken),
        (Fault::Reset, broken),
        (Fault::Stall, (504, "connection_timeout")),
    ];
    let upstreams = faults.map(|(fault, _)| {
        let (config, longest) = (Arc::clone(&config), Arc::clone(&longest));
        Upstream::start(move |conversation| begin_handshake(conversation, &config, fault, &longest))
    });
    let mut servers = String::new();
    for (number, upstream) in upstreams.iter().enumerate() {
        let connect = if number == 3 { "200ms" } else { "60s" };
        servers += &format!(
            "[[account.server]]\nslot = \"m2u{}\"\nurl = \"https://{}\"\nca = {}\n\
             timeouts = {{ connect = \"{connect}\" }}\n",
            number + 2,
            upstream.address,
            quoted(&authority.pem()),
        );
    }
    let gateway = Gateway::with(&account("acme", &servers, &[("press", "127.0.0.7")]));
    let descriptors = gateway.descriptors();
    thread::scope(|scope| {
        for (number, (fault, (status, token))) in faults.into_iter().enumerate() {
            let devices = if fault == Fault::Stall { 50 } else { 4 };
            for _ in 0..devices {
                let address = gateway.address();
                scope.spawn(move || {
                    let mut device = Device::connect("127.0.0.7", address);
                    for _ in 0..HANDSHAKES / devices {
                        let answer = device.ask(get("/", number + 2));
                        let told = (answer.status(), answer.token());
                        assert_eq!(told, (status, Some(token)), "{fault:?}");
                    }
                });
            }
        }
    });
    let longest = longest.load(Ordering::SeqCst);
    println!("{HANDSHAKES} handshakes for each fault; the longest flight had {longest} bytes");
    assert!((1..=HANDSHAKES).contains(&longest));
    wait_until("descriptors to be given back", || {
        gateway.descriptors() == descriptors
    });
    gateway.stop();
}

#[test]
fn a_device_that_goes_away_within_its_answer_takes_the_servers_connection_with_it() {
    let (gone, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let (ended, seen) = mpsc::channel();
    let upstream = Upstream::start(move |conversation| {
        if conversation.number > 1 {
            return upstream::echo(conversation);
        }
        conversation.request()?;
        conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nfirst")?;
        told.lock().unwrap().recv().map_err(io::Error::other)?;
        conversation.write("again")?;
        // The last third is still to come, and must never meet another request.
        let behind = conversation.read_rest()?;
        ended.send(behind).map_err(io::Error::other)
    });
    let config = format!("{PREAMBLE}{}", acme(&upstream.url()));
    let gateway = Gateway::start_with(&config, &["--cores", "0"]);
    let ask = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
    let mut press = Device::connect("127.0.0.7", gateway.address());
    press.send(ask);
    let head = wire::read_head(&mut press.stream()).unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(press.receive_bytes(5), b"first");
    assert!(press.break_off(Fault::Reset).is_none());
    gone.send(()).unwrap();
    let behind = seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(behind, b"");
    let answer = device::ask("127.0.0.8", gateway.address(), ask);
    assert!(answer.text().starts_with("GET / "), "{answer:?}");
    assert_eq!(upstream.connections(), 2);
    gateway.stop();
}
