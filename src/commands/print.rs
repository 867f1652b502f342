//! Standard output of the commands that print and end.
//!
//! Knows nothing of what is printed.

use std::{
    io::{self, Write},
    process::ExitCode,
};

/// Prints to standard output; a reader that has seen enough (`| head`) is no fault.
pub(super) fn print(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("standard output cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
