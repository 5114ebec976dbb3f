//! Converts Connect's own mark-up to text.
//!
//! ServiceNow's client (`factory.Message`) defines the mark-up: `@M[sys_id|name]` and the older `@[sys_id:name]`
//! mention a person, and `@L[address|label]` is a link.
//!
//! Guarantees: any other text is unchanged. Each byte is read a fixed number of times.

use url::Url;

use super::text_search::{TextSearch, walked};
use super::{labelled, resolve};

/// The mark-up forms: the opening, the separator between target and label, and whether the form is a link.
const FORMS: [(&str, u8, bool); 3] = [("@M[", b'|', false), ("@L[", b'|', true), ("@[", b':', false)];

/// The text without mark-up: a mention becomes a name, a link becomes its label and its address.
pub(super) fn read(text: &str, instance: Option<&Url>) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut at_signs = TextSearch::new(text, "@");
    let mut ends = TextSearch::new(text, "]");
    let mut separators = [TextSearch::new(text, "|"), TextSearch::new(text, ":")];
    let mut at = 0;
    while let Some(start) = at_signs.next(at) {
        plain.push_str(&text[at..start]);
        let form = FORMS.iter().find(|(open, ..)| text[start..].starts_with(open));
        let whole = form.and_then(|(open, separator, is_link)| {
            let target = start + open.len();
            let search = &mut separators[usize::from(*separator == b':')];
            let (end, cut) = (ends.next(target)?, search.next(target)?);
            (cut < end).then(|| (&text[target..cut], &text[cut + 1..end], *is_link, end + 1))
        });
        at = match whole {
            Some((target, label, is_link, end)) => {
                walked(end - start);
                plain.push_str(&words(target.trim(), label.trim(), is_link, instance));
                end
            }
            None => {
                plain.push('@');
                start + 1
            }
        };
    }
    plain.push_str(&text[at..]);
    plain
}

fn words(target: &str, label: &str, is_link: bool, instance: Option<&Url>) -> String {
    // The target of a link can also be the id of a record, which is not an address.
    let is_address = is_link && target.contains(['/', '?', ':']);
    let address = if is_address { resolve(target, instance) } else { None };
    match address {
        Some(address) => labelled(label, &address),
        None if label.is_empty() => target.to_owned(),
        None => label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_up_becomes_words() {
        let instance = Url::parse("https://acme.service-now.com").unwrap();
        for (written, plain) in [
            ("Hello @M[6816f79cc0a8016401c5a33be04be441|Ada Lovelace], look", "Hello Ada Lovelace, look"),
            ("old @[6816f79c:Ada] form", "old Ada form"),
            ("see @L[https://a.example/x?a=1&b=2|the page]!", "see the page (https://a.example/x?a=1&b=2)!"),
            ("@L[https://a.example|https://a.example]", "https://a.example"),
            ("@L[/kb?id=1|the page]", "the page (https://acme.service-now.com/kb?id=1)"),
            ("@L[0a1b2c|INC0010001]", "INC0010001"),
            ("@L[javascript:x()|press]", "press"),
            ("@M[1|]", "1"),
            ("@[a @M[1|Ada]", "@[a Ada"),
            ("a@b @M[1|Ada]@M[2|Bo]", "a@b AdaBo"),
        ] {
            assert_eq!(read(written, Some(&instance)), plain, "{written}");
        }
    }

    #[test]
    fn everything_else_stays() {
        for text in ["mail ada@example.com", "@", "@M[never closed", "@M[no separator]", "@[] :", "네 @ 3"] {
            assert_eq!(read(text, None), text);
        }
    }
}
