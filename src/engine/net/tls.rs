//! TLS towards servers, on rustls' unbuffered connection.
//!
//! Ciphertext lives in two buffers of ours: records of data are opened into the caller's buffer, as many
//! as it holds, all others where they arrived, and several leave in one send. Reader and writer share the
//! session, never across an await. A buffer for one record grows to one for several only while receives
//! fill it.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use monoio::net::TcpStream;
use rustls::{
    ClientConfig, InvalidMessage,
    client::{ClientConnectionData, UnbufferedClientConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};
use rustls_pki_types::ServerName;

use super::{
    deadline::{Deadlines, Due, Watch},
    open::OpeningKey,
    seal::SealingKey,
    standby::StandbyReader,
    stream::{self, Lent, Reader, SocketWriter, Stream, StreamError, WriteError, Writer},
};
use crate::limits::{
    PARKED_FULL_BYTES, TLS_BURST_BYTES, TLS_FLIGHT_BYTES, TLS_HEADER_BYTES, TLS_HELD_BYTES_MAX,
    TLS_PARKED_BYTES, TLS_RECORD_BYTES, TLS_RECORD_OVERHEAD_BYTES, TLS_TICKETS_MAX,
    TLS_WIRE_RECORD_BYTES_MAX,
};

/// The state both halves share.
struct Session {
    connection: UnbufferedClientConnection,
    /// The key of what is sent, where it is shared with us.
    sealing: Option<Arc<SealingKey>>,
    /// The key of what is received, likewise.
    opening: Option<Arc<OpeningKey>>,
    /// Whether rustls has had its say: data may flow, and nothing else is under way.
    is_settled: bool,
    /// Ciphertext received; empty while the reader lends it out, and once all is processed.
    incoming: Vec<u8>,
    /// Bytes of it that have been processed.
    processed: usize,
    /// Whether so much comes that several records should be received at once.
    is_brisk: bool,
    /// Room for ciphertext to send, as long as it ever had to be: it is filled with zeros only once.
    outgoing: Vec<u8>,
    /// Bytes of it that wait; the handshake's last flight does so for the first request.
    sealed: usize,
    /// Whether what was sealed before is being sent.
    is_sending: bool,
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
    /// Nothing has been said yet.
    fn new(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: UnbufferedClientConnection::new(config, name)?,
            sealing: None,
            opening: None,
            is_settled: false,
            incoming: Vec::new(),
            processed: 0,
            is_brisk: false,
            outgoing: Vec::new(),
            sealed: 0,
            is_sending: false,
            spill: Vec::new(),
            closed: false,
            failure: None,
        })
    }

    /// Processes what is in `incoming`; decrypted bytes go to `sink` up to `sink_max` bytes and to
    /// `spill` beyond. Whoever reads gets what its sink holds, the rest waits; with a `sink_max` of 0
    /// all is processed. `plaintext` is encrypted into `outgoing` once the session is ready.
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
        // Whatever another connection left, which a fault of ours ended half-way, is no key of this one.
        SealingKey::take_newest();
        OpeningKey::take_newest();
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
        let progress = loop {
            self.open_data(sink, sink_max);
            if sink_max > 0 && self.is_enough(sink.len(), sink_max) {
                break Progress::Ready;
            }
            let UnbufferedStatus { discard, state, .. } = self
                .connection
                .process_tls_records(&mut self.incoming[self.processed..]);
            if let Some(key) = SealingKey::take_newest() {
                self.sealing = Some(key);
            }
            if let Some(key) = OpeningKey::take_newest() {
                self.opening = Some(key);
            }
            self.is_settled = matches!(state, Ok(ConnectionState::WriteTraffic(_)));
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
                    let (buffer, filled) = (&mut self.outgoing, &mut self.sealed);
                    append(buffer, filled, TLS_FLIGHT_BYTES, |space| {
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
                Ok(ConnectionState::WriteTraffic(traffic)) => {
                    if !plaintext.is_empty() {
                        let (buffer, filled) = (&mut self.outgoing, &mut self.sealed);
                        encrypt(traffic, &mut self.sealing, plaintext, buffer, filled)?;
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
                    self.processed += discard;
                    self.queue_alert();
                    return Err(error);
                }
            };
            self.processed += discard;
            // What is costly in a handshake, but for the signatures, each of them costs.
            if self.connection.tls13_tickets_received() > TLS_TICKETS_MAX {
                return Err(rustls::Error::General("too many session tickets".into()));
            }
            if let Some(progress) = step {
                break progress;
            }
        };
        if self.processed == self.incoming.len() {
            self.incoming.clear();
            self.processed = 0;
        }
        Ok(progress)
    }

    /// Opens records of data straight into `sink`, as many as it has room for. What follows the first
    /// that is anything else waits for rustls, as all does while rustls has anything to say.
    fn open_data(&mut self, sink: &mut Vec<u8>, sink_max: usize) {
        let Some(key) = &self.opening else { return };
        if !self.is_settled || self.closed || !self.spill.is_empty() || !key.may_open() {
            return;
        }
        while let Some(payload) = self.next_record()
            && let Some(record) = self.incoming[self.processed..].get(..TLS_HEADER_BYTES + payload)
            && key.open(record, sink, sink_max.saturating_sub(sink.len()))
        {
            self.processed += record.len();
        }
    }

    /// Whether a sink that holds `length` of `sink_max` bytes should be handed out before the next
    /// record is decrypted: what did not fit would be copied once more. Little is not enough, as the
    /// head of an answer and what follows should leave together.
    fn is_enough(&self, length: usize, sink_max: usize) -> bool {
        let fits = |payload| payload <= sink_max - length + TLS_RECORD_OVERHEAD_BYTES;
        !self.spill.is_empty()
            || (length >= TLS_RECORD_BYTES && !self.next_record().is_none_or(fits))
    }

    /// Bytes of the next record's payload, once its header is there.
    fn next_record(&self) -> Option<usize> {
        let header = self.incoming[self.processed..].get(..TLS_HEADER_BYTES)?;
        Some(usize::from(u16::from_be_bytes([header[3], header[4]])))
    }

    /// After a failure, lets rustls encode the alert that tells the peer why.
    ///
    /// rustls hands out what it has to send before it looks at records, which it must not do once
    /// more; but it may have noted positions in `incoming`, so its bytes stay.
    fn queue_alert(&mut self) {
        while self.connection.wants_write() {
            let UnbufferedStatus { discard, state, .. } = self
                .connection
                .process_tls_records(&mut self.incoming[self.processed..]);
            let Ok(ConnectionState::EncodeTlsData(mut alert)) = state else {
                return;
            };
            let (buffer, filled) = (&mut self.outgoing, &mut self.sealed);
            let encoded = append(buffer, filled, TLS_FLIGHT_BYTES, |space| {
                alert.encode(space).map_err(|_| None)
            });
            self.processed += discard;
            if encoded.is_err() {
                return;
            }
        }
    }

    /// Sends the alerts that rustls has for what was received, as much of them as goes at once: the peer may
    /// wait for one. Whatever is left of a warning goes with what is written next. New keys are told with
    /// the next record, as they may (RFC 8446 §4.6.3).
    fn answer(&mut self, watch: &Watch) {
        if self.sealed == 0 || self.is_sending {
            return;
        }
        let sent = watch.send_at_once(&self.outgoing[..self.sealed]);
        self.outgoing.copy_within(sent..self.sealed, 0);
        self.sealed -= sent;
    }

    /// Seals the word that no more comes (RFC 8446 §6.1): not behind a record that is cut off, nor where rustls
    /// has something else to say first, nor over what has come and was not processed.
    fn seal_goodbye(&mut self) {
        let is_clear = !self.is_sending && self.incoming.is_empty();
        if !is_clear || self.failure.is_some() {
            return;
        }
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state {
            let (buffer, filled) = (&mut self.outgoing, &mut self.sealed);
            // Whoever may seal nothing any more says nothing.
            let _ = append(buffer, filled, TLS_FLIGHT_BYTES, |space| {
                traffic.queue_close_notify(space).map_err(|_| None)
            });
        }
    }

    /// Whether `incoming` starts with an incomplete record, or with nothing. Only then may the
    /// session be asked to encrypt while the bytes are lent to the ring: nothing in them has been
    /// looked at.
    fn is_between_records(&self) -> bool {
        let received = self.incoming.len() - self.processed;
        self.next_record()
            .is_none_or(|payload| received < TLS_HEADER_BYTES + payload)
    }

    /// Takes `incoming` for a receive behind what is left of it: with room for one record, or for
    /// several.
    fn lend(&mut self) -> Vec<u8> {
        let is_whole = !self.is_between_records();
        let mut lent = match is_whole {
            true => Vec::new(),
            false => std::mem::take(&mut self.incoming),
        };
        if !is_whole {
            lent.drain(..std::mem::take(&mut self.processed));
        }
        let usual = match self.is_brisk {
            true => TLS_BURST_BYTES,
            false => TLS_WIRE_RECORD_BYTES_MAX,
        };
        let capacity = usual.max(lent.len() + 1024);
        if lent.capacity() == capacity {
            return lent;
        }
        let mut fitted = Vec::with_capacity(capacity);
        fitted.extend_from_slice(&lent);
        fitted
    }

    /// Takes in what a receive brought, `received` bytes of it new. A peer that has too much kept has
    /// ended the session.
    fn take_back(&mut self, lent: Vec<u8>, received: usize) {
        let has_filled = lent.len() == lent.capacity();
        self.is_brisk = received >= TLS_RECORD_BYTES / 2 && (self.is_brisk || has_filled);
        if self.incoming.is_empty() {
            self.incoming = lent;
        } else {
            self.incoming.extend_from_slice(&lent);
        }
        if self.incoming.len() - self.processed > TLS_HELD_BYTES_MAX {
            let too_large = InvalidMessage::HandshakePayloadTooLarge;
            self.failure = Some(rustls::Error::InvalidMessage(too_large));
        }
    }

    /// Whether `advance` would tell anything new.
    fn has_something_to_say(&self) -> bool {
        !self.incoming.is_empty() || self.failure.is_some()
    }

    /// Bytes received and not handed out: as many of plaintext as that at most.
    fn held(&self) -> usize {
        self.spill.len() + self.incoming.len() - self.processed
    }

    /// Hands out plaintext that did not fit earlier.
    fn drain_spill(&mut self, sink: &mut Vec<u8>, room: usize) {
        let moved = self.spill.len().min(room);
        sink.extend_from_slice(&self.spill[..moved]);
        self.spill.drain(..moved);
    }
}

