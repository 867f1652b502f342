//! A scripted device: raw bytes from a chosen loopback address.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::{
    PATIENCE, pace,
    sockets::{self, CLOSE_WAIT, ESTABLISHED},
    wire::{self, Message},
};

/// A connection from a device to the gateway.
pub struct Device {
    stream: BufReader<TcpStream>,
}

impl Device {
    /// Connects from `source`, an address of the loopback range.
    pub fn connect(source: &str, gateway: SocketAddr) -> Self {
        let source: IpAddr = source.parse().unwrap();
        let socket = Socket::new(Domain::for_address(gateway), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        socket.connect(&gateway.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Sends all of `bytes`; a gateway that has ended the connection fails the test.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Sends `bytes` in two pieces, the first of them `cut` bytes long.
    pub fn send_cut(&mut self, bytes: impl AsRef<[u8]>, cut: usize) {
        let (begin, end) = bytes.as_ref().split_at(cut);
        self.send(begin);
        // The gateway will as a rule see the pieces apart; a test must hold if it does not.
        pace(Duration::from_millis(1));
        self.send(end);
    }

    /// Sends what the gateway takes; it may have ended the connection.
    pub fn send_if_wanted(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    /// The next answer, interim ones included.
    pub fn receive(&mut self) -> Message {
        self.receive_answer(false).expect("an answer")
    }

    /// The answer to a `HEAD` request.
    pub fn receive_head(&mut self) -> Message {
        self.receive_answer(true).expect("an answer")
    }

    /// The next answer, or what came instead.
    pub fn receive_answer(&mut self, to_head: bool) -> io::Result<Message> {
        let mut answer = wire::read_head(&mut self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        wire::read_response_body(&mut self.stream, &mut answer, to_head)?;
        Ok(answer)
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request);
        self.receive()
    }

    /// What comes next, in the pieces in which it comes; nothing at the end of the connection.
    pub fn receive_piece(&mut self) -> io::Result<Vec<u8>> {
        let piece = self.stream.fill_buf()?.to_vec();
        self.stream.consume(piece.len());
        Ok(piece)
    }

    /// Exactly so many bytes.
    pub fn receive_bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Everything up to the end of the connection.
    pub fn receive_rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// Whether the gateway has ended the connection in an orderly way, with nothing more to read.
    pub fn is_closed(&mut self) -> bool {
        matches!(wire::read_next(&mut self.stream, &mut [0]), Ok(0))
    }

    /// Whether the gateway has ended its side of the connection, whatever is still to be read.
    pub fn has_been_ended(&self) -> bool {
        has_been_ended(self.stream())
    }

    /// Says that no more bytes will come.
    pub fn finish(&self) {
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }
}

/// Whether the gateway has ended its side of `stream`, whatever is still to be read.
pub fn has_been_ended(stream: &TcpStream) -> bool {
    // A reset connection has no peer any more.
    let (near, Ok(far)) = (stream.local_addr().unwrap(), stream.peer_addr()) else {
        return true;
    };
    let rows = sockets::all();
    let row = rows
        .iter()
        .find(|row| (row.local, row.remote) == (far, near));
    row.is_none_or(|row| ![ESTABLISHED, CLOSE_WAIT].contains(&row.state))
}

/// Asks one question on a connection of its own.
pub fn ask(source: &str, gateway: SocketAddr, request: impl AsRef<[u8]>) -> Message {
    Device::connect(source, gateway).ask(request)
}
