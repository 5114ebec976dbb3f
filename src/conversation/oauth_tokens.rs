//! The newest OAuth refresh token of each configured login.
//!
//! Guarantees: a configured token has one row. A new value in the settings has another row, so a stored token never
//! replaces a newly configured one. Not responsible for: using the tokens (`platform/servicenow/oauth.rs`).

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use super::directory::{Directory, SqliteDirectory, run};
use super::{DirectoryError, statements};
use crate::message::MessageId;

impl Directory {
    /// The token that was stored last under this name.
    pub async fn refresh_token(&self, name: MessageId) -> Result<Option<SecretString>, DirectoryError> {
        let row: Option<(String,)> = run!(self, |pool| {
            sqlx::query_as(statements::REFRESH_TOKEN).bind(name.to_string()).fetch_optional(pool)
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
        run!(self, state, changed by |pool| {
            sqlx::query(statements::SAVE_REFRESH_TOKEN)
                .bind(name.to_string())
                .bind(token.expose_secret())
                .bind(at.as_millisecond())
                .execute(pool)
        })
        .map(|_| ())
    }
}
