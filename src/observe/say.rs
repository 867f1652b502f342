//! What the operator is told while m2u runs: lines on standard error, and nothing else.

use std::{
    fmt,
    io::{self, Write},
};

/// Tells the operator. A standard error that nobody reads any more must not end a gateway.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "m2u: {line}");
}
