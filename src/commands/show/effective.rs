//! The settings in force as a configuration file, defaults and overrides filled in.
//!
//! What is printed is a configuration again. It shows no password and no key; paths are absolute,
//! so that it may stand in any folder.

use std::{
    fmt::{Display, Write as _},
    net::IpAddr,
    path::{self, Path},
    time::Duration,
};

use ipnet::IpNet;

use crate::config::settings::{
    Account, Device, Dns, Hub, HubStatus, Leases, Listen, LogFormat, OnFailure, Server,
    ServerLimits, Settings, Timeouts, Tuning,
};

/// Stands where the configuration has a password.
const HIDDEN: &str = "***";

/// The settings, one a line.
pub(super) fn render(settings: &Settings) -> String {
    let mut out = String::from(
        "# Settings in force: defaults, file and flags. Passwords are hidden; devices stand with\n\
         # their accounts, wherever they were written.\n\n",
    );
    match &settings.domain {
        Some(domain) => line(&mut out, "domain", quoted(domain)),
        None => out.push_str("# domain is not set: bare names (m2u, m2u2, ...) only\n"),
    }
    out.push_str("listen = [\n");
    for listen in &settings.listen {
        out.push_str(&format!("    {},\n", listener(listen)));
    }
    out.push_str("]\n");
    sections(&mut out, settings);
    for hub in &settings.openvpn {
        render_hub(&mut out, hub);
    }
    for account in &settings.accounts {
        render_account(&mut out, account);
    }
    out.push('\n');
    tuning(&mut out, &settings.tuning);
    out
}

fn listener(listen: &Listen) -> String {
    let Listen {
        address,
        slot,
        scope,
        proxy_protocol_from,
    } = listen;
    let peers = array(proxy_protocol_from.iter().map(network));
    let scope = scope
        .as_ref()
        .map(|name| format!(", scope = {}", quoted(name)));
    let scope = scope.unwrap_or_default();
    format!(
        "{{ address = \"{address}\", slot = \"{slot}\"{scope}, proxy_protocol_from = {peers} }}"
    )
}

fn sections(out: &mut String, settings: &Settings) {
    let Timeouts {
        head,
        body,
        connect,
        response,
        keepalive,
        pool,
        drain,
    } = settings.timeouts;
    out.push_str("\n[timeouts]\n");
    line(out, "head", duration(head));
    line(out, "body", duration(body));
    line(out, "connect", duration(connect));
    line(out, "response", duration(response));
    line(out, "keepalive", duration(keepalive));
    line(out, "pool", duration(pool));
    line(out, "drain", duration(drain));

    let limits = &settings.limits;
    out.push_str("\n[limits]\n");
    line(out, "head_bytes", limits.head_bytes);
    line(out, "fields", limits.fields);
    line(out, "body_bytes", limits.each_server.body_bytes);
    line(out, "connections", limits.connections);
    line(
        out,
        "connections_per_address",
        limits.connections_per_address,
    );
    line(out, "pool_per_server", limits.each_server.pool_per_server);

    match &settings.access_log {
        Some(log) => {
            out.push_str("\n[access_log]\n");
            let path = match log.path.as_path() {
                standard_output if standard_output == Path::new("-") => quoted("-"),
                file => quoted_path(file),
            };
            line(out, "path", path);
            let format = match log.format {
                LogFormat::Json => "json",
                LogFormat::Text => "text",
            };
            line(out, "format", quoted(format));
        }
        None => out.push_str("\n# [access_log] is absent: exchanges are not logged\n"),
    }

    leases(out, settings.leases.as_ref());
    names(out, settings.dns.as_ref());

    out.push_str("\n[upstream]\n");
    let networks = array(settings.allow_networks.iter().map(network));
    line(out, "allow_networks", networks);
    out.push_str("# the gateway's own certificate stands with each server that it is shown to\n");
}

