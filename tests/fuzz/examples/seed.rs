//! Writes a target's seeds into a folder, one a file, as libFuzzer reads them.
//!
//! `seed TARGET FOLDER`. No binary of the package: that would be built for libFuzzer, and not link.

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [target, folder] = &arguments[..] else {
        eprintln!("usage: seed TARGET FOLDER");
        return ExitCode::from(2);
    };
    match write_all(target, Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seed: can't write to {folder}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(target: &str, folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for (number, seed) in m2u_fuzz::seeds::of(target).iter().enumerate() {
        fs::write(folder.join(format!("seed-{number:05}")), seed)?;
    }
    Ok(())
}
