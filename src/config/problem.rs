//! What is wrong with a configuration: where, what, and what would be right.
//!
//! Never holds a password or a key; whoever writes a message sees to that.

use std::{fmt, path::Path, sync::Arc};

use crate::limits;

/// One mistake, shown as `m2u.toml:14: account[0].server[1].url: what is wrong; what is right`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    place: Place,
    message: String,
    count: usize,
}

impl Problem {
    /// A mistake at `place`.
    pub(super) fn new(place: Place, message: impl Into<String>) -> Self {
        Self {
            place,
            message: message.into(),
            count: 1,
        }
    }

    /// The file, or the flag, that holds the mistake.
    pub fn file(&self) -> &str {
        &self.place.file
    }

    /// Line in the file, from 1; `None` where no line is at fault.
    pub fn line(&self) -> Option<u64> {
        self.place.line
    }

    /// Path of the key, such as `account[0].server[1].url`; empty where no key is at fault.
    pub fn key(&self) -> &str {
        &self.place.key
    }

    /// What is wrong, and what would be right.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Mistakes that this entry stands for: more than one only for the last of a long list.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Where something stands: file, line and key, as far as each is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Arc<str>,
    pub(super) line: Option<u64>,
    pub(super) key: String,
}

impl Place {
    /// A whole file.
    pub(super) fn file(path: &Path) -> Self {
        Self {
            file: path.display().to_string().into(),
            line: None,
            key: String::new(),
        }
    }

    /// A flag of the command line.
    pub(super) fn flag(name: &str) -> Self {
        Self {
            file: name.into(),
            line: None,
            key: String::new(),
        }
    }

    /// The same file at another line, and no key.
    pub(super) fn at_line(&self, line: u64) -> Self {
        Self {
            file: Arc::clone(&self.file),
            line: Some(line),
            key: String::new(),
        }
    }

    /// The same file and line at another key.
    pub(super) fn at_key(&self, key: impl Into<String>) -> Self {
        Self {
            file: Arc::clone(&self.file),
            line: self.line,
            key: key.into(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        Ok(())
    }
}

/// Collects problems; keeps a bounded number of them and counts the rest.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: Vec<Problem>,
    beyond: usize,
    /// Whether one of them is more than a doubt.
    has_fault: bool,
    /// Lines the TOML parser could not read: what it guessed there is not judged again.
    unreadable: Vec<Place>,
}

impl Report {
    /// Adds a problem, unless the parser has already refused that very line.
    pub(super) fn add(&mut self, place: &Place, message: impl Into<String>) {
        let refused = |line: &Place| line.line == place.line && line.file == place.file;
        if self.unreadable.iter().any(refused) {
            return;
        }
        self.has_fault = true;
        self.push(place, message);
    }

    /// Adds a problem that the gateway can run with: it concerns one server, and may come, or go, by itself
    /// while it runs.
    pub(super) fn add_doubt(&mut self, place: &Place, message: impl Into<String>) {
        self.push(place, message);
    }

    fn push(&mut self, place: &Place, message: impl Into<String>) {
        if self.problems.len() < limits::PROBLEMS_MAX {
            self.problems.push(Problem::new(place.clone(), message));
        } else {
            self.beyond += 1;
        }
    }

    /// Adds a problem about something that is absent, unless a line that the parser could not read
    /// may have held it.
    pub(super) fn add_missing(&mut self, place: &Place, message: impl Into<String>) {
        if self.unreadable.is_empty() {
            self.add(place, message);
        }
    }

    /// Adds what the TOML parser refused.
    pub(super) fn add_unreadable(&mut self, place: Place, message: impl Into<String>) {
        self.add(&place, message);
        self.unreadable.push(place);
    }

    /// Nothing was wrong, but for doubts.
    pub(super) fn is_fine(&self) -> bool {
        !self.has_fault
    }

    /// The problems in the order of their files and lines; the last may stand for many.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems;
        let Some(first) = problems.first() else {
            return problems;
        };
        let file = Arc::clone(&first.place.file);
        problems.sort_by_key(|problem| (problem.place.file != file, problem.place.line));
        if self.beyond > 0 {
            let place = Place {
                file,
                line: None,
                key: String::new(),
            };
            problems.push(Problem {
                count: self.beyond,
                ..Problem::new(place, format!("and {} more problems", self.beyond))
            });
        }
        problems
    }
}

/// Shows problems one a line, and how many there are.
#[derive(Debug, Clone, Copy)]
pub struct Summary<'a>(pub &'a [Problem]);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.0.iter().map(Problem::count).sum::<usize>() {
            1 => writeln!(f, "1 problem"),
            count => writeln!(f, "{count} problems"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: u64) -> Place {
        Place::file(Path::new("m2u.toml")).at_line(line)
    }

    #[test]
    fn problems_come_out_by_line_and_the_rest_is_counted() {
        let mut report = Report::default();
        for line in (1..=limits::PROBLEMS_MAX as u64 + 7).rev() {
            report.add(&place(line), "is wrong");
        }
        let problems = report.into_problems();
        assert_eq!(problems.len(), limits::PROBLEMS_MAX + 1);
        assert_eq!(problems[0].to_string(), "m2u.toml:8: is wrong");
        assert_eq!(
            problems.last().expect("a last one").to_string(),
            "m2u.toml: and 7 more problems"
        );
        assert!(
            Summary(&problems)
                .to_string()
                .ends_with(&format!("\n{} problems\n", limits::PROBLEMS_MAX + 7))
        );
    }

    #[test]
    fn a_line_the_parser_refused_is_not_judged_twice() {
        let mut report = Report::default();
        report.add_unreadable(place(3), "is not TOML");
        report.add(&place(3), "is a string");
        report.add_missing(&place(9), "is missing");
        report.add(&place(9).at_key("url"), "is wrong");
        let shown: Vec<_> = report
            .into_problems()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            shown,
            ["m2u.toml:3: is not TOML", "m2u.toml:9: url: is wrong"]
        );
    }
}
