//! Creates a record for a handoff that found no agent, over the Table API: by default an incident with the transcript.
//!
//! Guarantees: each request creates at most one record. Before an attempt that may repeat another one, the record is looked
//! for by its `correlation_id`.
//! Not responsible for: the request of a record (`bridge/incident_request.rs`).

use crate::bridge::incident_request::IncidentRequest;
use crate::bridge::to_agent::transcript::transcript_of;
use crate::bridge::to_agent::{HandlerResult, HandoffHandler};
use crate::clock;
use crate::delivery::classify::Operation;
use crate::delivery::{Attempt, InternalError};
use crate::message::handoff::{ChatUser, TranscriptLine};
use crate::message::{DeadReason, Endpoint, Outcome};
use crate::platform::{CallError, ChatApi, TableRow};

const ENDPOINT: Endpoint = Endpoint::ServiceNow;
/// The length of `{transcript}` in characters: `task.description` takes 4000 by default. The oldest lines are left out.
const TRANSCRIPT_CHARS_MAX: usize = 3_900;
/// The length of `{message}` in characters: `task.short_description` takes 160 by default.
const MESSAGE_CHARS_MAX: usize = 140;
/// The field by which a record is found again.
const CORRELATION: &str = "correlation_id";
const USERS: &str = "sys_user";

impl HandoffHandler<'_> {
    /// Creates the record, unless an earlier attempt created it.
    pub(in crate::bridge) async fn create_incident(&self) -> HandlerResult {
        let Ok(request) = serde_json::from_slice::<IncidentRequest>(&self.message.body) else {
            let why = "its body is not a request for a record of this version";
            return Ok(Attempt::dead(ENDPOINT, DeadReason::Unreadable, why));
        };
        let Some(settings) = &self.to_agent.context.settings.incident else {
            return Ok(Attempt::of(ENDPOINT, Outcome::Dropped, "servicenow.incident is off"));
        };
        let correlation = format!("causeway-{}", self.message.id);
        if self.possibly_delivered {
            match self.created_before(&settings.table, &correlation).await {
                Ok(Some(row)) => return self.created(&request, &row).await,
                Ok(None) => {}
                Err(error) => return Ok(Attempt::called(ENDPOINT, &error, Operation::Record)),
            }
        }
        let lines = self.lines_of(&request).await?;
        let mut row = fields(&settings.fields, &request, &lines);
        if let Some(field) = &settings.caller_field
            && let Some(caller) = self.caller(&request).await
        {
            row.insert(field.clone(), caller);
        }
        row.insert(CORRELATION.to_owned(), correlation);
        match self.servicenow.create(&settings.table, &row).await {
            Ok(row) => self.created(&request, &row).await,
            Err(error) => Ok(Attempt::called(ENDPOINT, &error, Operation::Record)),
        }
    }

    async fn created(&self, request: &IncidentRequest, row: &TableRow) -> HandlerResult {
        let number = row.get("number").map(String::as_str).unwrap_or_default();
        self.directory.save_incident(self.message.id, &request.conversation_id, number, clock::now()).await?;
        Ok(Attempt::delivered(ENDPOINT))
    }

    /// Looks for the record of an earlier attempt. ServiceNow ignores an invalid part of a query and returns other rows
    /// (`src/platform/servicenow/FACTS.md`), so the row itself is compared.
    async fn created_before(&self, table: &str, correlation: &str) -> Result<Option<TableRow>, CallError> {
        let query = format!("{CORRELATION}={correlation}");
        let rows = self.servicenow.rows(table, &query, &["sys_id", "number", CORRELATION], 1).await?;
        Ok(rows.into_iter().find(|row| row.get(CORRELATION).is_some_and(|value| value == correlation)))
    }

    /// The sys_id of the user with this e-mail address, if there is exactly one. The record is created without a caller
    /// if ServiceNow does not show the users.
    async fn caller(&self, request: &IncidentRequest) -> Option<String> {
        let email = request.start.as_ref()?.user.as_ref()?.email.as_deref()?;
        // These characters have a meaning in a query.
        if email.is_empty() || email.contains(['^', '=', ',', '\n']) {
            return None;
        }
        let query = format!("email={email}^active=true");
        match self.servicenow.rows(USERS, &query, &["sys_id", "email"], 2).await {
            Ok(rows) => {
                let is_same =
                    |row: &TableRow| row.get("email").is_some_and(|found| found.eq_ignore_ascii_case(email));
                let mut found = rows.into_iter().filter(is_same);
                let only = found.next().filter(|_| found.next().is_none())?;
                only.get("sys_id").filter(|id| !id.is_empty()).cloned()
            }
            Err(error) => {
                tracing::debug!(%error, "a record is created without its caller: ServiceNow shows no user");
                None
            }
        }
    }

    /// The lines of the conversation, oldest first: those of the start, of the chat, or of XO.
    async fn lines_of(&self, request: &IncidentRequest) -> Result<Vec<TranscriptLine>, InternalError> {
        let id = &request.conversation_id;
        if let Some(start) = &request.start {
            let mut lines = self.read_transcript(start).await;
            lines.push(TranscriptLine { from: "user".to_owned(), text: start.message.clone(), at: None });
            return Ok(lines);
        }
        if let Some(group) =
            request.group.as_deref().filter(|_| self.servicenow.api() == ChatApi::ConnectSupport)
        {
            match self.servicenow.transcript(id, group).await {
                Ok(said) if !said.is_empty() => {
                    let line = |(author, text): (Option<String>, String)| TranscriptLine {
                        from: author.unwrap_or_else(|| "user".to_owned()),
                        text: crate::message::rich_text::message_text(
                            &text,
                            Some(self.servicenow.instance()),
                        ),
                        at: None,
                    };
                    return Ok(said.into_iter().map(line).collect());
                }
                Ok(_) => {}
                // After the user has left, ServiceNow may refuse to show the chat.
                Err(error) => tracing::debug!(%error, "a record is created without the text of its chat"),
            }
        }
        let Some(reply) = self.directory.reply_handle(id).await? else { return Ok(Vec::new()) };
        Ok(transcript_of(&self.to_agent.context, &reply.handle).await)
    }
}

