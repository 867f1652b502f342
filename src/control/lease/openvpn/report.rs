//! What follows from a hub's status: which network is whose, and what a person should look at.
//!
//! The hub's routing table decides, for it is what the hub checks packets against; the list of
//! clients says to which visit a route belongs. Does no I/O, and does not know which devices exist.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use super::status::{Client, Route, Status};
use crate::config::settings::Hub;

/// All that a hub lets its clients use, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubReport {
    /// The source of its leases.
    pub source: String,
    /// The scope of its leases; `None`: all listeners know them.
    pub scope: Option<Box<str>>,
    /// What a hook has said since then may be newer than the report; never later than the report
    /// was made.
    pub as_of: SystemTime,
    /// Each network once.
    pub claims: Vec<HubClaim>,
    /// What was left out, and why: only what was not in the report before.
    pub problems: Vec<String>,
}

/// A network that a hub lets a client use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubClaim {
    /// The client's address, or a network behind it.
    pub network: IpNet,
    /// The client's visit, as hooks name it: [`session`].
    pub session: String,
    /// The name in the client's certificate.
    pub common_name: String,
    /// Account and device that the name stands for; `None`: the configuration does not say.
    pub device: Option<(String, String)>,
}

/// A client's visit: what `client-connect` has as `"$common_name@$time_unix"`.
pub fn session(common_name: &str, since: u64) -> String {
    format!("{common_name}@{since}")
}

/// The claims of `status`, and what is wrong with it.
pub(super) fn claims(status: &Status<'_>, hub: &Hub) -> (Vec<HubClaim>, Vec<String>) {
    let mut problems = Vec::new();
    let visits = visits(&status.clients);
    let holders = holders(&status.routes);
    let mut claims = Vec::with_capacity(holders.len());
    for (network, holder) in &holders {
        let Some(route) = holder else {
            let shown = shown(*network);
            problems.push(format!(
                "{shown} is routed to several clients; it is left out"
            ));
            continue;
        };
        let name = route.common_name;
        let Some(Some(since)) = visits.get(&(name, route.real_address)) else {
            let shown = shown(*network);
            problems.push(format!(
                "{shown} is routed to {name:?}, which is not in the list of clients, or twice; it \
                 is left out"
            ));
            continue;
        };
        claims.push(HubClaim {
            network: *network,
            session: session(name, *since),
            common_name: name.to_owned(),
            device: device(hub, name),
        });
    }
    problems.extend(unmapped(&claims));
    problems.extend(
        status
            .clients
            .iter()
            .flat_map(|client| overtaken(client, &holders)),
    );
    (claims, problems)
}

/// Whose each network is; `None` where routes differ. OpenVPN has each network once.
fn holders<'s, 't>(routes: &'s [Route<'t>]) -> BTreeMap<IpNet, Option<&'s Route<'t>>> {
    let mut holders = BTreeMap::new();
    for route in routes {
        holders
            .entry(route.network)
            .and_modify(|holder| {
                if *holder != Some(route) {
                    *holder = None;
                }
            })
            .or_insert(Some(route));
    }
    holders
}

/// What to say of names that stand for no device, each once.
fn unmapped(claims: &[HubClaim]) -> Vec<String> {
    let mut told: HashSet<&str> = HashSet::new();
    let unmapped = claims.iter().filter(|claim| claim.device.is_none());
    let first = unmapped.filter(|claim| told.insert(&claim.common_name));
    first
        .map(|claim| {
            format!(
                "{} is routed to {:?}, and no device is known under that name: its requests are \
                 refused; add it to the hub's common_names or csv",
                shown(claim.network),
                claim.common_name
            )
        })
        .collect()
}

/// When each client connected, by name and real address; `None` where two cannot be told apart.
fn visits<'t>(clients: &[Client<'t>]) -> HashMap<(&'t str, &'t str), Option<u64>> {
    let mut visits = HashMap::with_capacity(clients.len());
    for client in clients {
        visits
            .entry((client.common_name, client.real_address))
            .and_modify(|since| {
                if *since != Some(client.since) {
                    *since = None;
                }
            })
            .or_insert(Some(client.since));
    }
    visits
}

/// Addresses that `client` was given, and that another client has been given since.
fn overtaken(
    client: &Client<'_>,
    holders: &BTreeMap<IpNet, Option<&Route<'_>>>,
) -> impl Iterator<Item = String> {
    client.addresses.iter().filter_map(|address| {
        let holder = (*holders.get(&IpNet::from(*address))?)?;
        let is_own =
            (holder.common_name, holder.real_address) == (client.common_name, client.real_address);
        (!is_own).then(|| {
            format!(
                "{address} was given to {:?} and then to {:?}, to which the hub routes it; give \
                 each its own (ifconfig-push)",
                client.common_name, holder.common_name
            )
        })
    })
}

