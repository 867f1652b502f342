//! TLS towards servers, on rustls' unbuffered connection.
//!
//! Ciphertext lives in two buffers of ours, so that a record is decrypted where it arrived and
//! several records leave in one send. Reader and writer share the session, never across an await.
//! Records carry 8 KiB: with mimalloc, rustls takes three times as long over larger ones.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use monoio::net::TcpStream;
use rustls::{
    ClientConfig,
    client::UnbufferedClientConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};
use rustls_pki_types::ServerName;

use super::{
    deadline::{Deadlines, Due},
    standby::StandbyReader,
    stream::{self, Lent, Reader, SocketWriter, Stream, StreamError, WriteError, Writer},
};
use crate::limits::{
    TLS_FLIGHT_BYTES, TLS_PARKED_BYTES, TLS_RECORD_BYTES, TLS_RECORD_OVERHEAD_BYTES,
    TLS_WIRE_RECORD_BYTES_MAX,
};

/// The state both halves share.
struct Session {
    connection: UnbufferedClientConnection,
    /// Ciphertext received and not yet processed; empty while the reader lends it out.
    incoming: Vec<u8>,
    /// Ciphertext to send; the handshake's last flight waits here for the first request.
    outgoing: Vec<u8>,
    /// Plaintext that did not fit the reader's buffer.
    spill: Vec<u8>,
    /// The peer said that its data is complete.
    closed: bool,
    /// What ended the session: rustls takes no further call then.
    failure: Option<rustls::Error>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// How far the session got with what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The handshake needs more from the peer.
    Blocked,
    /// Application data may be sent.
    Ready,
    /// Both sides have closed.
    Over,
}

impl Session {
    /// Processes everything in `incoming`; decrypted bytes go to `sink` up to `sink_max` bytes and
    /// to `spill` beyond. `plaintext` is encrypted into `outgoing` once the session is ready.
    ///
    /// # Errors
    /// What ended the session, now or earlier; `sink` may have got bytes that came before.
    fn advance(
        &mut self,
        sink: &mut Vec<u8>,
        sink_max: usize,
        plaintext: &[u8],
    ) -> Result<Progress, rustls::Error> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let progress = self.process(sink, sink_max, plaintext);
        if let Err(failure) = &progress {
            self.failure = Some(failure.clone());
        }
        progress
    }

    fn process(
        &mut self,
        sink: &mut Vec<u8>,
        sink_max: usize,
        plaintext: &[u8],
    ) -> Result<Progress, rustls::Error> {
        let mut done = 0;
        let progress = loop {
            let UnbufferedStatus { discard, state, .. } = self
                .connection
                .process_tls_records(&mut self.incoming[done..]);
            let step = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let payload = record?.payload;
                        let room = if self.spill.is_empty() {
                            sink_max - sink.len()
                        } else {
                            0
                        };
                        let (fits, rest) = payload.split_at(payload.len().min(room));
                        sink.extend_from_slice(fits);
                        self.spill.extend_from_slice(rest);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(mut flight)) => {
                    append(&mut self.outgoing, TLS_FLIGHT_BYTES, |space| {
                        flight.encode(space).map_err(|error| match error {
                            EncodeError::InsufficientSize(size) => Some(size.required_size),
                            EncodeError::AlreadyEncoded => None,
                        })
                    })?;
                    None
                }
                Ok(ConnectionState::TransmitTlsData(flight)) => {
                    flight.done();
                    None
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    if !plaintext.is_empty() {
                        let records = plaintext.len() / (TLS_RECORD_BYTES / 2) + 1;
                        let room = plaintext.len() + records * TLS_RECORD_OVERHEAD_BYTES;
                        append(&mut self.outgoing, room, |space| {
                            traffic
                                .encrypt(plaintext, space)
                                .map_err(|error| match error {
                                    EncryptError::InsufficientSize(size) => {
                                        Some(size.required_size)
                                    }
                                    EncryptError::EncryptExhausted => None,
                                })
                        })?;
                    }
                    Some(Progress::Ready)
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Progress::Blocked),
                Ok(ConnectionState::PeerClosed) => {
                    self.closed = true;
                    None
                }
                Ok(ConnectionState::Closed) => {
                    self.closed = true;
                    Some(Progress::Over)
                }
                Ok(_) => return Err(rustls::Error::General("unexpected TLS state".into())),
                Err(error) => {
                    self.incoming.drain(..done + discard);
                    self.queue_alert();
                    return Err(error);
                }
            };
            done += discard;
            if let Some(progress) = step {
                break progress;
            }
        };
        self.incoming.drain(..done);
        Ok(progress)
    }

    /// After a failure, lets rustls encode the alert that tells the peer why.
    ///
    /// rustls hands out what it has to send before it looks at records, which it must not do once
    /// more; but it may have noted positions in `incoming`, so its bytes stay.
    fn queue_alert(&mut self) {
        while self.connection.wants_write() {
            let UnbufferedStatus { discard, state, .. } =
                self.connection.process_tls_records(&mut self.incoming);
            let Ok(ConnectionState::EncodeTlsData(mut alert)) = state else {
                return;
            };
            let encoded = append(&mut self.outgoing, TLS_FLIGHT_BYTES, |space| {
                alert.encode(space).map_err(|_| None)
            });
            self.incoming.drain(..discard);
            if encoded.is_err() {
                return;
            }
        }
    }

    /// Whether `incoming` starts with an incomplete record, or with nothing. Only then may the
    /// session be asked to encrypt while the bytes are lent to the ring: nothing in them has been
    /// looked at.
    fn is_between_records(&self) -> bool {
        match self.incoming.get(..5) {
            None => true,
            Some(header) => {
                let payload = usize::from(u16::from_be_bytes([header[3], header[4]]));
                self.incoming.len() < 5 + payload
            }
        }
    }

    /// Whether `advance` would tell anything new.
    fn has_something_to_say(&self) -> bool {
        !self.incoming.is_empty() || self.failure.is_some()
    }

    /// Hands out plaintext that did not fit earlier.
    fn drain_spill(&mut self, sink: &mut Vec<u8>, room: usize) {
        let moved = self.spill.len().min(room);
        sink.extend_from_slice(&self.spill[..moved]);
        self.spill.drain(..moved);
    }
}

