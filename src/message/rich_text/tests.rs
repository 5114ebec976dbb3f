//! Tables of ServiceNow's texts and the results, and tests that every text takes linear time.

use proptest::prelude::*;
use url::Url;

use super::text_search::counted;
use super::*;

fn instance() -> Url {
    Url::parse("https://acme.service-now.com").unwrap()
}

fn message(text: &str) -> String {
    message_text(text, Some(&instance()))
}

fn page(text: &str) -> String {
    html_text(text, Some(&instance()))
}

/// The formats are in `src/platform/servicenow/FACTS.md`: references of the sanitizer, `[code]` of scripts, mark-up of
/// Connect.
#[test]
fn a_message_reads_as_it_was_meant() {
    for (written, read) in [
        ("&#64;M[1|Ada]", "Ada"),
        ("&amp;lt; is written &lt;", "&lt; is written <"),
        ("it&#39;s &lt;done&gt; and &lt;b&gt; stays", "it's <done> and <b> stays"),
        (
            "Please read [code]<a href='https://kb.example/kb/KB0010001' target='_blank'>How to reset</a>[/code] first",
            "Please read How to reset (https://kb.example/kb/KB0010001) first",
        ),
        (
            "[code]<p>Three steps:</p><ul><li>unplug</li><li>wait</li></ul>[/code]",
            "Three steps:\n- unplug\n- wait",
        ),
        ("[code]<a href='/kb?a=1&amp;b=2'>page</a>[/code]", "page (https://acme.service-now.com/kb?a=1&b=2)"),
        ("[code]<a href='x.do'></a>[/code]", "https://acme.service-now.com/x.do"),
        ("a [code]b<br>c[/code] d [code]never closed <b>", "a b\nc d [code]never closed "),
        ("<a href=\"https://a.example\">here</a> or <b>there</b>", "here (https://a.example) or there"),
        ("line\n\n  kept   as is", "line\n\n  kept   as is"),
        ("x<br/>y", "x\ny"),
    ] {
        assert_eq!(message(written), read, "{written}");
    }
}

#[test]
fn typed_angle_brackets_are_no_tag() {
    for text in [
        "a < b && c > d",
        "if a <i and j> b",
        "</a> alone",
        "<a>no address</a>",
        "<script>alert(1)</script>",
        "<!-- no comment -->",
        "<never closed",
        "<b",
        "<",
        "vector<int> x",
        "<done>",
        "[code]",
        "[/code][code]",
        "100 %",
    ] {
        assert_eq!(message(text), text);
    }
}

