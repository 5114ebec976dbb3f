//! Character references of HTML to the characters that they stand for: all numeric ones, and the names of the HTML standard.
//!
//! Guarantees: each is decoded once, so a text that spells out a reference stays as its writer meant it. A reference ends with
//! a semicolon: `?a=1&copy=2` in an address is none. What is no reference stays.
//! ServiceNow's client decodes `&#64;`; the OWASP sanitizer that writes it also writes `= + ' "` and the backtick as decimal
//! references (FACTS.md SN-15).

use std::borrow::Cow;

use super::steps::walked;

/// The text with its characters.
pub(crate) fn references(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        walked(text.len());
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        walked(at);
        let (before, from) = rest.split_at(at);
        plain.push_str(before);
        let length = written(from).unwrap_or(1);
        let (written, after) = from.split_at(length);
        match (length > 1).then(|| character(written)).flatten() {
            Some(read) => plain.push_str(&read),
            None => plain.push_str(written),
        }
        rest = after;
    }
    walked(rest.len());
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// The length of what may be a reference at the beginning of the text: letters, digits and `#` up to a semicolon.
fn written(text: &str) -> Option<usize> {
    let end = text.bytes().skip(1).position(|byte| !byte.is_ascii_alphanumeric() && byte != b'#');
    walked(end.unwrap_or(text.len()));
    let end = end? + 1;
    (end > 1 && text.as_bytes().get(end) == Some(&b';')).then_some(end + 1)
}

/// What a reference stands for. The standard also reads the longest known beginning of a name (`&notit;` as `¬it;`), which a
/// chat never means: such a reading ends with the semicolon that it did not use.
fn character(written: &str) -> Option<String> {
    let read = htmlize::unescape(written);
    let is_whole = read != written && (read == ";" || !read.ends_with(';'));
    // A blank that must not break is a blank to a person.
    is_whole.then(|| read.replace('\u{a0}', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_their_characters() {
        for (written, read) in [
            ("id&#61;kb&amp;no&#61;7&#43;8", "id=kb&no=7+8"),
            ("&#34;ip a&#34; &#96;ls&#96; &#39;x&apos;", "\"ip a\" `ls` 'x'"),
            ("caf&#233; &#xE9; &#XE9; &eacute; &euro;5 &hellip; &rarr;", "café é é é €5 … →"),
            ("&#x1F600; &#128512;", "😀 😀"),
            ("a&nbsp;b&#160;c", "a b c"),
            ("&CounterClockwiseContourIntegral;&semi;", "∳;"),
            ("&#0; &#xD800; &#x110000;", "\u{fffd} \u{fffd} \u{fffd}"),
            // Windows' characters, as every browser reads them.
            ("&#150; &#146;", "– ’"),
        ] {
            assert_eq!(references(written), read, "{written}");
        }
    }

    #[test]
    fn each_is_decoded_once() {
        assert_eq!(references("&amp;lt; &amp;amp; &#38;lt; &amp;#64;"), "&lt; &amp; &lt; &#64;");
    }

    #[test]
    fn what_is_no_reference_stays() {
        for text in [
            "a & b && c",
            "R&D",
            "?a=1&copy=2&lt=3",
            "&unheardof; &notit; &; &#; &#x; &#12a; &a b;",
            "&",
            "&amp",
            "&am\u{e9}p;",
        ] {
            assert_eq!(references(text), text);
        }
    }
}
