//! The newest OAuth refresh token of each configured login.
//!
//! Guarantees: a configured token has one row. A new value in the settings has another row, so a stored token never
//! replaces a newly configured one. Not responsible for: using the tokens (`platform/servicenow/oauth.rs`).

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use super::database::run;
use super::directory::Directory;
use super::{DirectoryError, statements};
use crate::message::MessageId;

impl Directory {
    /// The token that was stored last under this name.
    pub async fn refresh_token(&self, name: MessageId) -> Result<Option<SecretString>, DirectoryError> {
        let row: Option<(String,)> = run!(self, |pool| {
            self.query_as(statements::REFRESH_TOKEN).bind(name.to_string()).fetch_optional(pool)
        })?;
        Ok(row.map(|(token,)| SecretString::from(token)))
    }

    /// Stores the newest token under this name.
    pub async fn save_refresh_token(
        &self,
        name: MessageId,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<(), DirectoryError> {
        let name = name.to_string();
        let values = [name.as_str().into(), token.expose_secret().into(), at.into()];
        self.execute(statements::SAVE_REFRESH_TOKEN, values).await.map(|_| ())
    }
}
