//! The program `longshore`: parse, run, answer with an exit code.

use std::process::ExitCode;

use clap::Parser;
use longshore::{Cli, output};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match longshore::run(Cli::parse()).await {
        Ok(exit) => exit.into(),
        Err(error) => {
            output::talk(&error.report());
            error.exit().into()
        }
    }
}
