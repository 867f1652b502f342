//! The short run: every target on its seeds, on what was found before, and on mutations of these.
//!
//! The same mutations each time. `M2U_FUZZ_RUNS` says how many a target gets.

use std::{env, fmt, panic};

use m2u_fuzz::{TARGETS, seeds};

/// Executions of each target if the environment does not say.
const RUNS: usize = 500_000;
/// By how much fewer a target has that writes files.
const FEWER_WITH_FILES: usize = 10;
/// Bytes of an input at most.
const INPUT_BYTES_MAX: usize = 1_500;

#[test]
fn head() {
    run("head");
}

#[test]
fn framing() {
    run("framing");
}

#[test]
fn chunked() {
    run("chunked");
}

#[test]
fn rewrite() {
    run("rewrite");
}

#[test]
fn answer() {
    run("answer");
}

#[test]
fn proxy_protocol() {
    run("proxy_protocol");
}

#[test]
fn dns() {
    run("dns");
}

#[test]
fn config() {
    run("config");
}

fn run(target: &str) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, check) = found.expect("a target of this name");
    let wanted = env::var("M2U_FUZZ_RUNS").ok().map(|runs| runs.parse());
    let mut runs = wanted.map_or(RUNS, |runs| runs.expect("M2U_FUZZ_RUNS is a number"));
    if target == "config" {
        runs /= FEWER_WITH_FILES;
    }
    let seeds = seeds::of(target);
    let mut mutation = Mutation {
        random: Random(0x6d32_755f_6675_7a7a),
        tokens: seeds::tokens(),
    };
    let runs = runs.max(seeds.len());
    let mut judged = 0;
    for run in 0..runs {
        let input = match seeds.get(run) {
            Some(seed) => seed.clone(),
            None => mutation.of(&seeds),
        };
        match panic::catch_unwind(|| check(&input)) {
            Ok(taken) => judged += usize::from(taken),
            Err(_) => {
                let shown = Shown(&input);
                panic!("{target}: run {run}; keep this line in regressions/{target}:\n{shown}");
            }
        }
    }
    println!(
        "{target}: {runs} runs from {} seeds, {judged} not refused",
        seeds.len()
    );
    assert!(
        judged * 1_000 > runs,
        "{target}: nearly all inputs are refused"
    );
}

/// An input as `regressions` holds it.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Makes new inputs out of old ones.
struct Mutation {
    random: Random,
    tokens: Vec<Vec<u8>>,
}

impl Mutation {
    fn of(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.random.below(seeds.len())].clone();
        for _ in 0..1 + self.random.below(6) {
            let at = self.random.below(input.len() + 1);
            let length = self.random.below(16.min(input.len() - at) + 1);
            let other = &seeds[self.random.below(seeds.len())];
            match self.random.below(8) {
                0 => input.splice(at..at + length, []).for_each(drop),
                1 => {
                    let again = input[at..at + length].to_vec();
                    input.splice(at..at, again).for_each(drop);
                }
                2 => input.truncate(at),
                3 => {
                    let begin = self.random.below(other.len() + 1);
                    input
                        .splice(at.., other[begin..].iter().copied())
                        .for_each(drop);
                }
                4 if length > 0 => input[at] = self.random.below(256) as u8,
                5 if length > 0 => input[at] ^= 1 << self.random.below(8),
                _ => {
                    let token = &self.tokens[self.random.below(self.tokens.len())];
                    let replaced = at + length * self.random.below(2);
                    input
                        .splice(at..replaced, token.iter().copied())
                        .for_each(drop);
                }
            }
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }
}

/// Numbers that look random and are the same each time (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}
