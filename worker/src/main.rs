//! The `synfire` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    synfire::cli::main()
}
