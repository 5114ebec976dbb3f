//! Resolves addresses in rich text. An address in a script of the platform can be relative to the instance
//! (`src/platform/servicenow/FACTS.md`).
//!
//! Guarantees: a person can open every address that is shown. Scripts and embedded data are never shown as addresses.

use url::Url;

/// The address as a person can open it: unchanged if absolute, otherwise resolved against the instance.
pub(crate) fn resolve(written: &str, instance: Option<&Url>) -> Option<String> {
    let written = written.trim();
    if written.is_empty() || written.starts_with('#') {
        return None;
    }
    match Url::parse(written) {
        Ok(url) => matches!(url.scheme(), "http" | "https" | "mailto" | "tel" | "sip" | "ftp" | "ftps")
            .then(|| written.to_owned()),
        Err(url::ParseError::RelativeUrlWithoutBase) => match instance {
            Some(instance) => instance.join(written).ok().map(String::from),
            None => Some(written.to_owned()),
        },
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_ones_are_of_the_instance() {
        let instance = Url::parse("https://acme.service-now.com/").unwrap();
        for (written, read) in [
            ("https://kb.example/a?b=c&d", Some("https://kb.example/a?b=c&d")),
            ("/kb?id=1", Some("https://acme.service-now.com/kb?id=1")),
            ("incident.do?sys_id=1", Some("https://acme.service-now.com/incident.do?sys_id=1")),
            ("//cdn.example/x.png", Some("https://cdn.example/x.png")),
            ("mailto:help@example.com", Some("mailto:help@example.com")),
            (" tel:+4930555 ", Some("tel:+4930555")),
            ("javascript:alert(1)", None),
            ("data:image/png;base64,AAAA", None),
            ("#top", None),
            ("  ", None),
        ] {
            assert_eq!(resolve(written, Some(&instance)).as_deref(), read, "{written}");
        }
        assert_eq!(resolve("/kb?id=1", None).as_deref(), Some("/kb?id=1"));
    }
}
