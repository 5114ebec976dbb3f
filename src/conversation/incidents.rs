//! The numbers of the records that failed handoffs created at ServiceNow.
//!
//! Guarantees: a number is deleted with its conversation. Not responsible for: creating records (`bridge/to_agent/incident.rs`).

use jiff::Timestamp;

use super::database::run;
use super::directory::Directory;
use super::{DirectoryError, statements};
use crate::message::{ConversationId, MessageId};

impl Directory {
    /// Records that the message `incident` created a record with this number. An unknown conversation is ignored.
    pub async fn save_incident(
        &self,
        incident: MessageId,
        conversation: &ConversationId,
        number: &str,
        at: Timestamp,
    ) -> Result<(), DirectoryError> {
        let incident = incident.to_string();
        let values = [incident.as_str().into(), conversation.as_str().into(), number.into(), at.into()];
        self.execute(statements::SAVE_INCIDENT, values).await.map(|_| ())
    }

    /// The number of the record that this message created; empty if ServiceNow returned no number. `None` if there is no
    /// record yet.
    pub async fn incident_number(&self, incident: MessageId) -> Result<Option<String>, DirectoryError> {
        let row: Option<(String,)> = run!(self, |pool| {
            self.query_as(statements::INCIDENT_NUMBER).bind(incident.to_string()).fetch_optional(pool)
        })?;
        Ok(row.map(|(number,)| number))
    }
}
