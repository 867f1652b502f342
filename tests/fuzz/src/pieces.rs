//! Bytes that arrive piece by piece, cut where one byte of the input says.
//!
//! The same byte cuts the same way each time; the pieces put together are what was given.

/// Bytes of a buffer that a piece of a body is received in and framed anew.
pub const PIECE_BUFFER_BYTES: usize = 512;

/// What is still to arrive.
#[derive(Debug)]
pub struct Pieces<'w> {
    rest: &'w [u8],
    pattern: u8,
    turn: u32,
}

impl<'w> Pieces<'w> {
    /// `wire` in pieces: `pattern` 0 leaves it whole.
    pub fn new(wire: &'w [u8], pattern: u8) -> Self {
        Self {
            rest: wire,
            pattern,
            turn: 0,
        }
    }

    /// The next piece, of at most `room` bytes; `None` after the last.
    pub fn next(&mut self, room: usize) -> Option<&'w [u8]> {
        if self.rest.is_empty() || room == 0 {
            return None;
        }
        let length = self.length().min(self.rest.len()).min(room);
        let (piece, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(piece)
    }

    /// Bytes that have not arrived.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Small patterns cut evenly, so that every cut of a short input can be reached; the others mix
    /// short and long pieces.
    fn length(&mut self) -> usize {
        self.turn = self.turn.wrapping_add(1);
        match self.pattern {
            0 => usize::MAX,
            1..=128 if self.turn == 1 => usize::from(self.pattern),
            1..=64 => usize::MAX,
            65..=128 => usize::from(self.pattern) - 64,
            _ => {
                let mixed = (self.turn ^ u32::from(self.pattern)).wrapping_mul(0x9e37_79b9);
                1 + (mixed >> (24 + self.turn % 6)) as usize
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_put_together_are_the_whole() {
        let wire: Vec<u8> = (0..=255).cycle().take(1_000).collect();
        for pattern in 0..=255 {
            let mut pieces = Pieces::new(&wire, pattern);
            let mut joined = Vec::new();
            while let Some(piece) = pieces.next(100) {
                assert!((1..=100).contains(&piece.len()));
                joined.extend_from_slice(piece);
            }
            assert_eq!((joined.len(), pieces.left()), (wire.len(), 0));
            assert!(joined == wire, "pattern {pattern}");
        }
    }
}
