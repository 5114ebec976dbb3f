//! Keeps the newest OAuth refresh token of ServiceNow in the directory, for all processes of a deployment.
//!
//! Guarantees: the directory is opened only if an instance issues a new refresh token or a token is requested. A token that
//! cannot be stored stays in the memory of this process, and the log says so without the token.
//! Not responsible for: requesting tokens (`platform/servicenow/oauth.rs`).

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use url::Url;

use crate::clock;
use crate::conversation::{Directory, DirectoryError, DirectorySettings};
use crate::message::MessageId;
use crate::platform::RefreshTokenStore;

/// How long a process whose token was refused waits for the token of the process that used it first.
const WINNER_TIME: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The attempts to store a token.
const SAVE_TRIES: u32 = 3;

/// The row of one configured token.
pub(super) struct DirectoryTokenStore {
    settings: DirectorySettings,
    directory: OnceCell<Directory>,
    name: MessageId,
}

impl DirectoryTokenStore {
    /// The store for the token that the settings configure.
    pub(super) fn new(
        settings: DirectorySettings,
        host: &Url,
        client_id: &str,
        configured: &SecretString,
    ) -> Self {
        let parts = [host.as_str(), client_id, configured.expose_secret()];
        let name = MessageId::derived_from("oauth-token", &parts);
        Self { settings, directory: OnceCell::new(), name }
    }

    async fn directory(&self) -> Result<&Directory, DirectoryError> {
        self.directory.get_or_try_init(|| Directory::open(&self.settings)).await
    }

    async fn read(&self) -> Option<SecretString> {
        let read = async { self.directory().await?.refresh_token(self.name).await };
        read.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the newest OAuth refresh token of ServiceNow from the directory");
            None
        })
    }
}

impl RefreshTokenStore for DirectoryTokenStore {
    fn newest(&self) -> BoxFuture<'_, Option<SecretString>> {
        self.read().boxed()
    }

    fn other_than<'a>(&'a self, refused: &'a SecretString) -> BoxFuture<'a, Option<SecretString>> {
        async move {
            let began = Instant::now();
            loop {
                let found = self.read().await?;
                if found.expose_secret() != refused.expose_secret() {
                    return Some(found);
                }
                if began.elapsed() >= WINNER_TIME {
                    return None;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        .boxed()
    }

    fn keep(&self, token: SecretString) -> BoxFuture<'_, bool> {
        async move {
            for _ in 0..SAVE_TRIES {
                let save =
                    async { self.directory().await?.save_refresh_token(self.name, &token, clock::now()).await };
                match save.await {
                    Ok(()) => return true,
                    Err(error) => tracing::warn!(
                        %error,
                        "cannot store the new OAuth refresh token of ServiceNow in the directory; other processes and the next start have the old one"
                    ),
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            false
        }
        .boxed()
    }
}
