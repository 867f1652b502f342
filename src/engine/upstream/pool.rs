//! Idle connections to servers, kept by one core for its next requests.
//!
//! Keyed by [`PoolId`], which is another for everything that makes two connections different. Those of
//! which no snapshot that is in use has the id any more are let go.
//! Never hands out a connection on which anything has arrived: a server that spoke or closed while
//! nobody asked is not trusted with a request.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use hashbrown::HashMap;

use crate::{
    engine::net::{
        deadline::{Deadlines, Due},
        stream::Stream,
    },
    limits,
    snapshot::route::{PoolId, Upstream},
};

/// One core's idle connections.
#[derive(Debug)]
pub struct Pools {
    deadlines: Rc<Deadlines>,
    idle: RefCell<HashMap<PoolId, Pool>>,
    count: Cell<usize>,
    /// Addresses that lately did not answer, and until when they are tried last.
    silent: RefCell<Vec<(SocketAddr, Due)>>,
    count_max: usize,
}

/// The idle connections of one id.
#[derive(Debug)]
struct Pool {
    id: Weak<PoolId>,
    waiting: Vec<Idle>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    due: Due,
}

/// A connection to a server, and the address that it leads to.
#[derive(Debug)]
pub struct Connection {
    /// The connection.
    pub stream: Stream,
    /// One of the server's addresses when it was made.
    pub address: SocketAddr,
    /// From when on it takes no further request.
    pub retires: Due,
}

impl Pools {
    /// No connections yet; at most `count_max` in all.
    pub fn new(deadlines: &Rc<Deadlines>, count_max: usize) -> Self {
        Self {
            deadlines: Rc::clone(deadlines),
            idle: RefCell::new(HashMap::new()),
            count: Cell::new(0),
            silent: RefCell::default(),
            count_max,
        }
    }

    /// The core's deadlines and clock.
    pub fn deadlines(&self) -> &Rc<Deadlines> {
        &self.deadlines
    }

    /// Takes note that nobody answered at `address`.
    pub fn note_silent(&self, address: SocketAddr) {
        let mut silent = self.silent.borrow_mut();
        silent.retain(|(known, due)| *known != address && !self.deadlines.is_past(*due));
        if silent.len() < limits::SILENT_ADDRESSES_MAX {
            silent.push((address, self.deadlines.due_in(limits::SILENT_ADDRESS)));
        }
    }

    /// Whether nobody answered at `address` lately.
    pub fn is_silent(&self, address: SocketAddr) -> bool {
        let silent = self.silent.borrow();
        let is_it =
            |(known, due): &(SocketAddr, Due)| *known == address && !self.deadlines.is_past(*due);
        silent.iter().any(is_it)
    }

    /// Whether any connection of any server is kept.
    pub fn keeps_any(&self) -> bool {
        self.count_max > 0
    }

    /// The connection used last that is still good; those found closed on the way, or leading to an
    /// address that the server's name no longer has, are let go.
    pub fn take(&self, upstream: &Upstream) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let waiting = &mut idle.get_mut(&*upstream.pool)?.waiting;
        while let Some(Idle {
            mut connection,
            due,
        }) = waiting.pop()
        {
            self.count.set(self.count.get() - 1);
            let leads_there = upstream.addresses.contains(&connection.address);
            if leads_there && !self.deadlines.is_past(due) && connection.stream.is_quiet() {
                return Some(connection);
            }
            connection.stream.close();
        }
        None
    }

    /// Keeps a connection for at most `idle_max`, or lets it go where `per_id_max` of its id are kept, there is no
    /// room at all, or it is too old.
    pub fn put(
        &self,
        id: &Arc<PoolId>,
        mut connection: Connection,
        per_id_max: usize,
        idle_max: Duration,
    ) {
        let mut idle = self.idle.borrow_mut();
        let waiting = idle.get(&**id).map_or(0, |pool| pool.waiting.len());
        let has_room = waiting < per_id_max && self.count.get() < self.count_max;
        if !has_room || self.deadlines.is_past(connection.retires) {
            return connection.stream.close();
        }
        let new = || Pool {
            id: Arc::downgrade(id),
            waiting: Vec::new(),
        };
        let waiting = &mut idle.entry(**id).or_insert_with(new).waiting;
        connection.stream.reader.park();
        self.count.set(self.count.get() + 1);
        let due = self.deadlines.due_in(idle_max).min(connection.retires);
        waiting.push(Idle { connection, due });
    }

    /// Lets go of connections that idled too long, of those that the server closed, and of those that no
    /// request can be sent through any more.
    pub fn sweep(&self) {
        if self.count.get() == 0 {
            return;
        }
        let mut kept = 0;
        self.idle.borrow_mut().retain(|_, Pool { id, waiting }| {
            let is_replaced = id.strong_count() == 0;
            let is_over = |idle: &mut Idle| {
                is_replaced
                    || self.deadlines.is_past(idle.due)
                    || !idle.connection.stream.is_quiet()
            };
            for Idle { connection, .. } in waiting.extract_if(.., is_over) {
                connection.stream.close();
            }
            kept += waiting.len();
            !waiting.is_empty()
        });
        self.count.set(kept);
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        for idle in self
            .idle
            .borrow_mut()
            .drain()
            .flat_map(|(_, pool)| pool.waiting)
        {
            idle.connection.stream.close();
        }
        self.count.set(0);
    }

    /// Idle connections of this core.
    pub fn len(&self) -> usize {
        self.count.get()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{self, Ipv4Addr},
        time::Instant,
    };

    use monoio::net::TcpStream;

    use super::*;
    use crate::{config::settings::Tuning, engine::worker};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_connection_past_its_age_takes_no_further_request() {
        let runtime = worker::build_runtime(&Tuning::default());
        runtime.expect("a ring").block_on(async {
            let deadlines = Deadlines::new();
            let pools = Pools::new(&deadlines, 8);
            let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
            let address = listener.local_addr().expect("bound");
            let old = deadlines.due_in(Duration::ZERO);
            let mut now = Instant::now();
            while !deadlines.is_past(old) {
                now += Duration::from_millis(10);
                deadlines.sweep_at(now);
            }
            let id = Arc::new(PoolId(1));
            let put = |retires| {
                let socket = net::TcpStream::connect(address).expect("connect");
                let socket = TcpStream::from_std(socket).expect("the ring takes it");
                let stream = Stream::plain(socket, &deadlines);
                let connection = Connection {
                    stream,
                    address,
                    retires,
                };
                pools.put(&id, connection, 8, LONG);
                listener.accept().expect("accept").0
            };
            let young = deadlines.due_in(Duration::ZERO);
            let mut young_server = put(young);
            assert_eq!(pools.len(), 1);
            let mut old_server = put(old);
            assert_eq!(pools.len(), 1);
            assert_eq!(old_server.read(&mut [0]).expect("an end"), 0);
            // Nor after it has idled to that age.
            while !deadlines.is_past(young) {
                now += Duration::from_millis(10);
                deadlines.sweep_at(now);
            }
            pools.sweep();
            assert!(pools.is_empty());
            assert_eq!(young_server.read(&mut [0]).expect("an end"), 0);
        });
    }
}