fn leases(out: &mut String, leases: Option<&Leases>) {
    let Some(leases) = leases else {
        out.push_str("\n# [leases] is absent: addresses are those of the devices below\n");
        return;
    };
    out.push_str("\n[leases]\n");
    if let Some(socket) = &leases.socket {
        line(out, "socket", quoted_path(socket));
    }
    let users = leases.users.iter();
    line(out, "users", array(users.map(|user| user.name.to_string())));
    match &leases.journal {
        Some(journal) => line(out, "journal", quoted_path(journal)),
        None => out.push_str("# journal is not set: leases end with m2u\n"),
    }
    line(out, "unconfirmed", duration(leases.unconfirmed));
}

/// Where m2u's own names are answered for.
fn names(out: &mut String, dns: Option<&Dns>) {
    let Some(Dns {
        listen,
        addresses,
        slots,
    }) = dns
    else {
        out.push_str("\n# [dns] is absent: m2u answers no questions for its names\n");
        return;
    };
    out.push_str("\n[dns]\n");
    line(out, "listen", array(listen.iter().map(ToString::to_string)));
    line(
        out,
        "addresses",
        array(addresses.iter().map(ToString::to_string)),
    );
    let slots: Vec<_> = slots
        .iter()
        .map(|(slot, own)| format!("{slot} = {}", array(own.iter().map(ToString::to_string))))
        .collect();
    if !slots.is_empty() {
        line(out, "slots", format!("{{ {} }}", slots.join(", ")));
    }
}

fn render_hub(out: &mut String, hub: &Hub) {
    out.push_str("\n[[openvpn]]\n");
    line(out, "hub", quoted(&hub.name));
    if let Some(scope) = &hub.scope {
        line(out, "scope", quoted(scope));
    }
    match &hub.status {
        HubStatus::File(path) => line(out, "status", quoted_path(path)),
        HubStatus::Socket(path) => line(out, "management", quoted_path(path)),
        HubStatus::Address(host, port) if host.contains(':') => {
            line(out, "management", format!("\"[{host}]:{port}\""));
        }
        HubStatus::Address(host, port) => line(out, "management", format!("\"{host}:{port}\"")),
    }
    line(out, "poll", duration(hub.poll));
    let names = &hub.common_names;
    if !names.written.is_empty() {
        let written = names.written.iter().map(|[name, account, device]| {
            let device = quoted(&format!("{account}/{device}"));
            format!("{} = {device}", quoted(name))
        });
        let written: Vec<_> = written.collect();
        line(out, "common_names", format!("{{ {} }}", written.join(", ")));
    }
    if let Some((path, _)) = &names.listed {
        line(out, "csv", quoted_path(path));
    }
    if let Some(pattern) = &names.pattern {
        line(out, "pattern", quoted(pattern.as_str()));
    }
}

fn render_account(out: &mut String, account: &Account) {
    out.push_str("\n[[account]]\n");
    line(out, "ref", quoted(&account.reference));
    line(out, "expose_identity", account.expose_identity);
    for server in &account.servers {
        render_server(out, server);
    }
    for device in account.devices.iter() {
        render_device(out, device);
    }
}

fn render_server(out: &mut String, server: &Server) {
    out.push_str("\n[[account.server]]\n");
    line(out, "slot", format!("\"{}\"", server.slot));
    line(out, "url", quoted(&server.url.to_string()));
    if let Some(login) = &server.login {
        let username = quoted(&login.username);
        let login = format!("{{ username = {username}, password = \"{HIDDEN}\" }}");
        line(out, "login", login);
    }
    if let Some(certificate) = &server.client_certificate {
        line(out, "client_certificate", quoted_path(&certificate.path));
        line(out, "client_key", quoted_path(&certificate.key_path));
    }
    if let Some(trust) = &server.trust {
        line(out, "ca", quoted_path(&trust.path));
    }
    if let Some(revoked) = &server.revoked {
        line(out, "crl", quoted_path(&revoked.path));
    }
    line(out, "hyphen_aliases", server.hyphen_aliases);
    line(out, "forwarded", server.forwarded);
    let on_failure = match server.on_failure {
        OnFailure::Respond => "respond",
        OnFailure::Close => "close",
    };
    line(out, "on_failure", quoted(on_failure));
    if !server.addresses.is_empty() {
        let addresses = server.addresses.iter();
        line(out, "address", array(addresses.map(ToString::to_string)));
    }
    let Timeouts {
        body,
        connect,
        response,
        pool,
        ..
    } = server.timeouts;
    let timeouts = format!(
        "{{ body = {}, connect = {}, response = {}, pool = {} }}",
        duration(body),
        duration(connect),
        duration(response),
        duration(pool)
    );
    line(out, "timeouts", timeouts);
    let ServerLimits {
        body_bytes,
        pool_per_server,
    } = server.limits;
    let limits = format!("{{ body_bytes = {body_bytes}, pool_per_server = {pool_per_server} }}");
    line(out, "limits", limits);
}

