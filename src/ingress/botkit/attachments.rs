//! Finds a user's files in an event of XO.
//!
//! Guarantees: each file is returned once, even if several places contain it. An entry that is not a file, or that is
//! too large, is skipped.
//! Not responsible for: the shape of one entry (`message/attachment.rs`), whether its address may be called.
//! Source: `src/platform/xo/FACTS.md`: public adapters read `channel.attachments[]`; a BotKit server in the field
//! passes the same payload on as `_originalPayload`; the webhook channel uses `message.attachments[]`.

use serde_json::value::RawValue;

use super::json_paths::{EntryLimit, entries};
use crate::message::handoff::Attachment;

/// The places of files, the most likely first. The first place with entries counts, because the others repeat it.
pub(super) const PLACES: &[&str] = &[
    "/channel/attachments",
    "/channel/channelInfos/attachments",
    "/messageObject/attachments",
    "/attachments",
    "/message/attachments",
    "/_originalPayload/channel/attachments",
    "/_originalPayload/attachments",
    "/_originalPayload/message/attachments",
];
/// The maximum number of files of one message.
pub(super) const FILES_MAX: usize = 20;
/// The maximum size of an entry in bytes. A longer entry is not a file, because addresses are below 8 KiB.
const ENTRY_BYTES_MAX: usize = 16 << 10;

/// The files in the values found at [`PLACES`].
pub(super) fn files(found: Vec<Option<&RawValue>>) -> Vec<Attachment> {
    let lists = found.into_iter().flatten().map(|list| {
        let files = entries(list, EntryLimit::First(FILES_MAX)).into_iter().filter_map(file);
        files.collect::<Vec<_>>()
    });
    let mut first = lists.into_iter().find(|files| !files.is_empty()).unwrap_or_default();
    let mut seen: Vec<Attachment> = Vec::new();
    first.retain(|file| {
        let new = !seen.contains(file);
        seen.push(file.clone());
        new
    });
    first
}

fn file(entry: &RawValue) -> Option<Attachment> {
    let entry = Some(entry.get()).filter(|entry| entry.len() <= ENTRY_BYTES_MAX)?;
    Attachment::of_xo(&serde_json::from_str(entry).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::botkit::json_paths::pick;

    fn read(json: &str) -> Vec<(String, String)> {
        let files = files(pick(json, PLACES).unwrap());
        files.into_iter().map(|file| (file.name.unwrap_or_default(), file.url)).collect()
    }

    /// `src/platform/xo/FACTS.md`: `channel.attachments[]` of `{fileName, fileUrl}` or `{fileName, url: {fileUrl}}`;
    /// a file without `fileUrl` occurs.
    #[test]
    fn every_documented_place_is_read() {
        let a = |name: &str, url: &str| (name.to_owned(), url.to_owned());
        for (json, found) in [
            (
                r#"{"channel":{"attachments":[{"fileName":"a.png","fileUrl":"https://x/a"}]}}"#,
                vec![a("a.png", "https://x/a")],
            ),
            (
                r#"{"channel":{"attachments":[{"fileName":"a.png","url":{"fileUrl":"https://x/a"}}]}}"#,
                vec![a("a.png", "https://x/a")],
            ),
            (
                r#"{"_originalPayload":{"channel":{"attachments":[{"fileName":"a.png","fileUrl":"https://x/a"}]}}}"#,
                vec![a("a.png", "https://x/a")],
            ),
            (
                r#"{"message":{"type":"text","attachments":[{"fileName":"a.png","fileType":"image","fileId":"f-1"}]}}"#,
                vec![a("a.png", "")],
            ),
            (r#"{"channel":{"attachments":[{"fileName":"a.png"}]}}"#, vec![a("a.png", "")]),
            (
                r#"{"channel":{"attachments":[{"fileName":"a.png","fileUrl":"https://x/a"},{"fileName":"a.png","fileUrl":"https://x/a"}]},
                    "attachments":[{"fileName":"b.png","fileUrl":"https://x/b"}]}"#,
                vec![a("a.png", "https://x/a")],
            ),
            (
                r#"{"channel":{"attachments":[{},7]},"attachments":[{"url":"https://x/b"}]}"#,
                vec![a("", "https://x/b")],
            ),
            (r#"{"channel":{"attachments":"none"}}"#, vec![]),
        ] {
            assert_eq!(read(json), found, "{json}");
        }
    }
}
