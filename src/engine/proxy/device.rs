//! The device's side of an exchange: its socket, what was received from it, and its end.
//!
//! Knows nothing of requests; holds what outlives each of them.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use monoio::net::TcpStream;

use super::{connection::Entrance, failure::Failure};
use crate::{
    config::settings::Slot,
    engine::{
        http1::head::Persist,
        net::{
            deadline::Watch,
            stream::{self, Resting, SocketReader, SocketWriter, WriteError},
            sys::Side,
        },
        shard::Shard,
    },
    limits,
    snapshot::{moved::Mark, scope::Scope},
};

/// What becomes of the device's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It may carry another request.
    Keep,
    /// It has been answered; what the device still sends is read and thrown away for a while.
    Linger,
    /// It ends.
    Close,
    /// It ends by a reset: the device takes nothing, or its answer could pass for complete.
    Reset,
}

impl After {
    /// After an answer of the gateway's own.
    pub fn answer(sent: Result<(), WriteError>, persist: Persist) -> Self {
        match (sent, persist) {
            (Err(failed), _) => Self::unsent(Failure::from_device(&failed.error), Self::Close),
            (Ok(()), Persist::Keep) => Self::Keep,
            (Ok(()), Persist::Close) => Self::Linger,
        }
    }

    /// After an answer of which not all was sent: a device that takes nothing gets no more of it, any
    /// other what `after` says.
    pub fn unsent(failure: Failure, after: Self) -> Self {
        match failure {
            Failure::DeviceStalled => Self::Reset,
            _ => after,
        }
    }
}

/// The device's side of an exchange.
#[derive(Debug)]
pub struct Device {
    /// The socket's deadlines.
    pub watch: Rc<Watch>,
    /// Bytes from the device.
    pub reader: SocketReader,
    /// Bytes to the device.
    pub writer: SocketWriter,
    /// What was received and belongs to no message read so far.
    pub inbox: Vec<u8>,
    /// Bytes that the first receive of the last request brought.
    pub last: usize,
    /// The address that speaks: the peer's, or the one a trusted peer hands over.
    pub source: IpAddr,
    /// The slot of requests that name no host.
    pub slot: Slot,
    /// Whose leases the listener knows.
    pub scope: Scope,
    /// Whom it was made by, if that was known when it was made or asked its first: nobody else can speak
    /// through it.
    pub mark: Option<Mark>,
    /// Whether no request has been read yet.
    pub is_fresh: bool,
    /// For how long it may take nothing of what it was sent: as the last server has it.
    pub patience: Duration,
    /// What the access log will say of the request under way.
    pub noted: Noted,
}

/// What is kept of a device while nothing goes on, beside whose it is.
#[derive(Debug)]
pub struct Dormant {
    socket: Resting,
    slot: Slot,
    scope: Scope,
    mark: Option<Mark>,
    is_fresh: bool,
    /// In milliseconds, of which a day takes half the room of a `Duration`.
    patience_ms: u32,
}

impl Dormant {
    /// Waits until there is a reason to wake up; what it is, the next receive says.
    pub fn sleep(&self) -> impl Future<Output = io::Result<()>> {
        self.socket.readable()
    }

    /// Makes the device ready to speak, as from `source`.
    pub fn wake(self, shard: &Shard, source: IpAddr) -> Device {
        let (reader, writer, watch) = self.socket.split();
        Device {
            watch,
            reader,
            writer,
            inbox: shard.buffers.take_parked(),
            last: 0,
            source,
            slot: self.slot,
            scope: self.scope,
            mark: self.mark,
            is_fresh: self.is_fresh,
            patience: Duration::from_millis(self.patience_ms.into()),
            noted: Noted::default(),
        }
    }
}

impl Device {
    /// Takes over a connection that was accepted.
    pub fn new(shard: &Shard, socket: TcpStream, peer: SocketAddr, entrance: &Entrance) -> Self {
        let (reader, writer, watch) = stream::split(socket, &shard.deadlines);
        Self {
            watch,
            reader,
            writer,
            inbox: shard.buffers.take_parked(),
            last: 0,
            source: peer.ip().to_canonical(),
            slot: entrance.slot,
            scope: entrance.scope,
            mark: None,
            is_fresh: true,
            patience: shard.timeouts.body,
            noted: Noted::default(),
        }
    }

    /// Gives everything back that only a device that speaks needs. Nothing must be under way, and
    /// nothing have been received that was not read.
    pub fn fall_asleep(self, shard: &Shard) -> Dormant {
        debug_assert!(self.inbox.is_empty(), "what was received has been read");
        shard.buffers.put(self.inbox);
        Dormant {
            socket: Resting::join(self.reader, self.writer, self.watch),
            slot: self.slot,
            scope: self.scope,
            mark: self.mark,
            is_fresh: self.is_fresh,
            patience_ms: self.patience.as_millis().try_into().unwrap_or(u32::MAX),
        }
    }

