//! How many files a gateway may have open at a time, and the system's limit of them.
//!
//! Counts what each part of the gateway holds at most; opens nothing itself.

use std::{cmp, io};

use crate::{config::settings::Settings, limits, observe::say::say};

/// What the number of open files depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Connections of devices, all cores together.
    pub connections: usize,
    /// Cores that serve.
    pub cores: usize,
    /// Sockets that devices reach; each core has its own of each.
    pub listeners: usize,
    /// Idle connections to servers that one core keeps.
    pub pool_per_core: usize,
    /// Addresses at which m2u's own names are answered for.
    pub names: usize,
    /// OpenVPN servers that are asked who is connected.
    pub hubs: usize,
}

impl Demand {
    /// What a gateway with these settings needs on so many cores.
    pub fn of(settings: &Settings, cores: usize) -> Self {
        Self {
            connections: settings.limits.connections,
            cores,
            listeners: settings.listen.len(),
            pool_per_core: pooled(settings),
            names: settings.dns.as_ref().map_or(0, |dns| dns.listen.len()),
            hubs: settings.openvpn.len(),
        }
    }

    /// What the same gateway needs once it has read `settings` again, of which some need a restart.
    pub fn reloaded(self, settings: &Settings) -> Self {
        Self {
            pool_per_core: pooled(settings),
            hubs: settings.openvpn.len(),
            ..self
        }
    }

    /// Files that may be open at a time.
    pub fn files(&self) -> usize {
        // Each device's connection may hold one to a server.
        2 * self.connections + self.cores * self.files_per_core() + self.files_of_control()
    }

    /// What one core holds beside the connections that are served.
    fn files_per_core(&self) -> usize {
        // Its ring, its timer and the timer's twin.
        let own = 3;
        // Each, and a connection that it has accepted and that does not count yet.
        let listeners = 2 * self.listeners;
        // Two ends each.
        let pipes = 2 * (limits::SPLICES_PER_CORE_MAX + limits::SPARE_PIPES_MAX);
        let refused = limits::REFUSALS_PER_CORE_MAX + limits::SECOND_TRIES_PER_CORE_MAX;
        own + listeners + pipes + self.pool_per_core + refused
    }

    /// What all else holds.
    fn files_of_control(&self) -> usize {
        // Each connection of the feed is held twice, by who serves it and by who answers it; one more
        // is being refused, and the socket itself.
        let feed = 2 * limits::FEED_CONNECTIONS_MAX + 2;
        let lookups = limits::FILES_PER_LOOKUP_MAX * limits::DNS_LOOKUPS_MAX;
        // UDP, TCP, and a connection that is being refused.
        let names = self.names * (limits::DNS_CONNECTIONS_MAX + 3);
        limits::FILES_OF_PROCESS + feed + lookups + names + self.hubs
    }

    /// What to do where so many files are `allowed`, if they may not do.
    fn unmet(&self, allowed: u64) -> Option<String> {
        let wanted = self.files();
        let connections = self.connections;
        let cores = match self.cores {
            1 => "1 core".to_owned(),
            count => format!("{count} cores"),
        };
        (allowed < wanted as u64).then(|| {
            format!(
                "this process may open {allowed} files, and limits.connections = {connections} on \
                 {cores} may need {wanted}; raise the limit (LimitNOFILE={wanted} in the unit file, \
                 or ulimit -Hn {wanted}), or lower limits.connections"
            )
        })
    }
}

/// Idle connections to servers that one core keeps at most.
fn pooled(settings: &Settings) -> usize {
    let accounts = settings.accounts.iter();
    let servers = accounts.flat_map(|account| &account.servers);
    let kept = servers.map(|server| server.limits.pool_per_server).sum();
    cmp::min(kept, settings.tuning.pool_per_core)
}

/// Lets this process open as many files as the system allows it; warns if that is less than `demand`.
pub fn raise(demand: &Demand) {
    let files = rlimit::Resource::NOFILE;
    let allowed = files.get().and_then(|(soft, hard)| {
        if soft < hard {
            files.set(hard, hard)?;
        }
        Ok(hard)
    });
    match allowed {
        Ok(allowed) => {
            if let Some(warning) = demand.unmet(allowed) {
                say(format_args!("warning: {warning}"));
            }
        }
        Err(error) => say(format_args!(
            "warning: the limit of open files cannot be raised: {error}"
        )),
    }
}

/// What to do where a file could not be opened because too many are; `None`: it failed in another way.
pub fn remedy(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EMFILE => {
            Some("too many files are open: raise the limit (ulimit -Hn, or LimitNOFILE=)")
        }
        libc::ENFILE => {
            Some("the whole system has too many files open: raise the sysctl fs.file-max")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Demand = Demand {
        connections: 100,
        cores: 1,
        listeners: 1,
        pool_per_core: 32,
        names: 0,
        hubs: 0,
    };

    #[test]
    fn each_core_counts_with_all_that_it_may_hold() {
        let with = |cores, listeners| {
            let demand = Demand {
                cores,
                listeners,
                ..SMALL
            };
            demand.files()
        };
        let beside = SMALL.files_of_control();
        // Ring, timer twice, 128 pipes in use and 64 spare ones, 256 refusals and 64 that may be, the
        // pool; and the listeners with whom they have just accepted.
        let core = 3 + 2 * (128 + 64) + 256 + 64 + 32;
        for (cores, listeners) in [(1, 1), (2, 1), (128, 1), (128, 8)] {
            let expected = 200 + cores * (core + 2 * listeners) + beside;
            assert_eq!(with(cores, listeners), expected, "{cores} {listeners}");
        }
    }

    #[test]
    fn what_no_core_holds_counts_once() {
        let names = Demand { names: 2, ..SMALL };
        let connections = 2 * (limits::DNS_CONNECTIONS_MAX + 3);
        assert_eq!(names.files(), SMALL.files() + connections);
        let hubs = Demand { hubs: 9, ..SMALL };
        assert_eq!(hubs.files(), SMALL.files() + 9);
    }

    #[test]
    fn a_limit_that_is_just_enough_is_not_told() {
        let demand = Demand {
            cores: 128,
            ..SMALL
        };
        let wanted = demand.files();
        assert_eq!(demand.unmet(wanted as u64), None);
        let warning = demand.unmet(wanted as u64 - 1).expect("one is missing");
        for words in ["on 128 cores", &format!("LimitNOFILE={wanted} ")] {
            assert!(warning.contains(words), "{warning}");
        }
    }
}
