//! Which prefix lengths occur in a table: only those are looked up.

/// How many entries there are of each prefix length.
#[derive(Clone)]
pub(super) struct Lengths {
    counts: [u32; 129],
    /// The lengths that occur.
    present: u128,
}

impl Default for Lengths {
    fn default() -> Self {
        Self {
            counts: [0; 129],
            present: 0,
        }
    }
}

impl Lengths {
    pub(super) fn add(&mut self, length: u8) {
        self.counts[usize::from(length)] += 1;
        self.mark(length);
    }

    pub(super) fn remove(&mut self, length: u8) {
        self.counts[usize::from(length)] -= 1;
        self.mark(length);
    }

    /// Full lengths are looked up in any case, so 128 bits are enough.
    fn mark(&mut self, length: u8) {
        if let Some(bit) = 1_u128.checked_shl(u32::from(length)) {
            let present = self.counts[usize::from(length)] > 0;
            self.present = if present {
                self.present | bit
            } else {
                self.present & !bit
            };
        }
    }

    /// The lengths that occur below `bits`, longest first.
    pub(super) fn shorter_than(&self, bits: u8) -> impl Iterator<Item = u8> + use<> {
        let below = 1_u128
            .checked_shl(u32::from(bits))
            .map_or(u128::MAX, |bit| bit - 1);
        let mut left = self.present & below;
        std::iter::from_fn(move || {
            let length = left.checked_ilog2()?;
            left &= !(1 << length);
            u8::try_from(length).ok()
        })
    }
}
