//! How far two cores are from each other: the time in which a cache line goes from one to the other
//! and back.
//!
//! A virtual machine's cores may share a cache in one minute and none in the next, as its host sees
//! fit; whatever two cores hand to each other then costs more. Prints nanoseconds, and ends.

use std::{
    env,
    hint::spin_loop,
    io,
    process::ExitCode,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Instant,
};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Exchanges that one figure is the mean of.
const EXCHANGES: u32 = 1000;
/// Figures taken. The least counts: what comes between makes an exchange longer, never shorter.
const FIGURES: u32 = 20;

/// A cache line of its own, and the one beside it, which some processors fetch along.
#[repr(align(128))]
struct Line(AtomicU32);

fn main() -> ExitCode {
    let cores: Vec<_> = env::args().skip(1).map(|text| text.parse()).collect();
    let [Ok(one), Ok(other)] = cores[..] else {
        eprintln!("usage: m2u-core-latency CORE CORE");
        return ExitCode::from(2);
    };
    match latency_ns(one, other) {
        Ok(nanoseconds) => {
            println!("{nanoseconds:.0}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("m2u-core-latency: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Nanoseconds from one core to the other and back.
///
/// # Errors
/// The two are one, or one is not there or not this process's to use: nothing is measured.
fn latency_ns(one: usize, other: usize) -> io::Result<f64> {
    if one == other {
        return Err(io::Error::other("a core has no distance from itself"));
    }
    // Both are had before anybody waits for the other.
    bind_to(other)?;
    bind_to(one)?;
    // Odd values ask; the next even one answers.
    let line = Line(AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            if bind_to(other).is_ok() {
                for exchange in 0..EXCHANGES * FIGURES {
                    await_value(&line.0, 2 * exchange + 1);
                    line.0.store(2 * exchange + 2, Ordering::Release);
                }
            }
        });
        let mut least = f64::INFINITY;
        for figure in 0..FIGURES {
            let begun = Instant::now();
            for exchange in figure * EXCHANGES..(figure + 1) * EXCHANGES {
                line.0.store(2 * exchange + 1, Ordering::Release);
                await_value(&line.0, 2 * exchange + 2);
            }
            let took = begun.elapsed().as_nanos() as f64;
            least = least.min(took / f64::from(EXCHANGES));
        }
        Ok(least)
    })
}

fn await_value(line: &AtomicU32, value: u32) {
    while line.load(Ordering::Acquire) != value {
        spin_loop();
    }
}

fn bind_to(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::other("there is no such core"));
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores)?;
    Ok(())
}
