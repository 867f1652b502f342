//! A name server as a script: one set of addresses for every name, and notes of what was asked.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    thread,
};

use hickory_proto::{
    op::Message,
    rr::{RData, Record, RecordType},
};

/// A name server on a loopback port that answers every question for IPv4 with the same addresses, if
/// it is not told to wait.
///
/// Ends with an empty datagram.
pub struct NameServer {
    pub address: SocketAddr,
    socket: UdpSocket,
    script: Arc<Mutex<Script>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Script {
    addresses: Vec<Ipv4Addr>,
    asked: Vec<String>,
    /// The name that nothing is said of for now.
    held: Option<String>,
    /// The questions for it.
    waiting: Vec<(Message, SocketAddr)>,
}

impl NameServer {
    pub fn start(addresses: &[Ipv4Addr]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script {
            addresses: addresses.to_vec(),
            ..Script::default()
        }));
        let thread = {
            let (socket, script) = (socket.try_clone().unwrap(), Arc::clone(&script));
            thread::spawn(move || serve(&socket, &script))
        };
        Self {
            address,
            socket,
            script,
            thread: Some(thread),
        }
    }

    /// The names that were asked for, in lower case, with their last dot.
    pub fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }

    /// Answers with these addresses from now on.
    pub fn answer_with(&self, addresses: &[Ipv4Addr]) {
        self.script.lock().unwrap().addresses = addresses.to_vec();
    }

    /// Has questions for `name`, as [`asked`](Self::asked) has it, wait until [`release`](Self::release).
    pub fn hold(&self, name: &str) {
        self.script.lock().unwrap().held = Some(name.to_owned());
    }

    /// Answers what waits, and whatever comes.
    pub fn release(&self) {
        let mut script = self.script.lock().unwrap();
        script.held = None;
        for (question, from) in std::mem::take(&mut script.waiting) {
            answer(&self.socket, &question, from, &script.addresses);
        }
    }
}

fn serve(socket: &UdpSocket, script: &Mutex<Script>) {
    let mut buffer = [0; 4_096];
    loop {
        let (count, from) = socket.recv_from(&mut buffer).unwrap();
        if count == 0 {
            return;
        }
        let question = Message::from_vec(&buffer[..count]).unwrap();
        let name = question.queries[0].name().to_ascii().to_ascii_lowercase();
        let mut script = script.lock().unwrap();
        script.asked.push(name.clone());
        match script.held == Some(name) {
            true => script.waiting.push((question, from)),
            false => answer(socket, &question, from, &script.addresses),
        }
    }
}

fn answer(socket: &UdpSocket, question: &Message, from: SocketAddr, addresses: &[Ipv4Addr]) {
    let query = question.queries[0].clone();
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.recursion_available = true;
    response.add_query(query.clone());
    if query.query_type() == RecordType::A {
        response.add_answers(
            addresses
                .iter()
                .map(|address| Record::from_rdata(query.name().clone(), 30, RData::from(*address))),
        );
    }
    socket.send_to(&response.to_vec().unwrap(), from).unwrap();
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let waker = UdpSocket::bind("127.0.0.1:0").unwrap();
        waker.send_to(&[], self.address).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}
