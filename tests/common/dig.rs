//! dig, as an operator would ask, and what it says of the answer.

use std::{net::SocketAddr, process::Command};

use super::servers::program;

/// What dig says of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// `NOERROR`, `REFUSED` …
    pub status: String,
    /// `qr`, `aa`, `tc` …
    pub flags: Vec<String>,
    /// Each a name, a TTL, a class, a type and data, with one space between them.
    pub answers: Vec<String>,
    pub authorities: Vec<String>,
    /// The question as the server repeats it.
    pub question: String,
    /// The answer has an OPT record.
    pub has_edns: bool,
    /// Bytes of the message.
    pub bytes: usize,
    text: String,
}

/// Asks `server` with these words of dig's command line.
pub fn dig(server: SocketAddr, words: &str) -> Reply {
    let done = Command::new(program("dig"))
        .arg(format!("@{}", server.ip()))
        .args(["-p", &server.port().to_string()])
        // Of our own accord nothing but the question: no EDNS, no cookie, no other server's help.
        .args([
            "+noedns",
            "+tries=3",
            "+time=10",
            "+noignore",
            "+nobadcookie",
            "+qr",
        ])
        .args(words.split(' '))
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(0), "dig {words}: {text}");
    Reply::read(&text)
}

impl Reply {
    fn read(text: &str) -> Self {
        // The query is shown first.
        let answer = text.rsplit(";; Got answer:").next().unwrap();
        assert!(text.contains(";; Got answer:"), "{text}");
        let behind = |mark: &str| answer.split_once(mark).map(|(_, rest)| rest);
        let until = |rest: &str, end: &str| rest.split(end).next().unwrap().to_owned();
        let section = |name: &str| -> Vec<String> {
            let lines = behind(&format!(";; {name} SECTION:\n")).unwrap_or_default();
            let lines = lines.lines().take_while(|line| !line.is_empty());
            lines
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect()
        };
        let flags = until(behind(";; flags: ").unwrap(), ";");
        Self {
            status: until(behind("status: ").unwrap(), ","),
            flags: flags.split(' ').map(str::to_owned).collect(),
            answers: section("ANSWER"),
            authorities: section("AUTHORITY"),
            question: section("QUESTION").concat(),
            has_edns: answer.contains("; EDNS: version: 0"),
            bytes: until(behind(";; MSG SIZE  rcvd: ").unwrap(), "\n")
                .parse()
                .unwrap(),
            text: text.to_owned(),
        }
    }

    /// The data of all answers, in order of the text.
    pub fn data(&self) -> Vec<&str> {
        let data = self
            .answers
            .iter()
            .map(|line| line.split(' ').next_back().unwrap());
        let mut data: Vec<_> = data.collect();
        data.sort_unstable();
        data
    }

    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|other| other == flag)
    }

    /// The name is there, and has nothing of the kind that was asked for.
    pub fn is_no_data(&self) -> bool {
        self.status == "NOERROR" && self.answers.is_empty() && !self.has_flag("tc")
    }

    /// All that dig said.
    pub fn text(&self) -> &str {
        &self.text
    }
}
