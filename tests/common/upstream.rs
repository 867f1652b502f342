//! A scripted server: every connection runs a script in a thread of its own.

use std::{
    io::{self, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{
    PATIENCE,
    wire::{self, Message},
};

/// A server that does what its script says, and remembers every request.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    requests: Mutex<Vec<(usize, Message)>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    ended: AtomicBool,
}

/// One connection to the server.
pub struct Conversation {
    /// Counts connections from 1.
    pub number: usize,
    socket: TcpStream,
    stream: BufReader<Channel>,
    shared: Arc<Shared>,
}

/// The bytes of a conversation, with or without TLS below them.
enum Channel {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Reads what the gateway sent, without taking note of it.
impl Read for Conversation {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

/// What a script returns: an error ends the connection, as does the script's end.
pub type Step = io::Result<()>;

impl Upstream {
    /// Speaks plain HTTP.
    pub fn start(script: impl Fn(&mut Conversation) -> Step + Send + Sync + 'static) -> Self {
        Self::serve(None, None, script)
    }

    /// Likewise, with buffers of so many bytes for what its connections have received.
    pub fn start_narrow(
        buffer: usize,
        script: impl Fn(&mut Conversation) -> Step + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, Some(buffer), script)
    }

    /// Speaks HTTPS.
    pub fn start_tls(
        config: Arc<ServerConfig>,
        script: impl Fn(&mut Conversation) -> Step + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(config), None, script)
    }

    /// Answers each request with 200, and with the request's head as the body.
    pub fn echo() -> Self {
        Self::start(echo)
    }

    fn serve(
        tls: Option<Arc<ServerConfig>>,
        buffer: Option<usize>,
        script: impl Fn(&mut Conversation) -> Step + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Some(bytes) = buffer {
            // Handed down to the connections.
            let socket = socket2::SockRef::from(&listener);
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let script = Arc::new(script);
        let upstream = Self {
            address,
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            for socket in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(socket) = socket else { continue };
                let (script, shared, tls) = (Arc::clone(&script), Arc::clone(&shared), tls.clone());
                thread::spawn(move || converse(socket, tls, shared, &*script));
            }
        });
        upstream
    }

    /// All requests so far, in the order in which their heads came.
    pub fn requests(&self) -> Vec<Message> {
        let requests = self.shared.requests.lock().unwrap();
        requests
            .iter()
            .map(|(_, message)| message.clone())
            .collect()
    }

    /// The only request so far.
    pub fn request(&self) -> Message {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    /// Connections made so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections whose script still runs.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// The URL of this server.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        drop(TcpStream::connect_timeout(
            &self.address,
            Duration::from_secs(5),
        ));
    }
}

fn converse(
    socket: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    shared: Arc<Shared>,
    script: &(impl Fn(&mut Conversation) -> Step + Send + Sync),
) {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
    shared.open.fetch_add(1, Ordering::SeqCst);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    let copy = socket.try_clone().unwrap();
    let stream = match tls {
        None => Channel::Plain(socket),
        Some(config) => {
            let session = ServerConnection::new(config).unwrap();
            Channel::Tls(Box::new(StreamOwned::new(session, socket)))
        }
    };
    let mut conversation = Conversation {
        number,
        socket: copy,
        stream: BufReader::new(stream),
        shared,
    };
    // A script that fails ends its connection; what the device sees then is the test's business.
    let _ = script(&mut conversation);
    conversation.shared.open.fetch_sub(1, Ordering::SeqCst);
}

impl Conversation {
    /// The next request with its body; `None` once the gateway has ended the connection.
    pub fn request(&mut self) -> io::Result<Option<Message>> {
        let Some(mut message) = self.head()? else {
            return Ok(None);
        };
        self.body(&mut message)?;
        Ok(Some(message))
    }

    /// The next request's head.
    pub fn head(&mut self) -> io::Result<Option<Message>> {
        let message = wire::read_head(&mut self.stream)?;
        if let Some(message) = &message {
            self.shared
                .requests
                .lock()
                .unwrap()
                .push((self.number, message.clone()));
        }
        Ok(message)
    }

    /// Forgets this connection's requests: a long load must not fill the memory.
    pub fn forget(&mut self) {
        self.shared
            .requests
            .lock()
            .unwrap()
            .retain(|(number, _)| *number != self.number);
    }

    /// The body that follows a head.
    pub fn body(&mut self, message: &mut Message) -> Step {
        wire::read_request_body(&mut self.stream, message)?;
        let mut requests = self.shared.requests.lock().unwrap();
        let mine = requests
            .iter_mut()
            .rev()
            .find(|(number, _)| *number == self.number);
        mine.expect("its head was noted")
            .1
            .body
            .clone_from(&message.body);
        Ok(())
    }

    /// Reads exactly so many bytes.
    pub fn read(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads to the end of the connection.
    pub fn read_rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> Step {
        let stream = self.stream.get_mut();
        stream.write_all(bytes.as_ref())?;
        stream.flush()
    }

    /// These pieces and an orderly end as they cross the wire: a TLS record for each 16 KiB of a piece and one
    /// for the goodbye, or the plain bytes.
    pub fn seal<'p>(&mut self, pieces: impl IntoIterator<Item = &'p [u8]>) -> io::Result<Vec<u8>> {
        let mut wire = Vec::new();
        match self.stream.get_mut() {
            Channel::Plain(_) => pieces.into_iter().for_each(|piece| wire.extend(piece)),
            Channel::Tls(stream) => {
                // What the handshake still has to say is no part of it.
                stream.flush()?;
                // More than a few records at a time it would not take.
                for record in pieces.into_iter().flat_map(|piece| piece.chunks(16_384)) {
                    stream.conn.writer().write_all(record)?;
                    stream.conn.write_tls(&mut wire)?;
                }
                stream.conn.send_close_notify();
                stream.conn.write_tls(&mut wire)?;
            }
        }
        Ok(wire)
    }

    /// Takes new keys into use, and asks the gateway to do likewise (TLS 1.3).
    pub fn renew_keys(&mut self) -> Step {
        if let Channel::Tls(stream) = self.stream.get_mut() {
            let renewed = stream.conn.refresh_traffic_keys();
            renewed.map_err(io::Error::other)?;
            stream.flush()?;
        }
        Ok(())
    }

    /// Writes below TLS, if there is any.
    pub fn write_wire(&mut self, bytes: &[u8]) -> Step {
        (&self.socket).write_all(bytes)
    }

    /// Answers 200 with this body.
    pub fn answer(&mut self, body: impl AsRef<[u8]>) -> Step {
        let body = body.as_ref();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        self.write([head.as_bytes(), body].concat())
    }

    /// Ends the connection with a reset.
    pub fn reset(&mut self) -> Step {
        let socket = socket2::SockRef::from(&self.socket);
        socket.set_linger(Some(Duration::ZERO))?;
        Err(io::ErrorKind::ConnectionReset.into())
    }

    /// Ends the connection at once, TLS or not.
    pub fn cut(&mut self) -> Step {
        self.socket.shutdown(Shutdown::Both)
    }

    /// Ends the connection in order; TLS says so, too.
    pub fn say_goodbye(&mut self) -> Step {
        if let Channel::Tls(stream) = self.stream.get_mut() {
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        self.socket.shutdown(Shutdown::Write)
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

/// Answers each request with 200, and with the request's head as the body.
pub fn echo(conversation: &mut Conversation) -> Step {
    while let Some(request) = conversation.request()? {
        conversation.answer(&request.head)?;
    }
    Ok(())
}