/// Lets `encode` write behind `buffer`'s bytes, with at least `room` free; asked for more, once.
///
/// `encode` answers the bytes written, or how many it needs, or `None` if it will never succeed.
fn append(
    buffer: &mut Vec<u8>,
    room: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), rustls::Error> {
    let begin = buffer.len();
    let mut room = room;
    for _ in 0..2 {
        buffer.resize(begin + room, 0);
        match encode(&mut buffer[begin..]) {
            Ok(written) => {
                buffer.truncate(begin + written);
                return Ok(());
            }
            Err(Some(required)) => room = required,
            Err(None) => break,
        }
    }
    buffer.truncate(begin);
    Err(rustls::Error::EncryptError)
}

/// The incoming half of a TLS connection.
#[derive(Debug)]
pub struct TlsReader {
    socket: StandbyReader,
    session: Rc<RefCell<Session>>,
}

/// The outgoing half of a TLS connection.
#[derive(Debug)]
pub struct TlsWriter {
    socket: SocketWriter,
    session: Rc<RefCell<Session>>,
}

impl TlsReader {
    /// Whether nothing of the peer has come that nobody asked for.
    pub fn is_quiet(&mut self) -> bool {
        let is_clean = {
            let session = self.session.borrow();
            !session.closed
                && session.failure.is_none()
                && session.spill.is_empty()
                && session.incoming.is_empty()
        };
        is_clean && self.socket.is_quiet()
    }

    /// Whether plaintext waits that did not fit.
    pub fn has_more(&self) -> bool {
        !self.session.borrow().spill.is_empty()
    }

    /// Gives back what a large body made the buffers grow to, and waits for what comes; what an
    /// ordinary request needs stays.
    pub fn park(&mut self) {
        if self.socket.is_posted() {
            return;
        }
        let session = &mut *self.session.borrow_mut();
        for (buffer, kept) in [
            (&mut session.incoming, TLS_WIRE_RECORD_BYTES_MAX),
            (&mut session.outgoing, TLS_PARKED_BYTES),
            (&mut session.spill, TLS_PARKED_BYTES),
        ] {
            if buffer.capacity() > kept && buffer.is_empty() {
                *buffer = Vec::new();
            }
        }
        // With something left over it is not quiet, and will not be used again.
        if session.incoming.is_empty() {
            let mut incoming = std::mem::take(&mut session.incoming);
            incoming.reserve(TLS_WIRE_RECORD_BYTES_MAX);
            self.socket.post(|_| incoming);
        }
    }

    /// See [`Reader::read`].
    pub async fn read(&mut self, buffer: Vec<u8>, room: usize, due: Due) -> Lent<usize> {
        // Set once: whoever changes the deadline meanwhile means all records that are still to come.
        self.socket.watch().set_read(due);
        let result = self.read_plaintext(buffer, room).await;
        self.socket.watch().clear_read();
        result
    }

