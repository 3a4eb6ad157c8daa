//! The command line of the local stack: `tenantry --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tenantry_local::cli::run()
}
