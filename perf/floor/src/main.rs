//! `m2u-floor [--once] LISTEN UPSTREAM`: a relay that knows no HTTP, on a bare ring without a runtime.
//!
//! Two receives and two sends for a request and its answer, as few as anybody can do with; the next
//! receive goes to the kernel together with the send before it, and a send that succeeds wakes
//! nobody. What it costs is what no gateway on a ring can go below. A yardstick, nothing more: nothing
//! is checked, limited or repeated, and whatever one receive brings passes for a whole message.

mod kept;
mod once;
mod ring;

use std::{env, net::SocketAddr, process::ExitCode};

fn main() -> ExitCode {
    let mut arguments: Vec<_> = env::args().skip(1).collect();
    let once = arguments.first().is_some_and(|first| first == "--once");
    arguments.drain(..usize::from(once));
    let addresses: Vec<_> = arguments.iter().map(|text| text.parse()).collect();
    let [Ok(listen), Ok(upstream)] = addresses[..] else {
        eprintln!(
            "usage: m2u-floor [--once] LISTEN UPSTREAM, such as 127.0.0.1:8080 127.0.0.1:8000"
        );
        return ExitCode::from(2);
    };
    let addresses: (SocketAddr, SocketAddr) = (listen, upstream);
    let outcome = match once {
        true => once::run(addresses.0, addresses.1),
        false => kept::run(addresses.0, addresses.1),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("m2u-floor: {error}");
            ExitCode::FAILURE
        }
    }
}
