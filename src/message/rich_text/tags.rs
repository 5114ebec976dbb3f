//! Converts HTML tags to text: line breaks for blocks, a dash for list items, and the address beside the label of a
//! link.
//!
//! Guarantees: text that is not a tag is unchanged. Character references stay for `references.rs`, also in addresses,
//! so that each is decoded once. Each byte is read a fixed number of times. This also holds for tags without an end: a
//! scan stops at the next `<` outside of quotes, and at most three scans that start inside each other's quotes can be
//! active.

use url::Url;

use super::text_search::{TextSearch, walked};
use super::{labelled, references, resolve};

/// The part of a text that is HTML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MarkupMode {
    /// The whole text.
    Html,
    /// The text inside `[code]…[/code]`, and tags in the form that scripts write.
    Message,
}

/// A text without tags.
#[derive(Debug)]
pub(super) struct ParsedText {
    /// The text, with its character references.
    pub(super) text: String,
    /// The addresses in the text, decoded.
    pub(super) addresses: Vec<String>,
}

/// The effect of a tag on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HtmlElement {
    Link,
    Image,
    Break,
    Block,
    Item,
    Cell,
    Inline,
    Preformatted,
    /// The content of the element is not shown.
    Hidden,
    Unknown,
}

impl HtmlElement {
    fn of(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "a" => Self::Link,
            "img" => Self::Image,
            "br" => Self::Break,
            "li" => Self::Item,
            "td" | "th" => Self::Cell,
            "pre" => Self::Preformatted,
            "script" | "style" | "head" | "template" => Self::Hidden,
            "p" | "div" | "ul" | "ol" | "dl" | "dt" | "dd" | "tr" | "table" | "tbody" | "thead" | "tfoot"
            | "caption" | "hr" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "blockquote" | "section"
            | "article" | "header" | "footer" | "main" | "nav" | "aside" | "figure" | "figcaption"
            | "form" | "fieldset" | "address" | "details" | "summary" | "html" | "body" => Self::Block,
            "b" | "i" | "u" | "s" | "em" | "strong" | "span" | "font" | "small" | "big" | "sub" | "sup"
            | "code" | "kbd" | "samp" | "var" | "mark" | "del" | "ins" | "strike" | "abbr" | "cite" | "q"
            | "label" | "time" | "center" | "tt" | "wbr" | "bdi" | "bdo" | "dfn" => Self::Inline,
            _ => Self::Unknown,
        }
    }
}

/// A tag as it was written.
#[derive(Debug)]
struct HtmlTag<'a> {
    element: HtmlElement,
    closes: bool,
    address: Option<&'a str>,
    alternative: Option<&'a str>,
    /// Whether each attribute has a value, as in tags of scripts: `a <i and j> b` is a formula.
    has_values: bool,
    length: usize,
}

/// The text without its tags.
pub(super) fn read(text: &str, mode: MarkupMode, instance: Option<&Url>) -> ParsedText {
    let mut page = TextBuilder::new(text.len(), mode, instance);
    let mut scan = MarkupScanner {
        text,
        starts: TextSearch::new(text, "<"),
        comment_ends: TextSearch::new(text, "-->"),
    };
    if mode == MarkupMode::Html {
        scan.html(&mut page, 0, text.len());
        return page.finish();
    }
    let (mut opens, mut closes) = (TextSearch::new(text, "[code]"), TextSearch::new(text, "[/code]"));
    let mut at = 0;
    // A `[code]` without an end is text.
    while let Some(open) = opens.next(at)
        && let Some(close) = closes.next(open)
    {
        scan.html(&mut page, at, open);
        page.html = true;
        scan.html(&mut page, open + "[code]".len(), close);
        page.leave_code();
        at = close + "[/code]".len();
    }
    scan.html(&mut page, at, text.len());
    page.finish()
}

struct MarkupScanner<'a> {
    text: &'a str,
    starts: TextSearch<'a>,
    comment_ends: TextSearch<'a>,
}

