//! The canary operator's binary.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
