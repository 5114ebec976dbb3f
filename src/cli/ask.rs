//! The question before something that cannot be taken back.
//!
//! Guarantees: without a terminal nothing is asked and nothing is assumed: `--yes` must say it.

use std::io::{IsTerminal, Write};

use super::Failure;

/// Asks `question`; `false` means no. `yes` is the answer given beforehand by `--yes`.
pub(super) async fn agreed(question: &str, yes: bool) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Failure::Usage(format!("\"{question}\" cannot be asked without a terminal: say --yes")));
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