impl MarkupScanner<'_> {
    /// Reads one part of the text into the page.
    fn html(&mut self, page: &mut TextBuilder<'_>, from: usize, to: usize) {
        let mut at = from;
        while let Some(start) = self.starts.next(at).filter(|start| *start < to) {
            page.words(&self.text[at..start]);
            let rest = &self.text[start..to];
            at = start + self.markup(page, rest, start, to);
        }
        page.words(&self.text[at..to]);
    }

    /// Reads the mark-up that starts with the `<` at `start`, and returns its length.
    fn markup(&mut self, page: &mut TextBuilder<'_>, rest: &str, start: usize, to: usize) -> usize {
        if page.html
            && rest.starts_with("<!--")
            && let Some(end) = self.comment_ends.next(start + 4).filter(|end| end + 3 <= to)
        {
            return end + 3 - start;
        }
        if page.html
            && rest.starts_with("<!")
            && let Some(end) = rest[1..].find(['<', '>'])
        {
            walked(end);
            if rest.as_bytes().get(end + 1) == Some(&b'>') {
                return end + 2;
            }
        }
        let counts = |tag: &HtmlTag<'_>| page.html || (tag.has_values && page.takes(tag));
        match tag(rest).filter(counts) {
            Some(tag) => {
                page.tag(&tag);
                tag.length
            }
            None => {
                page.words("<");
                1
            }
        }
    }
}

/// The tag at the start of the text.
fn tag(text: &str) -> Option<HtmlTag<'_>> {
    let bytes = text.as_bytes();
    let closes = bytes.get(1) == Some(&b'/');
    let name_at = if closes { 2 } else { 1 };
    let mut at = name_at
        + run(&bytes[name_at.min(bytes.len())..], |byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b':')
        });
    let name = text.get(name_at..at).filter(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()))?;
    let element = HtmlElement::of(name);
    let mut tag = HtmlTag { element, closes, address: None, alternative: None, has_values: true, length: 0 };
    loop {
        at += run(&bytes[at..], |byte| byte.is_ascii_whitespace() || byte == b'/');
        if bytes.get(at)? == &b'>' {
            return Some(HtmlTag { length: at + 1, ..tag });
        }
        let key_at = at;
        at += run(&bytes[at..], |byte| !byte.is_ascii_whitespace() && !b"=>/<\"'".contains(&byte));
        let key = &text[key_at..at];
        at += run(&bytes[at..], |byte| byte.is_ascii_whitespace());
        if key.is_empty() {
            return None;
        }
        if bytes.get(at) != Some(&b'=') {
            tag.has_values = false;
            continue;
        }
        at += 1;
        at += run(&bytes[at..], |byte| byte.is_ascii_whitespace());
        let quote = *bytes.get(at)?;
        let value = if matches!(quote, b'"' | b'\'') {
            let length = run(&bytes[at + 1..], |byte| byte != quote);
            bytes.get(at + 1 + length)?;
            let value = &text[at + 1..at + 1 + length];
            at += length + 2;
            value
        } else {
            let length = run(&bytes[at..], |byte| !byte.is_ascii_whitespace() && !b"<>\"'".contains(&byte));
            let value = &text[at..at + length];
            at += length;
            value
        };
        match (element, key.to_ascii_lowercase().as_str()) {
            (HtmlElement::Link, "href") | (HtmlElement::Image, "src") => tag.address = Some(value),
            (HtmlElement::Image, "alt") => tag.alternative = Some(value),
            _ => {}
        }
    }
}

/// The number of bytes at the start for which `is` holds.
fn run(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    let length = bytes.iter().position(|byte| !is(*byte)).unwrap_or(bytes.len());
    walked(length);
    length
}

/// The output text while it is built.
struct TextBuilder<'a> {
    instance: Option<&'a Url>,
    text: String,
    addresses: Vec<String>,
    /// Whether blanks and line breaks are layout only.
    html: bool,
    whole: MarkupMode,
    /// The open link: the start of its label in `text`, and its address.
    link: Option<(usize, String)>,
    /// Whether a new line is due before the next text.
    line: bool,
    blank: bool,
    preformatted: bool,
    hidden: usize,
}

impl<'a> TextBuilder<'a> {
    fn new(length: usize, whole: MarkupMode, instance: Option<&'a Url>) -> Self {
        TextBuilder {
            instance,
            text: String::with_capacity(length),
            addresses: Vec::new(),
            html: whole == MarkupMode::Html,
            whole,
            link: None,
            line: false,
            blank: false,
            preformatted: false,
            hidden: 0,
        }
    }

    /// Whether a tag outside of `[code]` counts: the end of a link needs its beginning, and a link needs an address.
    fn takes(&self, tag: &HtmlTag<'_>) -> bool {
        match tag.element {
            HtmlElement::Unknown | HtmlElement::Hidden => false,
            HtmlElement::Link if tag.closes => self.link.is_some(),
            HtmlElement::Link => tag.address.is_some(),
            _ => true,
        }
    }

