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

/// A name server on a loopback port that answers every question for IPv4 with these addresses.
///
/// Ends with an empty datagram.
pub struct NameServer {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl NameServer {
    pub fn start(addresses: &[Ipv4Addr]) -> Self {
        let addresses = addresses.to_vec();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4_096];
            loop {
                let (count, from) = socket.recv_from(&mut buffer).unwrap();
                if count == 0 {
                    return;
                }
                let question = Message::from_vec(&buffer[..count]).unwrap();
                let query = question.queries[0].clone();
                let name = query.name().to_ascii().to_ascii_lowercase();
                notes.lock().unwrap().push(name);
                let mut response =
                    Message::response(question.metadata.id, question.metadata.op_code);
                response.metadata.recursion_available = true;
                response.add_query(query.clone());
                if query.query_type() == RecordType::A {
                    response.add_answers(addresses.iter().map(|address| {
                        Record::from_rdata(query.name().clone(), 30, RData::from(*address))
                    }));
                }
                socket.send_to(&response.to_vec().unwrap(), from).unwrap();
            }
        });
        Self {
            address,
            asked,
            thread: Some(thread),
        }
    }

    /// The names that were asked for, in lower case, with their last dot.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let waker = UdpSocket::bind("127.0.0.1:0").unwrap();
        waker.send_to(&[], self.address).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}
