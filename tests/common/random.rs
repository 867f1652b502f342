//! Numbers that look random and are the same in every run.

use std::fmt::Debug;

/// Reproducible, and good enough to shuffle (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn below<N>(&mut self, bound: N) -> N
    where
        N: TryInto<u64, Error: Debug> + TryFrom<u64, Error: Debug>,
    {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let high = (mixed ^ (mixed >> 31)) >> 32;
        N::try_from(high % bound.try_into().unwrap()).unwrap()
    }
}