/// Seals `plaintext` behind the `filled` bytes of `buffer`: with `key` as long as that may be, else by
/// rustls, which may take a new one into use, or end a session of TLS 1.2.
fn encrypt(
    mut traffic: WriteTraffic<'_, ClientConnectionData>,
    key: &mut Option<Arc<SealingKey>>,
    plaintext: &[u8],
    buffer: &mut Vec<u8>,
    filled: &mut usize,
) -> Result<(), rustls::Error> {
    let records = plaintext.len() / TLS_RECORD_BYTES + 1;
    let room = plaintext.len() + records * TLS_RECORD_OVERHEAD_BYTES;
    if let Some(key) = key
        && key.may_seal(plaintext.len())
    {
        return append(buffer, filled, room, |space| {
            key.seal(plaintext, space).map_err(|_| None)
        });
    }
    append(buffer, filled, room, |space| {
        traffic
            .encrypt(plaintext, space)
            .map_err(|error| match error {
                EncryptError::InsufficientSize(size) => Some(size.required_size),
                EncryptError::EncryptExhausted => None,
            })
    })?;
    if let Some(newest) = SealingKey::take_newest() {
        *key = Some(newest);
    }
    Ok(())
}

/// Lets `encode` write behind the `filled` bytes of `buffer`, with at least `room` free; asked for
/// more, once.
///
/// `encode` answers the bytes written, or how many it needs, or `None` if it will never succeed.
fn append(
    buffer: &mut Vec<u8>,
    filled: &mut usize,
    room: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), rustls::Error> {
    let mut room = room;
    for _ in 0..2 {
        if buffer.len() < *filled + room {
            buffer.resize(*filled + room, 0);
        }
        match encode(&mut buffer[*filled..]) {
            Ok(written) => {
                *filled += written;
                return Ok(());
            }
            Err(Some(required)) => room = required,
            Err(None) => break,
        }
    }
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
                && session.connection.tls13_tickets_received() <= TLS_TICKETS_MAX / 2
                && session.spill.is_empty()
                && session.incoming.is_empty()
        };
        is_clean && self.socket.is_quiet()
    }

    /// Whether plaintext waits that did not fit.
    pub fn has_more(&self) -> bool {
        !self.session.borrow().spill.is_empty()
    }

    /// Bytes that were received and have not been handed out, in whatever form.
    pub fn held(&self) -> usize {
        self.session.borrow().held()
    }

    /// Gives back what a large body made the buffers grow to, and waits for what comes; what an
    /// ordinary request needs stays.
    pub fn park(&mut self) {
        if self.socket.is_posted() {
            return;
        }
        debug_assert!(!self.socket.watch().waits_for_batch(), "nothing may come");
        let session = &mut *self.session.borrow_mut();
        if session.outgoing.capacity() > TLS_PARKED_BYTES && session.sealed == 0 {
            session.outgoing = Vec::new();
        }
        if session.spill.capacity() > TLS_PARKED_BYTES && session.spill.is_empty() {
            session.spill = Vec::new();
        }
        // With something left over it is not quiet, and will not be used again.
        if session.incoming.is_empty() {
            session.is_brisk = false;
            let incoming = session.lend();
            self.socket.post(|_| incoming);
        }
    }

    /// Tells the peer that no more comes, as far as that goes at once: the connection is about to be closed.
    pub fn say_goodbye(&self) {
        let session = &mut *self.session.borrow_mut();
        session.seal_goodbye();
        session.answer(self.socket.watch());
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
        // Two flags: a number would make every connection's task larger.
        let (mut has_received, mut is_small) = (false, false);
        loop {
            {
                let mut session = self.session.borrow_mut();
                session.drain_spill(&mut buffer, room);
                let mut failure = None;
                let has_room = session.spill.is_empty() && buffer.len() - begin < room;
                if has_room && session.has_something_to_say() {
                    failure = session.advance(&mut buffer, begin + room, &[]).err();
                    session.answer(self.socket.watch());
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
            // What comes next is not all of what was sure to come: a part of it has come already.
            if has_received && self.socket.watch().waits_for_batch() {
                self.socket.watch().set_batch(1);
            }
            // A part of a record, or one that holds no data, such as a ticket before the first answer.
            if is_small {
                self.socket.watch().acknowledge();
            }
            match self.receive().await {
                Ok(0) => return (Err(StreamError::Truncated), buffer),
                Ok(received) => {
                    (has_received, is_small) = (true, received < PARKED_FULL_BYTES);
                }
                Err(error) => return (Err(error), buffer),
            }
        }
    }

    /// Receives more ciphertext behind what is there.
    async fn receive(&mut self) -> Result<usize, StreamError> {
        let lent = match self.socket.is_posted() {
            true => Vec::new(),
            false => self.session.borrow_mut().lend(),
        };
        let (result, lent) = self.socket.receive(lent, usize::MAX).await;
        let received = *result.as_ref().unwrap_or(&0);
        self.session.borrow_mut().take_back(lent, received);
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

    /// Sends the ciphertext that waits, and what the reader adds to it meanwhile.
    async fn flush(&mut self, patience: Duration) -> Result<(), WriteError> {
        let mut is_ours = true;
        loop {
            let (outgoing, sealed) = {
                let session = &mut *self.session.borrow_mut();
                session.is_sending = true;
                (
                    std::mem::take(&mut session.outgoing),
                    std::mem::take(&mut session.sealed),
                )
            };
            let (result, outgoing) = self.socket.write_part(outgoing, 0..sealed, patience).await;
            if result.is_err() {
                // A part of a record may be out: the reader adds nothing any more. What was to be sent is
                // out if only its answer is not.
                return if is_ours { result } else { Ok(()) };
            }
            let session = &mut *self.session.borrow_mut();
            session.is_sending = false;
            if session.sealed == 0 {
                session.outgoing = outgoing;
                return Ok(());
            }
            is_ours = false;
        }
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
    let session = Rc::new(RefCell::new(Session::new(config, name)?));
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

#[cfg(test)]
mod tests;
