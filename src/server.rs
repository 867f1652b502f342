//! Wiring of a running gateway: control thread, workers, signals, drain.
