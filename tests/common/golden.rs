//! Golden files: what is sent on either side of the gateway, byte for byte, and what comes of it.
//!
//! Reads `tests/golden/{refuse,forward,answer}/THEME.http`; replays nothing. A file holds cases:
//!
//! ```text
//! # A remark; before the first case, what the theme is about.
//!
//! [a name] the clause or the CVE that the rule comes from
//! > what the device sends
//! >> what the server must get
//! < what the server sends
//! << what the device must get
//! !close                      the server ends its connection; !reset: by a reset
//! = the verdict
//! ```
//!
//! The lines of one kind that follow each other are one block, sent at once. Each stands for a line
//! that ends in CRLF, unless its last character is a lone `\`. Escapes: `\r`, `\n`, `\t`, `\0`,
//! `\\`, `\)`, `\xHH`; `\(20|ab)` is `ab` twenty times; `\[stamp]` is the three identity fields,
//! `X-Request-Id` and `Via`, `\[identity]` the three alone, neither with the CRLF at the end. All
//! other characters stand for themselves, in UTF-8; no line ends in a blank.
//!
//! The verdict begins with what becomes of the device's connection, or with the gateway's own
//! answer:
//!
//! - `keep`, `close`: all was answered, and the connection goes on, or ends.
//! - `cut`, `reset`: the answer breaks off and the device can see it, by an early end or a reset.
//! - `broken TOKEN`: 502 with this token, or `cut` where the answer's head has gone out before.
//! - `STATUS TOKEN`: the gateway answers, and the connection ends; `keep` behind it: it goes on.
//!
//! In `answer` a word follows about the server's connection: `reuse`, or `fresh`, where the next
//! request must come on another one.

use std::{fs, iter::Peekable, path::Path, str::Chars};

/// What happens in a case, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The device sends.
    Device(Vec<u8>),
    /// The server must get.
    ToServer(Vec<u8>),
    /// The server sends.
    Server(Vec<u8>),
    /// The device must get.
    ToDevice(Vec<u8>),
    /// The server ends its connection in an orderly way.
    Close,
    /// The server resets its connection.
    Reset,
}

/// One case of a golden file.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name of the file, without its ending.
    pub theme: String,
    pub name: String,
    /// The clause or CVE, and what goes wrong without the rule.
    pub rule: String,
    pub steps: Vec<Step>,
    pub verdict: Vec<String>,
}

impl Case {
    /// How a failed test names it.
    pub fn title(&self) -> String {
        format!("{} [{}]", self.theme, self.name)
    }

    /// Whether the verdict holds this word.
    pub fn says(&self, word: &str) -> bool {
        self.verdict.iter().any(|said| said == word)
    }

    /// Status and token of the gateway's own answer, if that is the verdict.
    pub fn refusal(&self) -> Option<(u16, &str)> {
        let status = self.verdict.first()?.parse().ok()?;
        Some((status, self.verdict.get(1)?))
    }

    /// All that the device sends.
    pub fn sent(&self) -> Vec<u8> {
        let sent = self.steps.iter().filter_map(|step| match step {
            Step::Device(bytes) => Some(&bytes[..]),
            _ => None,
        });
        sent.collect::<Vec<_>>().concat()
    }
}

/// Reads all files of `tests/golden/KIND`, in the order of their names.
pub fn load(kind: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<_> = fs::read_dir(folder.join(kind))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        let theme = path.file_stem().unwrap().to_str().unwrap();
        cases.extend(parse(theme, &fs::read_to_string(&path).unwrap()));
    }
    cases
}

