//! Carries files in both directions: a user's file to the agent, and an agent's file to the user.
//!
//! Guarantees: a file delays its conversation for at most [`UPLOAD_DEADLINE`]. After that time, or if a platform refuses the
//! file for good, the file's name and a link are sent instead. A worker transfers at most [`MAX_TRANSFERS`] files at the same
//! time. A credential is sent only to its own platform. A repeated message has the same text, so that the repeat is
//! recognised.
//!
//! Not responsible for: fetching and storing (`platform/xo/files.rs`, `platform/servicenow/attachments.rs`), links
//! (`files/`).

use std::time::Duration;

use tokio::sync::Semaphore;

use crate::bridge::Deliverer;
use crate::bridge::to_agent::handoff::{HandoffHandler, named_file};
use crate::bridge::to_bot::relay::RelayedMessage;
use crate::clock;
use crate::delivery::Attempt;
use crate::files::{FileLinks, FileSource, LinkedFile, content_type_of, is_image};
use crate::message::handoff::{Attachment, HandoffText};
use crate::message::{ConversationId, Endpoint, safe_file_name};
use crate::platform::servicenow::{AgentFile, SharedFile};
use crate::platform::{AnswerKind, CallError};

/// The time limit for a file, counted from the acceptance of its message. The user's later messages wait meanwhile.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(60);
/// The time limit of one transfer. XO allows 30 s (`src/platform/xo/FACTS.md`).
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of concurrent transfers of a worker.
const MAX_TRANSFERS: usize = 4;

/// Settings of the transfer of files.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// Creates links. `None` if no secret to sign links is configured.
    pub links: Option<FileLinks>,
    /// `files.max_size`, in bytes.
    pub max_size: u64,
}

impl Default for FileSettings {
    fn default() -> Self {
        Self { links: None, max_size: 25 << 20 }
    }
}

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
        text.reply.as_ref().is_some_and(|reply| self.deliverer.xo.may_fetch(&reply.bot_id, &file.url))
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
        let Ok(_place) = self.deliverer.transfers.0.try_acquire() else {
            return TransferResult::Later("other files are being transferred");
        };
        let most = self.deliverer.settings.files.max_size;
        let mut content = match self.deliverer.xo.open_file(&reply.bot_id, &file.url, TRANSFER_TIMEOUT).await
        {
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
        self.deliverer.settings.files.links.as_ref()?.link(&linked, self.message.accepted_at)
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

/// A part of a message as the user of a bot sees it.
pub(in crate::bridge) enum TextPart {
    Words(String),
    /// A picture, as an address.
    Image(String),
}

/// A file of an agent that is relayed, with its link.
pub(in crate::bridge) struct RelayedFile {
    pub(in crate::bridge) name: String,
    pub(in crate::bridge) url: Option<String>,
    pub(in crate::bridge) content_type: Option<String>,
}

impl Deliverer {
    /// The files of a message, with their links. `at`: when the message was written, from which the lifetime of the
    /// links counts.
    pub(in crate::bridge) fn relayed_files(
        &self,
        id: &ConversationId,
        said: &RelayedMessage<'_>,
        at: jiff::Timestamp,
    ) -> Vec<RelayedFile> {
        let told = said.files.iter().map(|file| {
            let name = safe_file_name(&file.name);
            let linked = LinkedFile {
                conversation: id.clone(),
                source: FileSource::Attachment(file.sys_id.clone()),
                name: name.clone(),
            };
            let links = self.settings.files.links.as_ref().filter(|_| file.can_read);
            RelayedFile {
                name,
                url: links.and_then(|links| links.link(&linked, at)),
                content_type: file.content_type.clone(),
            }
        });
        told.collect()
    }

    /// The text with links of ours in place of the instance's own media addresses, which only our ServiceNow user can
    /// open (`src/platform/servicenow/FACTS.md`).
    pub(in crate::bridge) fn with_media_links(
        &self,
        id: &ConversationId,
        text: &str,
        at: jiff::Timestamp,
    ) -> String {
        let (Some(links), Some(instance)) = (&self.settings.files.links, self.instance()) else {
            return text.to_owned();
        };
        let instance = instance.as_str().trim_end_matches('/');
        replaced_media(text, instance, |token| {
            let (source, name) = (FileSource::Media(token.to_owned()), "file".to_owned());
            links.link(&LinkedFile { conversation: id.clone(), source, name }, at)
        })
    }

    /// The parts that the user of a bot sees: the text without the lines that only name a file, then the files.
    pub(in crate::bridge) fn parts(text: &str, files: &[RelayedFile], shows_images: bool) -> Vec<TextPart> {
        let linked: Vec<(&RelayedFile, &str)> =
            files.iter().filter_map(|file| Some((file, file.url.as_deref()?))).collect();
        let names = |line: &str| {
            let name = line.trim().strip_prefix("File:").map(str::trim);
            name.is_some_and(|name| linked.iter().any(|(file, _)| file.name == name || name.is_empty()))
        };
        let mut words: Vec<String> = text.lines().filter(|line| !names(line)).map(str::to_owned).collect();
        let mut images = Vec::new();
        for (file, url) in &linked {
            if shows_images && is_image(&file.name, file.content_type.as_deref()) {
                images.push(TextPart::Image((*url).to_owned()));
            } else {
                // Brackets would end the text of a Markdown link.
                let name = file.name.replace(['[', ']'], " ");
                words.push(format!("[{name}]({url})"));
            }
        }
        let words = words.join("\n");
        let words = Some(words).filter(|words| !words.trim().is_empty()).map(TextPart::Words);
        words.into_iter().chain(images).collect()
    }
}

/// The path of the files of a Virtual Agent chat.
const MEDIA: &str = "/api/now/v1/cs/media/";

/// Replaces each address of the instance's media, relative or absolute. Addresses of other hosts stay.
fn replaced_media(text: &str, instance: &str, link: impl Fn(&str) -> Option<String>) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MEDIA) {
        let word = rest[..at].rfind(|letter: char| letter.is_whitespace() || "(<\"'".contains(letter));
        let begins = word.map_or(0, |word| word + rest[word..].chars().next().map_or(1, char::len_utf8));
        let host = &rest[begins..at];
        let token = &rest[at + MEDIA.len()..];
        let length = token.find(|letter: char| !(letter.is_ascii_alphanumeric() || "-_".contains(letter)));
        let token = &token[..length.unwrap_or(token.len())];
        let ends = at + MEDIA.len() + token.len();
        let ours = (host.is_empty() || host == instance) && !token.is_empty();
        match Some(token).filter(|_| ours).and_then(&link) {
            Some(link) => {
                done.push_str(&rest[..begins]);
                done.push_str(&link);
            }
            None => done.push_str(&rest[..ends]),
        }
        rest = &rest[ends..];
    }
    done.push_str(rest);
    done
}

