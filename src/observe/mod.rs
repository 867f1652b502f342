//! What the gateway tells about itself, written by the cores and read by the control plane.

pub mod access_log;
pub mod decimal;
pub mod log_line;
pub mod metrics;
pub mod say;
