//! Walks the parsed file key by key, with types checked and every mistake reported in its place.
//!
//! A mistake makes a reader return `None` and the walk go on, so that all are found at once.

use std::{fmt::Display, ops::RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    document::Document,
    problem::{Place, Report},
};

/// How alike a key must be to a known one to be taken for a slip of the pen (Jaro-Winkler).
const SLIP: f64 = 0.85;

/// One table of the file whose keys are known.
pub(super) struct Table<'a> {
    document: &'a Document,
    entries: &'a DeTable<'a>,
    pub(super) place: Place,
}

/// One value of the file, with where it stands.
pub(super) struct Entry<'a> {
    document: &'a Document,
    value: &'a DeValue<'a>,
    pub(super) place: Place,
}

impl<'a> Table<'a> {
    /// The file as a whole; keys that are not among `known` are reported.
    pub(super) fn root(
        document: &'a Document,
        entries: &'a DeTable<'a>,
        known: &[&str],
        report: &mut Report,
    ) -> Self {
        let table = Self {
            document,
            entries,
            place: document.place().clone(),
        };
        table.report_unknown(known, report);
        table
    }

    /// The value of `key`, if the table has it.
    pub(super) fn entry(&self, key: &str) -> Option<Entry<'a>> {
        let value = self.entries.get(key)?;
        Some(Entry::new(self.document, value, self.key_path(key)))
    }

    /// The value of `key`; its absence is reported with `advice`.
    pub(super) fn required(
        &self,
        key: &str,
        advice: &str,
        report: &mut Report,
    ) -> Option<Entry<'a>> {
        let entry = self.entry(key);
        if entry.is_none() {
            let place = self.place.at_key(self.key_path(key));
            report.add_missing(&place, format!("is missing; {advice}"));
        }
        entry
    }

    fn key_path(&self, key: &str) -> String {
        match self.place.key.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    fn report_unknown(&self, known: &[&str], report: &mut Report) {
        for key in self.entries.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let place = self
                .place
                .at_line(self.document.line(key.span().start))
                .at_key(self.key_path(&shown(name)));
            report.add(&place, unknown_key(name, known));
        }
    }
}

/// A key as a message may show it: a quoted one may hold anything, even a line break.
fn shown(key: &str) -> String {
    let bare = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    match !key.is_empty() && key.chars().all(bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    }
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    let likeness = |key: &&&str| strsim::jaro_winkler(name, key);
    let nearest = known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest {
        Some(key) if likeness(&key) >= SLIP => {
            format!("is not a key that m2u knows; did you mean \"{key}\"?")
        }
        Some(key) => format!(
            "is not a key that m2u knows; the nearest is \"{key}\", all here are: {}",
            known.join(", ")
        ),
        None => "is not a key that m2u knows".to_owned(),
    }
}

impl<'a> Entry<'a> {
    fn new(document: &'a Document, value: &'a Spanned<DeValue<'a>>, key: String) -> Self {
        let line = document.line(value.span().start);
        Self {
            document,
            value: value.get_ref(),
            place: document.place().at_line(line).at_key(key),
        }
    }

    /// The value as `true` or `false`.
    pub(super) fn boolean(&self, report: &mut Report) -> Option<bool> {
        match self.value {
            DeValue::Boolean(value) => Some(*value),
            _ => self.mismatch("true or false", report),
        }
    }

    /// The value as a whole number within `range`.
    pub(super) fn integer<T>(&self, range: RangeInclusive<T>, report: &mut Report) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let DeValue::Integer(digits) = self.value else {
            return self.mismatch("a whole number", report);
        };
        let number = i128::from_str_radix(digits.as_str(), digits.radix()).ok();
        let number = number.and_then(|number| T::try_from(number).ok());
        let inside = number.filter(|number| range.contains(number));
        if inside.is_none() {
            let (least, most) = (range.start(), range.end());
            let message =
                format!("{digits} is out of range; write a number from {least} to {most}");
            report.add(&self.place, message);
        }
        inside
    }

    /// The value as a string that `read` understands; `read` says what is wrong and what is right.
    pub(super) fn parse<T>(
        &self,
        read: impl FnOnce(&str) -> Result<T, String>,
        report: &mut Report,
    ) -> Option<T> {
        self.parse_as("text in quotes", read, report)
    }

    /// [`parse`](Self::parse), with `wanted` in the message if the value is no string.
    pub(super) fn parse_as<T>(
        &self,
        wanted: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
        report: &mut Report,
    ) -> Option<T> {
        let DeValue::String(text) = self.value else {
            return self.mismatch(wanted, report);
        };
        read(text)
            .map_err(|message| report.add(&self.place, message))
            .ok()
    }

    /// The elements of an array; `what` names them in the message if it is none.
    pub(super) fn elements(&self, what: &str, report: &mut Report) -> Option<Vec<Entry<'a>>> {
        let DeValue::Array(values) = self.value else {
            return self.mismatch(&format!("an array of {what}"), report);
        };
        let elements = values.iter().enumerate().map(|(index, value)| {
            Entry::new(self.document, value, format!("{}[{index}]", self.place.key))
        });
        Some(elements.collect())
    }

    /// The value as a table; keys that are not among `known` are reported. `form` shows how to
    /// write it in the message if it is none.
    pub(super) fn table(
        &self,
        known: &[&str],
        form: &str,
        report: &mut Report,
    ) -> Option<Table<'a>> {
        let DeValue::Table(entries) = self.value else {
            return self.mismatch(&format!("a table: {form}"), report);
        };
        let table = Table {
            document: self.document,
            entries,
            place: self.place.clone(),
        };
        table.report_unknown(known, report);
        Some(table)
    }

    /// The values of a table whose keys are names of the operator's own; `form` shows how to write
    /// it in the message if it is none.
    pub(super) fn named(
        &self,
        form: &str,
        report: &mut Report,
    ) -> Option<Vec<(&'a str, Entry<'a>)>> {
        let DeValue::Table(entries) = self.value else {
            return self.mismatch(&format!("a table: {form}"), report);
        };
        let entries = entries.iter().map(|(name, value)| {
            let name: &str = name.get_ref();
            let key = format!("{}.{}", self.place.key, shown(name));
            (name, Entry::new(self.document, value, key))
        });
        Some(entries.collect())
    }

    /// Whether the value is a table.
    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// Reports that the value is of another type. The value is not shown: it may be a password.
    fn mismatch<T>(&self, wanted: &str, report: &mut Report) -> Option<T> {
        let kind = match self.value {
            DeValue::String(_) => "text in quotes",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        report.add(&self.place, format!("is {kind}; write {wanted}"));
        None
    }
}
