//! WireGuard's own words, `wg show all allowed-ips`, and the list that says whose a public key is.
//!
//! Does no I/O. Text that holds more than public keys and addresses is refused, and nothing of a line
//! that was not understood is ever shown: it might be a private key.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hashbrown::HashMap;
use ipnet::IpNet;

use super::sheet::Columns;
use crate::config;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes of an interface's name at most (`IFNAMSIZ`, without its end).
const INTERFACE_BYTES_MAX: usize = 15;
/// Words that stand before secrets, in `wg showconf`, in files of wg-quick, and in `wg show`.
const SECRET_WORDS: [&str; 4] = ["privatekey", "private key", "presharedkey", "preshared key"];

const COLUMNS: Columns<3> = Columns {
    names: ["public_key", "account", "device"],
    needed: 3,
};

/// A peer of an interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Peer<'t> {
    /// Where it stands in the text, from 1.
    pub(super) line: u64,
    /// Its public key, in base64.
    pub(super) key: &'t str,
    /// The addresses that it may speak from.
    pub(super) networks: Vec<IpNet>,
}

/// Why a text is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextFault {
    /// It may hold private keys, or preshared ones.
    Secret,
    /// There is nothing in it.
    Empty,
    /// The last line has no end.
    Cut,
    /// The line with this number is another one than `wg` prints.
    Strange(u64),
}

impl fmt::Display for TextFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret => f.write_str(
                "may hold private keys, and was not read; give only what \"wg show all \
                 allowed-ips\" prints",
            ),
            Self::Empty => f.write_str(
                "is empty, as if no peer were left; does \"wg show all allowed-ips\" print \
                 anything?",
            ),
            Self::Cut => f.write_str("is cut short: its last line has no end; print it again"),
            Self::Strange(line) => write!(
                f,
                "has something else at line {line} than \"wg show all allowed-ips\" prints: \
                 interface, public key, addresses"
            ),
        }
    }
}

/// The peers in what `wg show all allowed-ips` prints, or `wg show INTERFACE allowed-ips`.
///
/// # Errors
/// [`TextFault`]; nothing of the text may be shown then.
pub(super) fn parse(text: &str) -> Result<Vec<Peer<'_>>, TextFault> {
    if holds_secrets(text) {
        return Err(TextFault::Secret);
    }
    if text.trim_ascii().is_empty() {
        return Err(TextFault::Empty);
    }
    if !text.ends_with('\n') {
        return Err(TextFault::Cut);
    }
    let lines = (1..).zip(text.lines());
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    lines
        .map(|(number, line)| parse_line(number, line).ok_or(TextFault::Strange(number)))
        .collect()
}

fn parse_line(number: u64, line: &str) -> Option<Peer<'_>> {
    let mut words = line.split_ascii_whitespace();
    let first = words.next()?;
    let key = match is_key(first) {
        true => first,
        false if first.len() <= INTERFACE_BYTES_MAX => words.next().filter(|word| is_key(word))?,
        false => return None,
    };
    let mut words = words.peekable();
    let networks = match words.next_if_eq(&"(none)") {
        Some(_) => Vec::new(),
        None => {
            words.peek()?;
            let networks = words.by_ref().map(allowed);
            networks.collect::<Option<_>>()?
        }
    };
    words.next().is_none().then_some(Peer {
        line: number,
        key,
        networks,
    })
}

/// A network as `wg` writes it, always with its length: half of one is none.
fn allowed(word: &str) -> Option<IpNet> {
    let (_, length) = word.split_once('/')?;
    let network = config::network(word).ok()?;
    (!length.is_empty()).then_some(network)
}

fn is_key(word: &str) -> bool {
    let bytes = BASE64_STANDARD.decode(word);
    bytes.is_ok_and(|bytes| bytes.len() == KEY_BYTES)
}

/// Whether there are words that stand before a secret, two keys on a line, as in a dump, or one
/// with nothing behind it.
fn holds_secrets(text: &str) -> bool {
    let small = text.to_ascii_lowercase();
    let has_words = SECRET_WORDS.iter().any(|word| small.contains(word));
    has_words
        || text.lines().any(|line| {
            let words: Vec<bool> = line.split_ascii_whitespace().map(is_key).collect();
            let keys = words.iter().filter(|is_key| **is_key).count();
            keys > 1 || words.last() == Some(&true)
        })
}

/// Which device has which public key.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<String, Owner>);

/// Whose a key is.
#[derive(Debug)]
pub(super) struct Owner {
    line: u64,
    /// *ref* of the device's account.
    pub(super) account: String,
    /// The device's name.
    pub(super) device: String,
}

