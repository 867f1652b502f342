//! The `m2u` program: allocator and exit code. It decides nothing else.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    m2u::cli::main()
}
