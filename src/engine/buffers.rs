//! One core's buffers for heads and bodies: lent to whoever receives or sends, and taken back.
//!
//! A buffer comes back empty, and only into the size that it was made in: nobody sees another's bytes, and
//! no buffer that grew is kept. Never holds more spares than lately were in use.

use std::cell::RefCell;

use super::net::stream::Wire;
use crate::{
    config::settings::Tuning,
    limits::{self, TLS_RECORD_BYTES},
};

/// Spare buffers of three sizes: one to park a silent connection on, and two to move bodies with.
#[derive(Debug)]
pub struct Buffers {
    parked: RefCell<Spares>,
    plain: Relay,
    /// For what comes of a body over TLS behind its first megabyte.
    tls: Relay,
}

/// Buffers that move bodies.
#[derive(Debug)]
struct Relay {
    spares: RefCell<Spares>,
    /// Body bytes that one receive takes at most.
    bytes: usize,
    capacity: usize,
}

impl Relay {
    /// None yet; each holds `bytes` of a body, or a head of `head_bytes` that was rewritten.
    fn new(bytes: usize, head_bytes: usize) -> Self {
        Self {
            spares: RefCell::new(Spares::new()),
            bytes,
            capacity: bytes.max(head_bytes) + limits::HEAD_GROWTH_BYTES_MAX,
        }
    }

    fn take(&self) -> Vec<u8> {
        let spare = self.spares.borrow_mut().take();
        spare.unwrap_or_else(|| Vec::with_capacity(self.capacity))
    }
}

/// Spare buffers of one size.
#[derive(Debug)]
struct Spares {
    buffers: Vec<Vec<u8>>,
    /// How many of them nothing has needed since the last sweep.
    unused: usize,
}

