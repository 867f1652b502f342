//! TLS towards a server: what sending and receiving cost the gateway's core, by its own streams and
//! by monoio-rustls.
//!
//! Both speak over the loopback, on the gateway's own kind of ring and with the very configuration
//! that it uses, with the same peer on another core. A figure is the CPU time of the core's thread
//! for one exchange, the kernel's part included: never how long it waited.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream as StdStream},
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use core_affinity::CoreId;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use m2u::{
    config::settings::{Trust, Tuning},
    control::trust::{self, TrustStore},
    engine::{
        net::{
            deadline::{Deadlines, Due},
            stream,
            suites::share_keys,
            tls,
        },
        worker,
    },
};
use monoio::{
    io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt},
    net::TcpStream,
};
use monoio_rustls::TlsConnector;
use rustix::time::{ClockId, clock_gettime};
use rustls::{
    ClientConfig, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use certificates::{Authority, Validity};

#[allow(clippy::unwrap_used, dead_code, unreachable_pub)]
#[path = "../../tests/common/certificates.rs"]
mod certificates;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PATIENCE: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 65_536;
/// Bytes of the smaller half of an exchange.
const LITTLE: u32 = 16;

criterion_group!(benches, exchanges);
criterion_main!(benches);

/// Bytes of what is sent, and of what comes back for it.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    sent: u32,
    received: u32,
}

impl Exchange {
    /// What the peer is told first.
    fn announcement(self) -> Vec<u8> {
        [self.sent.to_be_bytes(), self.received.to_be_bytes()].concat()
    }
}

/// A server that plays whatever exchange a connection announces, and how to reach it.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

fn exchanges(criterion: &mut Criterion) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let peer = start_peer(cores.first().copied());
    if let Some(core) = cores.last() {
        core_affinity::set_for_current(*core);
    }
    let mut runtime = worker::build_runtime(&Tuning::default()).expect("a ring");
    for (size, bytes) in [("600 B", 600), ("64 KiB", 65_536)] {
        let out = Exchange {
            sent: bytes,
            received: LITTLE,
        };
        let back = Exchange {
            sent: LITTLE,
            received: bytes,
        };
        for (way, exchange) in [("out", out), ("in", back)] {
            let mut group = criterion.benchmark_group(format!("tls {way}"));
            group.throughput(Throughput::Bytes(bytes.into()));
            group.bench_function(format!("{size}, m2u"), |bencher| {
                bencher.iter_custom(|times| runtime.block_on(by_m2u(&peer, exchange, times)));
            });
            group.bench_function(format!("{size}, monoio-rustls"), |bencher| {
                bencher.iter_custom(|times| runtime.block_on(by_monoio(&peer, exchange, times)));
            });
            group.finish();
        }
    }
}

async fn by_m2u(peer: &Peer, exchange: Exchange, times: u64) -> Duration {
    let deadlines = Deadlines::new();
    let socket = connect(peer, &deadlines).await;
    let (config, name) = (Arc::clone(&peer.config), peer.name.clone());
    let connected = tls::connect(socket, &deadlines, config, name, Due::NEVER, PATIENCE).await;
    let mut stream = connected.expect("a handshake");
    let announced = stream
        .writer
        .write_all(exchange.announcement(), 0, PATIENCE);
    announced.await.0.expect("the peer listens");

    let mut out = vec![b'x'; exchange.sent as usize];
    let mut back = Vec::with_capacity(BUFFER_BYTES);
    let begun = cpu_time();
    for _ in 0..times {
        let (sent, lent) = stream.writer.write_all(out, 0, PATIENCE).await;
        sent.expect("the peer listens");
        out = lent;
        let mut left = exchange.received as usize;
        while left > 0 {
            back.clear();
            let (received, lent) = stream.reader.read(back, usize::MAX, Due::NEVER).await;
            left -= received.expect("the peer answers");
            back = lent;
        }
    }
    let spent = cpu_time() - begun;
    stream.close();
    spent
}

async fn by_monoio(peer: &Peer, exchange: Exchange, times: u64) -> Duration {
    let socket = connect(peer, &Deadlines::new()).await;
    let connector = TlsConnector::from(Arc::clone(&peer.config));
    let connected = connector.connect(peer.name.clone(), socket).await;
    let mut stream = connected.expect("a handshake");
    let (announced, _) = stream.write_all(exchange.announcement()).await;
    announced.expect("the peer listens");
    stream.flush().await.expect("the peer listens");

    let mut out = vec![b'x'; exchange.sent as usize];
    let mut back = Vec::with_capacity(BUFFER_BYTES);
    let begun = cpu_time();
    for _ in 0..times {
        let (sent, lent) = stream.write_all(out).await;
        sent.expect("the peer listens");
        stream.flush().await.expect("the peer listens");
        out = lent;
        let mut left = exchange.received as usize;
        while left > 0 {
            let (received, lent) = stream.read(back).await;
            left -= received.expect("the peer answers");
            back = lent;
        }
    }
    cpu_time() - begun
}

async fn connect(peer: &Peer, deadlines: &Rc<Deadlines>) -> TcpStream {
    let connected = stream::connect(peer.address, deadlines, Due::NEVER).await;
    connected.expect("the peer listens")
}

/// CPU time of this thread so far, in the kernel too.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("not negative")
}

/// Starts the peer on a core of its own, if there are several; it ends with the process.
fn start_peer(core: Option<CoreId>) -> Peer {
    let authority = Authority::new("bench CA");
    let leaf = authority.server(&["peer.example"], Validity::Current);
    let server = Authority::server_config(&leaf, None);
    let roots =
        CertificateDer::from_pem_file(authority.pem()).expect("the authority's certificate");
    let trust = Trust {
        path: authority.pem(),
        roots: vec![roots],
    };
    let trusted =
        TrustStore::offering(share_keys(trust::provider())).config(Some(&trust), None, None);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    thread::spawn(move || {
        if let Some(core) = core {
            core_affinity::set_for_current(core);
        }
        for socket in listener.incoming() {
            let server = Arc::clone(&server);
            // Its end is that of the connection.
            thread::spawn(move || play(socket?, server));
        }
    });
    Peer {
        address,
        config: trusted.expect("roots").for_one_pool(),
        name: ServerName::try_from("peer.example").expect("a name"),
    }
}

/// Plays the exchange that a connection announces until it ends, which is an error as well.
fn play(socket: StdStream, config: Arc<ServerConfig>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, socket);
    let mut announced = [[0; 4]; 2];
    for number in &mut announced {
        stream.read_exact(number)?;
    }
    let [received, sent] = announced.map(|number| vec![b'y'; u32::from_be_bytes(number) as usize]);
    let mut received = received;
    loop {
        stream.read_exact(&mut received)?;
        stream.write_all(&sent)?;
        stream.flush()?;
    }
}