fn device(hub: &Hub, common_name: &str) -> Option<(String, String)> {
    let (account, device) = hub.common_names.device(common_name)?;
    Some((account.to_owned(), device.to_owned()))
}

/// A network as people write it.
fn shown(network: IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    }
}

/// The moment of a status file whose text has the time `seconds`, and which was written by `bound`
/// at the latest.
///
/// The text's time is cut to whole seconds; a hub's clock may be ahead of ours.
pub(super) fn as_of(seconds: u64, bound: SystemTime) -> SystemTime {
    let written = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    written.map_or(bound, |written| written.min(bound))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::{self, flags::Overrides},
        control::lease::openvpn::status,
    };

    const STATUS: &str = include_str!("status.txt");

    /// A hub whose client `a` is the device `press-07`, and whose others follow a pattern.
    fn hub() -> Arc<Hub> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m2u.toml");
        let text = "listen = [\"127.0.0.1:0\"]\n[leases]\n\
            [[account]]\nref = \"acme\"\n\
            [[account.device]]\nname = \"press-07\"\nserial = \"1\"\naddress = [\"192.0.2.1\"]\n\
            [[openvpn]]\nhub = \"north\"\nstatus = \"north.status\"\n\
            common_names = { a = \"acme/press-07\" }\npattern = \"{account}.{device}\"\n";
        std::fs::write(&path, text).expect("a file");
        let mut settings = config::load(&path, &Overrides::default()).expect(text);
        Arc::new(settings.openvpn.remove(0))
    }

    fn claims_of(text: &str) -> (Vec<String>, Vec<String>) {
        let status = status::parse(text).expect(text);
        let (claims, problems) = claims(&status, &hub());
        let claims = claims.iter().map(|claim| {
            let device = claim.device.as_ref().map_or("-", |(_, device)| device);
            format!("{} {} {device}", claim.network, claim.session)
        });
        (claims.collect(), problems)
    }

    #[test]
    fn routes_become_claims_of_the_visit_that_they_belong_to() {
        let (claims, problems) = claims_of(STATUS);
        assert_eq!(
            claims,
            [
                "10.8.0.2/32 a@1795705817 press-07",
                "10.8.0.3/32 weird ü x@1795705817 -",
                "192.168.7.0/24 a@1795705817 press-07",
                "192.168.99.9/32 a@1795705817 press-07",
                "fd00:8::1000/128 a@1795705817 press-07",
                "fd00:8::1001/128 weird ü x@1795705817 -",
            ]
        );
        assert!(
            problems[0].contains("10.8.0.3 is routed to \"weird ü x\""),
            "{problems:?}"
        );
    }

    #[test]
    fn an_address_that_was_taken_over_belongs_to_whom_the_hub_routes_it() {
        let taken = STATUS
            .replace("\tweird ü x\t", "\tacme.two\t")
            .replace("10.8.0.3\tfd00", "10.8.0.2\tfd00")
            .replace(
                "ROUTING_TABLE\t10.8.0.3\tacme.two",
                "ROUTING_TABLE\t10.8.0.4\tacme.two",
            )
            .replace(
                "ROUTING_TABLE\t10.8.0.2\ta\t172.31.1.2:34391",
                "ROUTING_TABLE\t10.8.0.2\tacme.two\t172.31.2.2:45286",
            );
        let (claims, problems) = claims_of(&taken);
        assert_eq!(claims[0], "10.8.0.2/32 acme.two@1795705817 two");
        assert_eq!(
            problems,
            [
                "10.8.0.2 was given to \"a\" and then to \"acme.two\", to which the hub routes it; \
                 give each its own (ifconfig-push)"
            ]
        );
    }

    #[test]
    fn what_does_not_fit_together_is_left_out() {
        let twice = STATUS.replace(
            "GLOBAL_STATS",
            "ROUTING_TABLE\t10.8.0.2\tweird ü x\t172.31.2.2:45286\tx\t1\nGLOBAL_STATS",
        );
        let (claims, problems) = claims_of(&twice);
        assert!(
            !claims.iter().any(|claim| claim.starts_with("10.8.0.2/")),
            "{claims:?}"
        );
        assert!(
            problems[0].contains("10.8.0.2 is routed to several clients"),
            "{problems:?}"
        );

        let stray = STATUS.replace(
            "CLIENT_LIST\ta\t172.31.1.2:34391",
            "CLIENT_LIST\ta\t1.2.3.4:5",
        );
        let (claims, problems) = claims_of(&stray);
        assert_eq!(claims.len(), 2, "{claims:?}");
        assert!(
            problems[0].contains("not in the list of clients"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_report_is_never_taken_for_newer_than_it_is() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        assert_eq!(as_of(10, at(10_900)), at(10_000));
        assert_eq!(as_of(20, at(10_900)), at(10_900));
        assert_eq!(as_of(u64::MAX, at(10_900)), at(10_900));
    }
}
