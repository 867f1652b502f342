//! The rules of the house, checked from the sources: zones, the direction of imports, where unsafe
//! code lives, how files begin and how long they are.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

const FILE_LINES_MAX: usize = 800;

/// The engine's layers from the bottom up; each may import those below it, and its own.
const LAYERS: [&[&str]; 5] = [
    &["http1", "net"],
    &["upstream", "admission", "buffers", "date"],
    &["shard"],
    &["proxy"],
    &["worker"],
];

/// Words that say nothing about what a thing is.
const EMPTY_NAMES: [&str; 7] = [
    "Backend", "Manager", "Helper", "Util", "Handler", "Context", "Data",
];

struct Source {
    /// Relative to the package, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    /// The part that is not compiled for tests only.
    fn shipped(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap()
    }

    /// Lines that are code, with their numbers; comments and documentation left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.shipped().lines().enumerate();
        lines.map(|(index, line)| (index + 1, line.split("//").next().unwrap()))
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pending: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut sources = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            sources.push(Source {
                path: relative,
                text: fs::read_to_string(path).unwrap(),
            });
        }
    }
    assert!(sources.len() > 5, "the sources were not found");
    sources
}

/// Every path behind `root`, such as `crate::`, with groups written out, as `engine::net::tls`.
fn paths_behind(root: &str, source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.code().map(|(_, line)| line.trim()).collect();
    let code = lines.join(" ");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        let nested = code[..at].ends_with("super::");
        if !nested {
            expand("", &code[at + root.len()..], &mut found);
        }
    }
    found
}

/// Every `crate::…` path that a file uses.
fn imports(source: &Source) -> Vec<String> {
    paths_behind("crate::", source)
}

/// Writes the path that `rest` begins with out to `found`; answers what follows it.
fn expand<'c>(prefix: &str, rest: &'c str, found: &mut Vec<String>) -> &'c str {
    let word = rest
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(rest.len());
    let path = format!("{prefix}{}", &rest[..word]);
    let rest = rest[word..].trim_start();
    if let Some(rest) = rest.strip_prefix("::") {
        let prefix = format!("{path}::");
        let Some(mut rest) = rest.strip_prefix('{') else {
            return expand(&prefix, rest, found);
        };
        loop {
            rest = expand(&prefix, rest.trim_start(), found).trim_start();
            match rest.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => rest = more,
                _ => return rest.trim_start_matches([',', ' ']).trim_start_matches('}'),
            }
        }
    }
    found.push(path);
    rest
}

#[test]
fn import_paths_are_written_out() {
    let mut found = Vec::new();
    expand("", "a::{self, b::C, d::{E, f::G,}, H}; x", &mut found);
    assert_eq!(
        found,
        ["a::self", "a::b::C", "a::d::E", "a::d::f::G", "a::H"]
    );
}

#[test]
fn the_two_planes_never_import_each_other() {
    for source in sources(&["src"]) {
        let forbidden: &[&str] = match () {
            () if source.path.starts_with("src/engine/") => {
                &["control", "server", "commands", "cli"]
            }
            () if source.path.starts_with("src/control/") => {
                &["engine", "server", "commands", "cli"]
            }
            () if source.path.starts_with("src/snapshot/") => {
                &["engine", "control", "server", "commands", "cli", "observe"]
            }
            () if source.path.starts_with("src/config/") => &[
                "engine", "control", "server", "commands", "cli", "snapshot", "observe",
            ],
            () => continue,
        };
        for import in imports(&source) {
            let zone = import.split("::").next().unwrap();
            assert!(
                !forbidden.contains(&zone),
                "{} imports {import}",
                source.path
            );
        }
    }
}

