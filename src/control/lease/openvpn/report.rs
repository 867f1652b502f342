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
use crate::{config::settings::Hub, control::lease::claim::UnixMs};

/// All that a hub lets its clients use, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubReport {
    /// The source of its leases.
    pub source: String,
    /// The scope of its leases; `None`: all listeners know them.
    pub scope: Option<Box<str>>,
    /// What a hook has said since then may be newer than the report; never later than the report
    /// was made.
    pub as_of: UnixMs,
    /// Each network once.
    pub claims: Vec<HubClaim>,
    /// Networks that the hub lets somebody use of whom it does not say clearly who that is.
    pub strangers: Vec<IpNet>,
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

/// What a status shows.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Whose each network is.
    pub(super) claims: Vec<HubClaim>,
    /// Networks of which the status does not say clearly whose they are.
    pub(super) strangers: Vec<IpNet>,
    /// What is wrong with it.
    pub(super) problems: Vec<String>,
}

/// What `status` shows of the clients of `hub`.
pub(super) fn findings(status: &Status<'_>, hub: &Hub) -> Findings {
    let mut findings = Findings::default();
    let visits = visits(&status.clients);
    let holders = holders(&status.routes);
    for (network, holder) in &holders {
        let shown = shown(*network);
        let problem = match holder {
            Some(route) if findings.add(route, &visits, hub) => continue,
            Some(route) => format!(
                "{shown} is routed to {:?}, which is not in the list of clients, or twice; it is left \
                 out",
                route.common_name
            ),
            None => format!("{shown} is routed to several clients; it is left out"),
        };
        findings.strangers.push(*network);
        findings.problems.push(problem);
    }
    // What its network says is said already; it must not be said of a host that is another's still.
    let strayed = status
        .cached
        .iter()
        .filter(|host| has_strayed(host, &holders));
    for host in strayed {
        if !findings.add(host, &visits, hub) {
            findings.strangers.push(host.network);
        }
    }
    let unmapped = unmapped(&findings.claims);
    let clients = status.clients.iter();
    let overtaken = clients.flat_map(|client| overtaken(client, &holders));
    findings
        .problems
        .extend(unmapped.into_iter().chain(overtaken));
    findings
}

impl Findings {
    /// Adds a route as the claim of its client; tells whether it is known which visit that is.
    fn add(&mut self, route: &Route<'_>, visits: &Visits<'_>, hub: &Hub) -> bool {
        let name = route.common_name;
        let Some(Some(since)) = visits.get(&(name, route.real_address)) else {
            return false;
        };
        self.claims.push(HubClaim {
            network: route.network,
            session: session(name, *since),
            common_name: name.to_owned(),
            device: device(hub, name),
        });
        true
    }
}

/// Whether a cached host belongs to another client than the network around it does.
fn has_strayed(host: &Route<'_>, holders: &Holders<'_, '_>) -> bool {
    let address = host.network.addr();
    let wider = (0..=host.network.prefix_len()).rev().filter_map(|length| {
        let network = IpNet::new_assert(address, length).trunc();
        holders.get(&network)
    });
    let around = wider.flatten().next();
    around.is_some_and(|route| {
        (route.common_name, route.real_address) != (host.common_name, host.real_address)
    })
}

/// Whose each network is; `None` where routes differ.
type Holders<'s, 't> = BTreeMap<IpNet, Option<&'s Route<'t>>>;
/// When each client connected, by name and real address; `None` where two cannot be told apart.
type Visits<'t> = HashMap<(&'t str, &'t str), Option<u64>>;

