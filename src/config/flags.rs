//! The flags that `run`, `check` and `show` share: which file, what overrides it, and tuning.
//!
//! Values are checked while the command line is read; a bad one is a usage error.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
};

use clap::{Args, ValueEnum};

use super::{
    gateway,
    problem::{Place, Problem, Report},
    settings::{Settings, Tuning},
    value,
};
use crate::limits;

/// The highest core number that a flag may name.
const CORE_MAX: usize = 4_095;

/// Which configuration, and what the command line says in its place.
#[derive(Debug, Clone, Args)]
pub struct ConfigArguments {
    /// Configuration file (TOML); paths inside it are relative to its folder
    #[arg(long, short, value_name = "FILE", default_value = "m2u.toml")]
    #[arg(help_heading = "Configuration")]
    pub config: PathBuf,

    /// What the command line says in the file's place.
    #[command(flatten)]
    pub overrides: Overrides,
}

impl ConfigArguments {
    /// The settings that file and flags make together.
    ///
    /// # Errors
    /// Every problem found, in the order of the file's lines; nothing may run then.
    pub fn load(&self) -> Result<Settings, Vec<Problem>> {
        gateway::load(&self.config, &self.overrides)
    }
}

/// What the command line says in the file's place; everything else is the file's or a default.
#[derive(Debug, Clone, Default, Args)]
pub struct Overrides {
    /// Domain behind "m2u.", such as talk2m.com, in place of the file's
    #[arg(long, value_name = "DOMAIN", value_parser = value::domain)]
    #[arg(help_heading = "Configuration")]
    pub domain: Option<String>,

    /// Address to listen on, such as 10.8.0.2:80; may repeat, and replaces all of the file's
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = value::listen_address)]
    #[arg(help_heading = "Configuration")]
    pub listen: Vec<SocketAddr>,

    /// Cores that get a worker, pinned, such as 0-3,6 [default: every core m2u may use]
    #[arg(long, value_name = "LIST", value_parser = cores, help_heading = "Tuning")]
    pub cores: Option<Cores>,

    /// Entries of each core's io_uring, a power of two, 64 to 32768 [default: 4096]
    #[arg(long, value_name = "NUMBER", value_parser = ring_entries, help_heading = "Tuning")]
    pub ring_entries: Option<u32>,

    /// Let io_uring deliver completions only when a core asks [default: on]
    ///
    /// Costs least; m2u falls back by itself where the kernel lacks it (before 6.1).
    #[arg(long, value_name = "SWITCH", value_enum, help_heading = "Tuning")]
    pub defer_taskrun: Option<Switch>,

    /// Bytes of a relay buffer, which one receive of a body takes at most, 4096 to 1048576; where the server's side
    /// is TLS, whole records of 16384 in it [default: 61440, and 114688 with TLS once a body's first MiB is over]
    #[arg(long, value_name = "BYTES", value_parser = relay_bytes, help_heading = "Tuning")]
    pub relay_bytes: Option<usize>,

    /// Bytes of a plain body still to come from which on it is moved inside the kernel, by
    /// splice(2), instead of copied; "off" copies all [default: 65536]
    #[arg(long, value_name = "BYTES", value_parser = splice_threshold, help_heading = "Tuning")]
    pub splice_threshold: Option<u64>,

    /// Idle connections to servers that each core keeps, all servers together, 0 to 4096
    /// [default: 4096]
    #[arg(long, value_name = "NUMBER", value_parser = pool_per_core, help_heading = "Tuning")]
    pub pool_per_core: Option<usize>,

    /// Name server to ask for servers' addresses, port 53 unless given [default: the system's]
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = nameserver)]
    #[arg(help_heading = "Tuning")]
    pub nameserver: Option<SocketAddr>,
}

/// A list of core numbers, ascending, none twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cores(Vec<usize>);

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// In use where the kernel has it.
    On,
    /// Not in use.
    Off,
}

impl Overrides {
    /// The tuning that the flags make, defaults filled in.
    pub(super) fn tuning(&self) -> Tuning {
        let default = Tuning::default();
        Tuning {
            cores: self.cores.clone().map_or(default.cores, |cores| cores.0),
            ring_entries: self.ring_entries.unwrap_or(default.ring_entries),
            defer_taskrun: self
                .defer_taskrun
                .map_or(default.defer_taskrun, |switch| switch == Switch::On),
            relay_bytes: self.relay_bytes.unwrap_or(default.relay_bytes),
            tls_relay_bytes: self.relay_bytes.unwrap_or(default.tls_relay_bytes),
            splice_bytes: self.splice_threshold.unwrap_or(default.splice_bytes),
            pool_per_core: self.pool_per_core.unwrap_or(default.pool_per_core),
            nameserver: self.nameserver.or(default.nameserver),
        }
    }