    /// Says whom the connection is taken for from now on.
    pub fn set_mark(&mut self, mark: Mark) {
        if self.mark.replace(mark) != Some(mark) {
            self.watch
                .set_speaker(self.scope, self.source, mark.short());
        }
    }

    /// Lets go of the buffer that a long head needed, if nothing is left in it.
    pub fn give_back_large_inbox(&mut self, shard: &Shard) {
        if self.inbox.is_empty() && self.inbox.capacity() > limits::PARKED_BYTES {
            shard.buffers.put(std::mem::take(&mut self.inbox));
        }
    }

    /// Answers with a failure of which no server has heard.
    pub async fn refuse(
        &mut self,
        shard: &Shard,
        failure: Failure,
        to_head: bool,
        persist: Persist,
    ) -> After {
        let persist = match shard.is_draining() {
            true => Persist::Close,
            false => persist,
        };
        let mut outbox = shard.buffers.take_parked();
        failure.write(&mut outbox, to_head, persist, &shard.date_field());
        let patience = shard.timeouts.body;
        let (result, outbox) = self.writer.write_all(outbox, 0, patience).await;
        shard.buffers.put(outbox);
        After::answer(result, persist)
    }

    /// Ends the connection as its last exchange wants it. The device may take `total` over what it was
    /// sent, and nothing of it for `patience`: `false` if it was reset because it has taken longer.
    pub async fn end(
        mut self,
        shard: &Shard,
        after: After,
        patience: Duration,
        total: Duration,
    ) -> bool {
        let is_delivered = match after {
            // To close over bytes that nobody has read resets the connection: its end goes first.
            After::Keep | After::Close if self.watch.has_bytes() => {
                self.watch.shutdown(Side::Both);
                true
            }
            After::Keep | After::Close => self.see_off(shard, patience, total).await,
            After::Reset => {
                self.watch.reset();
                true
            }
            After::Linger => {
                self.linger(shard).await;
                self.see_off(shard, patience, total).await
            }
        };
        shard.buffers.put(self.inbox);
        stream::close(self.reader, self.writer, self.watch);
        is_delivered
    }

    /// Waits until the device's system has all that was sent, which is no wait for one that has ended its
    /// side behind the answer. Closed before, the connection would leave the rest with the kernel and
    /// count no more: a device that takes nothing could have any number of answers wait for it. A drain
    /// leaves the rest to the kernel.
    async fn see_off(&mut self, shard: &Shard, patience: Duration, total: Duration) -> bool {
        if self.watch.unacknowledged() == 0 {
            return true;
        }
        shard.buffers.put(std::mem::take(&mut self.inbox));
        self.writer.finish();
        let is_abandoned = || shard.is_draining();
        self.writer
            .see_delivered(patience, total, is_abandoned)
            .await
    }

    /// Ends a connection whose device may still be sending: closing at once would reset it, and the
    /// answer could be lost before it is read (RFC 9112 §9.6).
    async fn linger(&mut self, shard: &Shard) {
        self.writer.finish();
        let end = shard.deadlines.due_in(limits::LINGER_TOTAL);
        let mut last = 0;
        while !shard.deadlines.is_past(end) {
            let buffer = std::mem::take(&mut self.inbox);
            let buffer = shard.buffers.refit(buffer, last);
            let due = shard.deadlines.due_in(limits::LINGER);
            let (result, buffer) = self.reader.read_idle(buffer, usize::MAX, due).await;
            self.inbox = buffer;
            match result {
                Ok(received) if received > 0 => last = received,
                _ => break,
            }
        }
    }
}

/// Method and path of the request under way; its head has left the inbox long before the end.
#[derive(Debug, Default)]
pub struct Noted {
    bytes: Vec<u8>,
    method_bytes: usize,
}

impl Noted {
    /// Keeps a request's method and the path of its target, as much of them as is ever shown.
    pub fn keep(&mut self, method: &[u8], target: &[u8]) {
        let shown = |bytes: &[u8]| bytes.len().min(limits::LOG_VALUE_BYTES_MAX);
        let method = &method[..shown(method)];
        let end = memchr::memchr(b'?', target).unwrap_or(target.len());
        self.bytes.clear();
        self.bytes.extend_from_slice(method);
        self.bytes
            .extend_from_slice(&target[..shown(&target[..end])]);
        self.method_bytes = method.len();
    }

    /// There is nothing to say of the next request yet.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Method and path, if a request has been read.
    pub fn parts(&self) -> Option<(&[u8], &[u8])> {
        (!self.bytes.is_empty()).then(|| self.bytes.split_at(self.method_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_never_kept() {
        let mut noted = Noted::default();
        assert_eq!(noted.parts(), None);
        noted.keep(b"POST", b"/in?key=secret");
        assert_eq!(noted.parts(), Some((&b"POST"[..], &b"/in"[..])));
        noted.clear();
        assert_eq!(noted.parts(), None);
    }
}