/// Whose each network is; `None` where routes differ. OpenVPN has each network once.
fn holders<'s, 't>(routes: &'s [Route<'t>]) -> Holders<'s, 't> {
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
fn visits<'t>(clients: &[Client<'t>]) -> Visits<'t> {
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
fn overtaken(client: &Client<'_>, holders: &Holders<'_, '_>) -> impl Iterator<Item = String> {
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
        let findings = findings(&status, &hub());
        let claims = findings.claims.iter().map(|claim| {
            let device = claim.device.as_ref().map_or("-", |(_, device)| device);
            format!("{} {} {device}", claim.network, claim.session)
        });
        let strangers = findings.strangers.iter();
        let strangers = strangers.map(|network| format!("{network} ? ?"));
        (claims.chain(strangers).collect(), findings.problems)
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
        let there = claims.iter().filter(|claim| claim.starts_with("10.8.0.2/"));
        assert_eq!(there.collect::<Vec<_>>(), ["10.8.0.2/32 ? ?"]);
        assert!(
            problems[0].contains("10.8.0.2 is routed to several clients"),
            "{problems:?}"
        );

        let stray = STATUS.replace(
            "CLIENT_LIST\ta\t172.31.1.2:34391",
            "CLIENT_LIST\ta\t1.2.3.4:5",
        );
        let (claims, problems) = claims_of(&stray);
        let (unclear, clear): (Vec<_>, Vec<_>) =
            claims.iter().partition(|claim| claim.ends_with("? ?"));
        assert_eq!((clear.len(), unclear.len()), (2, 4), "{claims:?}");
        assert!(
            problems[0].contains("not in the list of clients"),
            "{problems:?}"
        );
    }

    #[test]
    fn clients_of_one_name_are_told_apart_by_where_they_are_or_not_at_all() {
        let second = |address: &str, since: &str| {
            let text = "CLIENT_LIST\ta\t172.31.1.2:34391";
            let line = STATUS.lines().find(|line| line.starts_with(text));
            let line = line.expect("a client").replace("172.31.1.2:34391", address);
            let line = line.replace("1795705817", since);
            let text = STATUS.replace("HEADER\tROUTING", &format!("{line}\nHEADER\tROUTING"));
            let route = format!("ROUTING_TABLE\t10.8.0.9\ta\t{address}\tx\t1\nGLOBAL_STATS");
            claims_of(&text.replace("GLOBAL_STATS", &route)).0
        };
        let claims = second("172.31.1.2:40000", "1795705900");
        for claim in [
            "10.8.0.2/32 a@1795705817 press-07",
            "10.8.0.9/32 a@1795705900 press-07",
        ] {
            assert!(claims.iter().any(|known| known == claim), "{claims:?}");
        }
        let claims = second("172.31.1.2:34391", "1795705900");
        let of_a = claims.iter().filter(|claim| claim.contains(" a@"));
        assert_eq!(of_a.count(), 0, "{claims:?}");
        assert!(
            claims.iter().any(|known| known == "10.8.0.2/32 ? ?"),
            "{claims:?}"
        );
    }

    #[test]
    fn a_cached_host_is_told_of_where_it_is_not_its_networks() {
        let (before, _) = claims_of(STATUS);
        // What is claimed beside, but for the network itself.
        let with = |lines: &str| -> Vec<String> {
            let text = STATUS.replace("GLOBAL_STATS", &format!("{lines}GLOBAL_STATS"));
            let (claims, _) = claims_of(&text);
            let beside = claims.into_iter().filter(|claim| !before.contains(claim));
            beside.filter(|claim| !claim.contains("/16 ")).collect()
        };
        let route =
            |network: &str, client: &str| format!("ROUTING_TABLE\t{network}\t{client}\tx\t1\n");
        let (a, other) = ("a\t172.31.1.2:34391", "weird ü x\t172.31.2.2:45286");
        assert_eq!(with(&route("192.168.7.6C", a)), [""; 0]);
        assert_eq!(
            with(&route("192.168.7.6C", other)),
            ["192.168.7.6/32 weird ü x@1795705817 -"]
        );
        assert_eq!(
            with(&route("192.168.7.6C", "a\t172.31.1.2:1")),
            ["192.168.7.6/32 ? ?"],
            "a visit that is not listed"
        );
        assert_eq!(with(&route("172.16.0.1C", other)), [""; 0], "in no network");
        // The longest network around it is what counts.
        let wide = route("192.168.0.0/16", other);
        assert_eq!(
            with(&format!("{wide}{}", route("192.168.7.6C", a))),
            [""; 0]
        );
        assert_eq!(
            with(&format!("{wide}{}", route("192.168.8.6C", a))),
            ["192.168.8.6/32 a@1795705817 press-07"]
        );
        assert_eq!(with(&route("fd00:8::1000C", a)), [""; 0]);
    }

    #[test]
    fn a_report_is_never_taken_for_newer_than_it_is() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        assert_eq!(as_of(10, at(10_900)), at(10_000));
        assert_eq!(as_of(20, at(10_900)), at(10_900));
        assert_eq!(as_of(u64::MAX, at(10_900)), at(10_900));
    }
}
