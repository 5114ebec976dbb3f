//! Converts ServiceNow's rich text to the text that a person reads. All texts are converted by the rules of this
//! folder.
//!
//! Guarantees: a character reference is decoded exactly once. A link keeps its address, and a relative address is
//! resolved against the instance. The time is linear in the length of every text (`text_search.rs` counts the steps).
//!
//! Not responsible for: which fields contain rich text (`platform/servicenow`), `%3c` and `%3e` of the stock rule
//! (`callback.rs`). The rules follow ServiceNow's client and its sanitizer (`src/platform/servicenow/FACTS.md`).

mod address;
mod mark_up;
mod references;
mod tags;
mod text_search;

use url::Url;

pub(crate) use address::resolve;
pub(crate) use references::references;
use tags::MarkupMode;

/// Converts a chat message, in which HTML is the exception. Everything inside `[code]…[/code]` is HTML. Elsewhere a tag
/// counts only in the form that scripts write, because ServiceNow removes the tags that people type.
pub(crate) fn message_text(text: &str, instance: Option<&Url>) -> String {
    finish(&tags::read(text, MarkupMode::Message, instance).text, instance)
}

/// Converts an HTML text.
pub(crate) fn html_text(text: &str, instance: Option<&Url>) -> String {
    html(text, instance).text
}

/// Converts an HTML text, and lists its addresses.
pub(crate) fn html(text: &str, instance: Option<&Url>) -> HtmlText {
    let read = tags::read(text, MarkupMode::Html, instance);
    HtmlText { text: finish(&read.text, instance), addresses: read.addresses }
}

/// The result of reading an HTML text.
pub(crate) struct HtmlText {
    /// The text as a person reads it.
    pub(crate) text: String,
    /// The addresses in the text.
    pub(crate) addresses: Vec<String>,
}

/// References are decoded after the tags, because `&lt;b&gt;` is not a tag, and before the mark-up, because `&#64;M[`
/// is mark-up.
fn finish(text: &str, instance: Option<&Url>) -> String {
    mark_up::read(&references(text), instance)
}

/// The label with its address, or the address alone if the label is empty or the same.
fn labelled(label: &str, address: &str) -> String {
    if label.is_empty() || label == address { address.to_owned() } else { format!("{label} ({address})") }
}

#[cfg(test)]
mod tests;
