//! A source of leases: raw lines over the feed's socket.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::Value;

use super::PATIENCE;

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

    /// Sends one line; answers the reply.
    pub fn ask(&mut self, line: &str) -> Value {
        self.send(format!("{line}\n"));
        self.receive().expect("a reply")
    }

    /// Sends one line, which must be done.
    pub fn done(&mut self, line: &str) {
        let reply = self.ask(line);
        assert_eq!(reply["ok"], true, "{line}: {reply}");
    }
}
