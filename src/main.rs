//! The entry point: parses the command line and sets the exit code: 0 done, 1 failed, 2 usage, 78 settings, 130 and 143
//! ended at once by a signal. Only this file ends the process.

use std::process::ExitCode;

use causeway::app::ShutdownReason;
use causeway::cli::{Cli, CliFailure};
use causeway::config::Environment;
use clap::Parser;

const SETTINGS: u8 = 78; // EX_CONFIG of sysexits.h

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If this cannot be printed, only the exit code is left.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return code(&CliFailure::Failed(error.into())),
    };
    let ended = runtime.block_on(Box::pin(causeway::cli::run(cli, Environment::of_process())));
    // A thread that hangs in a system call must not delay the end.
    runtime.shutdown_background();
    // The log ends before the reason of a failure is printed.
    causeway::telemetry::flush_logs();
    ended.map_or_else(|failure| code(&failure), |()| ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "every failure of the process is printed here")]
fn code(failure: &CliFailure) -> ExitCode {
    match failure {
        CliFailure::Settings(problems) => {
            eprintln!("causeway: {problems}");
            ExitCode::from(SETTINGS)
        }
        CliFailure::Usage(reason) => {
            eprintln!("causeway: {reason}");
            ExitCode::from(2)
        }
        // The reader of the output has read enough (`causeway dead export | head`).
        CliFailure::Failed(error) if is_broken_pipe(error) => ExitCode::SUCCESS,
        CliFailure::Failed(error) => {
            eprintln!("causeway: {error:#}");
            let interrupted = error.downcast_ref::<ShutdownReason>();
            interrupted.map_or(ExitCode::FAILURE, |interrupted| ExitCode::from(interrupted.exit_code))
        }
        CliFailure::Told => ExitCode::FAILURE,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
