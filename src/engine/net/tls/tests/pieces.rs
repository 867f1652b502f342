//! Records that come in pieces, over a socket.

use std::{
    cell::Cell,
    future::poll_fn,
    net::{Shutdown, TcpListener},
    task::Poll,
    thread,
};

use monoio::{IoUringDriver, RuntimeBuilder};

use super::*;

const LONG: Duration = Duration::from_secs(60);
/// How often the ring has its turn before what it has not brought counts as kept back.
const TURNS: usize = 100_000;

/// Lets the ring have its turn.
async fn turn() {
    let mut has_waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// No sweep is there to let go: whoever waits for what has come already waits for ever.
#[test]
fn the_rest_of_a_record_is_no_batch() {
    const TEXT: [u8; TLS_RECORD_BYTES] = [b'x'; TLS_RECORD_BYTES];
    const FIRST: usize = 10_000;
    let Setup { near, far } = setup(offered(100), false);
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        // Else its system could keep the first part until there is the rest.
        socket.set_nodelay(true).expect("a socket");
        let mut session = ServerConnection::new(Arc::new(far)).expect("a server");
        let mut stream = rustls::Stream::new(&mut session, &mut socket);
        stream.read_exact(&mut [0; 5]).expect("a request");
        stream.write_all(b"ready").expect("sent");
        (session, socket)
    });
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new().build();
    runtime.as_mut().expect("a ring").block_on(async {
        let deadlines = Deadlines::new();
        let due = deadlines.due_in(LONG);
        let socket = stream::connect(address, &deadlines, due).await;
        let name = ServerName::try_from("server.example").expect("a name");
        let socket = socket.expect("a server");
        let connected = connect(socket, &deadlines, Arc::new(near), name, due, LONG).await;
        let mut near = connected.expect("a session");
        let (sent, _) = near.writer.write_all(b"asked".to_vec(), 0, LONG).await;
        sent.expect("sent");
        let (received, _) = near.reader.read(Vec::with_capacity(100), 100, due).await;
        assert_eq!(received.expect("an answer"), 5);

        let (mut session, mut socket) = server.join().expect("a handshake");
        session.writer().write_all(&TEXT).expect("room");
        let mut wire = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut wire).expect("memory");
        }
        let (first, rest) = wire.split_at(FIRST);
        assert!(rest.len() < FIRST);
        near.watch.set_batch(FIRST);
        socket.write_all(first).expect("sent");
        let is_kept_back = Rc::new(Cell::new(false));
        let feed = {
            let (rest, watch) = (rest.to_vec(), Rc::clone(&near.watch));
            let is_kept_back = Rc::clone(&is_kept_back);
            async move {
                while watch.has_bytes() {
                    turn().await;
                }
                socket.write_all(&rest).expect("sent");
                for _ in 0..TURNS {
                    if !watch.has_bytes() {
                        return;
                    }
                    turn().await;
                }
                is_kept_back.set(true);
                socket.shutdown(Shutdown::Both).expect("open");
            }
        };
        let feed = monoio::spawn(feed);
        let sink = Vec::with_capacity(TLS_RECORD_BYTES + 1);
        let (received, sink) = near.reader.read(sink, TLS_RECORD_BYTES, due).await;
        assert_eq!(received.expect("a record"), TLS_RECORD_BYTES);
        assert!(sink == TEXT && !near.watch.waits_for_batch());
        feed.await;
        assert!(!is_kept_back.get());
    });
}
