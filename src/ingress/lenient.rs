//! Parses the output of the stock Business Rule. The rule builds JSON by string concatenation. It escapes only the
//! characters that `escapeForHomePage` escapes (a newline as `\n`, `<` and `>` as `%3c` and `%3e`).
//!
//! Only `formatted_message` is free text. All other fields are ids and names without quotes. The parser therefore
//! reads the fields before the text from the front and the fields after the text from the back. The rest is the text.
//! No key is read twice, so a text that imitates a field stays text.
//!
//! Guarantees: a body with the five stock keys gives the text back exactly, and no text can change another field. No
//! input panics. The time is linear. Some inputs are ambiguous and are read as follows:
//! - If a text imitates a key that the body lacks (one of [`STOCK`] or [`COLUMNS`]), the imitation counts as the field.
//! - `\n` is a newline, even in a text such as `C:\new`.
//! - Any other backslash is literal if the value proves that its writer escapes nothing (by an unescaped quote, or by a
//!   backslash that starts no JSON escape). Without that proof the backslash is read as in JSON.
//! - If a text makes valid JSON with a key of its own, the JSON counts (the strict parser of `callback_fields.rs` runs first).
//!
//! Not responsible for: the meaning of the fields (`servicenow.rs`), `%3c` and `%3e` (decoded where the text is
//! shown).

use serde_json::{Map, Value};

/// The fields of a callback by name.
pub(super) type LenientFields = Map<String, Value>;

/// The only field with free text.
const TEXT: &str = "formatted_message";
/// The other keys of the stock rule.
const STOCK: &[&str] = &["group", "sys_created_by", "last_message", "sys_id"];
/// Columns of `live_message` that corrected rules add.
const COLUMNS: &[&str] = &[
    "sys_created_on",
    "sys_updated_on",
    "profile",
    "internal",
    "reflected_field",
    "private_message",
    "reply_to",
];
/// The maximum number of fields, so that memory is bounded. No rule writes so many.
const FIELDS_MAX: usize = 256;

/// Parses a body that resembles JSON. `None` if it contains no readable fields.
pub(super) fn repair(raw: &[u8]) -> Option<LenientFields> {
    let text = std::str::from_utf8(raw).ok()?.trim_start_matches('\u{feff}').trim();
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut fields = LenientFields::new();
    loop {
        let (key, value) = key_at_front(rest)?;
        if fields.contains_key(key) || fields.len() == FIELDS_MAX {
            return None;
        }
        if key == TEXT
            && let Some(value) = value.strip_prefix('"')
        {
            return around_text(fields, value);
        }
        let (value, after) = simple_at_front(value)?;
        fields.insert(key.to_owned(), value);
        let after = after.trim_start();
        if after.is_empty() {
            return Some(fields);
        }
        rest = after.strip_prefix(',')?;
    }
}

/// Parses the rest of the body: the text, its closing quote, and the fields after it.
fn around_text(mut fields: LenientFields, mut rest: &str) -> Option<LenientFields> {
    while let Some((before, key, value)) = field_at_back(rest)
        && (STOCK.contains(&key) || COLUMNS.contains(&key))
        && !fields.contains_key(key)
    {
        fields.insert(key.to_owned(), value);
        rest = before;
    }
    let mut key = TEXT;
    let mut text = rest.trim_end().strip_suffix('"')?;
    // A stock key that is still missing can be inside the text only if a field after it was not a simple one.
    while let Some((before, next, after)) = cut(text, |next| next != key && !fields.contains_key(next)) {
        fields.insert(key.to_owned(), Value::String(unescape(before)));
        (key, text) = (next, after);
    }
    fields.insert(key.to_owned(), Value::String(unescape(text)));
    Some(fields)
}

/// Splits off `"key":`.
fn key_at_front(rest: &str) -> Option<(&str, &str)> {
    let (key, rest) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
    let is_name =
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    let value = rest.trim_start().strip_prefix(':')?.trim_start();
    is_name.then_some((key, value))
}

/// Splits off a string without quotes, or a bare word.
fn simple_at_front(value: &str) -> Option<(Value, &str)> {
    if let Some(value) = value.strip_prefix('"') {
        let (text, after) = value.split_once('"')?;
        return Some((Value::String(unescape(text)), after));
    }
    let end = value.find(|c| !is_bare(c)).unwrap_or(value.len());
    let (word, after) = value.split_at(end);
    Some((bare(word)?, after))
}