#[test]
fn inside_the_engine_imports_run_one_way() {
    let layer = |part: &str| LAYERS.iter().position(|parts| parts.contains(&part));
    for source in sources(&["src/engine"]) {
        let inside = source.path.strip_prefix("src/engine/").unwrap();
        let part = inside.split(['/', '.']).next().unwrap();
        if part == "mod" {
            continue;
        }
        let own = layer(part).unwrap_or_else(|| panic!("{part} has no layer"));
        for import in imports(&source) {
            let Some(target) = import.strip_prefix("engine::") else {
                continue;
            };
            let target = target.split("::").next().unwrap();
            let below = layer(target).is_some_and(|layer| layer < own);
            assert!(below || target == part, "{} imports {import}", source.path);
        }
        let engine = if inside.contains('/') {
            "super::super::"
        } else {
            "super::"
        };
        for path in paths_behind(engine, &source) {
            let target = path.split("::").next().unwrap();
            let below = layer(target).is_none_or(|layer| layer < own);
            assert!(below, "{} imports {path}", source.path);
        }
    }
}

#[test]
fn bytes_in_bytes_out_needs_no_sockets_and_no_clock() {
    for source in sources(&["src/engine/http1"]) {
        for (number, line) in source.code() {
            for word in [
                "monoio",
                "rustls",
                "Instant",
                "SystemTime",
                "std::io",
                "async ",
            ] {
                assert!(!line.contains(word), "{}:{number} uses {word}", source.path);
            }
        }
    }
}

#[test]
fn sockets_and_tls_are_named_in_one_folder() {
    for source in sources(&["src/engine"]) {
        let inside = ["src/engine/net/", "src/engine/worker.rs"];
        if inside.iter().any(|path| source.path.starts_with(path)) {
            continue;
        }
        for (number, line) in source.code() {
            for word in [
                "monoio::io",
                "monoio::time",
                "UnbufferedClientConnection",
                "libc::recv",
            ] {
                assert!(!line.contains(word), "{}:{number} uses {word}", source.path);
            }
        }
    }
}

#[test]
fn unsafe_code_lives_in_one_file() {
    for source in sources(&["src", "benches"]) {
        if source.path == "src/engine/net/sys.rs" {
            continue;
        }
        for (number, line) in source.code() {
            let word = line.contains("unsafe ") || line.contains("allow(unsafe_code)");
            assert!(!word, "{}:{number} is unsafe", source.path);
        }
    }
}

#[test]
fn files_say_what_they_are_and_stay_short() {
    for source in sources(&["src", "tests", "benches", "perf/load/src", "perf/floor/src"]) {
        assert!(
            source.text.starts_with("//! "),
            "{} does not say what it is",
            source.path
        );
        let lines = source.text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines", source.path);
        let wide = source
            .text
            .lines()
            .position(|line| line.chars().count() > 120);
        assert_eq!(wide, None, "{} has a very long line", source.path);
    }
}

#[test]
fn names_say_what_things_are() {
    for source in sources(&["src"]) {
        for (number, line) in source.code() {
            let Some(name) = ["struct ", "enum ", "trait ", "type "]
                .iter()
                .find_map(|word| {
                    line.trim_start()
                        .trim_start_matches("pub ")
                        .strip_prefix(word)
                })
            else {
                continue;
            };
            let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            let empty = EMPTY_NAMES
                .iter()
                .any(|empty| name == *empty || name.ends_with(empty));
            assert!(!empty, "{}:{number} calls a type {name}", source.path);
        }
        let file = source.path.rsplit('/').next().unwrap();
        assert!(
            !["types.rs", "utils.rs", "util.rs", "common.rs", "helpers.rs"].contains(&file),
            "{} is no name for a file",
            source.path
        );
    }
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // Put together here, so that this file does not hold what it looks for.
    let marks = [
        ["/", "work/"].concat(),
        ["/tmp/", "wt"].concat(),
        ["/ro", "ot/"].concat(),
    ];
    for source in sources(&["src", "tests", "benches", "perf/load/src", "perf/floor/src"]) {
        for mark in &marks {
            assert!(
                !source.text.contains(mark.as_str()),
                "{} names {mark}",
                source.path
            );
        }
    }
}

#[test]
fn tests_wait_for_conditions_and_never_for_a_time() {
    for source in sources(&["tests"]) {
        // The one place that polls, with a bound.
        if source.path == "tests/common/mod.rs" || source.path == "tests/tidy.rs" {
            continue;
        }
        for (number, line) in source.code() {
            assert!(!line.contains("sleep("), "{}:{number} sleeps", source.path);
        }
    }
}