    async fn read_plaintext(&mut self, mut buffer: Vec<u8>, room: usize) -> Lent<usize> {
        let begin = buffer.len();
        let room = room.min(buffer.capacity() - begin);
        loop {
            {
                let mut session = self.session.borrow_mut();
                session.drain_spill(&mut buffer, room);
                let mut failure = None;
                if buffer.len() == begin && session.has_something_to_say() {
                    failure = session.advance(&mut buffer, begin + room, &[]).err();
                }
                // What came before a failure was sent by the peer that the certificate names.
                if buffer.len() > begin {
                    return (Ok(buffer.len() - begin), buffer);
                }
                if let Some(failure) = failure {
                    return (Err(failure.into()), buffer);
                }
                if session.closed {
                    return (Ok(0), buffer);
                }
            }
            match self.receive().await {
                Ok(0) => return (Err(StreamError::Truncated), buffer),
                Ok(_) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
    }

    /// Receives more ciphertext behind what is there.
    async fn receive(&mut self) -> Result<usize, StreamError> {
        let mut lent = Vec::new();
        if !self.socket.is_posted() {
            let mut session = self.session.borrow_mut();
            if session.is_between_records() {
                lent = std::mem::take(&mut session.incoming);
            }
            let room = TLS_WIRE_RECORD_BYTES_MAX.max(lent.len() + 1024);
            lent.reserve(room);
        }
        let (result, lent) = self.socket.receive(lent, usize::MAX).await;
        let mut session = self.session.borrow_mut();
        if session.incoming.is_empty() {
            session.incoming = lent;
        } else {
            session.incoming.extend_from_slice(&lent);
        }
        result
    }
}

impl TlsWriter {
    /// See [`Writer::write_all`].
    pub async fn write_all(
        &mut self,
        buffer: Vec<u8>,
        begin: usize,
        patience: Duration,
    ) -> (Result<(), WriteError>, Vec<u8>) {
        let sealed = self
            .session
            .borrow_mut()
            .advance(&mut Vec::new(), 0, &buffer[begin..]);
        match sealed {
            Ok(Progress::Ready) => (self.flush(patience).await, buffer),
            Ok(_) => (
                Err(WriteError {
                    error: StreamError::Truncated,
                    began: false,
                }),
                buffer,
            ),
            Err(error) => (
                Err(WriteError {
                    error: error.into(),
                    began: false,
                }),
                buffer,
            ),
        }
    }

    /// Sends the ciphertext that waits.
    async fn flush(&mut self, patience: Duration) -> Result<(), WriteError> {
        let outgoing = std::mem::take(&mut self.session.borrow_mut().outgoing);
        let (result, mut outgoing) = self.socket.write_all(outgoing, 0, patience).await;
        outgoing.clear();
        let mut session = self.session.borrow_mut();
        if session.outgoing.is_empty() {
            session.outgoing = outgoing;
        }
        result
    }
}

/// Speaks the client's half of a TLS handshake over a connected socket.
///
/// Returns as soon as a request may be sent; the last flight leaves together with it. All of it
/// ends at `due`; no flight waits longer than `patience` to be taken.
///
/// # Errors
/// `StreamError::Tls` if the peer is not who the name says or will not speak with us (502 with the
/// token for the cause), `TimedOut` at `due` (504), `Io` or `Truncated` if it went away (502).
pub async fn connect(
    socket: TcpStream,
    deadlines: &Rc<Deadlines>,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    due: Due,
    patience: Duration,
) -> Result<Stream, StreamError> {
    let (reader, writer, watch) = stream::split_standby(socket, deadlines);
    let session = Rc::new(RefCell::new(Session {
        connection: UnbufferedClientConnection::new(config, name)?,
        incoming: Vec::with_capacity(TLS_WIRE_RECORD_BYTES_MAX),
        outgoing: Vec::with_capacity(TLS_FLIGHT_BYTES),
        spill: Vec::new(),
        closed: false,
        failure: None,
    }));
    let mut reader = TlsReader {
        socket: reader,
        session: Rc::clone(&session),
    };
    let mut writer = TlsWriter {
        socket: writer,
        session,
    };
    watch.set_read(due);
    loop {
        let progress = reader.session.borrow_mut().advance(&mut Vec::new(), 0, &[]);
        match progress {
            Ok(Progress::Ready) => break,
            Ok(Progress::Over) => return Err(StreamError::Truncated),
            Ok(Progress::Blocked) => writer
                .flush(patience)
                .await
                .map_err(|failed| failed.error)?,
            Err(error) => {
                // The alert is a courtesy to the server's log; its loss changes nothing.
                let _ = writer.flush(patience).await;
                return Err(error.into());
            }
        }
        if reader.receive().await? == 0 {
            return Err(StreamError::Truncated);
        }
    }
    watch.clear_read();
    Ok(Stream {
        watch,
        reader: Reader::Tls(reader),
        writer: Writer::Tls(writer),
    })
}