    /// Reports cores that this process may not run on: pinning to them would fail at start.
    pub(super) fn check_cores(&self, report: &mut Report) {
        let Some(Cores(wanted)) = &self.cores else {
            return;
        };
        // Where the system does not tell, the worker's own attempt decides.
        let Some(allowed) = core_affinity::get_core_ids() else {
            return;
        };
        let allowed: Vec<usize> = allowed.iter().map(|core| core.id).collect();
        for core in wanted.iter().filter(|core| !allowed.contains(core)) {
            let list: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            let message = format!(
                "core {core} is not one that m2u may use; choose among {}",
                list.join(",")
            );
            report.add(&Place::flag("--cores"), message);
        }
    }
}

fn cores(text: &str) -> Result<Cores, String> {
    let advice = || format!("{text:?} is not a list of cores; write numbers and ranges: 0-3,6");
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits
                .parse()
                .ok()
                .filter(|core| plain && *core <= CORE_MAX)
        };
        let (first, last): (usize, usize) = number(first).zip(number(last)).ok_or_else(advice)?;
        if first > last {
            return Err(format!("{part:?} runs backwards; write {last}-{first}"));
        }
        cores.extend(first..=last);
    }
    cores.sort_unstable();
    match cores.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("core {} is named twice; name it once", pair[0])),
        None => Ok(Cores(cores)),
    }
}

fn ring_entries(text: &str) -> Result<u32, String> {
    let entries = bounded(
        text,
        limits::RING_ENTRIES_FLOOR..=limits::RING_ENTRIES_CEILING,
    )?;
    match entries.is_power_of_two() {
        true => Ok(entries),
        false => Err(format!(
            "is no power of two; write {}",
            entries.next_power_of_two()
        )),
    }
}

/// A number of bytes, at least one; off is more than any body has.
fn splice_threshold(text: &str) -> Result<u64, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        _ if text == "off" => Ok(u64::MAX),
        Ok(bytes) if plain && bytes > 0 => Ok(bytes),
        _ => Err(format!(
            "{text:?} is neither a number of bytes, such as 65536, nor off"
        )),
    }
}

fn relay_bytes(text: &str) -> Result<usize, String> {
    bounded(
        text,
        limits::RELAY_BYTES_FLOOR..=limits::RELAY_BYTES_CEILING,
    )
}

fn pool_per_core(text: &str) -> Result<usize, String> {
    bounded(text, 0..=limits::POOL_PER_CORE_MAX)
}

fn bounded<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("write a number from {} to {}", range.start(), range.end()))
}

fn nameserver(text: &str) -> Result<SocketAddr, String> {
    const DNS_PORT: u16 = 53;
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, DNS_PORT)),
        Err(_) => value::upstream_address(text, DNS_PORT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_numbers_and_ranges() {
        assert_eq!(cores("0-3,6"), Ok(Cores(vec![0, 1, 2, 3, 6])));
        assert_eq!(cores("6,0"), Ok(Cores(vec![0, 6])));
        for (text, words) in [
            ("", "is not a list of cores"),
            ("0,", "is not a list of cores"),
            ("+1", "is not a list of cores"),
            ("0-", "is not a list of cores"),
            ("0-99999999", "is not a list of cores"),
            ("3-0", "write 0-3"),
            ("0-2,1", "core 1 is named twice"),
        ] {
            let message = cores(text).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn tuning_stays_within_the_limits() {
        assert_eq!(ring_entries("4096"), Ok(4096));
        assert_eq!(
            ring_entries("1000"),
            Err("is no power of two; write 1024".to_owned())
        );
        assert!(ring_entries("32").is_err());
        assert!(ring_entries("65536").is_err());
        assert_eq!(relay_bytes("4096"), Ok(4096));
        assert!(relay_bytes("4095").is_err());
        assert_eq!(pool_per_core("0"), Ok(0));
        assert!(pool_per_core("4097").is_err());
    }

    #[test]
    fn a_name_server_has_port_53_unless_it_says() {
        for (text, shown) in [
            ("10.8.0.1", "10.8.0.1:53"),
            ("10.8.0.1:5353", "10.8.0.1:5353"),
            ("fd00::1", "[fd00::1]:53"),
        ] {
            assert_eq!(
                nameserver(text).map(|a| a.to_string()),
                Ok(shown.to_owned())
            );
        }
        assert!(nameserver("dns.example").is_err());
    }

    #[test]
    fn without_flags_tuning_is_the_default() {
        assert_eq!(Overrides::default().tuning(), Tuning::default());
    }
}
