//! The settings of the admin listener: its tokens.
//!
//! Guarantees: each token has a name, a role and a secret of its own. Not responsible for: what a role allows (`admin/console/`).

use secrecy::ExposeSecret;

use super::reader::SettingsReader;
use crate::admin::{AdminRole, AdminToken};

/// The name of `admin.token`.
const ADMIN: &str = "admin";
const NAME_MAX: usize = 64;

/// `admin.token`, then `[[admin.tokens]]`.
pub(super) fn tokens(reader: &mut SettingsReader) -> Vec<AdminToken> {
    let mut tokens = Vec::new();
    if let Some(token) = reader.secret("admin.token") {
        tokens.push(AdminToken { name: ADMIN.to_owned(), token, role: AdminRole::Act });
    }
    for place in reader.entries_of("admin.tokens") {
        let [name_key, token_key, role_key] = ["name", "token", "role"].map(|key| format!("{place}.{key}"));
        for key in [&name_key, &token_key, &role_key] {
            if !reader.is_set(key) && !reader.is_wrong(&format!("{key}_file")) {
                reader.wrong(key, "is missing: name, token and role belong together");
            }
        }
        let name = reader.parsed(&name_key, "1 to 64 of the characters A-Z, a-z, 0-9 and . _ @ -", |text| {
            if is_plain(text) { Ok(text.to_owned()) } else { Err(String::new()) }
        });
        let token = reader.secret(&token_key);
        let role = reader.choice(&role_key, &[("view", AdminRole::View), ("act", AdminRole::Act)]);
        let (Some(name), Some(token), Some(role)) = (name, token, role) else { continue };
        if name == ADMIN || tokens.iter().any(|other: &AdminToken| other.name == name) {
            reader.wrong(&name_key, "is the name of another token (\"admin\" is the name of admin.token)");
        }
        if tokens.iter().any(|other| other.token.expose_secret() == token.expose_secret()) {
            reader.wrong(&token_key, "is also another token: each name needs a token of its own");
        }
        tokens.push(AdminToken { name, token, role });
    }
    tokens
}

fn is_plain(name: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || ".-_@".contains(letter);
    (1..=NAME_MAX).contains(&name.len()) && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use crate::admin::AdminRole;
    use crate::config::{Environment, RunPurpose, Settings};

    fn load(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        let environment: Environment = pairs.iter().copied().collect();
        Settings::load(None, &environment, RunPurpose::Admin).map_err(|problems| problems.to_string())
    }

    #[test]
    fn each_token_has_a_name_and_a_role() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bob");
        std::fs::write(&file, "secret of bob\n").unwrap();
        let settings = load(&[
            ("CAUSEWAY_ADMIN__TOKEN", "secret"),
            ("CAUSEWAY_ADMIN__TOKENS__0__NAME", "ada"),
            ("CAUSEWAY_ADMIN__TOKENS__0__TOKEN", "secret of ada"),
            ("CAUSEWAY_ADMIN__TOKENS__0__ROLE", "view"),
            ("CAUSEWAY_ADMIN__TOKENS__1__NAME", "bob@example"),
            ("CAUSEWAY_ADMIN__TOKENS__1__TOKEN_FILE", file.to_str().unwrap()),
            ("CAUSEWAY_ADMIN__TOKENS__1__ROLE", "act"),
        ]);
        let tokens = settings.unwrap().admin_tokens;
        let told: Vec<_> = tokens.iter().map(|token| (token.name.as_str(), token.role)).collect();
        let expected = [("admin", AdminRole::Act), ("ada", AdminRole::View), ("bob@example", AdminRole::Act)];
        assert_eq!(told, expected);
        assert!(load(&[]).unwrap().admin_tokens.is_empty());
    }

    #[test]
    fn a_wrong_token_is_a_mistake_of_its_key() {
        let wrong = |name: &str, token: &str, role: &str, key: &str, words: &str| {
            let said = load(&[
                ("CAUSEWAY_ADMIN__TOKEN", "secret"),
                ("CAUSEWAY_ADMIN__TOKENS__0__NAME", "ada"),
                ("CAUSEWAY_ADMIN__TOKENS__0__TOKEN", "secret of ada"),
                ("CAUSEWAY_ADMIN__TOKENS__0__ROLE", "view"),
                ("CAUSEWAY_ADMIN__TOKENS__1__NAME", name),
                ("CAUSEWAY_ADMIN__TOKENS__1__TOKEN", token),
                ("CAUSEWAY_ADMIN__TOKENS__1__ROLE", role),
            ]);
            let said = said.unwrap_err();
            assert!(said.contains(&format!("admin.tokens.1.{key}")) && said.contains(words), "{said}");
            assert!(!said.contains("secret of"), "{said}");
        };
        wrong("", "s", "act", "name", "is missing");
        wrong("bob", "", "act", "token", "is missing");
        wrong("bob", "s", "", "role", "is missing");
        wrong("bob", "s", "admin", "role", "view, act");
        wrong("b o b", "s", "act", "name", "characters");
        wrong("ada", "s", "act", "name", "another token");
        wrong("admin", "s", "act", "name", "another token");
        wrong("bob", "secret of ada", "act", "token", "another token");
        wrong("bob", "secret", "act", "token", "another token");
    }
}
