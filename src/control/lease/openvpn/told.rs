//! What has been told of a hub, and need not be told again.

use std::{collections::HashSet, mem};

/// Lines that were told and hold still.
#[derive(Debug, Default)]
pub struct Told(HashSet<String>);

impl Told {
    /// Of all `lines` that hold now, those that did not the last time, each once.
    pub fn news(&mut self, lines: Vec<String>) -> Vec<String> {
        let before = mem::take(&mut self.0);
        let mut news = Vec::new();
        for line in lines {
            if self.0.insert(line.clone()) && !before.contains(&line) {
                news.push(line);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_once_and_again_when_it_comes_back() {
        let mut told = Told::default();
        let mut news = |lines: &[&str]| told.news(lines.iter().map(|&line| line.into()).collect());
        assert_eq!(news(&["a", "b", "a"]), ["a", "b"]);
        assert_eq!(news(&["b", "a"]), [""; 0]);
        assert_eq!(news(&["a", "c"]), ["c"]);
        assert_eq!(news(&["b", "a", "c"]), ["b"]);
        assert_eq!(news(&[]), [""; 0]);
        assert_eq!(news(&["a"]), ["a"]);
    }
}