/// Whether a text names a file, so that the row of the message is worth reading back.
pub(in crate::bridge) fn names_a_file(text: &str) -> bool {
    text.lines().any(|line| line.trim_start().starts_with("File:"))
}

/// Adds the names of files that the text does not name.
pub(in crate::bridge) fn with_names(text: String, files: &[AgentFile]) -> String {
    let mut text = text;
    for file in files {
        let name = safe_file_name(&file.name);
        if !text.contains(&name) && !names_a_file(&text) {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("File: {name}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format is in `src/platform/servicenow/FACTS.md`: `/api/now/v1/cs/media/{token}` on the instance.
    #[test]
    fn media_of_the_instance_get_a_link_and_foreign_ones_do_not() {
        let read =
            |text: &str| replaced_media(text, "https://i.example", |token| Some(format!("link:{token}")));
        assert_eq!(read("a plan\nhttps://i.example/api/now/v1/cs/media/abc123 ok"), "a plan\nlink:abc123 ok");
        assert_eq!(read("/api/now/v1/cs/media/abc?x=1"), "link:abc?x=1");
        assert_eq!(read("(네 /api/now/v1/cs/media/a) /api/now/v1/cs/media/b"), "(네 link:a) link:b");
        let foreign = "https://evil.example/api/now/v1/cs/media/abc";
        assert_eq!(read(foreign), foreign);
        assert_eq!(read("/api/now/v1/cs/media/"), "/api/now/v1/cs/media/");
    }

    fn told(name: &str, url: Option<&str>) -> RelayedFile {
        RelayedFile { name: name.into(), url: url.map(str::to_owned), content_type: None }
    }

    fn shown(text: &str, files: &[RelayedFile], images: bool) -> Vec<String> {
        let show = |part: TextPart| match part {
            TextPart::Words(words) => words,
            TextPart::Image(url) => format!("image {url}"),
        };
        Deliverer::parts(text, files, images).into_iter().map(show).collect()
    }

    /// The format is in `src/platform/xo/FACTS.md`: image `{type:"image", payload:{url}}`; other files as Markdown text
    /// `[name](url)`.
    #[test]
    fn a_user_gets_a_link_that_opens() {
        let files = [told("plan.png", Some("https://c/1")), told("a[b].pdf", Some("https://c/2"))];
        assert_eq!(
            shown("Look\nFile: plan.png\nFile: a[b].pdf", &files, true),
            ["Look\n[a b .pdf](https://c/2)", "image https://c/1"]
        );
        assert_eq!(shown("File: plan.png", &files[..1], true), ["image https://c/1"]);
        assert_eq!(shown("File: plan.png", &files[..1], false), ["[plan.png](https://c/1)"]);
        // Without a public address only the name is shown.
        assert_eq!(shown("File: plan.png", &[told("plan.png", None)], true), ["File: plan.png"]);
        assert_eq!(shown("hello", &[], true), ["hello"]);
    }
}
