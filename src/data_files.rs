//! The files in which Causeway keeps chats: the embedded queue and the directory's SQLite file.
//!
//! Guarantees: a SQLite library with a known corruption of files is refused before a file is opened.
//! Not responsible for: SQL and the settings of a connection (`queue/embedded/store.rs`, `conversation/schema.rs`).

/// The first version of SQLite that is safe for a file with a write-ahead log and several connections. In versions 3.7.0 to
/// 3.51.2 a reset of the log beside a checkpoint of another connection could corrupt the file.
const SQLITE_MIN: i32 = 3_051_003;

/// Refuses a SQLite library that could corrupt a file. The queue and the directory link the same library.
///
/// # Errors
/// The text for the operator.
pub fn check_sqlite() -> Result<(), String> {
    check_sqlite_version(rusqlite::version_number())
}

fn check_sqlite_version(found: i32) -> Result<(), String> {
    if found >= SQLITE_MIN {
        return Ok(());
    }
    Err(format!(
        "this program was built with SQLite {}, which can corrupt a file with a write-ahead log: build it with SQLite {} or \
         newer",
        dotted(found),
        dotted(SQLITE_MIN)
    ))
}

fn dotted(version: i32) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1_000 % 1_000, version % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sqlite_that_can_corrupt_files_is_refused() {
        assert_eq!(check_sqlite(), Ok(()));
        for old in [3_050_002, 3_051_002, 3_007_000] {
            let error = check_sqlite_version(old).unwrap_err();
            assert!(error.contains(&dotted(old)) && error.contains("3.51.3 or newer"), "{error}");
        }
        for safe in [3_051_003, 3_052_000, 4_000_000] {
            assert_eq!(check_sqlite_version(safe), Ok(()));
        }
    }
}
