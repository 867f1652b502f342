//! Leases in columns, for people. Asks nobody; what it is given is all that it shows.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::control::lease::protocol::{Changed, Event, Happening, Shown, State};

const COLUMNS: [&str; 8] = [
    "address", "scope", "source", "account", "device", "session", "state", "expires",
];
/// Characters of each column at least, where lines are shown before it is known what follows.
const WIDTHS: [usize; 8] = [18, 5, 9, 8, 12, 8, 11, 7];
/// Stands where there is nothing.
const NONE: &str = "-";

/// One line for each lease below a line of titles, all columns as wide as they need to be.
pub(super) fn table(leases: &[Shown<'_>]) -> String {
    let titles = COLUMNS.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(titles)
        .chain(leases.iter().map(cells))
        .collect();
    let widths = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    });
    rows.iter().map(|row| aligned(row, widths)).collect()
}

/// The titles above events.
pub(super) fn event_titles() -> String {
    format!(
        "{:<7}{}",
        "event",
        aligned(&COLUMNS.map(str::to_owned), WIDTHS)
    )
}

/// One line for an event.
pub(super) fn event(event: &Event<'_>) -> String {
    let word = match event.event {
        Happening::Leased => "leased",
        Happening::Ended => "ended",
    };
    let cells = match &event.lease {
        Changed::Whole(lease) => cells(lease),
        Changed::Place {
            address,
            scope,
            source,
        } => {
            let scope = scope.as_deref().unwrap_or(NONE);
            let mut cells = [NONE; 8];
            cells[..3].copy_from_slice(&[address, scope, source]);
            cells.map(str::to_owned)
        }
    };
    format!("{word:<7}{}", aligned(&cells, WIDTHS))
}

fn cells(lease: &Shown<'_>) -> [String; 8] {
    let state = match lease.state {
        State::Confirmed => "confirmed",
        State::Unconfirmed => "unconfirmed",
        State::Suspended => "suspended",
        State::Disputed => "disputed",
    };
    [
        lease.address.to_string(),
        lease.scope.as_deref().unwrap_or(NONE).to_owned(),
        lease.source.to_string(),
        lease.account.to_string(),
        lease.device.to_string(),
        lease.session.as_deref().unwrap_or(NONE).to_owned(),
        state.to_owned(),
        lease.expires_ms.map_or(NONE.to_owned(), time),
    ]
}

/// The time in UTC, to the second.
fn time(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1_000).ok();
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let written = time.and_then(|time| time.format(&Rfc3339).ok());
    written.unwrap_or_else(|| format!("{ms} ms"))
}

fn aligned(cells: &[String; 8], widths: [usize; 8]) -> String {
    let cells = cells.iter().zip(widths);
    let line: String = cells
        .map(|(cell, width)| format!("{cell:<width$}  "))
        .collect();
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(address: &'static str, expires_ms: Option<u64>) -> Shown<'static> {
        Shown {
            address: address.into(),
            scope: None,
            source: "manual".into(),
            account: "acme".into(),
            device: "Zürich 7".into(),
            session: Some("s1".into()),
            epoch: 0,
            expires_ms,
            until_ms: None,
            state: State::Unconfirmed,
        }
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let shown = table(&[
            lease("10.8.0.7", Some(1_790_000_000_999)),
            lease("fd00::/64", None),
        ]);
        assert_eq!(
            shown,
            "\
address    scope  source  account  device    session  state        expires
10.8.0.7   -      manual  acme     Zürich 7  s1       unconfirmed  2026-09-21T14:13:20Z
fd00::/64  -      manual  acme     Zürich 7  s1       unconfirmed  -
"
        );
        assert_eq!(table(&[]).lines().count(), 1);
    }

    #[test]
    fn events_stand_below_their_titles() {
        let leased = Event {
            event: Happening::Leased,
            revision: 7,
            lease: Changed::Whole(lease("10.8.0.7", None)),
        };
        let ended = Event {
            event: Happening::Ended,
            revision: 8,
            lease: Changed::Place {
                address: "10.8.0.7".to_owned(),
                scope: Some("north".to_owned()),
                source: "manual".to_owned(),
            },
        };
        let lines = [event_titles(), event(&leased), event(&ended)];
        let at = |line: &str, word| line.find(word).expect(word);
        assert_eq!(at(&lines[0], "source"), at(&lines[1], "manual"));
        assert_eq!(at(&lines[0], "scope"), at(&lines[2], "north"));
        assert_eq!(at(&lines[0], "state"), at(&lines[1], "unconfirmed") - 1);
        assert!(lines[2].starts_with("ended  10.8.0.7"));
    }
}
