//! Notices that the content of a file has changed.
//!
//! Guarantees: a change is reported once, after two looks in a row have found the same new content, so that a file that is being
//! written is not used half. The content is compared, not the time or the inode, so a rename and the symlinks of a mounted
//! Kubernetes secret work like a write. A file that cannot be read is a content, too.
//! Not responsible for: reading the new content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// The longest part of a file that is compared.
const BYTES_MAX: u64 = 1 << 20;

/// `None`: the file cannot be read.
type Fingerprint = Option<[u8; 32]>;

#[derive(Debug, Default)]
struct WatchedFile {
    /// The content that was reported last. Before the first report no content is known, so the first one is reported.
    reported: Option<Fingerprint>,
    /// The content of the last look.
    last: Option<Fingerprint>,
}

/// The watched files.
#[derive(Debug, Default)]
pub(super) struct FileWatch(BTreeMap<PathBuf, WatchedFile>);

impl FileWatch {
    /// Watches exactly these files. Files that were watched before keep their state.
    pub(super) fn follow(&mut self, files: BTreeSet<PathBuf>) {
        self.0.retain(|file, _| files.contains(file));
        for file in files {
            self.0.entry(file).or_default();
        }
    }

    /// Looks at each file. Returns whether a new content is there, and was there at the look before.
    pub(super) async fn look(&mut self) -> bool {
        let mut changed = false;
        for (file, watched) in &mut self.0 {
            let found = Some(fingerprint(file.clone()).await);
            if found == watched.last && found != watched.reported {
                watched.reported = found;
                changed = true;
            }
            watched.last = found;
        }
        changed
    }
}

async fn fingerprint(file: PathBuf) -> Fingerprint {
    use tokio::io::AsyncReadExt as _;
    let mut content = Vec::new();
    let opened = tokio::fs::File::open(file).await.ok()?;
    opened.take(BYTES_MAX).read_to_end(&mut content).await.ok()?;
    Some(Sha256::digest(&content).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn looks(watch: &mut FileWatch, count: usize) -> usize {
        let mut changes = 0;
        for _ in 0..count {
            changes += usize::from(watch.look().await);
        }
        changes
    }

    #[tokio::test]
    async fn a_change_is_reported_once_and_only_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "one").unwrap();
        let mut watch = FileWatch::default();
        watch.follow(BTreeSet::from([file.clone()]));
        assert_eq!(looks(&mut watch, 4).await, 1, "the first content is reported");
        for half in ["", "t", "tw"] {
            std::fs::write(&file, half).unwrap();
            assert!(!watch.look().await, "a file that is being written");
        }
        std::fs::write(&file, "two").unwrap();
        assert_eq!(looks(&mut watch, 4).await, 1);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(looks(&mut watch, 4).await, 1, "a missing file is reported once");
        std::fs::write(&file, "two").unwrap();
        assert_eq!(looks(&mut watch, 4).await, 1);
    }

    #[tokio::test]
    async fn the_symlinks_of_a_mounted_secret_are_followed() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, secret) in [("..1", "one"), ("..2", "two")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("secret"), secret).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/secret", at("secret")).unwrap();
        let mut watch = FileWatch::default();
        watch.follow(BTreeSet::from([at("secret")]));
        assert_eq!(looks(&mut watch, 3).await, 1);
        symlink("..2", at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(looks(&mut watch, 3).await, 1);
    }
}
