//! The files in which Causeway keeps chats: the embedded queue, the directory's SQLite file, and their locks.
//!
//! Guarantees: a new folder has mode 0700 and a new file has mode 0600, in any folder. If an older version made a data file
//! for more readers, their access is removed. Files that root makes in a folder belong to the owner of the folder, so a
//! command of root cannot lock a service out of its own folder. A SQLite library with a known corruption of files is
//! refused before a file is opened.
//! Not responsible for: SQL and the settings of a connection (`queue/embedded/store.rs`, `conversation/schema.rs`).

use std::fs::{DirBuilder, File};
use std::io;
use std::path::{Path, PathBuf};

/// The first version of SQLite that is safe for a file with a write-ahead log and several connections. In versions 3.7.0 to
/// 3.51.2 a reset of the log beside a checkpoint of another connection could corrupt the file.
const SQLITE_MIN: i32 = 3_051_003;
/// The suffixes of the files that SQLite makes beside a database file. These files get the mode of the database file.
const SQLITE_COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
#[cfg(unix)]
const OTHERS: u32 = 0o077;

/// Creates a folder and the missing folders above it.
///
/// # Errors
/// The error of the operating system.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folder(parent)?;
    }
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(folder) {
        Ok(()) => owned_like_parent(folder),
        // Another process created the folder meanwhile.
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens a file for reading and writing. Creates the file if it is missing. A file that only its owner may write is opened
/// for reading only, which is enough for a lock.
///
/// # Errors
/// The error of the operating system.
pub fn open_private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return File::open(path),
        opened => return opened,
    }
    options.create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    owned_like_parent(path)?;
    Ok(file)
}

/// Creates the file of a SQLite database if it is missing, since SQLite would create it for more readers. Removes the
/// access of others to an existing file and its companions.
///
/// # Errors
/// The error of the operating system.
pub fn prepare_sqlite(path: &Path) -> io::Result<()> {
    drop(open_private(path)?);
    close_to_others(path);
    for companion in SQLITE_COMPANIONS {
        let mut name = path.as_os_str().to_owned();
        name.push(companion);
        close_to_others(&PathBuf::from(name));
    }
    Ok(())
}

/// Only the owner may change the mode. For other users the file stays as it is.
#[cfg(unix)]
fn close_to_others(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(known) = std::fs::metadata(path) else { return };
    let mode = known.permissions().mode();
    if mode & OTHERS != 0 {
        let closed = std::fs::Permissions::from_mode(mode & !OTHERS & 0o7777);
        if let Err(error) = std::fs::set_permissions(path, closed) {
            tracing::debug!(path = %path.display(), %error, "cannot remove the access of others to a data file");
        }
    }
}

#[cfg(not(unix))]
fn close_to_others(_: &Path) {}

/// A file or folder that root has just made belongs to the owner of the folder around it.
#[cfg(unix)]
fn owned_like_parent(made: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    const ROOT: u32 = 0;
    let parent = match made.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (made_as, home) = (std::fs::metadata(made)?, std::fs::metadata(parent)?);
    if made_as.uid() == ROOT && home.uid() != ROOT {
        std::os::unix::fs::chown(made, Some(home.uid()), Some(home.gid()))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn owned_like_parent(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Refuses a SQLite library that could corrupt a file. The queue and the directory link the same library.
///
/// # Errors
/// A text for the operator.
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

    #[cfg(unix)]
    mod unix {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

        use super::*;

        fn mode(path: &Path) -> u32 {
            std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
        }

        #[test]
        fn new_files_are_private() {
            let home = tempfile::tempdir().unwrap();
            let folder = home.path().join("a/b");
            create_folder(&folder).unwrap();
            assert_eq!((mode(&folder), mode(&home.path().join("a"))), (0o700, 0o700));
            let file = folder.join("x.sqlite");
            prepare_sqlite(&file).unwrap();
            assert_eq!(mode(&file), 0o600);
        }

        #[test]
        fn files_of_an_older_version_become_private() {
            let home = tempfile::tempdir().unwrap();
            let file = home.path().join("x.sqlite");
            for name in ["x.sqlite", "x.sqlite-wal", "x.sqlite-shm"] {
                std::fs::write(home.path().join(name), "").unwrap();
                let open = std::fs::Permissions::from_mode(0o644);
                std::fs::set_permissions(home.path().join(name), open).unwrap();
            }
            prepare_sqlite(&file).unwrap();
            for name in ["x.sqlite", "x.sqlite-wal", "x.sqlite-shm"] {
                assert_eq!(mode(&home.path().join(name)), 0o600, "{name}");
            }
        }

        /// Only for root, since no other user can create files for another user.
        #[test]
        fn files_of_root_belong_to_the_owner_of_the_folder() {
            const SOMEBODY: u32 = 12_345;
            let home = tempfile::tempdir().unwrap();
            let owner = match chown(home.path(), Some(SOMEBODY), Some(SOMEBODY)) {
                Ok(()) => SOMEBODY,
                Err(_) => std::fs::metadata(home.path()).unwrap().uid(),
            };
            create_folder(&home.path().join("folder")).unwrap();
            drop(open_private(&home.path().join("folder/x.lock")).unwrap());
            for made in ["folder", "folder/x.lock"] {
                assert_eq!(std::fs::metadata(home.path().join(made)).unwrap().uid(), owner, "{made}");
            }
        }
    }
}
