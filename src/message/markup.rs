//! Connect's mark-up to the text that a person reads.
//!
//! Source: ServiceNow's own client (`factory.Message`): `@M[sys_id|name]` and the older `@[sys_id:name]` mention somebody,
//! `@L[address|label]` is a link, `&#64;` stands for `@`. Guarantees: what is not mark-up stays as it is.

/// The text without mark-up: a mention becomes its name, a link its label and address.
pub(crate) fn plain(text: &str) -> String {
    let text = entities(text);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(start) = rest.find('@') {
        let (before, from) = rest.split_at(start);
        plain.push_str(before);
        match markup(from) {
            Some((words, length)) => {
                plain.push_str(&words);
                rest = &from[length..];
            }
            None => {
                plain.push('@');
                rest = &from[1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// The words of the mark-up that `text` begins with, and its length in bytes.
fn markup(text: &str) -> Option<(String, usize)> {
    let forms = [("@M[", '|', false), ("@L[", '|', true), ("@[", ':', false)];
    let (open, separator, is_link) = *forms.iter().find(|(open, ..)| text.starts_with(open))?;
    let end = text.find(']')?;
    let (target, label) = text[open.len()..end].split_once(separator)?;
    let (target, label) = (target.trim(), label.trim());
    let is_address = target.starts_with("http://") || target.starts_with("https://");
    let words = match (is_link && is_address && target != label, label.is_empty()) {
        (true, true) => target.to_owned(),
        (true, false) => format!("{label} ({target})"),
        (false, true) => target.to_owned(),
        (false, false) => label.to_owned(),
    };
    Some((words, end + 1))
}

/// `&amp;` comes last, so that text which spells out an entity stays as it was meant.
fn entities(text: &str) -> String {
    let pairs =
        [("&#64;", "@"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " ")];
    let pairs = pairs.into_iter().chain([("&amp;", "&")]);
    pairs.fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_up_becomes_words() {
        for (written, read) in [
            ("Hello @M[6816f79cc0a8016401c5a33be04be441|Ada Lovelace], look", "Hello Ada Lovelace, look"),
            ("&#64;M[1|Ada]", "Ada"),
            ("old @[6816f79c:Ada] form", "old Ada form"),
            ("see @L[https://a.example/x?a=1&b=2|the page]!", "see the page (https://a.example/x?a=1&b=2)!"),
            ("@L[https://a.example|https://a.example]", "https://a.example"),
            ("@L[0a1b2c|INC0010001]", "INC0010001"),
            ("@M[1|]", "1"),
        ] {
            assert_eq!(plain(written), read, "{written}");
        }
    }

    #[test]
    fn everything_else_stays() {
        for text in [
            "mail ada@example.com",
            "@",
            "@M[never closed",
            "@M[no separator]",
            "a < b && c",
            "100 %",
            "네 @ 3",
        ] {
            assert_eq!(plain(text), text);
        }
        assert_eq!(plain("&amp;lt; is written &lt;"), "&lt; is written <");
    }
}
