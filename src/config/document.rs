//! The configuration file as written: its text, its lines, and what TOML made of it.
//!
//! Knows nothing of m2u's keys; `entry` walks what this holds.

use std::path::Path;

use toml::de::DeTable;

use super::{
    files,
    problem::{Place, Report},
};
use crate::limits;

/// A configuration file's text, with its lines indexed.
pub(super) struct Document {
    text: String,
    line_starts: Vec<usize>,
    place: Place,
}

impl Document {
    /// Reads the file at `path`; `None` if that fails, which is reported.
    pub(super) fn read(path: &Path, report: &mut Report) -> Option<Self> {
        let place = Place::file(path);
        let bytes = match files::read(path, limits::CONFIG_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(fault) => {
                report.add(
                    &place,
                    format!("{fault}; name the configuration with --config FILE"),
                );
                return None;
            }
        };
        match String::from_utf8(bytes) {
            Ok(text) => Some(Self::new(text, place)),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + memchr::memchr_iter(b'\n', valid).count() as u64;
                report.add(
                    &place.at_line(line),
                    "is not UTF-8 text from here on; save the file as UTF-8",
                );
                None
            }
        }
    }

    fn new(mut text: String, place: Place) -> Self {
        // Editors on Windows leave a mark that is no part of TOML.
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        let newlines = memchr::memchr_iter(b'\n', text.as_bytes()).map(|at| at + 1);
        let line_starts = std::iter::once(0).chain(newlines).collect();
        Self {
            text,
            line_starts,
            place,
        }
    }

    /// What TOML makes of the text; each syntax error is reported and what stands around it kept.
    pub(super) fn parse<'a>(&'a self, report: &mut Report) -> DeTable<'a> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        for error in errors {
            let span = error.span().unwrap_or_default();
            let mut message = format!("is not TOML: {}", error.message());
            // Only the name of a key is shown: any other text might be a password.
            if error.message() == "duplicate key"
                && let Some(key) = self.text.get(span.clone())
            {
                message = format!("the key {key} stands here twice; leave one out");
            }
            report.add_unreadable(self.place.at_line(self.line(span.start)), message);
        }
        table.into_inner()
    }

    /// The line, from 1, that holds the byte at `offset`.
    pub(super) fn line(&self, offset: usize) -> u64 {
        self.line_starts.partition_point(|start| *start <= offset) as u64
    }

    /// The file as a whole.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_belongs_to_the_line_it_stands_in() {
        let document = Document::new(
            "a = 1\n\nb = 2\n".to_owned(),
            Place::file(Path::new("m2u.toml")),
        );
        for (offset, line) in [(0, 1), (5, 1), (6, 2), (7, 3), (12, 3), (13, 4)] {
            assert_eq!(document.line(offset), line, "byte {offset}");
        }
    }

    #[test]
    fn syntax_errors_show_their_line_and_never_the_text() {
        let text = "listen = [\"127.0.0.1:80\"]\npassword = \"geheim\nlisten = []\n";
        let document = Document::new(text.to_owned(), Place::file(Path::new("m2u.toml")));
        let mut report = Report::default();
        document.parse(&mut report);
        let shown: Vec<_> = report
            .into_problems()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            shown
                .iter()
                .any(|line| line.starts_with("m2u.toml:2: is not TOML: "))
        );
        assert!(
            shown.contains(
                &"m2u.toml:3: the key listen stands here twice; leave one out".to_owned()
            )
        );
        assert!(
            shown.iter().all(|line| !line.contains("geheim")),
            "{shown:?}"
        );
    }
}
