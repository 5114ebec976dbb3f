//! Decodes HTML character references: all numeric ones, and the names of the HTML standard.
//!
//! Guarantees: each reference is decoded once, so a text that spells out a reference keeps its meaning. A reference
//! ends with a semicolon, so `?a=1&copy=2` in an address is unchanged. Any other text is unchanged. ServiceNow's client
//! decodes `&#64;`. The OWASP sanitizer, which writes this reference, also writes `= + ' "` and the backtick as decimal
//! references (`src/platform/servicenow/FACTS.md`).

use std::borrow::Cow;

use super::text_search::walked;

/// The text with its references decoded.
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

/// The length of a possible reference at the start of the text: letters, digits and `#` up to a semicolon.
fn written(text: &str) -> Option<usize> {
    let end = text.bytes().skip(1).position(|byte| !byte.is_ascii_alphanumeric() && byte != b'#');
    walked(end.unwrap_or(text.len()));
    let end = end? + 1;
    (end > 1 && text.as_bytes().get(end) == Some(&b';')).then_some(end + 1)
}

/// The characters of a reference. The standard also accepts the longest known prefix of a name (`&notit;` as `¬it;`),
/// which a chat never means. Such a result ends with the unused semicolon.
fn character(written: &str) -> Option<String> {
    let read = htmlize::unescape(written);
    let is_whole = read != written && (read == ";" || !read.ends_with(';'));
    // A no-break space becomes a normal space.
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
            // The characters of Windows code page 1252, as browsers decode them.
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
    fn text_that_is_no_reference_stays() {
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
