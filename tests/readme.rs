//! What the README says can be done as it says.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::gateway::command;
use m2u::{engine::proxy::failure::Failure, file_limit::Demand, limits};
use tempfile::TempDir;

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The first block in this language.
fn block<'r>(readme: &'r str, language: &str) -> &'r str {
    let begin = format!("```{language}\n");
    readme
        .split(&begin)
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap()
}

/// A folder with the configuration to start from.
fn start() -> TempDir {
    let readme = readme();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("m2u.toml"), block(&readme, "toml")).unwrap();
    fs::write(folder.path().join("devices.csv"), block(&readme, "csv")).unwrap();
    fs::write(folder.path().join("acme.password"), "secret\n").unwrap();
    folder
}

/// Runs the program in `folder`, which must agree.
fn agrees(folder: &TempDir, words: &str) -> String {
    let done = command()
        .args(words.split(' '))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(0), "{words}: {said}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn the_configuration_to_start_from_is_accepted() {
    agrees(&start(), "check");
}

#[test]
fn names_are_given_as_said() {
    let readme = readme();
    let (_, names) = readme.split_once("\n## Names\n").unwrap();
    let (section, rest) = names.split_once("```sh\n").unwrap();
    let folder = start();
    let path = folder.path().join("m2u.toml");
    let begin = fs::read_to_string(&path).unwrap();
    let listen = begin
        .lines()
        .find(|line| line.starts_with("listen = "))
        .unwrap();
    let begin = begin.replace(listen, block(rest, "toml"));
    fs::write(&path, format!("{begin}{}", block(section, "toml"))).unwrap();
    agrees(&folder, "check");
    let text = agrees(&folder, "dns snippet --format dnsmasq");
    assert!(
        text.contains("host-record=m2u2.talk2m.com,m2u2,10.8.0.3,60\n"),
        "{text}"
    );
    for command in rest.lines().take_while(|line| *line != "```") {
        let words = command.split(['>', '#']).next().unwrap().trim_end();
        agrees(&folder, words.strip_prefix("m2u ").unwrap());
    }
}

#[test]
fn leases_are_configured_as_said() {
    let readme = readme();
    let (_, leases) = readme.split_once("\n## Leases\n").unwrap();
    let leases = block(leases, "toml");
    // What is the operator's is not on this machine.
    let leases = leases.replace("/var/lib/m2u/", "");
    let leases = leases.replace("# users = [\"openvpn\"]", "users = [\"nobody\"]");
    let folder = start();
    let path = folder.path().join("m2u.toml");
    let begin = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{begin}{leases}")).unwrap();
    agrees(&folder, "check");
}

#[test]
fn the_unit_may_open_as_many_files_as_it_is_said_to_need() {
    let readme = readme();
    let (_, rest) = readme.split_once("\nLimitNOFILE=").unwrap();
    let allowed: usize = rest.lines().next().unwrap().parse().unwrap();
    let (_, rest) = rest.split_once("`limits.connections` on ").unwrap();
    let mut words = rest.split(|c: char| !c.is_alphanumeric());
    let [cores, listeners] = ["cores", "listeners"].map(|what| {
        let numbers = words
            .by_ref()
            .map_while(|word| (word != what).then_some(word));
        numbers.last().unwrap().parse().unwrap()
    });
    let demand = Demand {
        connections: limits::CONNECTIONS_DEFAULT,
        cores,
        listeners,
        pool_per_core: limits::POOL_PER_CORE_MAX,
        names: 8,
        hubs: 64,
    };
    assert!(demand.files() <= allowed, "{demand:?}");
}

#[test]
fn every_failure_has_its_row() {
    let readme = readme();
    let table = readme.split("| failure | status | token |").nth(1).unwrap();
    let table = table.split("\n\n").next().unwrap();
    for failure in Failure::ALL {
        // These two are never answered: nobody is left, or the answer has begun.
        if matches!(failure, Failure::DeviceGone | Failure::ResponseIncomplete) {
            continue;
        }
        let (status, token) = (
            failure.status().to_string(),
            format!("`{}`", failure.token()),
        );
        let row = table
            .lines()
            .find(|row| row.contains(&status) && row.contains(&token));
        assert!(
            row.is_some(),
            "{failure:?}: no row with {status} and {token}"
        );
    }
}

#[test]
fn every_command_of_the_program_is_described() {
    let readme = readme();
    let help = command().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap().lines();
    let commands = commands.map_while(|line| line.split_whitespace().next());
    let commands: Vec<&str> = commands.filter(|command| *command != "help").collect();
    assert!(commands.len() >= 4, "{help}");
    for command in commands {
        assert!(
            readme.contains(&format!("| `m2u {command}` |")),
            "{command} is missing"
        );
    }
}
