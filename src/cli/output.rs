//! Layout of results: lines and tables on standard output, colours only on a terminal.

use std::io::{IsTerminal, Write};

use crate::config::Environment;

/// Writes one line of the result. `main` treats the error of a closed pipe as success.
pub(super) fn line(text: impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}

/// Writes a JSON document.
pub(super) fn json(value: &impl serde::Serialize) -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::other)?;
    line(text)
}

/// Columns as wide as their widest cell. The columns whose indexes are in `numbers` are right-aligned.
pub(super) fn table(head: &[&str], rows: &[Vec<String>], numbers: &[usize]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let layout = |cells: Vec<&str>| {
        let cells = cells.iter().enumerate().map(|(column, cell)| {
            let width = widths.get(column).copied().unwrap_or(0);
            if numbers.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![layout(head.to_vec())];
    lines.extend(rows.iter().map(|row| layout(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// Escapes the control characters of foreign text, so that the text cannot control the terminal.
pub(super) fn harmless(text: &str) -> String {
    let spell = |letter: char| {
        if letter.is_control() { letter.escape_default().collect::<String>() } else { letter.to_string() }
    };
    text.chars().map(spell).collect()
}

/// A count with its noun: `1 message`, `2 messages`.
pub(super) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Colours for a terminal. Text for a file or a pipe stays unchanged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    on: bool,
}

impl Paint {
    /// Colours for standard output. The environment variable `NO_COLOR` turns them off.
    pub(super) fn stdout(environment: &Environment) -> Self {
        Self { on: std::io::stdout().is_terminal() && !environment.has("NO_COLOR") }
    }

    pub(super) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.with("31;1", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other() {
        let rows = [vec!["xo".to_owned(), "12".to_owned()], vec!["servicenow".to_owned(), "3".to_owned()]];
        let text = table(&["TO", "COUNT"], &rows, &[1]);
        assert_eq!(text, "TO          COUNT\nxo             12\nservicenow      3");
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        assert_eq!(harmless("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
    }
}
