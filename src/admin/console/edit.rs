//! Edits the message of a dead letter and sends it as a new message.
//!
//! Guarantees: the dead letter is removed only after a destination has taken the new message. If this process ends before, or if the
//! new message dies, the dead letter stays. The audit log names both ids, and contains no text.
//! Not responsible for: which messages can be edited (`dead_letters/edit.rs`).

use std::collections::HashSet;
use std::time::Duration;

use super::runs::ReplayRun;
use super::{AdminConsole, ConsoleParts};
use crate::dead_letters::outcome::RepublishedMessage;
use crate::dead_letters::{self, DeadLetterFilter, edit, outcome};
use crate::http_server::problem::{ApiError, FieldError};
use crate::message::{DeadLetter, MessageId};
use crate::tasks;
use crate::telemetry::{Act, Ending, Operator, audit};

/// The time limit for the outcome. It is longer than the deadline of a message, so that each message has an outcome.
const WAIT: Duration = Duration::from_secs(3600);

impl AdminConsole {
    /// Refuses every edit if the setting is off.
    pub(super) fn may_edit(&self) -> Result<(), ApiError> {
        if self.facts.edit { Ok(()) } else { Err(ApiError::NotEnabled("admin.edit")) }
    }

    /// Publishes the edited message, and removes the dead letter as soon as the message is delivered. Returns the new id. A caller
    /// that goes away does not stop the edit.
    pub(super) async fn edit(
        &self,
        which: (MessageId, Option<jiff::Timestamp>),
        body: String,
        by: Operator,
    ) -> Result<MessageId, ApiError> {
        self.may_edit()?;
        let console = self.clone();
        tasks::run_to_completion(async move { console.start_edit(which, &body, by).await }).await
    }

    async fn start_edit(
        &self,
        (id, died_at): (MessageId, Option<jiff::Timestamp>),
        body: &str,
        by: Operator,
    ) -> Result<MessageId, ApiError> {
        let turn_guard = self.take_turn().await?;
        let published = publish(&turn_guard.parts, (id, died_at), body).await;
        let (dead, new) = match published {
            Ok(published) => published,
            Err(refusal) => {
                turn_guard.end().await;
                return Err(refusal);
            }
        };
        let run = ReplayRun::published_now(1);
        let new_id = new.id();
        audit(Act::Edit, &by, format_args!("id={id} new_id={new_id}"), 1, Ending::Started);
        self.remember(&run);
        let console = self.clone();
        drop(tasks::spawn(async move {
            let parts = turn_guard.give_turn_back();
            console.see_delivered(run, parts, &dead, new, &by).await;
        }));
        Ok(new_id)
    }

    async fn see_delivered(
        &self,
        run: ReplayRun,
        parts: ConsoleParts,
        dead: &DeadLetter,
        new: RepublishedMessage,
        by: &Operator,
    ) {
        let told = |outcomes| self.note(run.began, |run| run.outcomes = outcomes);
        let ConsoleParts { queue, directory } = &parts;
        let outcomes = outcome::wait(queue, directory, vec![new], WAIT, &run.stop, told).await;
        parts.end().await;
        let id = dead.message.id;
        let mut trouble = None;
        if outcomes.delivered > 0 {
            if let Err(error) = self.remove(dead).await {
                trouble =
                    Some(format!("delivered, but the dead letter could not be removed: {}", error.slug()));
            }
        } else {
            trouble = Some("not delivered, so the dead letter stays".to_owned());
        }
        let told = outcomes.describe();
        let ending = trouble.as_deref().map_or(Ending::Done(Some(&told)), Ending::Failed);
        audit(Act::Edit, by, format_args!("id={id} new_id={}", new.id()), outcomes.delivered, ending);
        self.finish(run.began, outcomes, trouble);
    }

    async fn remove(&self, dead: &DeadLetter) -> Result<(), ApiError> {
        let turn_guard = self.take_turn().await?;
        let filter = DeadLetterFilter { ids: [dead.message.id].into(), ..DeadLetterFilter::default() };
        let selected = HashSet::from([edit::key(dead)]);
        let gone = dead_letters::discard(&turn_guard.parts.queue, &filter, &selected, |_| {}).await;
        turn_guard.end().await;
        gone?;
        Ok(())
    }
}

async fn publish(
    parts: &ConsoleParts,
    (id, died_at): (MessageId, Option<jiff::Timestamp>),
    body: &str,
) -> Result<(DeadLetter, RepublishedMessage), ApiError> {
    let found = edit::one(&parts.queue, id, died_at).await.map_err(dead_letters::DeadLetterError::from)?;
    let dead = found.ok_or(ApiError::UnknownDeadLetter)?;
    let wrong = |reason| ApiError::Invalid(vec![FieldError { field: "body".to_owned(), reason }]);
    let mut died = 0;
    loop {
        let message = edit::edited(&dead, body, died).map_err(wrong)?;
        let published = RepublishedMessage::from(&message);
        if outcome::has_died(&parts.directory, &published).await? {
            died += 1;
            continue;
        }
        parts.queue.publish(&message).await?;
        return Ok((dead, published));
    }
}
