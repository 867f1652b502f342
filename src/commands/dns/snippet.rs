//! m2u's own names as other DNS servers want them written.
//!
//! Each snippet answers for these names alone: a kind of address that a name does not have is
//! answered with "none of that kind", never with "no such name", and every other name goes the way
//! that it went before.

use std::{iter, net::IpAddr};

use clap::ValueEnum;

use crate::{
    config::settings::Slot,
    control::dns::zone::{Addresses, Zone},
    limits,
};

/// For which server a snippet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A file in /etc/dnsmasq.d
    Dnsmasq,
    /// A file in /etc/unbound/unbound.conf.d
    Unbound,
    /// A block of a Corefile
    Coredns,
    /// Lines of a server's configuration, which tell devices whom to ask
    Openvpn,
}

/// The names of a slot: with the domain first, and bare.
fn names(zone: &Zone, slot: Slot) -> Vec<String> {
    let full = zone.domain().map(|domain| format!("{slot}.{domain}"));
    full.into_iter().chain([slot.to_string()]).collect()
}

fn all_names(zone: &Zone) -> Vec<String> {
    zone.iter()
        .flat_map(|(slot, _)| names(zone, slot))
        .collect()
}

fn in_order(addresses: &Addresses) -> impl Iterator<Item = IpAddr> {
    let v4 = addresses.v4.iter().copied().map(IpAddr::from);
    v4.chain(addresses.v6.iter().copied().map(IpAddr::from))
}

/// `host-record` gives a name its addresses, and `local` has what else is asked about it answered
/// with nothing instead of forwarded. (`address=/…/` would deny the name itself.)
pub(super) fn dnsmasq(zone: &Zone) -> String {
    let ttl = limits::DNS_ANSWER_TTL;
    let mut out = String::from(
        "# m2u's names, for dnsmasq: a file in /etc/dnsmasq.d. All other names go their way.\n",
    );
    out.push_str(&format!("local=/{}/\n", all_names(zone).join("/")));
    for (slot, addresses) in zone.iter() {
        let names = names(zone, slot).join(",");
        for address in in_order(addresses) {
            out.push_str(&format!("host-record={names},{address},{ttl}\n"));
        }
    }
    out
}

/// A zone for each name, so that nothing beside it under the domain is shadowed.
pub(super) fn unbound(zone: &Zone) -> String {
    let ttl = limits::DNS_ANSWER_TTL;
    let mut out = String::from(
        "# m2u's names, for unbound: a file in /etc/unbound/unbound.conf.d. All other names go their\n\
         # way. Devices need access-control: NETWORK allow, as for any other name.\n\
         server:\n",
    );
    for (slot, addresses) in zone.iter() {
        for name in names(zone, slot) {
            out.push_str(&format!("    local-zone: \"{name}.\" static\n"));
            for address in in_order(addresses) {
                let kind = if address.is_ipv4() { "A" } else { "AAAA" };
                out.push_str(&format!(
                    "    local-data: \"{name}. {ttl} IN {kind} {address}\"\n"
                ));
            }
        }
    }
    out
}

/// A server block for these names alone; other blocks serve the rest. The empty file keeps the
/// host's own /etc/hosts out of it.
///
/// By CoreDNS's documentation and source: `hosts` answers any kind of question about a name that it has,
/// with nothing where it has no address of that kind. Without `fallthrough`, what lies below such a name
/// (`x.m2u`) is answered SERVFAIL, for there is no SOA to deny it with; nobody asks for that.
pub(super) fn coredns(zone: &Zone) -> String {
    let ttl = limits::DNS_ANSWER_TTL;
    let mut out = String::from(
        "# m2u's names, for CoreDNS: a block of the Corefile, beside the others. If those bind an\n\
         # address or another port, write the same here. All other names go their way.\n",
    );
    out.push_str(&format!(
        "{} {{\n    hosts /dev/null {{\n",
        all_names(zone).join(" ")
    ));
    for (slot, addresses) in zone.iter() {
        let names = names(zone, slot).join(" ");
        for address in in_order(addresses) {
            out.push_str(&format!("        {address} {names}\n"));
        }
    }
    out.push_str(&format!(
        "        ttl {ttl}\n        no_reverse\n    }}\n}}\n"
    ));
    out
}

