//! HTTP/1 on the wire: bytes in, bytes out. No I/O, no clock, no heap allocation.
//!
//! In reading order: `head` reads a head with `field`'s policy and `framing`'s verdict; `target`,
//! `authority` and `location` read the parts that decide where a request goes and what comes back;
//! `rewrite` writes the head anew; `chunked` takes the chunked coding off; `proxy_protocol` reads
//! what a load balancer in front says.

pub mod authority;
pub mod chunked;
pub mod field;
pub mod framing;
pub mod head;
pub mod location;
pub mod proxy_protocol;
pub mod rewrite;
pub mod target;
