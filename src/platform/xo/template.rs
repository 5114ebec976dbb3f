//! Converts a bot's template to the text that its user read.
//!
//! XO keeps a template as JSON text. The keys that hold text differ by template and channel. The rule is therefore a
//! list of keys for text, a list of keys for nested parts, and a list of keys for buttons. All other keys (addresses,
//! ids, types) are ignored.
//! Guarantees: a text that is not JSON stays unchanged. The depth and the number of parts are limited.
//! Source: `src/platform/xo/FACTS.md`: text at `payload.text`, titles at `payload.buttons[].title`. Kore's templates
//! add `elements[]` and `quick_replies[]`, Teams' cards `body[]` and `actions[]`.

use serde_json::Value;

/// Keys of text, in reading order.
const WORDS: &[&str] = &["heading", "header", "title", "text", "subtitle", "description"];
/// Keys of nested parts of the template.
const INSIDE: &[&str] =
    &["payload", "content", "body", "elements", "cards", "items", "columns", "attachments", "message"];
/// Keys of buttons.
const BUTTONS: &[&str] = &["buttons", "quick_replies", "options", "actions", "suggestedActions"];
/// The maximum depth. Templates are a few levels deep.
const DEPTH_MAX: usize = 12;
/// The maximum number of parts of one message.
const PARTS_MAX: usize = 100;

/// The readable text of a message that may be a template. `None` for a template without text.
pub(super) fn readable(text: &str) -> Option<String> {
    let trimmed = text.trim();
    let looks_like_json = trimmed.starts_with('{') && trimmed.ends_with('}')
        || trimmed.starts_with('[') && trimmed.ends_with(']');
    match serde_json::from_str::<Value>(trimmed) {
        Ok(template) if looks_like_json && is_template(&template) => words(&template),
        _ => Some(trimmed.to_owned()),
    }
}

/// Tells a template from JSON that a person wrote: a template has a type or a payload.
fn is_template(value: &Value) -> bool {
    let one = |value: &Value| {
        ["type", "payload", "template_type", "text", "attachments"].iter().any(|key| value.get(key).is_some())
    };
    match value {
        Value::Array(items) => !items.is_empty() && items.iter().all(one),
        one_of => one_of.is_object() && one(one_of),
    }
}

/// The text of a template, or its type in brackets if it has no text.
pub(super) fn words(template: &Value) -> Option<String> {
    let mut parts = Vec::new();
    collect(template, 0, &mut parts);
    parts.dedup();
    if !parts.is_empty() {
        return Some(parts.join(" "));
    }
    let places = ["/payload/template_type", "/payload/type", "/template_type", "/type"];
    let kind = places.iter().find_map(|place| template.pointer(place)?.as_str())?;
    Some(format!("[{kind}]"))
}

fn collect(value: &Value, depth: usize, parts: &mut Vec<String>) {
    if depth > DEPTH_MAX || parts.len() > PARTS_MAX {
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, depth + 1, parts)),
        Value::Object(_) => {
            parts.extend(WORDS.iter().filter_map(|key| word(value.get(*key)?)));
            for inner in INSIDE.iter().filter_map(|key| value.get(*key)) {
                collect(inner, depth + 1, parts);
            }
            for buttons in BUTTONS.iter().filter_map(|key| value.get(*key)?.as_array()) {
                let titles = buttons.iter().filter_map(|button| {
                    ["title", "label", "text"]
                        .iter()
                        .find_map(|key| word(button.get(*key)?))
                        .or_else(|| word(button))
                });
                parts.extend(titles.take(PARTS_MAX).map(|title| format!("[{title}]")));
            }
        }
        _ => {}
    }
}

fn word(value: &Value) -> Option<String> {
    value.as_str().map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_person_reads_words_and_buttons() {
        for (template, read) in [
            (json!({"type": "template", "payload": {"template_type": "live_agent", "text": "hi"}}), "hi"),
            (
                json!({"type": "template", "payload": {"template_type": "quick_replies", "text": "Which?",
                    "quick_replies": [{"content_type": "text", "title": "A", "image_url": "https://x/a.png"}]}}),
                "Which? [A]",
            ),
            (
                json!({"type": "template", "payload": {"template_type": "carousel", "elements": [
                    {"title": "One", "subtitle": "first", "image_url": "https://x/1.png", "buttons": [{"title": "Buy"}]},
                    {"title": "Two"}]}}),
                "One first [Buy] Two",
            ),
            (json!({"type": "image", "payload": {"url": "https://x/a.png"}}), "[image]"),
            (json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "a b"),
        ] {
            assert_eq!(readable(&template.to_string()).as_deref(), Some(read), "{template}");
        }
    }

    #[test]
    fn text_that_is_no_template_stays() {
        for text in ["hello", "{not json}", "[1] is first", "{\"a\":1}", "7", "\"quoted\"", "[]", "{}"] {
            assert_eq!(readable(text).as_deref(), Some(text), "{text}");
        }
        let mut deep = json!({"text": "x"});
        for _ in 0..100 {
            deep = json!({"type": "t", "payload": deep});
        }
        assert_eq!(readable(&deep.to_string()).as_deref(), Some("[t]"));
    }
}
