//! Turns the controls of the Virtual Agent API into text that a person reads, and into choices.
//!
//! Guarantees: the text of a control contains its words and every address. Relative addresses belong to the instance. A
//! control of an unknown type becomes the words that it contains. ServiceNow sends streamed text and progress twice;
//! the user gets them once.
//! Not responsible for: actions and signs (`virtual_agent_callback.rs`), relaying
//! (`bridge/to_bot/virtual_agent_callback.rs`).
//! Sources: "Controls in Virtual Agent API" (va-api-controls.md) and bot-api.md; `FACTS.md` has their addresses.

use std::collections::HashSet;

use serde_json::Value;
use url::Url;

use super::virtual_agent_callback::{Choice, ItemMeaning};
use crate::message::json;
use crate::message::rich_text::{html, html_text, message_text, resolve};

/// The answer that makes `MultiPartOutput` show its next part.
const NEXT_PART: &str = "click_for_more";
/// Fields that hold words, in the order of reading.
const WORDS: [&str; 11] = [
    "header",
    "title",
    "subtitle",
    "label",
    "promptMsg",
    "message",
    "text",
    "value",
    "description",
    "altText",
    "context",
];
/// Fields that hold addresses.
const ADDRESSES: [&str; 8] =
    ["action", "url", "link", "href", "targetUrl", "image", "imageUrl", "attachment"];

/// Reads controls of one instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Controls<'a> {
    pub(super) instance: Option<&'a Url>,
}

