//! All that a source has to say, as lines of the feed, each with its line in the file it comes from.
//!
//! Checks what can be told without a gateway, so that a mistake is named by its place. Sends nothing.

use hashbrown::HashMap;
use ipnet::IpNet;

use super::sheet::Columns;
use crate::{
    config,
    control::lease::protocol::{self, Op, Request},
};

const COLUMNS: Columns<6> = Columns {
    names: [
        "address",
        "account",
        "device",
        "session",
        "scope",
        "expires_in",
    ],
    needed: 3,
};

/// What a `sync` carries.
#[derive(Debug, Default)]
pub(super) struct Set {
    /// As people name the file.
    file: String,
    text: Vec<u8>,
    /// The line of the file that each line of the set comes from.
    lines: Vec<u64>,
    /// The same by network and scope, each of which stands once.
    places: HashMap<(IpNet, Option<String>), u64>,
}

impl Set {
    /// Of the file that people know by this name; empty.
    pub(super) fn of(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            ..Self::default()
        }
    }

    /// What the CSV file says.
    ///
    /// # Errors
    /// A sentence that begins with the place.
    pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Self, String> {
        let mut set = Self::of(file);
        COLUMNS.read(file, bytes, |line, cells| {
            let [address, account, device, session, scope, expires_in] = cells;
            let expires_in = match expires_in {
                "" => None,
                text => Some(seconds(text)?),
            };
            let request = Request {
                account: Some(stamped("account", account)?),
                device: Some(stamped("device", device)?),
                session: word("session", session)?,
                scope: word("scope", scope)?,
                expires_in,
                ..Request::default()
            };
            set.push(line, config::network(address)?, request)
        })?;
        Ok(set)
    }

    /// Adds a lease of `network`, which stands on this line of the file.
    ///
    /// # Errors
    /// The network is in the set already, in the same scope.
    pub(super) fn push(
        &mut self,
        line: u64,
        network: IpNet,
        request: Request,
    ) -> Result<(), String> {
        let place = (network, request.scope.clone());
        if let Some(first) = self.places.insert(place, line) {
            let (network, file) = (protocol::written(network), &self.file);
            return Err(format!(
                "{network} stands at {file}:{first} already; give it to one device only"
            ));
        }
        let request = Request {
            address: Some(protocol::written(network)),
            ..request
        };
        self.text.extend(line_of(&request));
        self.lines.push(line);
        Ok(())
    }

    /// The requests that put it in the place of all that `source` has said.
    pub(super) fn requests(&self, source: &str, epoch: Option<u64>) -> Vec<u8> {
        let sync = Request {
            op: Some(Op::Sync),
            source: Some(source.to_owned()),
            epoch,
            ..Request::default()
        };
        let commit = Request {
            op: Some(Op::Commit),
            ..Request::default()
        };
        [line_of(&sync), self.text.clone(), line_of(&commit)].concat()
    }

    /// Where the line with this number, from 1, comes from: `file:line: `.
    pub(super) fn place(&self, number: usize) -> String {
        match number.checked_sub(1).and_then(|at| self.lines.get(at)) {
            Some(line) => format!("{}:{line}: ", self.file),
            None => String::new(),
        }
    }
}

/// A request as it is sent.
pub(super) fn line_of(request: &Request) -> Vec<u8> {
    // It has no map whose keys could be no text.
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    line
}

fn stamped(name: &str, text: &str) -> Result<String, String> {
    config::identity_value(text).map_err(|message| format!("{name} {message}"))
}

/// A source, session or scope; empty: none.
fn word(name: &str, text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    protocol::check_word(name, text)?;
    Ok(Some(text.to_owned()))
}

fn seconds(text: &str) -> Result<u32, String> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(seconds) if is_plain && seconds > 0 => Ok(seconds),
        _ => Err(format!(
            "expires_in is {text:?}; write whole seconds, such as 600, or nothing"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_becomes_a_line_of_the_feed() {
        let text = "address,account,device,expires_in,session\n\
            10.8.0.7,acme,press-07,,\n\
            \n\
            ::ffff:10.8.1.0/120,acme,\"mill, left\",600,s1\n";
        let set = Set::read("a.csv", text.as_bytes()).expect("a set");
        let sent = String::from_utf8(set.requests("hub", Some(3))).expect("text");
        assert_eq!(
            sent.lines().collect::<Vec<_>>(),
            [
                r#"{"op":"sync","source":"hub","epoch":3}"#,
                r#"{"address":"10.8.0.7","account":"acme","device":"press-07"}"#,
                r#"{"address":"10.8.1.0/24","account":"acme","device":"mill, left","session":"s1","expires_in":600}"#,
                r#"{"op":"commit"}"#,
            ]
        );
        assert_eq!(set.place(1), "a.csv:2: ");
        assert_eq!(set.place(2), "a.csv:4: ");
        assert_eq!((set.place(0), set.place(3)), Default::default());
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (row, words) in [
            ("10.8.0,acme,press,,", "\"10.8.0\" is neither an address"),
            ("10.8.0.7/24,acme,press,,", "bits set behind its prefix"),
            ("10.8.0.7,,press,,", "account is empty"),
            ("10.8.0.7,acme, press,,", "device \" press\" begins or ends"),
            ("10.8.0.7,acme,press,,1m", "expires_in is \"1m\""),
            ("10.8.0.7,acme,press,,0", "expires_in is \"0\""),
            ("10.8.0.7,acme,press,,+1", "expires_in is \"+1\""),
            (
                "10.8.0.7,acme,press,\u{7},",
                "scope holds a control character",
            ),
            (
                "10.8.0.9,acme,press,,",
                "10.8.0.9 stands at a.csv:2 already",
            ),
        ] {
            let text = format!(
                "address,account,device,scope,expires_in\n10.8.0.9,acme,saw,,\n10.8.0.9,acme,saw,\
                 north,\n{row}\n"
            );
            let message = Set::read("a.csv", text.as_bytes()).expect_err(row);
            assert!(message.starts_with("a.csv:4: "), "{message}");
            assert!(message.contains(words), "{row}: {message}");
        }
    }
}