/// What a hub tells its devices: whom to ask, and the domain that completes `m2u`.
pub(super) fn openvpn(domain: Option<&str>, servers: &[IpAddr]) -> String {
    let server = |server: &IpAddr| match server {
        IpAddr::V4(address) => format!("DNS {address}"),
        IpAddr::V6(address) => format!("DNS6 {address}"),
    };
    let options = servers.iter().map(server);
    let options = options.chain(domain.map(|domain| format!("DOMAIN {domain}")));
    let comment = "# m2u's names, for an OpenVPN server: tells devices whom to ask. m2u's own responder\n\
                   # refuses all other names; devices that need more must ask a server that knows both.\n";
    iter::once(comment.to_owned())
        .chain(options.map(|option| format!("push \"dhcp-option {option}\"\n")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Dns;

    /// `m2u` with both families, `m2u2` with an address of its own.
    fn zone(domain: Option<&str>) -> Zone {
        let address = |text: &str| text.parse().expect("an address");
        let second = Slot::parse(b"m2u2").expect("a slot");
        let dns = Dns {
            listen: Vec::new(),
            addresses: ["fd00::2", "10.8.0.2"].map(address).into(),
            slots: [(second, vec![address("10.8.0.3")])].into(),
        };
        Zone::build(domain, iter::once(second), &dns)
    }

    #[test]
    fn dnsmasq_is_told_names_with_their_addresses() {
        assert_eq!(
            dnsmasq(&zone(Some("talk2m.com")))
                .split_once('\n')
                .map(|(_, rest)| rest),
            Some(
                "local=/m2u.talk2m.com/m2u/m2u2.talk2m.com/m2u2/\n\
                 host-record=m2u.talk2m.com,m2u,10.8.0.2,60\n\
                 host-record=m2u.talk2m.com,m2u,fd00::2,60\n\
                 host-record=m2u2.talk2m.com,m2u2,10.8.0.3,60\n"
            )
        );
        assert!(dnsmasq(&zone(None)).contains("local=/m2u/m2u2/\nhost-record=m2u,10.8.0.2,60\n"));
    }

    #[test]
    fn unbound_is_told_a_zone_for_each_name() {
        let text = unbound(&zone(Some("talk2m.com")));
        assert_eq!(text.matches("local-zone: ").count(), 4);
        assert!(text.contains(
            "    local-zone: \"m2u2.talk2m.com.\" static\n    \
                 local-data: \"m2u2.talk2m.com. 60 IN A 10.8.0.3\"\n    \
                 local-zone: \"m2u2.\" static\n"
        ));
        assert!(text.contains("\"m2u.talk2m.com. 60 IN AAAA fd00::2\""));
    }

    #[test]
    fn coredns_is_told_a_block_of_its_own() {
        let text = coredns(&zone(Some("talk2m.com")));
        let lines = text.lines().skip_while(|line| line.starts_with('#'));
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                "m2u.talk2m.com m2u m2u2.talk2m.com m2u2 {",
                "    hosts /dev/null {",
                "        10.8.0.2 m2u.talk2m.com m2u",
                "        fd00::2 m2u.talk2m.com m2u",
                "        10.8.0.3 m2u2.talk2m.com m2u2",
                "        ttl 60",
                "        no_reverse",
                "    }",
                "}",
            ]
        );
    }

    #[test]
    fn openvpn_is_told_whom_devices_ask() {
        let servers = ["10.8.0.1", "fd00::1"].map(|text| text.parse().expect("an address"));
        let text = openvpn(Some("talk2m.com"), &servers);
        assert!(text.ends_with(
            "push \"dhcp-option DNS 10.8.0.1\"\npush \"dhcp-option DNS6 fd00::1\"\n\
             push \"dhcp-option DOMAIN talk2m.com\"\n"
        ));
        assert!(!openvpn(None, &servers).contains("DOMAIN"));
    }
}