#[test]
fn a_page_becomes_lines_with_its_addresses() {
    for (written, read) in [
        ("<p>Sorry, <b>closed</b>.<br/>a < b &amp; c</p>", "Sorry, closed.\na < b & c"),
        ("open <", "open <"),
        ("un<b>plug</b>ged", "unplugged"),
        (
            "<p>Read <a href=\"https://kb.example/KB1\">this\n page</a> now</p>",
            "Read this page (https://kb.example/KB1) now",
        ),
        ("<a href=https://a.example>https://a.example</a>", "https://a.example"),
        ("<a href='mailto:a@b.example'>a@b.example</a>", "a@b.example"),
        ("<a href='javascript:x()'>press</a>", "press"),
        (
            "<a href='https://a.example'>one<a href='https://b.example'>two</a>",
            "one (https://a.example)two (https://b.example)",
        ),
        ("<A HREF='https://a.example?x=1&amp;lt;'>never closed", "never closed (https://a.example?x=1&lt;)"),
        ("<img src='/pic.png' alt='a &quot;pic&quot;'>", "a \"pic\" (https://acme.service-now.com/pic.png)"),
        ("<img src='data:image/png;base64,AA'>x", "x"),
        ("a<!-- not <b>told</b> -->b<!DOCTYPE html><style>p{}</style><script>if (a<b) {}</script>c", "abc"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ("<pre>  two\n  lines</pre>x", "  two\n  lines\nx"),
        ("  \n one \n\n two  ", "one two"),
        ("<custom-tag x>in</custom-tag>", "in"),
        ("<!-- never closed", "<!-- never closed"),
        ("", ""),
    ] {
        assert_eq!(page(written), read, "{written}");
    }
    assert_eq!(
        html("<a href='/a'>x</a><img src='https://b.example/c'>", Some(&instance())).addresses,
        ["https://acme.service-now.com/a", "https://b.example/c"]
    );
}

/// Pieces that are difficult for a scanner: openings without an end, quotes of both kinds, mark-up inside mark-up.
fn pieces() -> impl Strategy<Value = Vec<String>> {
    let piece = prop_oneof![
        "[<>\"'=/ &;#@\\[\\]|:a-z!-]{1,6}",
        Just("@[".to_owned()),
        Just("@M[".to_owned()),
        Just("@L[a".to_owned()),
        Just("<a ".to_owned()),
        Just("<a href='".to_owned()),
        Just("<b x=\"".to_owned()),
        Just("<li>".to_owned()),
        Just("</a>".to_owned()),
        Just("<!--".to_owned()),
        Just("<!".to_owned()),
        Just("<script>".to_owned()),
        Just("<br>".to_owned()),
        Just("[code]".to_owned()),
        Just("[/code]".to_owned()),
        Just("&#".to_owned()),
        Just("&amp".to_owned()),
        Just(" ".to_owned()),
        Just("]".to_owned()),
        Just("|".to_owned()),
    ];
    proptest::collection::vec(piece, 1..6)
}

/// The most steps for each byte: five passes, of which the pass over tags can read a byte three times.
const STEPS_FOR_EACH_BYTE: usize = 40;

fn assert_linear(unit: &str) {
    for size in [2_000, 16_000] {
        let text = unit.repeat(size / unit.len() + 1);
        for (tail, name) in [("", "open"), ("]|:>-->[/code]'\"", "closed")] {
            let text = format!("{text}{tail}");
            for read in [message_text as fn(&str, Option<&Url>) -> String, html_text] {
                let steps = counted(|| drop(read(&text, None)));
                assert!(
                    steps <= STEPS_FOR_EACH_BYTE * text.len(),
                    "{steps} steps for {} bytes of {unit:?}, {name}",
                    text.len()
                );
            }
        }
    }
}

#[test]
fn known_traps_cost_a_linear_walk() {
    for unit in [
        "@[",
        "@M[",
        "@L[",
        "@L[a",
        "@[a:",
        "@[@M[x|",
        "<",
        "<a",
        "<a ",
        "<a href='",
        "<a x=\"<b y='",
        "<!--",
        "<!",
        "<!-- ",
        "</",
        "&",
        "&#",
        "&#6",
        "&amp",
        "[code]",
        "[code]<a href='x'>",
        "<script>",
        "<li>",
        "<br> ",
        "<a href='x'>",
        "<img alt='",
        " ",
        "<td>",
        "<p> ",
    ] {
        assert_linear(unit);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_text_costs_a_linear_walk(pieces in pieces()) {
        assert_linear(&pieces.concat());
    }

    #[test]
    fn plain_words_stay(text in "[a-zA-Z0-9 .,;:!?äöü\n%$(){}+-]{0,200}") {
        prop_assert_eq!(message(&text), text);
    }

    /// A text that was escaped comes back unchanged.
    #[test]
    fn an_escaped_text_comes_back(text in "[ -~äöü€😀\n]{0,200}") {
        let written = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('@', "at");
        prop_assume!(!text.contains("[code]"));
        prop_assert_eq!(message(&written), text.replace('@', "at"));
    }

    #[test]
    fn no_text_panics(text in any::<String>(), pieces in pieces()) {
        for text in [text.clone(), pieces.concat() + &text] {
            let _ = (message(&text), page(&text));
        }
    }
}