/// The fields of the record, from the settings.
fn fields(mapping: &[(String, String)], request: &IncidentRequest, lines: &[TranscriptLine]) -> TableRow {
    let user = request.start.as_ref().and_then(|start| start.user.clone()).unwrap_or_default();
    let ChatUser { name, email, .. } = user;
    let first = request.start.as_ref().map(|start| start.message.as_str());
    let message = first.or_else(|| lines.first().map(|line| line.text.as_str())).unwrap_or_default();
    let message = cut(&message.split_whitespace().collect::<Vec<_>>().join(" "), MESSAGE_CHARS_MAX);
    let message =
        if message.is_empty() { format!("No agent for {}", request.conversation_id) } else { message };
    let values = [
        ("{conversation}", request.conversation_id.to_string()),
        ("{reason}", request.reason.clone()),
        ("{user}", name.unwrap_or_default()),
        ("{email}", email.unwrap_or_default()),
        ("{message}", message),
        ("{transcript}", transcript(lines)),
    ];
    mapping.iter().map(|(name, value)| (name.clone(), filled(value, &values))).collect()
}

/// The text with its values. A value is not searched for placeholders.
fn filled(text: &str, values: &[(&str, String)]) -> String {
    let (mut rest, mut done) = (text, String::new());
    let next = |rest: &str| {
        let found = values.iter().filter_map(|(name, value)| Some((rest.find(name)?, name.len(), value)));
        found.min_by_key(|(at, _, _)| *at).map(|(at, length, value)| (at, length, value.clone()))
    };
    while let Some((at, length, value)) = next(rest) {
        done.push_str(&rest[..at]);
        done.push_str(&value);
        rest = &rest[at + length..];
    }
    done + rest
}

/// The newest lines that fit, oldest first.
fn transcript(lines: &[TranscriptLine]) -> String {
    let mut room = TRANSCRIPT_CHARS_MAX;
    let mut kept: Vec<String> = Vec::new();
    for line in lines.iter().rev() {
        let text = format!("{}: {}", line.from, line.text);
        let length = text.chars().count() + 1;
        if length > room {
            // The last line is the reason of the handoff, so that at least its beginning is kept.
            if kept.is_empty() {
                kept.push(cut(&text, room));
            }
            break;
        }
        room -= length;
        kept.push(text);
    }
    kept.reverse();
    kept.join("\n")
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most.saturating_sub(1)) {
        Some((end, _)) if text.chars().count() > most => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(from: &str, text: &str) -> TranscriptLine {
        TranscriptLine { from: from.to_owned(), text: text.to_owned(), at: None }
    }

    #[test]
    fn the_newest_lines_fit_into_the_record() {
        let lines = [line("user", "hi"), line("bot", "hello"), line("user", "an agent, please")];
        assert_eq!(transcript(&lines), "user: hi\nbot: hello\nuser: an agent, please");
        let many: Vec<_> = (0..1000).map(|n| line("bot", &format!("line {n}"))).collect();
        let kept = transcript(&many);
        assert!(kept.ends_with("bot: line 999") && !kept.contains("line 0\n"), "{kept}");
        assert!(kept.chars().count() <= TRANSCRIPT_CHARS_MAX);
        let long = transcript(&[line("user", &"네".repeat(9_000))]);
        assert_eq!(long.chars().count(), TRANSCRIPT_CHARS_MAX);
        assert_eq!(transcript(&[]), "");
    }

    #[test]
    fn a_value_with_braces_is_no_placeholder() {
        let values = [("{message}", "{reason} {x}".to_owned()), ("{reason}", "no_agent".to_owned())];
        assert_eq!(filled("{reason}: {message}.", &values), "no_agent: {reason} {x}.");
        assert_eq!(filled("chat", &values), "chat");
    }
}
