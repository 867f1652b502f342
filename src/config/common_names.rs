//! Whose device a VPN client is, by the common name of its certificate: written out, listed, or by a
//! pattern.
//!
//! What is written out beats the list, and the list beats the pattern. A name has one device or
//! none: a pattern that could be read in two ways does not come into being. Reads no file.

use std::{path::PathBuf, sync::Arc};

use crate::limits;

/// How OpenVPN calls a client that has shown no name.
pub(super) const NAMELESS: &str = "UNDEF";

const ACCOUNT: &str = "{account}";
const DEVICE: &str = "{device}";

/// The common names of one hub's clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommonNames {
    /// Names that the configuration has with the hub.
    pub written: NameList,
    /// The list's file, and what it holds.
    pub listed: Option<(PathBuf, Arc<NameList>)>,
    /// For all other names.
    pub pattern: Option<Pattern>,
}

impl CommonNames {
    /// Account and device of the client with this common name; whether they exist is not known here.
    pub fn device<'a>(&'a self, common_name: &'a str) -> Option<(&'a str, &'a str)> {
        if common_name == NAMELESS {
            return None;
        }
        let written = self.written.device(common_name);
        let listed = || self.listed.as_ref()?.1.device(common_name);
        let derived = || self.pattern.as_ref()?.device(common_name);
        written.or_else(listed).or_else(derived)
    }
}

/// Common names with their devices, sorted; kept small, for there may be millions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameList {
    text: String,
    rows: Vec<Row>,
}

/// Where a row's three texts stand, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    at: u32,
    name_bytes: u8,
    account_bytes: u8,
    device_bytes: u8,
}

/// Names being collected, each with where it was written.
pub(super) struct Draft<P> {
    text: String,
    rows: Vec<(Row, P)>,
}

impl<P> Draft<P> {
    /// No names yet.
    pub(super) fn new() -> Self {
        Self {
            text: String::new(),
            rows: Vec::new(),
        }
    }

    /// Adds a common name with account and device, none of them longer than 255 bytes.
    pub(super) fn push(&mut self, [name, account, device]: [&str; 3], place: P) {
        const BOUND: &str = "lengths were checked";
        let length = |text: &str| u8::try_from(text.len()).expect(BOUND);
        let row = Row {
            at: u32::try_from(self.text.len()).expect(BOUND),
            name_bytes: length(name),
            account_bytes: length(account),
            device_bytes: length(device),
        };
        for text in [name, account, device] {
            self.text.push_str(text);
        }
        self.rows.push((row, place));
    }

    /// The names in order. Of two that are the same the second is left out; `double` is told of
    /// both.
    pub(super) fn finish(self, mut double: impl FnMut(&str, &P, &P)) -> NameList {
        let Self { text, mut rows } = self;
        let name = |row: &Row| row.texts(&text)[0];
        // Stable: what was written first stays first.
        rows.sort_by(|(a, _), (b, _)| name(a).cmp(name(b)));
        for same in rows.chunk_by(|(a, _), (b, _)| name(a) == name(b)) {
            let (row, first) = &same[0];
            for (_, another) in &same[1..] {
                double(name(row), first, another);
            }
        }
        rows.dedup_by(|(b, _), (a, _)| name(a) == name(b));
        let rows = rows.into_iter().map(|(row, _)| row).collect();
        NameList { text, rows }
    }
}

impl Row {
    fn texts<'t>(&self, text: &'t str) -> [&'t str; 3] {
        let text = &text[self.at as usize..];
        let (name, text) = text.split_at(self.name_bytes.into());
        let (account, text) = text.split_at(self.account_bytes.into());
        [name, account, &text[..self.device_bytes.into()]]
    }
}

impl NameList {
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Account and device of this name.
    pub fn device(&self, name: &str) -> Option<(&str, &str)> {
        let order = |row: &Row| row.texts(&self.text)[0].cmp(name);
        let found = self.rows.binary_search_by(order).ok()?;
        let [_, account, device] = self.rows[found].texts(&self.text);
        Some((account, device))
    }

    /// Every common name with its account and device.
    pub fn iter(&self) -> impl Iterator<Item = [&str; 3]> {
        self.rows.iter().map(|row| row.texts(&self.text))
    }
}