impl Owners {
    /// What the CSV file says.
    ///
    /// # Errors
    /// A sentence that begins with the place.
    pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Self, String> {
        let mut owners = Self::default();
        COLUMNS.read(file, bytes, |line, [key, account, device]| {
            // Not shown: it might be another key than the public one.
            if !is_key(key) {
                return Err(
                    "public_key is no key of WireGuard: 44 characters, the last a \"=\"".to_owned(),
                );
            }
            let stamped = |name, text| {
                let checked = config::identity_value(text);
                checked.map_err(|message| format!("{name} {message}"))
            };
            let owner = Owner {
                line,
                account: stamped("account", account)?,
                device: stamped("device", device)?,
            };
            match owners.0.insert(key.to_owned(), owner) {
                None => Ok(()),
                Some(first) => Err(format!(
                    "public_key stands at {file}:{} already; leave one out",
                    first.line
                )),
            }
        })?;
        Ok(owners)
    }

    /// Whose this key is.
    pub(super) fn owner(&self, key: &str) -> Option<&Owner> {
        self.0.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    #[test]
    fn peers_are_read_with_and_without_an_interface() {
        let text = format!(
            "wg0\t{ONE}\t10.8.0.7/32 192.168.7.0/24\nwg0\t{TWO}\t(none)\n\n{TWO}\tfd00::7/128\n"
        );
        let peers = parse(&text).expect("peers");
        let shown: Vec<_> = peers
            .iter()
            .map(|peer| (peer.line, peer.key, peer.networks.len()))
            .collect();
        assert_eq!(shown, [(1, ONE, 2), (2, TWO, 0), (4, TWO, 1)]);
        assert_eq!(peers[0].networks[1].to_string(), "192.168.7.0/24");
    }

    #[test]
    fn whatever_could_hold_a_secret_is_not_read() {
        for text in [
            format!("wg0\t{ONE}\t{TWO}\t51820\toff\n"),
            format!("wg0\t{ONE}\t10.8.0.7/32\nwg0\t{ONE}\t{TWO}\n"),
            format!("wg0\t{ONE}\n"),
            format!("{ONE}\n"),
            ONE.to_owned(),
            format!("[Interface]\nPrivateKey = {ONE}\n"),
            "[Interface]\nPRIVATEKEY = short\n".to_owned(),
            "interface: wg0\n  private key: (hidden)\n".to_owned(),
            format!("{ONE}\t10.8.0.7/32 {TWO} 10.8.0.8/32\n"),
        ] {
            let fault = parse(&text).expect_err(&text);
            assert_eq!(fault, TextFault::Secret, "{text}");
            assert!(!fault.to_string().contains(&ONE[..8]));
        }
    }

    #[test]
    fn what_wg_would_not_print_is_refused_by_its_line() {
        for (text, expected) in [
            (" \n".to_owned(), TextFault::Empty),
            (format!("wg0\t{ONE}\t10.8.0.1"), TextFault::Cut),
            (format!("wg0\t{ONE}\t10.8.0.7\n"), TextFault::Strange(1)),
            (format!("wg0\t{ONE}\t10.8.0.7/\n"), TextFault::Strange(1)),
            (format!("wg0\t{ONE}\t10.8.0.7/24\n"), TextFault::Strange(1)),
            (
                format!("{ONE}\t(none)\n{ONE}\t(none) 10.8.0.7/32\n"),
                TextFault::Strange(2),
            ),
            (
                format!("{ONE}\t10.8.0.7/32 (none)\n"),
                TextFault::Strange(1),
            ),
            (
                format!("an-interface-too-long\t{ONE}\t(none)\n"),
                TextFault::Strange(1),
            ),
            (
                format!("wg0\t{}\t(none)\n", &ONE[..40]),
                TextFault::Strange(1),
            ),
            ("wg0\n".to_owned(), TextFault::Strange(1)),
        ] {
            assert_eq!(parse(&text), Err(expected), "{text}");
        }
    }

    #[test]
    fn owners_are_read_and_a_bad_key_is_not_shown() {
        let text = format!("account,device,public_key\nacme,press-07,{ONE}\n");
        let owners = Owners::read("peers.csv", text.as_bytes()).expect("owners");
        let owner = owners.owner(ONE).expect("an owner");
        assert_eq!((&*owner.account, &*owner.device), ("acme", "press-07"));
        assert!(owners.owner(TWO).is_none());
        for (row, words) in [
            (
                format!("acme,press,{}", &ONE[1..]),
                "is no key of WireGuard",
            ),
            (format!("acme,press,{ONE}"), "stands at p:2 already"),
            (format!(",press,{TWO}"), "account is empty"),
        ] {
            let text = format!("account,device,public_key\nacme,press-07,{ONE}\n{row}\n");
            let message = Owners::read("p", text.as_bytes()).expect_err(&row);
            assert!(message.starts_with("p:3: "), "{message}");
            assert!(message.contains(words), "{message}");
            assert!(!message.contains(&ONE[1..9]), "{message}");
        }
    }
}
