//! Where fuzzing begins: the golden files, the tests' own requests, and what was found before.
//!
//! Everything is made at run time from text; no corpus is kept with the sources.

use std::{fs, path::Path};

use golden::Step;

#[allow(clippy::unwrap_used, dead_code, unreachable_pub)]
#[path = "../../common/golden.rs"]
mod golden;

/// The tokens of `tokens.dict`, which libFuzzer reads too.
pub fn tokens() -> Vec<Vec<u8>> {
    let text = include_str!("../tokens.dict");
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    lines.map(unescape).collect()
}

/// All inputs to begin with for a target.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    let wires = match target {
        "head" => [requests(), answers()].concat(),
        "rewrite" => requests(),
        "answer" => answers(),
        "framing" => [requests(), answers()]
            .concat()
            .iter()
            .map(|wire| field_lines(wire))
            .collect(),
        "chunked" => bodies(),
        "proxy_protocol" => lines_of(include_str!("../seeds/proxy_protocol")),
        "dns" => lines_of(include_str!("../seeds/dns")),
        "config" => configurations(),
        _ => Vec::new(),
    };
    // The bytes that choose how an input is used; their number is the target's own.
    let choices: &[&[u8]] = match target {
        "head" | "chunked" => &[&[0], &[5]],
        "framing" => &[&[1], &[0]],
        "rewrite" => &[
            &[0x1f, 0],
            &[2, 7],
            &[0x6b, 70],
            &[0x3f, 0],
            &[0x66, 7],
            &[0xc0, 0],
        ],
        "answer" => &[
            &[0, 0, 1],
            &[1, 3, 0],
            &[2, 0, 1],
            &[3, 66, 0],
            &[0x47, 200, 1],
        ],
        _ => &[&[]],
    };
    let seeds = wires
        .iter()
        .flat_map(|wire| choices.iter().map(|choice| [choice, &wire[..]].concat()));
    seeds.chain(found(target)).collect()
}

/// Inputs that once failed, one a line, escaped as in the sources of Rust.
pub fn found(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    fs::read_to_string(folder.join(target)).map_or(Vec::new(), |text| lines_of(&text))
}

fn lines_of(text: &str) -> Vec<Vec<u8>> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(unescape).collect()
}

fn requests() -> Vec<Vec<u8>> {
    let golden = [golden("forward", true), golden("refuse", true)].concat();
    [lines_of(include_str!("../seeds/requests")), golden].concat()
}

fn answers() -> Vec<Vec<u8>> {
    [
        lines_of(include_str!("../seeds/answers")),
        golden("answer", false),
    ]
    .concat()
}

fn configurations() -> Vec<Vec<u8>> {
    let texts = include_str!("../seeds/config").split("----\n");
    texts
        .map(|text| text.replace("<NUL>\n", "\0").into_bytes())
        .collect()
}

/// What stands behind the head of a chunked message.
fn bodies() -> Vec<Vec<u8>> {
    let messages = [requests(), answers()].concat();
    let chunked = messages.iter().filter_map(|message| {
        let text = String::from_utf8_lossy(message).to_ascii_lowercase();
        let end = message
            .windows(4)
            .position(|window| window == b"\r\n\r\n")?;
        text.contains("chunked")
            .then(|| message[end + 4..].to_vec())
    });
    chunked.filter(|body| !body.is_empty()).collect()
}

/// The fields of a head, each in a line that ends in LF.
fn field_lines(message: &[u8]) -> Vec<u8> {
    let end = message.windows(4).position(|window| window == b"\r\n\r\n");
    let head = &message[..end.unwrap_or(message.len())];
    let begin = head
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    head[begin..]
        .iter()
        .copied()
        .filter(|byte| *byte != b'\r')
        .collect()
}

/// What the device, or else the server, sends in each case of the golden files of one kind.
fn golden(kind: &str, of_device: bool) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../golden")
        .join(kind);
    let entries = fs::read_dir(folder).expect("golden files");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let texts = paths
        .iter()
        .map(|path| fs::read_to_string(path).expect("text"));
    let cases = texts.flat_map(|text| golden::parse(kind, &text));
    let sent = cases.map(|case| {
        let steps = case.steps.into_iter().filter_map(|step| match step {
            Step::Device(bytes) if of_device => Some(bytes),
            Step::Server(bytes) if !of_device => Some(bytes),
            _ => None,
        });
        steps.collect::<Vec<_>>().concat()
    });
    sent.filter(|bytes| !bytes.is_empty()).collect()
}

/// Reads the escapes of Rust's byte strings, and the golden files' `\(20|ab)`: `ab` twenty times.
fn unescape(text: &str) -> Vec<u8> {
    let mut rest = text;
    let mut bytes = Vec::new();
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let Some(escape) = rest.chars().next() else {
            return bytes;
        };
        rest = &rest[escape.len_utf8()..];
        match escape {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            '0' => bytes.push(0),
            'x' => {
                let digits = rest.get(..2).unwrap_or_default();
                bytes.extend(u8::from_str_radix(digits, 16));
                rest = &rest[digits.len()..];
            }
            '(' => {
                let (inside, behind) = rest.split_once(')').unwrap_or((rest, ""));
                let (times, piece) = inside.split_once('|').unwrap_or(("1", inside));
                bytes.extend(unescape(piece).repeat(times.parse().unwrap_or(1).min(300)));
                rest = behind;
            }
            other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds() {
        for (target, _) in crate::TARGETS {
            assert!(of(target).len() > 5, "{target} has no seeds");
        }
        assert!(tokens().len() > 50);
    }

    #[test]
    fn the_first_configurations_are_accepted() {
        for (index, configuration) in configurations().iter().enumerate() {
            assert_eq!(crate::config::check(configuration), index < 4, "{index}");
        }
    }

    #[test]
    fn escapes_are_read() {
        assert_eq!(
            unescape("a\\r\\n\\x41\\\\b\\(3|x\\t)\\0"),
            b"a\r\nA\\bx\tx\tx\t\0"
        );
    }
}
