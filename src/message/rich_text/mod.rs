//! ServiceNow's rich text to the text that a person reads. One home for the rules, so that every text is read alike.
//!
//! Guarantees: a character reference is decoded exactly once; a link keeps its address, and a relative address is resolved
//! against the instance; the time is linear in the length of the text, whatever the text holds (`steps.rs` counts it).
//! Not responsible for: which fields hold rich text (`platform/servicenow`), `%3c` and `%3e` of the stock rule (`callback.rs`).
//! Sources: ServiceNow's own client for the mark-up, its sanitizer for the references (FACTS.md SN-14, SN-15).

mod address;
mod mark_up;
mod references;
mod steps;
mod tags;

use url::Url;

pub(crate) use address::resolve;
pub(crate) use references::references;
use tags::Mode;

/// A text in which HTML is the exception: a chat message. Inside `[code]…[/code]` everything is HTML. Elsewhere a tag counts if
/// it is written as scripts write it: ServiceNow removes the tags that people type.
pub(crate) fn message_text(text: &str, instance: Option<&Url>) -> String {
    finish(&tags::read(text, Mode::Message, instance).text, instance)
}

/// A text that is HTML.
pub(crate) fn html_text(text: &str, instance: Option<&Url>) -> String {
    html(text, instance).text
}

/// A text that is HTML, and the addresses that are in it.
pub(crate) fn html(text: &str, instance: Option<&Url>) -> Html {
    let read = tags::read(text, Mode::Html, instance);
    Html { text: finish(&read.text, instance), addresses: read.addresses }
}

/// What was read of an HTML text.
pub(crate) struct Html {
    /// As a person reads it.
    pub(crate) text: String,
    /// The addresses in the text.
    pub(crate) addresses: Vec<String>,
}

/// The references come after the tags, since `&lt;b&gt;` is no tag, and before the mark-up, since `&#64;M[` is one.
fn finish(text: &str, instance: Option<&Url>) -> String {
    mark_up::read(&references(text), instance)
}

/// A label with its address; the address alone if the label says nothing else.
fn labelled(label: &str, address: &str) -> String {
    if label.is_empty() || label == address { address.to_owned() } else { format!("{label} ({address})") }
}

#[cfg(test)]
mod tests;