/// Reads one file; whatever is not as the file's description says fails the test.
pub fn parse(theme: &str, text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut last = "";
    for (index, line) in text.lines().enumerate() {
        let place = format!("{theme}, line {}", index + 1);
        assert_eq!(line.trim_end(), line, "{place} ends in a blank");
        if line.is_empty() || line.starts_with('#') {
            last = "";
            continue;
        }
        if let Some(title) = line.strip_prefix('[') {
            let (name, rule) = title.split_once("] ").expect(&place);
            cases.push(Case {
                theme: theme.into(),
                name: name.into(),
                rule: rule.into(),
                steps: Vec::new(),
                verdict: Vec::new(),
            });
            last = "";
            continue;
        }
        let case = cases.last_mut().expect(&place);
        assert!(case.verdict.is_empty(), "{place} follows a verdict");
        let kind = line.split(' ').next().unwrap();
        let content = line[kind.len()..].strip_prefix(' ').unwrap_or_default();
        match kind {
            "!close" => case.steps.push(Step::Close),
            "!reset" => case.steps.push(Step::Reset),
            "=" => case.verdict = content.split(' ').map(str::to_owned).collect(),
            _ => {
                if kind != last {
                    case.steps.push(match kind {
                        ">" => Step::Device(Vec::new()),
                        ">>" => Step::ToServer(Vec::new()),
                        "<" => Step::Server(Vec::new()),
                        "<<" => Step::ToDevice(Vec::new()),
                        _ => panic!("{place} begins with {kind:?}"),
                    });
                }
                append_line(case.steps.last_mut().unwrap(), content, &place);
            }
        }
        last = kind;
    }
    for case in &cases {
        let title = case.title();
        assert!(!case.verdict.is_empty(), "{title} has no verdict");
        let source = ["RFC ", "CVE-", "specification"];
        let named = source.iter().any(|source| case.rule.contains(source));
        assert!(named, "{title} names no clause and no CVE");
        let twins = cases.iter().filter(|other| other.name == case.name);
        assert_eq!(twins.count(), 1, "{title} is there twice");
    }
    cases
}

fn append_line(step: &mut Step, content: &str, place: &str) {
    let (Step::Device(bytes) | Step::ToServer(bytes) | Step::Server(bytes) | Step::ToDevice(bytes)) =
        step
    else {
        unreachable!("only blocks have lines");
    };
    let mut rest = content.chars().peekable();
    let ends = unescape(&mut rest, bytes, false, place);
    assert_eq!(rest.next(), None, "{place} has a parenthesis too many");
    if ends {
        bytes.extend_from_slice(b"\r\n");
    }
}

/// Appends what the characters stand for, up to the end or to a `)` that is not escaped; answers
/// whether the line ends there.
fn unescape(
    rest: &mut Peekable<Chars<'_>>,
    out: &mut Vec<u8>,
    in_repeat: bool,
    place: &str,
) -> bool {
    while let Some(character) = rest.next() {
        if character == ')' && in_repeat {
            return true;
        }
        if character != '\\' {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let Some(escape) = rest.next() else {
            return false;
        };
        match escape {
            'r' => out.push(b'\r'),
            'n' => out.push(b'\n'),
            't' => out.push(b'\t'),
            '0' => out.push(0),
            '\\' | ')' => out.push(escape as u8),
            'x' => {
                let digits: String = rest.by_ref().take(2).collect();
                out.push(u8::from_str_radix(&digits, 16).expect(place));
            }
            '(' => {
                let digits: String = std::iter::from_fn(|| rest.next_if(|c| *c != '|')).collect();
                rest.next();
                let mut piece = Vec::new();
                unescape(rest, &mut piece, true, place);
                out.extend(piece.repeat(digits.parse().expect(place)));
            }
            '[' => {
                let name: String = std::iter::from_fn(|| rest.next_if(|c| *c != ']')).collect();
                rest.next();
                out.extend_from_slice(match &*name {
                    "identity" => IDENTITY,
                    "stamp" => STAMP,
                    _ => panic!("{place} names {name:?}"),
                });
            }
            _ => panic!("{place} escapes {escape:?}"),
        }
    }
    true
}

const IDENTITY: &[u8] = b"X_Talk2M_Account: acme\r\nX_Talk2M_Device: press-07\r\n\
    X_Talk2M_SerialNumber: 1932-0069-24";
const STAMP: &[u8] = b"X_Talk2M_Account: acme\r\nX_Talk2M_Device: press-07\r\n\
    X_Talk2M_SerialNumber: 1932-0069-24\r\nX-Request-Id: *\r\nVia: 1.1 m2u";