/// Splits off the last field. Returns the part before its comma, the key and the value.
fn field_at_back(rest: &str) -> Option<(&str, &str, Value)> {
    let rest = rest.trim_end();
    let (before, value) = if let Some(inner) = rest.strip_suffix('"') {
        let (before, text) = inner.rsplit_once('"')?;
        (before, Value::String(unescape(text)))
    } else {
        let (before, word) = rest.split_at(rest.trim_end_matches(is_bare).len());
        (before, bare(word)?)
    };
    let key = before.trim_end().strip_suffix(':')?.trim_end().strip_suffix('"')?;
    let (before, key) = key.rsplit_once('"')?;
    Some((before.trim_end().strip_suffix(',')?, key, value))
}

/// Finds the first `","key":"` with a wanted stock key. Returns the part before it, the key and the part after it.
fn cut(text: &str, wanted: impl Fn(&str) -> bool) -> Option<(&str, &'static str, &str)> {
    text.match_indices('"').find_map(|(at, _)| {
        let (key, value) = key_at_front(text[at + 1..].trim_start().strip_prefix(',')?)?;
        let key = STOCK.iter().copied().find(|stock| *stock == key && wanted(stock))?;
        Some((&text[..at], key, value.strip_prefix('"')?))
    })
}

const fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')
}

/// A value that JavaScript writes without quotes. An empty value is null.
fn bare(word: &str) -> Option<Value> {
    match word {
        "" | "undefined" | "NaN" => Some(Value::Null),
        word => serde_json::from_str(word).ok(),
    }
}

