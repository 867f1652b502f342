//! Data plane: one thread a core; never blocks, never resolves names.