/// A common name's shape, such as `ewon-{account}.{device}`: fixed text around account and device.
///
/// A name must fit from end to end. The account ends (or begins) at the nearest separator, so that
/// no name can be read in two ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    written: String,
    before: String,
    separator: String,
    after: String,
    order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    AccountFirst,
    DeviceFirst,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let advice = "write \"{account}\" and \"{device}\" once each, with fixed text between them, \
                      such as \"{account}.{device}\"";
        if text.len() > limits::COMMON_NAME_BYTES_MAX {
            let bytes_max = limits::COMMON_NAME_BYTES_MAX;
            return Err(format!("is longer than {bytes_max} bytes, as no name is"));
        }
        if text.chars().any(char::is_control) {
            return Err("holds a control character, which no common name does".to_owned());
        }
        let once = |placeholder| text.match_indices(placeholder).count() == 1;
        let braces = |brace| text.matches(brace).count();
        if !once(ACCOUNT) || !once(DEVICE) || braces('{') != 2 || braces('}') != 2 {
            return Err(format!("{text:?} is no pattern; {advice}"));
        }
        let (order, first, second) = match text.find(ACCOUNT) < text.find(DEVICE) {
            true => (Order::AccountFirst, ACCOUNT, DEVICE),
            false => (Order::DeviceFirst, DEVICE, ACCOUNT),
        };
        let (before, rest) = text.split_once(first).unwrap_or_default();
        let (separator, after) = rest.split_once(second).unwrap_or_default();
        if separator.is_empty() {
            return Err(format!(
                "{text:?} does not say where the account ends and the device begins; {advice}"
            ));
        }
        if is_bordered(separator) {
            return Err(format!(
                "{text:?} has the separator {separator:?}, which can overlap with itself, so that a \
                 name could be read in two ways; write one character, such as \".\""
            ));
        }
        Ok(Self {
            written: text.to_owned(),
            before: before.to_owned(),
            separator: separator.to_owned(),
            after: after.to_owned(),
            order,
        })
    }

    /// Account and device that `name` is made of; `None` if it has another shape.
    pub fn device<'n>(&self, name: &'n str) -> Option<(&'n str, &'n str)> {
        let inside = name.strip_prefix(self.before.as_str())?;
        let inside = inside.strip_suffix(self.after.as_str())?;
        let (account, device) = self.split(inside)?;
        (!account.is_empty() && !device.is_empty()).then_some((account, device))
    }

    /// The account that devices of the account `reference` would be taken for.
    ///
    /// Only an account whose ref holds the separator is read as another.
    pub(super) fn mistakes<'r>(&self, reference: &'r str) -> Option<&'r str> {
        Some(self.split(reference)?).map(|(account, _)| account)
    }

    /// The text that fixes where the account ends.
    pub(super) fn separator(&self) -> &str {
        &self.separator
    }

    /// As the configuration has it.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    fn split<'t>(&self, text: &'t str) -> Option<(&'t str, &'t str)> {
        match self.order {
            Order::AccountFirst => text.split_once(self.separator.as_str()),
            Order::DeviceFirst => {
                let (device, account) = text.rsplit_once(self.separator.as_str())?;
                Some((account, device))
            }
        }
    }
}

