//! Shows an agent's files to the user: as links of ours, because only our ServiceNow user can open the files themselves.
//!
//! Guarantees: a link is made only if a public address is configured; otherwise only the name is shown. Addresses of other
//! hosts stay.
//!
//! Not responsible for: the links and the route behind the links (`files/`), a user's files (`to_agent/user_files.rs`).

use crate::bridge::context::BridgeContext;
use crate::bridge::to_bot::relayed_message::RelayedMessage;
use crate::files::{FileSource, LinkedFile, is_image};
use crate::message::{ConversationId, safe_file_name};
use crate::platform::servicenow::AgentFile;

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

/// The files of a message, with their links. `at`: when the message was written, from which the lifetime of the
/// links counts.
pub(in crate::bridge) fn relayed_files(
    context: &BridgeContext,
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
        let links = context.settings.files.links.as_ref().filter(|_| file.can_read);
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
    context: &BridgeContext,
    id: &ConversationId,
    text: &str,
    at: jiff::Timestamp,
) -> String {
    let (Some(links), Some(instance)) = (&context.settings.files.links, context.instance()) else {
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
        parts(text, files, images).into_iter().map(show).collect()
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
