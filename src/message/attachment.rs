//! Parses the file formats of XO: the shapes that public BotKit adapters read, and the name that an agent sees.
//!
//! Guarantees: a name has neither a path nor control characters.
//!
//! Not responsible for: whether an address may be called ([`super::AllowedHosts`]), fetching a file (`platform/xo`).
//! The formats are described in `src/platform/xo/FACTS.md`.

use serde_json::Value;

use super::handoff::Attachment;

/// The longest name, in characters: ServiceNow's column holds 100 characters, file systems 255 bytes.
const NAME_CHARS_MAX: usize = 100;
/// The name of a file without a name.
const NAMELESS: &str = "file";

impl Attachment {
    /// Parses `{fileName, fileUrl}`, `{fileName, url: {fileUrl}}` and `{fileName, url}`. `fileId` names a file of the
    /// webhook channel, whose address is unknown. `None` if the entry names neither an address nor a file.
    pub fn of_xo(entry: &Value) -> Option<Self> {
        let text =
            |value: &Value| value.as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let found = |names: &[&str]| names.iter().find_map(|name| entry.get(name).and_then(text));
        let url = found(&["fileUrl", "url"])
            .or_else(|| entry.pointer("/url/fileUrl").and_then(text))
            .or_else(|| entry.pointer("/fileUrl/url").and_then(text));
        let name = found(&["fileName", "name", "file_name"]);
        let id = found(&["fileId"]);
        if url.is_none() && name.is_none() && id.is_none() {
            return None;
        }
        Some(Self {
            url: url.unwrap_or_default(),
            name: name.or(id),
            content_type: found(&["contentType", "mimeType", "content_type"]),
        })
    }

    /// The name in a form that is safe for an agent and a browser.
    pub fn safe_name(&self) -> String {
        safe_file_name(self.name.as_deref().unwrap_or_else(|| last_segment(&self.url)))
    }
}

/// The last segment of an address's path, without the query.
fn last_segment(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path =
        path.split_once("://").map_or(path, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
    path.rsplit('/').next().unwrap_or_default()
}

/// The base name of a file: no folders, no control characters, no leading dot, limited length.
pub fn safe_file_name(name: &str) -> String {
    let own =
        name.rsplit(['/', '\\']).find(|part| !part.trim_matches(['.', ' ']).is_empty()).unwrap_or_default();
    // Characters that change the direction of writing display `exe.jpg` as `gpj.exe`.
    let is_plain = |letter: &char| {
        !letter.is_control()
            && !matches!(*letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let plain: String = own.chars().filter(is_plain).collect();
    let plain = plain.trim_matches(['.', ' ']);
    let length = plain.chars().count();
    let short = if length <= NAME_CHARS_MAX {
        plain.to_owned()
    } else {
        // The extension is kept, because it shows the type of the file.
        let end: String = plain.rsplit_once('.').map(|(_, end)| format!(".{end}")).unwrap_or_default();
        let end = if end.chars().count() > 10 { String::new() } else { end };
        let head: String = plain.chars().take(NAME_CHARS_MAX - end.chars().count()).collect();
        format!("{head}{end}")
    };
    if short.is_empty() { NAMELESS.to_owned() } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formats are in `src/platform/xo/FACTS.md`: `{fileName, fileUrl}` or `{fileName, url:{fileUrl}}`; also
    /// `{url}` or `{fileName, fileType, fileId}`.
    #[test]
    fn every_shape_of_a_file_is_read() {
        let read =
            |json: Value| Attachment::of_xo(&json).map(|file| (file.url, file.name.unwrap_or_default()));
        let file = |url: &str, name: &str| Some((url.to_owned(), name.to_owned()));
        assert_eq!(
            read(serde_json::json!({"fileName": "a.png", "fileUrl": "https://x/a"})),
            file("https://x/a", "a.png")
        );
        assert_eq!(
            read(serde_json::json!({"fileName": "a.png", "url": {"fileUrl": "https://x/a"}})),
            file("https://x/a", "a.png")
        );
        assert_eq!(read(serde_json::json!({"url": {"fileUrl": "https://x/a"}})), file("https://x/a", ""));
        assert_eq!(read(serde_json::json!({"url": "https://x/a"})), file("https://x/a", ""));
        assert_eq!(read(serde_json::json!({"fileName": "a.png"})), file("", "a.png"));
        assert_eq!(read(serde_json::json!({"fileId": "f-1", "fileType": "image"})), file("", "f-1"));
        assert_eq!(read(serde_json::json!({"fileType": "image"})), None);
        assert_eq!(read(serde_json::json!("a.png")), None);
    }

    #[test]
    fn a_name_cannot_be_a_path_or_a_header() {
        for (name, safe) in [
            ("a.png", "a.png"),
            ("../../etc/passwd", "passwd"),
            ("C:\\temp\\a.txt", "a.txt"),
            ("a\r\nSet-Cookie: x.png", "aSet-Cookie: x.png"),
            ("..", "file"),
            ("", "file"),
            ("a/..", "a"),
            (".htaccess", "htaccess"),
            ("exe.\u{202e}gpj", "exe.gpj"),
            ("네.pdf", "네.pdf"),
        ] {
            assert_eq!(safe_file_name(name), safe, "{name:?}");
        }
        let long = safe_file_name(&format!("{}.pdf", "x".repeat(500)));
        assert!(long.len() == NAME_CHARS_MAX && long.ends_with("x.pdf"), "{long}");
        let nameless = |url: &str| Attachment { url: url.into(), name: None, content_type: None }.safe_name();
        assert_eq!(nameless("https://x.example/a/b.png?sig=1/2"), "b.png");
        assert_eq!(nameless("https://x.example"), "file");
    }
}