impl Controls<'_> {
    /// Returns the meaning of a control.
    pub(super) fn parse(self, ui_type: &str, part: &Value) -> ItemMeaning {
        let text = |found: Option<String>| found.map_or(ItemMeaning::Nothing, ItemMeaning::Text);
        let asks = |found: Option<String>| {
            found.map_or(ItemMeaning::Nothing, |text| ItemMeaning::question(text, Vec::new()))
        };
        match ui_type {
            "OutputText" => text(self.words(part, &["value", "label", "text"])),
            "OutputHtml" => text(self.page(part)),
            "OutputImage" => text(self.image(part)),
            "OutputLink" => text(self.link(part)),
            "OutputCard" => text(self.card(part)),
            "MultiPartOutput" => self.parts(part),
            "GroupedPartsOutputControl" => {
                text(lines([self.words(part, &["header", "label"]), self.inside(part)]))
            }
            "Picker" | "TopicPickerControl" | "Boolean" | "Carousel" | "MultiSelect" => self.picker(part),
            "InputText" | "Date" | "Time" | "DateTime" | "FileUpload" => {
                asks(self.words(part, &["promptMsg", "label", "value"]))
            }
            // The last callback of a stream contains the whole text as OutputText.
            "StreamStart" | "StreamChunk" | "StreamEnd" => ItemMeaning::Nothing,
            _ if part.get("options").is_some_and(Value::is_array) => self.picker(part),
            _ => ItemMeaning::Unknown(self.anything(part)),
        }
    }

    /// Returns the first of these fields that has a text, as plain text.
    pub(super) fn words(self, part: &Value, keys: &[&str]) -> Option<String> {
        let found = keys.iter().find_map(|key| some(part.get(key)))?;
        Some(message_text(&found, self.instance)).filter(|text| !text.trim().is_empty())
    }

    fn address(self, value: Option<&Value>) -> Option<String> {
        resolve(&some(value)?, self.instance)
    }

    /// Returns the text of a page, and the addresses that the control names in addition.
    fn page(self, part: &Value) -> Option<String> {
        let page = html(&["value", "label"].iter().find_map(|key| some(part.get(key)))?, self.instance);
        let mut known: HashSet<String> = page.addresses.into_iter().collect();
        let links = part.get("links").and_then(Value::as_array).into_iter().flatten();
        let links = links.map(|link| (self.words(link, &["label"]), self.address(link.get("link"))));
        let image = [(None, self.address(part.get("imageUrl")))];
        let others = links.chain(image).filter_map(|(label, address)| Some((label, address?)));
        let others: Vec<_> = others
            .filter(|(_, address)| known.insert(address.clone()))
            .map(|(label, address)| named(label, Some(address)))
            .collect();
        lines([Some(page.text)].into_iter().chain(others))
    }

    fn image(self, part: &Value) -> Option<String> {
        named(
            self.words(part, &["altText", "label"]),
            self.address(part.get("value")).or_else(|| self.address(part.get("url"))),
        )
    }

    fn link(self, part: &Value) -> Option<String> {
        let value = part.get("value");
        let target = value.and_then(|value| value.get("action")).or(value).or_else(|| part.get("action"));
        let header = self.words(part, &["header"]);
        let label = self.words(part, &["label"]).filter(|label| header.as_ref() != Some(label));
        lines([header, named(label, self.address(target))])
    }

    /// The JSON of the card is a text. Its fields depend on the card's template.
    fn card(self, part: &Value) -> Option<String> {
        self.card_data(part.get("data")).or_else(|| self.words(part, &["label", "value"]))
    }

    fn card_data(self, data: Option<&Value>) -> Option<String> {
        let data: Value = match data? {
            Value::String(text) => json::bounded(text.as_bytes()).ok()?,
            other => other.clone(),
        };
        let fields = data.get("fields").and_then(Value::as_array).into_iter().flatten();
        let fields: Vec<_> = fields
            .map(|field| {
                let value = self.words(field, &["fieldValue", "value"])?;
                let label = self.words(field, &["fieldLabel", "label"]);
                Some(label.map_or(value.clone(), |label| format!("{label}: {value}")))
            })
            .collect();
        let image = named(self.words(&data, &["imageAlt"]), self.address(data.get("image")));
        let links = ["url", "targetUrl", "link"].iter().find_map(|key| self.address(data.get(*key)));
        let known = [
            self.words(&data, &["title", "header"]),
            self.words(&data, &["subtitle"]),
            self.words(&data, &["description", "text"]),
        ];
        lines(known.into_iter().chain(fields).chain([image, links])).or_else(|| self.anything(&data))
    }

    /// Shows one part of several. A question asks for the next part.
    fn parts(self, part: &Value) -> ItemMeaning {
        let content = part.get("content").or_else(|| part.get("value")).filter(|content| content.is_object());
        let shown = content.and_then(|content| {
            match self.parse(&some(content.get("uiType")).unwrap_or_default(), content) {
                ItemMeaning::Text(text) | ItemMeaning::Unknown(Some(text)) => Some(text),
                ItemMeaning::Question(question) => Some(question.text),
                _ => None,
            }
        });
        let label = self.words(part, &["navigationBtnLabel"]);
        match (shown.or_else(|| lines([self.words(part, &["header", "label"]), self.inside(part)])), label) {
            (None, _) => ItemMeaning::Nothing,
            // The last part has no button.
            (Some(text), None) => ItemMeaning::Text(text),
            (Some(text), Some(label)) => {
                let choice = Choice { title: label.clone(), value: NEXT_PART.to_owned() };
                ItemMeaning::question(format!("{text}\n({label})"), vec![choice])
            }
        }
    }

    /// Returns the texts of the parts of a composed control, in any of the known lists.
    fn inside(self, part: &Value) -> Option<String> {
        let lists = ["values", "parts", "groupPartsOutput", "outputs", "items", "value", "data"];
        let parts = lists.iter().filter_map(|key| part.get(key)?.as_array()).flatten();
        lines(parts.map(|inner| {
            let target =
                inner.get("value").and_then(|value| value.get("action")).or_else(|| inner.get("action"));
            let label = self.words(inner, &["label", "header", "value"]);
            let more = ["description", "context"].iter().find_map(|key| some(inner.get(key)));
            let more = more.map(|more| html_text(&more, self.instance));
            lines([named(label, self.address(target)), more])
        }))
    }

    fn picker(self, part: &Value) -> ItemMeaning {
        let options = part.get("options").and_then(Value::as_array).into_iter().flatten();
        let mut choices = Vec::new();
        let mut shown = vec![self.words(part, &["promptMsg", "label"])];
        let scripted = part.get("scriptedData").and_then(|data| data.get("cardData"));
        shown.push(self.card_data(scripted));
        for (index, option) in options.enumerate() {
            let plain = some(Some(option));
            let title = self.words(option, &["label", "value"]).or(plain);
            let Some(title) = title else { continue };
            let more = self.words(option, &["description"]).filter(|more| *more != title);
            let title_line = more.map_or(title.clone(), |more| format!("{title}: {more}"));
            shown.push(named(
                Some(format!("{}. {title_line}", index + 1)),
                self.address(option.get("attachment")),
            ));
            let value = some(option.get("value")).unwrap_or_else(|| title.clone());
            choices.push(Choice { title, value });
        }
        lines(shown).map_or(ItemMeaning::Nothing, |text| ItemMeaning::question(text, choices))
    }

    /// Returns all words and addresses of a control of an unknown type, at any depth.
    fn anything(self, part: &Value) -> Option<String> {
        let mut found = Vec::new();
        self.gather(part, &mut found);
        lines(found)
    }

    fn gather(self, part: &Value, found: &mut Vec<Option<String>>) {
        match part {
            Value::Array(parts) => parts.iter().for_each(|part| self.gather(part, found)),
            Value::Object(fields) => {
                for key in WORDS {
                    match fields.get(key) {
                        Some(inner @ (Value::Object(_) | Value::Array(_))) => self.gather(inner, found),
                        _ => found.push(self.words(part, &[key])),
                    }
                }
                let is_address = |value: &&Value| value.as_str().is_some_and(|text| text.contains('/'));
                let addresses = ADDRESSES.iter().map(|key| fields.get(*key).filter(is_address));
                found.extend(addresses.map(|value| self.address(value)));
                for key in ["content", "values", "parts", "options", "items", "links", "data", "fields"] {
                    self.gather(fields.get(key).unwrap_or(&Value::Null), found);
                }
            }
            _ => {}
        }
    }
}

/// Joins words and their address. The address is on a line of its own, so that a channel shows the address as a link.
fn named(words: Option<String>, address: Option<String>) -> Option<String> {
    match (words, address) {
        (Some(words), Some(address)) if words != address => Some(format!("{words}\n{address}")),
        (words, address) => address.or(words),
    }
}

fn lines(parts: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join("\n"))
}

/// Returns a text that is not empty, or a number as text.
pub(super) fn some(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
