//! `causeway completions` and `causeway man`. clap makes both from the definition of the command line.
//!
//! Guarantees: the script and the pages contain each verb and each flag.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CliFailure, VERSION};

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// The words of the verb, for example: dead replay
    #[arg(value_name = "VERB")]
    words: Vec<String>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), CliFailure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "causeway", &mut script);
    Ok(std::io::stdout().lock().write_all(&script)?)
}

pub(super) fn man(args: &ManArgs) -> Result<(), CliFailure> {
    let mut command = Cli::command();
    // This call gives each verb its full name.
    command.build();
    for word in &args.words {
        command = command.find_subcommand(word).cloned().ok_or_else(|| {
            let verb = args.words.join(" ");
            CliFailure::Usage(format!("there is no verb \"{}\": see causeway help", verb.escape_debug()))
        })?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).source(format!("causeway {VERSION}")).render(&mut page)?;
    Ok(std::io::stdout().lock().write_all(&page)?)
}
