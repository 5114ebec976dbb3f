//! The confirmation before an action that cannot be undone.
//!
//! Guarantees: without a terminal the action needs `--yes`; no answer is assumed.

use std::io::{IsTerminal, Write};

use super::CliFailure;

/// Asks `question`; `false` means no. `yes` answers the question in advance (`--yes`).
pub(super) async fn agreed(question: &str, yes: bool) -> Result<bool, CliFailure> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(CliFailure::Usage(format!(
            "\"{question}\" cannot be asked without a terminal: use --yes"
        )));
    }
    let mut terminal = std::io::stderr();
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await.map_err(anyhow::Error::from)??;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
