//! Load of a fleet of devices on an HTTP gateway, with every answer checked.
//!
//! Each connection speaks from an address of its own in 127.0.0.0/8, as devices behind a VPN do.
//! Warms up, measures one window in which every request begins and ends, and prints one line of
//! JSON. Never leaves the loopback range; bounded by a count and by time.

mod answer;
mod fleet;
mod meter;
mod options;
mod request;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use fleet::{Bound, Counts, Fleet};
use meter::{Meter, Reading};
use options::Options;
use serde_json::{Map, Value, json};

/// How long the requests before the window may take.
const WARMUP: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let options = match options::parse() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("m2u-load: {error}; see m2u-load --help");
            return ExitCode::from(2);
        }
    };
    match measure(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("m2u-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the load and prints what it found; answers whether all answers were right.
fn measure(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let mut meter = Meter::new(&options.pids, options.origin_status)?;
    let mut fleet = Fleet::new(options)?;
    if options.warmup_requests > 0 {
        let bound = Bound {
            requests: options.warmup_requests,
            time: WARMUP,
        };
        let counts = fleet.run(bound)?;
        if counts.mixups + counts.errors > 0 {
            let fault = counts.first_fault.unwrap_or_default();
            return Err(format!("before the window: {fault}").into());
        }
    }
    if options.gate {
        println!("{}", json!({ "gate": "window" }));
        wait_for_line()?;
    }
    let before = meter.read()?;
    let counts = fleet.run(Bound {
        requests: options.requests,
        time: options.seconds,
    })?;
    let after = meter.read()?;
    println!("{}", report(options, &counts, &before, &after));
    io::stdout().flush()?;
    if options.gate {
        wait_for_line()?;
    }
    Ok(counts.mixups + counts.errors == 0)
}

fn wait_for_line() -> io::Result<()> {
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new()).map(|_| ())
}

fn report(options: &Options, counts: &Counts, before: &Reading, after: &Reading) -> Value {
    let wall = after.at - before.at;
    let seconds = wall.as_secs_f64();
    let right = counts.right.max(1) as f64;
    let mut cpu_ns = Map::new();
    let mut cpu_ns_per_request = Map::new();
    let mut known = after.own_ns - before.own_ns;
    let pairs = before.cpu_ns.iter().zip(&after.cpu_ns);
    for (pid, (before, after)) in options.pids.iter().zip(pairs) {
        let spent = after.saturating_sub(*before);
        known += spent;
        cpu_ns.insert(pid.to_string(), json!(spent));
        cpu_ns_per_request.insert(pid.to_string(), json!(spent as f64 / right));
    }
    // What nobody named was awake for: other programs, interrupts, and the machine's host.
    let all = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX) * after.cores;
    let awake = all.saturating_sub(after.idle_ns - before.idle_ns);
    let foreign = awake.saturating_sub(known);
    let microseconds = |quantile: f64| counts.latency.value_at_quantile(quantile) as f64 / 1e3;
    let accepted = before.accepted.zip(after.accepted);
    json!({
        "requests": counts.right,
        "started": counts.started,
        "errors": counts.errors,
        "mixups": counts.mixups,
        "first_fault": counts.first_fault,
        "connections_opened": counts.opened,
        "connections_dropped": counts.dropped,
        "seconds": seconds,
        "requests_per_second": counts.right as f64 / seconds,
        "body_bytes": counts.right * options.size as u64,
        "sent_bytes": counts.sent_bytes,
        "received_bytes": counts.received_bytes,
        "cpu_ns": cpu_ns,
        "cpu_ns_per_request": cpu_ns_per_request,
        "own_cpu_ns": after.own_ns - before.own_ns,
        "foreign_cores": foreign as f64 / 1e9 / seconds,
        "origin_accepted": accepted.map(|(before, after)| after - before),
        "latency_us": {
            "mean": counts.latency.mean() / 1e3,
            "p50": microseconds(0.5),
            "p90": microseconds(0.9),
            "p99": microseconds(0.99),
            "p99.9": microseconds(0.999),
            "max": counts.latency.max() as f64 / 1e3,
        },
    })
}
