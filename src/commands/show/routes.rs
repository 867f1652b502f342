//! The routes as a table for people, in comments, so that it may follow a configuration.

use hashbrown::HashMap;
use rustls_pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

use super::effective;
use crate::{
    config::settings::{ClientCertificate, Scheme, Server, Settings},
    snapshot::{Snapshot, route::Route},
};

/// Columns that stand in every table.
const COLUMNS: [&str; 9] = [
    "account",
    "slot",
    "url",
    "login",
    "client certificate",
    "expires",
    "ca",
    "crl",
    "pool",
];

/// One line for each server, in the configuration's order; with its addresses if they are
/// `resolved`.
pub(super) fn render(settings: &Settings, snapshot: &Snapshot, resolved: bool) -> String {
    let routes: HashMap<_, &Route> = snapshot
        .routes
        .iter()
        .map(|route| ((&*route.account_ref, route.slot), &**route))
        .collect();
    let mut rows = vec![COLUMNS.map(str::to_owned).to_vec()];
    if resolved {
        rows[0].push("addresses".to_owned());
    }
    for account in &settings.accounts {
        for server in &account.servers {
            if let Some(route) = routes.get(&(account.reference.as_str(), server.slot)) {
                rows.push(row(server, route, resolved));
            }
        }
    }
    let explanation = "# Routes; servers with the same pool share their connections.\n#\n";
    format!("{explanation}{}", aligned(&rows))
}

fn row(server: &Server, route: &Route, resolved: bool) -> Vec<String> {
    let is_tls = server.url.scheme == Scheme::Https;
    let certificate = server.client_certificate.as_ref().filter(|_| is_tls);
    let (subject, expires) = certificate.map_or_else(none, |shown| described(shown));
    let ca = match &server.trust {
        _ if !is_tls => "-".to_owned(),
        Some(trust) => effective::absolute(&trust.path),
        None => "system".to_owned(),
    };
    let crl = match &server.revoked {
        Some(revoked) if is_tls => effective::absolute(&revoked.path),
        _ => "-".to_owned(),
    };
    let login = server.login.as_ref();
    let login = login.map_or("-".to_owned(), |login| visible(&login.username));
    let mut row = vec![
        route.account_ref.to_string(),
        server.slot.to_string(),
        server.url.to_string(),
        login,
        subject,
        expires,
        ca,
        crl,
        route.upstream.pool.0.to_string(),
    ];
    if resolved {
        row.push(addresses(route));
    }
    row
}

fn none() -> (String, String) {
    ("-".to_owned(), "-".to_owned())
}

/// Subject and expiry of the certificate that is shown to the server.
fn described(certificate: &ClientCertificate) -> (String, String) {
    let leaf = certificate.chain.first().map(CertificateDer::as_ref);
    match leaf.map(parse_x509_certificate) {
        Some(Ok((_, leaf))) => (
            visible(&leaf.subject().to_string()),
            leaf.validity().not_after.to_datetime().date().to_string(),
        ),
        _ => none(),
    }
}

fn addresses(route: &Route) -> String {
    match &route.upstream.unresolved {
        Some(reason) => format!("none: {reason}"),
        None => {
            let addresses = route.upstream.addresses.iter();
            addresses
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        }
    }
}

/// A certificate may hold anything; a terminal must not obey it.
fn visible(text: &str) -> String {
    text.replace(char::is_control, "?")
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::from("#");
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("  {cell:<width$}"));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