fn render_device(out: &mut String, device: Device<'_>) {
    out.push_str("\n[[account.device]]\n");
    line(out, "name", quoted(device.name));
    line(out, "serial", quoted(device.serial));
    line(out, "address", array(device.networks.iter().map(network)));
}

/// The flags; they have no place in the file.
fn tuning(out: &mut String, tuning: &Tuning) {
    let cores: Vec<_> = tuning.cores.iter().map(ToString::to_string).collect();
    let cores = match cores.is_empty() {
        true => "every core m2u may use".to_owned(),
        false => cores.join(","),
    };
    let switch = if tuning.defer_taskrun { "on" } else { "off" };
    let nameserver = match tuning.nameserver {
        Some(address) => address.to_string(),
        None => "the system's".to_owned(),
    };
    let relay_bytes = match (tuning.relay_bytes, tuning.tls_relay_bytes) {
        (plain, tls) if plain == tls => plain.to_string(),
        (plain, tls) => format!("{plain}, with TLS {tls} after the first MiB"),
    };
    out.push_str("# Tuning, which flags set:\n");
    for (flag, value) in [
        ("cores", cores),
        ("ring-entries", tuning.ring_entries.to_string()),
        ("defer-taskrun", switch.to_owned()),
        ("relay-bytes", relay_bytes),
        (
            "splice-threshold",
            match tuning.splice_bytes {
                u64::MAX => "off".to_owned(),
                bytes => bytes.to_string(),
            },
        ),
        ("pool-per-core", tuning.pool_per_core.to_string()),
        ("nameserver", nameserver),
    ] {
        out.push_str(&format!("#   --{flag:<14} {value}\n"));
    }
}

fn line(out: &mut String, key: &str, value: impl Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{key} = {value}");
}

fn array(strings: impl Iterator<Item = String>) -> String {
    let strings: Vec<_> = strings.map(|string| quoted(&string)).collect();
    format!("[{}]", strings.join(", "))
}

/// A network as the file writes it: one address without its prefix length.
pub(super) fn network(network: &IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => IpAddr::to_string(&network.addr()),
        false => network.to_string(),
    }
}

/// The largest unit that leaves no fraction.
fn duration(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms % 60_000 == 0 => format!("\"{}m\"", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("\"{}s\"", ms / 1_000),
        ms => format!("\"{ms}ms\""),
    }
}

fn quoted_path(path: &Path) -> String {
    quoted(&absolute(path))
}

/// The path from the root of the file system, links unfollowed.
pub(super) fn absolute(path: &Path) -> String {
    let path = path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.display().to_string()
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_largest_unit_that_fits() {
        for (ms, shown) in [
            (250, "\"250ms\""),
            (1_000, "\"1s\""),
            (75_000, "\"75s\""),
            (120_000, "\"2m\""),
            (60_001, "\"60001ms\""),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), shown);
        }
    }

    #[test]
    fn strings_stay_one_toml_value() {
        for text in ["plain", "it's \"quoted\"", "back\\slash", "é", "'''"] {
            let document = format!("a = {}", quoted(text));
            let parsed: toml::Table = document.parse().expect(&document);
            assert_eq!(parsed["a"].as_str(), Some(text));
            assert_eq!(document.lines().count(), 1);
        }
    }
}
