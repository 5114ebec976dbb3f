//! A private temporary folder for one run. Dropping the value removes the folder, however the run ends.

use std::path::{Path, PathBuf};

use anyhow::Context;

#[derive(Debug)]
pub(super) struct PrivateFolder(PathBuf);

impl PrivateFolder {
    /// Creates the folder in the system's temporary directory, accessible to our user only.
    pub(super) fn make(purpose: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("causeway-{purpose}-{}", uuid::Uuid::new_v4().simple()));
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Keeps the folder for inspection and returns its path.
    pub(super) fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        // `keep` leaves an empty path behind.
        if self.0.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "cannot remove the folder of this run");
        }
    }
}
