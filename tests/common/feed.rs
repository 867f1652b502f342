//! A source of leases: raw lines over the feed's socket.

use std::{
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::Value;

use super::{PATIENCE, wire};

/// A connection to the feed of a gateway.
pub struct Feed {
    stream: BufReader<UnixStream>,
}

impl Feed {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Sends `text` as it is.
    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(text.as_ref()).unwrap();
    }

    /// The next line; `None` once the gateway has ended the connection.
    pub fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        let received = self.stream.read_line(&mut line).unwrap();
        (received > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    /// Another hand that sends: for whoever reads at the same time.
    pub fn sender(&self) -> UnixStream {
        self.stream.get_ref().try_clone().unwrap()
    }

    /// Says that no more will come.
    pub fn finish(&self) {
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// Whether the gateway has ended the connection, with nothing more to read.
    pub fn is_closed(&mut self) -> bool {
        matches!(wire::read_next(&mut self.stream, &mut [0]), Ok(0))
    }

    /// The next line, which must come.
    pub fn next(&mut self) -> Value {
        self.receive().expect("a reply")
    }

    /// Sends one line; answers the reply.
    pub fn ask(&mut self, line: &str) -> Value {
        self.send(format!("{line}\n"));
        self.next()
    }

    /// Sends one line, which must be done; answers the number of the newest change.
    pub fn done(&mut self, line: &str) -> u64 {
        let reply = self.ask(line);
        assert_eq!(reply["ok"], true, "{line}: {reply}");
        reply["revision"].as_u64().unwrap()
    }

    /// Sends lines of which the last must be refused with this word; answers the reason.
    pub fn refused(&mut self, lines: &str, error: &str) -> String {
        let reply = self.ask(lines);
        assert_eq!(reply["ok"], false, "{lines}: {reply}");
        assert_eq!(reply["error"], error, "{lines}: {reply}");
        assert!(reply.get("revision").is_none(), "{reply}");
        reply["reason"].as_str().unwrap().to_owned()
    }

    /// All leases, as `address device state`, in the order in which they are listed.
    pub fn leases(&mut self) -> Vec<String> {
        self.send("{\"op\":\"list\"}\n");
        let mut leases = Vec::new();
        loop {
            let line = self.next();
            let Some(lease) = line.get("lease") else {
                assert_eq!(line["ok"], true, "{line}");
                assert_eq!(line["count"], leases.len(), "{line}");
                return leases;
            };
            let word = |key: &str| lease[key].as_str().unwrap();
            let words = [word("address"), word("device"), word("state")];
            leases.push(words.join(" "));
        }
    }
}
