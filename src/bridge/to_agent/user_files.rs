//! Carries a user's files to the agent.
//!
//! Guarantees: a file delays its conversation for at most [`UPLOAD_DEADLINE`]. After that time, or if a platform refuses the
//! file for good, the file's name and a link are sent instead. A worker transfers at most [`MAX_TRANSFERS`] files at the same
//! time. A credential is sent only to its own platform. A repeated message has the same text, so that the repeat is
//! recognised.
//!
//! Not responsible for: fetching and storing (`platform/xo/files.rs`, `platform/servicenow/attachments.rs`), links
//! (`files/`), an agent's files (`to_bot/agent_files.rs`).

use std::time::Duration;

use tokio::sync::Semaphore;

use crate::bridge::to_agent::HandoffHandler;
use crate::clock;
use crate::delivery::Attempt;
use crate::files::{FileSource, LinkedFile, content_type_of};
use crate::message::Endpoint;
use crate::message::handoff::{Attachment, HandoffText};
use crate::platform::servicenow::SharedFile;
use crate::platform::{AnswerKind, CallError};

/// The time limit for a file, counted from the acceptance of its message. The user's later messages wait meanwhile.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(60);
/// The time limit of one transfer. XO allows 30 s (`src/platform/xo/FACTS.md`).
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of concurrent transfers of a worker.
const MAX_TRANSFERS: usize = 4;

/// The limit that the transfers of a worker share.
#[derive(Debug)]
pub(in crate::bridge) struct TransferSlots(Semaphore);

impl Default for TransferSlots {
    fn default() -> Self {
        Self(Semaphore::new(MAX_TRANSFERS))
    }
}

/// A message whose files were uploaded to ServiceNow.
pub(in crate::bridge) struct CarriedText {
    pub(in crate::bridge) words: String,
    /// sys_ids of the uploaded files.
    pub(in crate::bridge) files: Vec<String>,
}

