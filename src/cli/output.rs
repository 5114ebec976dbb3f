//! Layout of results: lines and tables on standard output, colours only on a terminal.

use std::io::{IsTerminal, Write};

use jiff::Timestamp;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::clock;
use crate::config::Environment;
pub(super) use crate::status::{age, counted};

/// The width of a table if standard output is not a terminal.
const COLUMNS: usize = 80;
/// The narrowest cell that still tells anything.
const CELL_MIN: usize = 8;

/// Writes one line of the result. `main` treats the error of a closed pipe as success.
pub(super) fn line(text: impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}

/// Writes a JSON document.
pub(super) fn json(value: &impl serde::Serialize) -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::other)?;
    line(text)
}

/// The columns of the terminal on standard output, or 80 without a terminal.
pub(super) fn columns() -> usize {
    let size = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    size.map_or(COLUMNS, |(width, _)| usize::from(width.0).max(COLUMNS))
}

/// The columns that a text takes in a terminal. A wide character, such as a Chinese one, takes two.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// The text, or its beginning with an ellipsis if it takes more than `columns`.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut taken = 1;
    let fits = |letter: &char| {
        taken += letter.width().unwrap_or(0);
        taken <= columns
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Columns as wide as their widest cell. The columns whose indexes are in `numbers` are right-aligned.
pub(super) fn table(head: &[&str], rows: &[Vec<String>], numbers: &[usize]) -> String {
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell));
        cells.chain(head.get(column).map(|cell| width(cell))).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(widest).collect();
    let layout = |cells: Vec<&str>| {
        let cells = cells.iter().enumerate().map(|(column, cell)| {
            let space = " ".repeat(widths.get(column).copied().unwrap_or(0).saturating_sub(width(cell)));
            if numbers.contains(&column) { format!("{space}{cell}") } else { format!("{cell}{space}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![layout(head.to_vec())];
    lines.extend(rows.iter().map(|row| layout(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// A table of at most `columns`: the cells of the column `flexible` are cut if the table is wider.
pub(super) fn table_within(
    columns: usize,
    flexible: usize,
    head: &[&str],
    mut rows: Vec<Vec<String>>,
    numbers: &[usize],
) -> String {
    // The blanks at the end of a line are not printed, so they must not count.
    for cell in rows.iter_mut().filter_map(|row| row.get_mut(flexible)) {
        cell.truncate(cell.trim_end().len());
    }
    let text = table(head, &rows, numbers);
    let excess = text.lines().map(width).max().unwrap_or(0).saturating_sub(columns);
    if excess == 0 {
        return text;
    }
    let cells = rows.iter().filter_map(|row| row.get(flexible)).map(|cell| width(cell));
    let room = cells.max().unwrap_or(0).saturating_sub(excess).max(CELL_MIN);
    for cell in rows.iter_mut().filter_map(|row| row.get_mut(flexible)) {
        *cell = cut(cell, room);
    }
    table(head, &rows, numbers)
}

/// A time in UTC, short enough for a table: `11-22 10:03`, or the date alone if the time is ten months away.
pub(super) fn short_time(at: Timestamp) -> String {
    const TEN_MONTHS: i64 = 300 * 24 * 3600;
    let is_near = (clock::now().as_second() - at.as_second()).abs() < TEN_MONTHS;
    at.strftime(if is_near { "%m-%d %H:%M" } else { "%Y-%m-%d" }).to_string()
}

/// Escapes the control characters of foreign text, also those that change the direction of writing, so that the text cannot
/// control the terminal.
pub(super) fn harmless(text: &str) -> String {
    let turns = |letter| matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let spell = |letter: char| {
        if letter.is_control() || turns(letter) {
            letter.escape_default().collect::<String>()
        } else {
            letter.to_string()
        }
    };
    text.chars().map(spell).collect()
}

/// Colours for a terminal. Text for a file or a pipe stays unchanged.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnsiPaint {
    on: bool,
}

impl AnsiPaint {
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

    #[cfg(feature = "tools")]
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
    fn wide_characters_take_two_columns() {
        let rows = [vec!["会話".to_owned(), "1".to_owned()], vec!["c-12".to_owned(), "2".to_owned()]];
        assert_eq!(table(&["ID", "N"], &rows, &[]), "ID    N\n会話  1\nc-12  2");
        assert_eq!((cut("会話の記録", 7).as_str(), cut("abc", 3).as_str()), ("会話の…", "abc"));
        assert_eq!(width(&cut("会話の記録", 6)), 5);
    }

    #[test]
    fn a_table_is_cut_in_one_column() {
        let long = "x".repeat(200);
        let rows = vec![vec![long.clone(), "12".to_owned()], vec!["short".to_owned(), "3".to_owned()]];
        let text = table_within(80, 0, &["CONVERSATION", "COUNT"], rows, &[1]);
        assert_eq!(text.lines().map(width).collect::<Vec<_>>(), [80, 80, 80]);
        assert!(text.contains("xxx…  ") && text.contains("short"), "{text}");
    }

    #[test]
    fn times_and_ages_are_short() {
        let ages = [0, 119, 120, 7_199, 7_200, 172_800].map(age);
        assert_eq!(ages, ["0s", "119s", "2m", "119m", "2h", "2d"]);
        assert_eq!(short_time(Timestamp::UNIX_EPOCH), "1970-01-01");
        assert_eq!(short_time(clock::now()).len(), "11-22 10:03".len());
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        assert_eq!(harmless("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(harmless("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
    }
}