impl Spares {
    fn new() -> Self {
        Self {
            buffers: Vec::with_capacity(limits::SPARE_BUFFERS_MAX),
            unused: 0,
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop();
        self.unused = self.unused.min(self.buffers.len());
        buffer
    }

    fn put(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < limits::SPARE_BUFFERS_MAX {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// Frees some of those that nothing needs; after a flood, all but a few within seconds.
    fn sweep(&mut self) {
        let excess = self.unused.saturating_sub(limits::SPARE_BUFFERS_FLOOR);
        let kept = self.buffers.len() - excess.div_ceil(16);
        self.buffers.truncate(kept);
        self.unused = kept;
    }
}

impl Buffers {
    /// None yet.
    pub fn new(tuning: &Tuning, head_bytes: usize) -> Self {
        Self {
            parked: RefCell::new(Spares::new()),
            plain: Relay::new(tuning.relay_bytes, head_bytes),
            tls: Relay::new(tuning.tls_relay_bytes, head_bytes),
        }
    }

    /// The buffers for what comes of a body behind its first `taken` bytes, where the server's side is `wire`.
    fn relay(&self, wire: Wire, taken: u64) -> &Relay {
        let is_long = taken >= limits::BY_PACKETS_BYTES as u64;
        match wire {
            Wire::Tls if is_long && self.tls.capacity != self.plain.capacity => &self.tls,
            // Of one size are all of one kind: they come back by their size.
            _ => &self.plain,
        }
    }

    /// Bytes that one receive takes at most of a head, and of the body that comes with it.
    pub fn head_room(&self) -> usize {
        self.plain.bytes
    }

    /// An empty buffer for a connection that waits for a request.
    pub fn take_parked(&self) -> Vec<u8> {
        let spare = self.parked.borrow_mut().take();
        spare.unwrap_or_else(|| Vec::with_capacity(limits::PARKED_BYTES))
    }

    /// An empty buffer with room for a rewritten head, and for what came of a body with it.
    pub fn take_relay(&self) -> Vec<u8> {
        self.plain.take()
    }

    /// An empty buffer in place of `buffer`, for the next receive of a connection of which the last
    /// one brought `received` bytes: small until a small one was filled, so that whoever trickles
    /// holds little; at most one receive more for a whole body.
    pub fn refit(&self, buffer: Vec<u8>, received: usize) -> Vec<u8> {
        self.refit_from(&self.plain, buffer, received)
    }

    /// The same for what comes of a body behind its first `taken` bytes, where the server's side is `wire`, and
    /// how many bytes the receive takes at most: of TLS whole records, if one fits.
    pub fn refit_for_body(
        &self,
        buffer: Vec<u8>,
        received: usize,
        wire: Wire,
        taken: u64,
    ) -> (Vec<u8>, usize) {
        let relay = self.relay(wire, taken);
        let bytes = match wire {
            Wire::Tls if relay.bytes > TLS_RECORD_BYTES => {
                relay.bytes - relay.bytes % TLS_RECORD_BYTES
            }
            _ => relay.bytes,
        };
        (self.refit_from(relay, buffer, received), bytes)
    }

    fn refit_from(&self, relay: &Relay, mut buffer: Vec<u8>, received: usize) -> Vec<u8> {
        let is_brisk = received >= limits::PARKED_FULL_BYTES;
        let capacity = match is_brisk {
            true => relay.capacity,
            false => limits::PARKED_BYTES,
        };
        if buffer.capacity() == capacity {
            buffer.clear();
            return buffer;
        }
        self.put(buffer);
        match is_brisk {
            true => relay.take(),
            false => self.take_parked(),
        }
    }

    /// A buffer with more room for what is in `buffer`, which is full.
    pub fn enlarge(&self, buffer: Vec<u8>) -> Vec<u8> {
        let mut larger = self.take_relay();
        larger.extend_from_slice(&buffer);
        self.put(buffer);
        larger
    }

    /// Takes a buffer of any size back; whichever grew or is one too many is freed.
    pub fn put(&self, buffer: Vec<u8>) {
        let spares = match buffer.capacity() {
            limits::PARKED_BYTES => &self.parked,
            capacity if capacity == self.plain.capacity => &self.plain.spares,
            capacity if capacity == self.tls.capacity => &self.tls.spares,
            _ => return,
        };
        spares.borrow_mut().put(buffer);
    }

    /// Frees what nothing needs any more; called every tick.
    pub fn sweep(&self) {
        for spares in [&self.parked, &self.plain.spares, &self.tls.spares] {
            spares.borrow_mut().sweep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_only_in_their_size() {
        let buffers = Buffers::new(&Tuning::default(), 16_384);
        let mut relay = buffers.take_relay();
        relay.extend_from_slice(b"a device's secret");
        let address = relay.as_ptr();
        buffers.put(relay);
        buffers.put(Vec::with_capacity(77));
        let again = buffers.take_relay();
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
        assert!(
            buffers.plain.spares.borrow().buffers.is_empty()
                && buffers.parked.borrow().buffers.is_empty()
        );
    }

    #[test]
    fn a_buffer_is_large_only_after_a_small_one_was_filled() {
        let buffers = Buffers::new(&Tuning::default(), 16_384);
        let capacity = |received| buffers.refit(Vec::new(), received).capacity();
        assert_eq!(capacity(0), limits::PARKED_BYTES);
        assert_eq!(
            capacity(limits::PARKED_FULL_BYTES - 1),
            limits::PARKED_BYTES
        );
        assert!(capacity(limits::PARKED_FULL_BYTES) > limits::RELAY_BYTES_DEFAULT);
        let small = buffers.refit(buffers.take_relay(), 1);
        assert_eq!(small.capacity(), limits::PARKED_BYTES);
        assert_eq!(buffers.plain.spares.borrow().buffers.len(), 1);
        let full = vec![b'x'; limits::PARKED_BYTES];
        assert_eq!(buffers.enlarge(full.clone()), full);
        assert!(buffers.plain.spares.borrow().buffers.is_empty());
    }

    #[test]
    fn spare_buffers_are_bounded_and_go_when_nothing_needs_them() {
        let buffers = Buffers::new(&Tuning::default(), 16_384);
        let taken: Vec<_> = (0..2 * limits::SPARE_BUFFERS_MAX)
            .map(|_| buffers.take_parked())
            .collect();
        taken.into_iter().for_each(|buffer| buffers.put(buffer));
        let spares = || buffers.parked.borrow().buffers.len();
        assert_eq!(spares(), limits::SPARE_BUFFERS_MAX);
        buffers.sweep();
        assert_eq!(
            spares(),
            limits::SPARE_BUFFERS_MAX,
            "they were needed just now"
        );
        (0..200).for_each(|_| buffers.sweep());
        assert_eq!(spares(), limits::SPARE_BUFFERS_FLOOR);
    }

    #[test]
    fn a_long_body_of_tls_moves_by_buffers_of_its_own_size_which_are_used_again() {
        let plain = limits::RELAY_BYTES_DEFAULT;
        let long = limits::BY_PACKETS_BYTES as u64;
        for (tls, spares) in [(limits::TLS_RELAY_BYTES_DEFAULT, 1), (plain, 0)] {
            let tuning = Tuning {
                tls_relay_bytes: tls,
                ..Tuning::default()
            };
            let buffers = Buffers::new(&tuning, 16_384);
            let refit = |buffer| {
                let brisk = limits::PARKED_FULL_BYTES;
                buffers.refit_for_body(buffer, brisk, Wire::Tls, long).0
            };
            let buffer = refit(Vec::new());
            let address = buffer.as_ptr();
            assert!(buffer.capacity() > tls);
            // It stays in use for as long as the body is brisk.
            let buffer = refit(buffer);
            assert_eq!(buffer.as_ptr(), address);
            buffers.put(buffer);
            assert_eq!(buffers.tls.spares.borrow().buffers.len(), spares);
            let again = refit(Vec::new());
            assert_eq!(again.as_ptr(), address);
            let other = buffers.take_relay();
            assert_ne!(other.as_ptr(), address);
        }
    }

    #[test]
    fn a_body_of_tls_moves_by_whole_records_and_by_few_until_it_is_a_long_one() {
        let long = limits::BY_PACKETS_BYTES as u64;
        let default = Tuning::default();
        let (three, seven) = (3 * TLS_RECORD_BYTES, 7 * TLS_RECORD_BYTES);
        for (bytes, wire, at_first, then) in [
            (None, Wire::Tls, three, seven),
            (None, Wire::Plain, default.relay_bytes, default.relay_bytes),
            (
                Some(40_000),
                Wire::Tls,
                2 * TLS_RECORD_BYTES,
                2 * TLS_RECORD_BYTES,
            ),
            (Some(4_096), Wire::Tls, 4_096, 4_096),
        ] {
            let tuning = Tuning {
                relay_bytes: bytes.unwrap_or(default.relay_bytes),
                tls_relay_bytes: bytes.unwrap_or(default.tls_relay_bytes),
                ..Tuning::default()
            };
            let buffers = Buffers::new(&tuning, 16_384);
            let brisk = limits::PARKED_FULL_BYTES;
            for (taken, most) in [(0, at_first), (long - 1, at_first), (long, then)] {
                let (buffer, bytes) = buffers.refit_for_body(Vec::new(), brisk, wire, taken);
                assert_eq!(bytes, most, "{taken} bytes taken");
                let from = match most == seven {
                    true => &buffers.tls,
                    false => &buffers.plain,
                };
                assert_eq!(buffer.capacity(), from.capacity, "{taken} bytes taken");
            }
        }
    }
}