/// The result of one file.
enum TransferResult {
    Uploaded(String),
    /// Sent as text, with this note.
    Named(&'static str),
    /// Worth another attempt, for this reason.
    Later(&'static str),
}

impl HandoffHandler<'_> {
    /// The texts that a message with files can have been sent with: one with all files uploaded, one with none.
    pub(in crate::bridge) fn texts_with_files(&self, text: &HandoffText) -> Vec<String> {
        let uploaded = |file: &Attachment| self.uploaded_or_named(file, text);
        let named = |file: &Attachment| self.named(file, text, "");
        let mut texts = vec![joined(text, uploaded), joined(text, named)];
        texts.dedup();
        texts
    }

    fn uploaded_or_named(&self, file: &Attachment, text: &HandoffText) -> String {
        if self.may_fetch(file, text) { uploaded_line(file) } else { self.named(file, text, "") }
    }

    fn may_fetch(&self, file: &Attachment, text: &HandoffText) -> bool {
        text.reply.as_ref().is_some_and(|reply| self.to_agent.context.xo.may_fetch(&reply.bot_id, &file.url))
    }

    /// Uploads the files of a message to the record of the chat. `Err` if another attempt is worthwhile.
    pub(in crate::bridge) async fn carry_files(
        &self,
        text: &HandoffText,
        group: &str,
    ) -> Result<CarriedText, Attempt> {
        let mut lines: Vec<String> =
            Some(text.message.clone()).filter(|words| !words.is_empty()).into_iter().collect();
        let mut files = Vec::new();
        let patient = clock::since(self.message.accepted_at) < UPLOAD_DEADLINE;
        for file in &text.attachments {
            match self.carry(file, text, group).await {
                TransferResult::Uploaded(sys_id) => {
                    files.push(sys_id);
                    lines.push(uploaded_line(file));
                }
                TransferResult::Later(why) if patient => {
                    return Err(Attempt::internal_error(Endpoint::ServiceNow, false, why));
                }
                TransferResult::Later(_) => lines.push(self.named(file, text, "")),
                TransferResult::Named(note) => lines.push(self.named(file, text, note)),
            }
        }
        Ok(CarriedText { words: lines.join("\n"), files })
    }

    async fn carry(&self, file: &Attachment, text: &HandoffText, group: &str) -> TransferResult {
        let Some(reply) = text.reply.as_ref().filter(|_| self.may_fetch(file, text)) else {
            return TransferResult::Named("");
        };
        let Ok(_place) = self.to_agent.transfers.0.try_acquire() else {
            return TransferResult::Later("other files are being transferred");
        };
        let most = self.to_agent.context.settings.files.max_size;
        let mut content =
            match self.to_agent.context.xo.open_file(&reply.bot_id, &file.url, TRANSFER_TIMEOUT).await {
                Ok(content) => content,
                Err(error) => return trouble(&error, "XO did not return the user's file"),
            };
        if content.length.is_some_and(|length| length > most) {
            return TransferResult::Named("(too large to be passed on)");
        }
        if content.is_empty().await {
            return TransferResult::Named("(empty)");
        }
        let content = content.limited(most);
        let was_too_large = content.was_too_large();
        let name = file.safe_name();
        let kind = content_type_of(&name);
        match self.servicenow.upload(group, &name, kind, content, TRANSFER_TIMEOUT).await {
            Ok(sys_id) => TransferResult::Uploaded(sys_id),
            Err(_) if was_too_large() => TransferResult::Named("(too large to be passed on)"),
            Err(error) => trouble(&error, "ServiceNow did not accept the user's file"),
        }
    }

    /// A file as text: its name, a link, and the reason why the file itself is absent.
    fn named(&self, file: &Attachment, text: &HandoffText, note: &str) -> String {
        let link = self.link_of(file, text);
        let shown = Attachment { url: link.unwrap_or_else(|| file.url.clone()), ..file.clone() };
        let line = named_file(&shown);
        if note.is_empty() { line } else { format!("{line} {note}") }
    }

    /// A link of ours to a file that only the bot's token opens.
    fn link_of(&self, file: &Attachment, text: &HandoffText) -> Option<String> {
        let reply = text.reply.as_ref().filter(|_| self.may_fetch(file, text))?;
        let linked = LinkedFile {
            conversation: text.conversation_id.clone(),
            source: FileSource::Xo(reply.bot_id.clone(), file.url.clone()),
            name: file.safe_name(),
        };
        self.to_agent.context.settings.files.links.as_ref()?.link(&linked, self.message.accepted_at)
    }

    /// The text and the one file of a Virtual Agent request. A request takes one file by its address; other files
    /// become text. ServiceNow fetches the address later and without XO's token, so a file of XO is sent as a link of
    /// ours or by its name.
    pub(in crate::bridge) fn in_one_message(&self, text: &HandoffText) -> (String, Option<OwnedFile>) {
        let mut lines: Vec<String> =
            Some(text.message.clone()).filter(|words| !words.is_empty()).into_iter().collect();
        let mut attached: Option<OwnedFile> = None;
        for file in &text.attachments {
            let link = self.link_of(file, text);
            let public = (!self.may_fetch(file, text) && !file.url.is_empty()).then(|| file.url.clone());
            match link.or(public).filter(|_| attached.is_none()) {
                Some(url) => {
                    let name = file.safe_name();
                    let kind = file.content_type.clone();
                    let content_type = kind.unwrap_or_else(|| content_type_of(&name).to_owned());
                    attached = Some(OwnedFile { url, content_type, name });
                }
                None => lines.push(self.named(file, text, "")),
            }
        }
        // Every message needs a text.
        if lines.is_empty() {
            lines.extend(attached.as_ref().map(|file| format!("File: {}", file.name)));
        }
        (lines.join("\n"), attached)
    }
}

/// A file of a Virtual Agent request.
pub(in crate::bridge) struct OwnedFile {
    url: String,
    content_type: String,
    name: String,
}

impl OwnedFile {
    pub(in crate::bridge) fn as_file(&self) -> SharedFile<'_> {
        SharedFile { url: &self.url, content_type: Some(&self.content_type), name: &self.name }
    }
}

fn joined(text: &HandoffText, line: impl Fn(&Attachment) -> String) -> String {
    let words = Some(text.message.clone()).filter(|words| !words.is_empty());
    words.into_iter().chain(text.attachments.iter().map(line)).collect::<Vec<_>>().join("\n")
}

/// The text that the browser client of Connect Support writes for an uploaded file
/// (`src/platform/servicenow/FACTS.md`).
fn uploaded_line(file: &Attachment) -> String {
    format!("File: {}", file.safe_name())
}

/// A permanent refusal makes the file a text. Any other error may pass.
fn trouble(error: &CallError, why: &'static str) -> TransferResult {
    tracing::info!(%error, why, "a file was not transferred");
    match error {
        CallError::Answer(answer)
            if matches!(
                answer.kind,
                AnswerKind::Permanent
                    | AnswerKind::Gone
                    | AnswerKind::Business(_)
                    | AnswerKind::Credentials
                    | AnswerKind::NotReady(_)
            ) =>
        {
            TransferResult::Named("")
        }
        CallError::Answer(_) | CallError::NoAnswer(_) => TransferResult::Later(why),
    }
}

pub(in crate::bridge) fn with_attachments(text: &HandoffText) -> String {
    let files = text.attachments.iter().map(named_file);
    std::iter::once(text.message.clone())
        .filter(|words| !words.is_empty())
        .chain(files)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A file that the agent gets as text: its name and its address.
pub(in crate::bridge) fn named_file(file: &Attachment) -> String {
    let words = [file.name.as_ref().map(|_| file.safe_name()), Some(file.url.clone())];
    let words = words.into_iter().flatten().filter(|word| !word.is_empty()).collect::<Vec<_>>();
    format!("File: {}", words.join(" "))
}