    fn words(&mut self, words: &str) {
        if self.hidden > 0 || words.is_empty() {
            return;
        }
        walked(words.len());
        if !self.html || self.preformatted {
            self.separate(words.starts_with(char::is_whitespace));
            self.text.push_str(words);
            return;
        }
        for (index, word) in words.split(|c: char| c.is_ascii_whitespace()).enumerate() {
            self.blank |= index > 0;
            if !word.is_empty() {
                self.separate(false);
                self.text.push_str(word);
            }
        }
    }

    /// Writes the blank or the line break that is due.
    fn separate(&mut self, is_apart: bool) {
        let at_line_start = self.text.is_empty() || self.text.ends_with('\n');
        if self.line && !at_line_start {
            self.trim_line();
            self.text.push('\n');
        } else if self.blank && !is_apart && !at_line_start && !self.text.ends_with(' ') {
            self.text.push(' ');
        }
        (self.line, self.blank) = (false, false);
    }

    fn trim_line(&mut self) {
        let length = self.text.trim_end_matches(' ').len();
        self.text.truncate(length);
        if let Some((start, _)) = &mut self.link {
            *start = (*start).min(length);
        }
    }

    fn tag(&mut self, tag: &HtmlTag<'_>) {
        if tag.element == HtmlElement::Hidden {
            self.hidden = if tag.closes { self.hidden.saturating_sub(1) } else { self.hidden + 1 };
            return;
        }
        if self.hidden > 0 {
            return;
        }
        match tag.element {
            HtmlElement::Link => {
                self.end_link();
                if !tag.closes {
                    let address = tag.address.and_then(|written| self.address(written));
                    // The start of the label is known only after the due blank or line break.
                    self.separate(false);
                    self.link = address.map(|address| (self.text.len(), address));
                }
            }
            HtmlElement::Image if !tag.closes => self.image(tag),
            HtmlElement::Break => {
                self.trim_line();
                self.text.push('\n');
                (self.line, self.blank) = (false, false);
            }
            HtmlElement::Block => self.line = true,
            HtmlElement::Item => {
                self.line = true;
                if !tag.closes {
                    self.separate(false);
                    self.text.push_str("- ");
                }
            }
            HtmlElement::Cell => self.blank = true,
            HtmlElement::Preformatted => {
                self.line = true;
                self.preformatted = !tag.closes;
            }
            HtmlElement::Image | HtmlElement::Inline | HtmlElement::Unknown | HtmlElement::Hidden => {}
        }
    }

    /// The absolute address of a tag.
    fn address(&self, written: &str) -> Option<String> {
        resolve(&references(written), self.instance)
    }

    fn image(&mut self, tag: &HtmlTag<'_>) {
        let address = tag.address.and_then(|written| self.address(written));
        let words = references(tag.alternative.unwrap_or_default());
        let shown = match address {
            Some(address) => {
                let shown = labelled(words.trim(), &address);
                self.addresses.push(address);
                shown
            }
            None => words.trim().to_owned(),
        };
        if !shown.is_empty() {
            self.separate(false);
            self.text.push_str(&escaped(&shown));
        }
    }

    fn end_link(&mut self) {
        let Some((start, address)) = self.link.take() else { return };
        let label = self.text.get(start..).unwrap_or_default();
        walked(label.len());
        let label = references(label.trim());
        let bare = address.split_once(':').map_or(address.as_str(), |(_, rest)| rest);
        // `mailto:ada@example.com` is shown as the address alone.
        let shown = if *label == *bare { label.to_string() } else { labelled(&label, &address) };
        let shown = escaped(&shown);
        let end = start + self.text.get(start..).map_or(0, |label| label.trim_end().len());
        self.blank |= end < self.text.len();
        self.text.truncate(start);
        self.text.push_str(&shown);
        self.addresses.push(address);
    }

    /// After `[/code]` the text is a message again.
    fn leave_code(&mut self) {
        self.end_link();
        (self.html, self.preformatted, self.hidden) = (self.whole == MarkupMode::Html, false, 0);
    }

    fn finish(mut self) -> ParsedText {
        self.end_link();
        if self.whole == MarkupMode::Html {
            let length = self.text.trim_end().len();
            self.text.truncate(length);
        }
        ParsedText { text: self.text, addresses: self.addresses }
    }
}

/// Escapes a text, so that `references.rs` returns it unchanged.
fn escaped(text: &str) -> String {
    walked(text.len());
    text.replace('&', "&amp;")
}