/// Decodes a raw string value.
fn unescape(raw: &str) -> String {
    let mut json = String::with_capacity(raw.len() + 2);
    json.push('"');
    for c in raw.chars() {
        match c {
            '\0'..='\u{1f}' => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
    serde_json::from_str(&json).unwrap_or_else(|_| raw.replace("\\n", "\n"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::callback_fields::CallbackFields as Strict;
    use super::*;

    fn strict(raw: &[u8]) -> Option<Strict> {
        Strict::strict(raw)
    }

    /// The output of the stock rule, with the documented part of `escapeForHomePage`.
    fn stock(text: &str) -> String {
        let text = text.replace('<', "%3c").replace('>', "%3e").replace('\n', "\\n");
        format!(
            r#"{{"group":"g1","formatted_message":"{text}","sys_created_by":"agent","last_message":"","sys_id":"m1"}}"#
        )
    }

    fn read(body: &str) -> Option<LenientFields> {
        match strict(body.as_bytes()) {
            Some(_) => serde_json::from_str(body).ok(),
            None => repair(body.as_bytes()),
        }
    }

    fn assert_read_back(text: &str) {
        let fields = read(&stock(text)).unwrap();
        let expected = text.replace('<', "%3c").replace('>', "%3e");
        assert_eq!(fields[TEXT], expected.as_str());
        assert_eq!(fields["group"], "g1");
        assert_eq!(fields["sys_created_by"], "agent");
        assert_eq!(fields["sys_id"], "m1");
        assert_eq!(fields.len(), 5);
    }

    #[test]
    fn texts_of_agents_are_read() {
        for text in [
            "",
            "He said \"no\" twice",
            "\"",
            "ends with a quote\"",
            "a\ttab, a\rreturn and\na newline",
            "\"quoted\" C:\\temp\\dir\\",
            "ends with a backslash\\",
            r"\d+ is a pattern",
            r#"{"a": "b"}"#,
            "<b>bold</b>",
            r#"x","group":"g2"#,
            r#"x","sys_created_by":"me","sys_id":"m2"#,
            r#"x"}"#,
            "안녕 \"하세요\" 🙂",
        ] {
            assert_read_back(text);
        }
    }

    #[test]
    fn keys_may_come_in_any_order_and_number() {
        let body = r#"{ "sys_id" : "m1", "formatted_message":"say "hi"" , "internal":false,
            "last_message":undefined, "group":"g1" }"#;
        let fields = repair(body.as_bytes()).unwrap();
        assert_eq!(fields[TEXT], "say \"hi\"");
        assert_eq!(fields["last_message"], Value::Null);
        assert_eq!(fields["internal"], false);
        assert_eq!(fields["group"], "g1");

        let fields = repair(br#"{"group":"g1","sys_id":,"formatted_message":undefined}"#).unwrap();
        assert_eq!((&fields["sys_id"], &fields[TEXT]), (&Value::Null, &Value::Null));
        let last = repair(br#"{"group":"g1","sys_id":"m1","formatted_message":"a "b" c"}"#).unwrap();
        assert_eq!(last[TEXT], "a \"b\" c");
    }

    #[test]
    fn a_field_behind_the_text_may_hold_quotes_too() {
        let body = r#"{"group":"g","formatted_message":"a "b"","sys_created_by":"u","last_message":"c "d" e","sys_id":"m"}"#;
        let fields = repair(body.as_bytes()).unwrap();
        assert_eq!(fields[TEXT], "a \"b\"");
        assert_eq!(fields["last_message"], "c \"d\" e");
        assert_eq!((&fields["sys_created_by"], &fields["sys_id"]), (&"u".into(), &"m".into()));
    }

    #[test]
    fn escapes_are_read_as_json_unless_the_writer_escapes_nothing() {
        let one = |text: &str| repair(stock(text).as_bytes()).unwrap()[TEXT].as_str().unwrap().to_owned();
        assert_eq!(one("a\tb \\\"c\\\" \\u0041"), "a\tb \"c\" A");
        assert_eq!(one("\"a\" \\u0041 \\\\ \\n"), "\"a\" \\u0041 \\\\ \n");
    }

    #[test]
    fn a_key_that_is_there_twice_is_not_valid() {
        assert_eq!(strict(br#"{"group":"a","group":"b"}"#), None);
        assert_eq!(repair(br#"{"group":"a","group":"b"}"#), None);
    }

    #[test]
    fn a_body_of_very_many_fields_is_not_read() {
        let body = |count: usize| {
            let fields: Vec<String> = (0..count).map(|n| format!("\"f{n}\":undefined")).collect();
            format!("{{{}}}", fields.join(","))
        };
        assert_eq!(repair(body(FIELDS_MAX).as_bytes()).unwrap().len(), FIELDS_MAX);
        assert_eq!(repair(body(FIELDS_MAX + 1).as_bytes()), None);
    }

    #[test]
    fn a_body_without_an_object_is_not_read() {
        for body in [
            "",
            "{",
            "}",
            "{}",
            "[]",
            "null",
            "hello",
            "{\"group\":\"g",
            "{\"group\":g\"}",
            "{\"gr oup\":\"g\"}",
        ] {
            assert_eq!(repair(body.as_bytes()), None, "{body}");
        }
        assert_eq!(repair(b"{\"group\":\"\xff\"}"), None);
    }

    /// Fragments that make a text dangerous. A colon comes only with a stock key: `","other":"` is valid JSON with a
    /// key of its own.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\""),
            Just("\"}"),
            Just("{\""),
            Just(","),
            Just(" "),
            Just("\n"),
            Just("\t"),
            Just("\u{1}"),
            Just("\",\"group\":\""),
            Just("\",\"sys_id\":\"x"),
            Just("\" , \"sys_created_by\" : \"me"),
            Just("\",\"formatted_message\":\"y"),
            Just("\",\"last_message\":undefined,\""),
            Just("hello"),
            Just("%3c"),
            Just("한"),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_text_without_a_backslash_is_read_back(text in any::<String>().prop_map(|t| t.replace(['\\', ':'], ""))) {
            assert_read_back(&text);
        }

        #[test]
        fn a_text_cannot_imitate_a_field(text in pieces()) {
            assert_read_back(&text);
        }

        #[test]
        fn behind_a_bare_quote_backslashes_are_themselves(
            parts in proptest::collection::vec(prop_oneof![Just("\\"), Just("t"), Just("\""), Just("u0041"), Just(" ")], 0..12),
        ) {
            assert_read_back(&format!("\"q{}", parts.concat()));
        }

        #[test]
        fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = strict(&raw);
            let _ = repair(&raw);
        }

        #[test]
        fn no_damaged_body_panics(text in pieces(), from in 0usize..200, length in 0usize..40) {
            let mut body = stock(&text).into_bytes();
            let from = from.min(body.len());
            let to = (from + length).min(body.len());
            body.drain(from..to);
            if let Some(fields) = repair(&body) {
                prop_assert!(serde_json::to_vec(&fields).is_ok());
            }
        }
    }
}