/// Whether `text` begins with what it also ends with, and so can overlap with itself.
fn is_bordered(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..bytes.len()).any(|length| bytes.starts_with(&bytes[bytes.len() - length..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(names: &[[&str; 3]]) -> NameList {
        let mut draft = Draft::new();
        for name in names {
            draft.push(*name, ());
        }
        draft.finish(|name, (), ()| panic!("{name} is twice"))
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect(text)
    }

    #[test]
    fn what_is_written_beats_the_list_and_the_list_the_pattern() {
        let names = CommonNames {
            written: list(&[["a.one", "acme", "written"]]),
            listed: Some((
                PathBuf::from("north.csv"),
                Arc::new(list(&[
                    ["a.one", "acme", "listed"],
                    ["a.two", "acme", "listed"],
                ])),
            )),
            pattern: Some(pattern("{account}.{device}")),
        };
        assert_eq!(names.device("a.one"), Some(("acme", "written")));
        assert_eq!(names.device("a.two"), Some(("acme", "listed")));
        assert_eq!(names.device("a.three"), Some(("a", "three")));
        assert_eq!(names.device("A-ONE"), None);
        assert_eq!(names.device(NAMELESS), None);
        assert_eq!(names.device(""), None);
        assert_eq!(CommonNames::default().device("a.one"), None);
    }

    #[test]
    fn a_list_finds_each_name_and_reports_doubles() {
        let mut draft = Draft::new();
        let rows = [("b", "two"), ("a", "one"), ("b", "three"), ("ü", "u")];
        for (line, (name, device)) in (2..).zip(rows) {
            draft.push([name, "acme", device], line);
        }
        let mut doubles = Vec::new();
        let list = draft.finish(|name, first, another| {
            doubles.push((name.to_owned(), *first, *another));
        });
        assert_eq!(doubles, [("b".to_owned(), 2, 4)]);
        assert_eq!(list.device("a"), Some(("acme", "one")));
        assert_eq!(list.device("b"), Some(("acme", "two")));
        assert_eq!(list.device("ü"), Some(("acme", "u")));
        assert_eq!(list.device("c"), None);
        assert_eq!(list.len(), 3);
    }

    #[test]
    fn a_pattern_fits_from_end_to_end_and_the_account_holds_no_separator() {
        for (text, name, expected) in [
            (
                "{account}.{device}",
                "acme.press-07",
                Some(("acme", "press-07")),
            ),
            (
                "{account}.{device}",
                "acme.press.07",
                Some(("acme", "press.07")),
            ),
            ("{account}.{device}", ".press", None),
            ("{account}.{device}", "acme.", None),
            ("{account}.{device}", "acme", None),
            ("{account}.{device}", "", None),
            (
                "{device}@{account}",
                "press@07@acme",
                Some(("acme", "press@07")),
            ),
            (
                "ewon-{account}.{device}.vpn",
                "ewon-acme.p7.vpn",
                Some(("acme", "p7")),
            ),
            ("ewon-{account}.{device}.vpn", "xewon-acme.p7.vpn", None),
            ("ewon-{account}.{device}.vpn", "ewon-acme.p7.vpnx", None),
            ("ewon-{account}.{device}.vpn", "ewon-acme.vpn", None),
            ("ewon-{account}.{device}.vpn", "ewon-.vpn", None),
            ("{account}ab{device}", "xabyabz", Some(("x", "yabz"))),
        ] {
            assert_eq!(pattern(text).device(name), expected, "{text} {name}");
        }
    }

    #[test]
    fn patterns_that_can_be_read_in_two_ways_are_refused() {
        for (text, words) in [
            ("", "once each"),
            ("{account}", "once each"),
            ("{device}", "once each"),
            ("{account}.{device}.{account}", "once each"),
            ("{account}.{device}.{serial}", "once each"),
            ("{account}.{device", "once each"),
            ("{{account}.{device}}", "once each"),
            ("{account}{device}", "where the account ends"),
            ("x{device}{account}", "where the account ends"),
            ("{account}--{device}", "overlap with itself"),
            ("{account}aba{device}", "overlap with itself"),
            ("{account}\t{device}", "control character"),
        ] {
            let message = Pattern::parse(text).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
        let long = format!("{{account}}.{{device}}{}", "x".repeat(300));
        assert!(Pattern::parse(&long).is_err());
    }

    proptest! {
        /// Whatever fits a pattern is made of its account and device in one way only, the account
        /// without the separator.
        #[test]
        fn a_name_is_read_in_one_way(
            separator in "[.a-]{1,3}",
            before in "[a.]{0,2}",
            after in "[a.]{0,2}",
            name in "[ab.-]{0,12}",
        ) {
            for text in [
                format!("{before}{{account}}{separator}{{device}}{after}"),
                format!("{before}{{device}}{separator}{{account}}{after}"),
            ] {
                let Ok(pattern) = Pattern::parse(&text) else { continue };
                let compose = |account: &str, device: &str| {
                    text.replace("{account}", account).replace("{device}", device)
                };
                let inside = name.strip_prefix(&before).and_then(|n| n.strip_suffix(&after));
                let mut readings = Vec::new();
                if let Some(inside) = inside {
                    for (at, _) in inside.match_indices(['.', 'a', '-']) {
                        let Some(rest) = inside[at..].strip_prefix(&separator) else { continue };
                        let (first, second) = (&inside[..at], rest);
                        let (account, device) = match text.find("{account}") < text.find("{device}") {
                            true => (first, second),
                            false => (second, first),
                        };
                        if !account.is_empty() && !device.is_empty() && !account.contains(&separator) {
                            readings.push((account, device));
                        }
                    }
                }
                let found = pattern.device(&name);
                if let Some((account, device)) = found {
                    prop_assert_eq!(compose(account, device), name.clone());
                    prop_assert!(!account.contains(&separator));
                }
                prop_assert!(readings.len() <= 1, "{} {}: {:?}", text, name, readings);
                prop_assert_eq!(readings.first().copied(), found);
            }
        }
    }
}
