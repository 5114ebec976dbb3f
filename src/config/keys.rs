//! Every settings key, and whether its value may be shown.
//!
//! Guarantees: a key that is not listed here is unknown. Not responsible for: the meaning of a key (`default.toml`
//! describes it for people, `meant` for the program; tests keep the three in step).

/// Whether a value may appear in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyVisibility {
    /// The value may be shown.
    Open,
    /// The value is a secret, or an address that may contain one.
    Secret,
}
use KeyVisibility::{Open, Secret};

/// A `*` stands for the number of an entry of a list of tables, or for a language.
pub(super) const KEYS: &[(&str, KeyVisibility)] = &[
    ("data_dir", Open),
    ("drain", Open),
    ("queue.url", Secret),
    ("queue.prefix", Open),
    ("queue.declare", Open),
    ("queue.partitions", Open),
    ("queue.prefetch", Open),
    ("queue.heartbeat", Open),
    ("queue.publish_timeout", Open),
    ("queue.management_url", Secret),
    ("queue.ca_file", Open),
    ("queue.client_cert_file", Open),
    ("queue.client_key_file", Open),
    ("directory.url", Secret),
    ("directory.ca_file", Open),
    ("directory.client_cert_file", Open),
    ("directory.client_key_file", Open),
    ("directory.kept", Open),
    ("journal.kept", Open),
    ("dead.kept", Open),
    ("http.proxy", Secret),
    ("http.no_proxy", Open),
    ("http.ca_file", Open),
    ("servicenow.host_url", Open),
    ("servicenow.proxy", Secret),
    ("servicenow.ca_file", Open),
    ("servicenow.client_cert_file", Open),
    ("servicenow.client_key_file", Open),
    ("servicenow.instance", Open),
    ("servicenow.username", Open),
    ("servicenow.password", Secret),
    ("servicenow.queue_id", Open),
    ("servicenow.routes.*.when", Open),
    ("servicenow.routes.*.queue_id", Open),
    ("servicenow.routes.*.context_variables", Open),
    ("servicenow.auth", Open),
    ("servicenow.client_id", Open),
    ("servicenow.client_secret", Secret),
    ("servicenow.refresh_token", Secret),
    ("servicenow.api", Open),
    ("servicenow.start_action", Open),
    ("servicenow.context_variables", Open),
    ("servicenow.queue_variable", Open),
    ("servicenow.message_token", Secret),
    ("servicenow.message_hmac", Secret),
    ("servicenow.watchdog", Open),
    ("servicenow.receipts", Open),
    ("servicenow.tell_topics", Open),
    ("servicenow.end_without_flag", Open),
    ("servicenow.end_sentences", Open),
    ("servicenow.poll_waiting", Open),
    ("servicenow.poll_active", Open),
    ("servicenow.read_back", Open),
    ("servicenow.read_rate", Open),
    ("servicenow.bulk_read", Open),
    ("servicenow.availability_kept", Open),
    ("servicenow.incident", Open),
    ("servicenow.incident_table", Open),
    ("servicenow.incident_caller_field", Open),
    ("servicenow.incident_fields", Open),
    ("servicenow.wait_limit", Open),
    ("servicenow.idle_limit", Open),
    ("xo.callback_url", Secret),
    ("xo.proxy", Secret),
    ("xo.ca_file", Open),
    ("xo.bot_id", Open),
    ("xo.name", Open),
    ("xo.app_id", Open),
    ("xo.client_secret", Secret),
    ("xo.jwt_algorithm", Open),
    ("xo.bots.*.bot_id", Open),
    ("xo.bots.*.name", Open),
    ("xo.bots.*.app_id", Open),
    ("xo.bots.*.client_secret", Secret),
    ("xo.bots.*.jwt_algorithm", Open),
    ("xo.allowed_hosts", Open),
    ("xo.end_words", Open),
    ("xo.first_words", Open),
    ("xo.end_on_session_closure", Open),
    ("xo.bot_messages_in_agent_mode", Open),
    ("xo.user.id", Open),
    ("xo.user.name", Open),
    ("xo.user.email", Open),
    ("xo.user.language", Open),
    ("xo.allow_apikey", Open),
    ("xo.reply_context", Open),
    ("xo.agent_template", Open),
    ("xo.start_agent_session", Open),
    ("xo.extend_every", Open),
    ("xo.wait_updates", Open),
    ("xo.transcript", Open),
    ("xo.texts.waiting", Open),
    ("xo.texts.joined", Open),
    ("xo.texts.left", Open),
    ("xo.texts.ended", Open),
    ("xo.texts.no_agent", Open),
    ("xo.texts.expired", Open),
    ("xo.texts.failed", Open),
    ("xo.texts.*.waiting", Open),
    ("xo.texts.*.joined", Open),
    ("xo.texts.*.left", Open),
    ("xo.texts.*.ended", Open),
    ("xo.texts.*.no_agent", Open),
    ("xo.texts.*.expired", Open),
    ("xo.texts.*.failed", Open),
    ("files.public_url", Open),
    ("files.listen", Open),
    ("files.expires", Open),
    ("files.secret", Secret),
    ("files.max_size", Open),
    ("handoffs.events_url", Secret),
    ("handoffs.events_proxy", Secret),
    ("handoffs.events_ca_file", Open),
    ("handoffs.events_token", Secret),
    ("handoffs.events_secret", Secret),
    ("handoffs.events_secret_next", Secret),
    ("ingress.listen", Open),
    ("ingress.body_limit", Open),
    ("ingress.spool", Open),
    ("ingress.spool_max", Open),
    ("ingress.read_timeout", Open),
    ("ingress.tls.cert_file", Open),
    ("ingress.tls.key_file", Open),
    ("ingress.tls.client_ca_file", Open),
    ("ingress.allow_unauthenticated", Open),
    ("ingress.servicenow.username", Open),
    ("ingress.servicenow.password", Secret),
    ("ingress.servicenow.password_next", Secret),
    ("ingress.servicenow.token", Secret),
    ("ingress.servicenow.token_next", Secret),
    ("ingress.servicenow.hmac_secret", Secret),
    ("ingress.servicenow.hmac_secret_next", Secret),
    ("ingress.handoffs.token", Secret),
    ("ingress.handoffs.token_next", Secret),
    ("admin.listen", Open),
    ("admin.token", Secret),
    ("admin.edit", Open),
    ("admin.tokens.*.name", Open),
    ("admin.tokens.*.token", Secret),
    ("admin.tokens.*.role", Open),
    ("delivery.servicenow.timeout", Open),
    ("delivery.servicenow.concurrency", Open),
    ("delivery.servicenow.rate", Open),
    ("delivery.xo.timeout", Open),
    ("delivery.xo.concurrency", Open),
    ("delivery.xo.rate", Open),
    ("delivery.events.timeout", Open),
    ("delivery.events.concurrency", Open),
    ("delivery.events.rate", Open),
    ("delivery.bots.timeout", Open),
    ("delivery.bots.concurrency", Open),
    ("delivery.bots.rate", Open),
    ("delivery.hold", Open),
    ("delivery.unknown_group", Open),
    ("delivery.retry.initial", Open),
    ("delivery.retry.factor", Open),
    ("delivery.retry.max", Open),
    ("delivery.deadline.start", Open),
    ("delivery.deadline.message", Open),
    ("delivery.deadline.typing", Open),
    ("delivery.deadline.end", Open),
    ("delivery.deadline.bot", Open),
    ("log.conversation_ids", Open),
    ("log.format", Open),
    ("log.level", Open),
];

/// How a key's value may be shown; `None` for an unknown key.
pub(super) fn shown(key: &str) -> Option<KeyVisibility> {
    let pattern = pattern(key);
    KEYS.iter().find(|(known, _)| *known == pattern).map(|(_, shown)| *shown)
}

/// The key with `*` for list numbers and for the language of a text. The free names in a table of conditions are cut off.
pub(super) fn pattern(key: &str) -> String {
    if let Some((_, name)) = key.strip_prefix("xo.texts.").and_then(|rest| rest.split_once('.')) {
        return format!("xo.texts.*.{name}");
    }
    if key.starts_with("servicenow.routes.")
        && let Some((route, _)) = key.split_once(".when.")
    {
        return pattern(&format!("{route}.when"));
    }
    let parts = key.split('.').map(|part| {
        let number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if number { "*" } else { part }
    });
    parts.collect::<Vec<_>>().join(".")
}

/// The key that was probably meant; `None` if no key is near.
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    let candidates = KEYS.iter().map(|(known, _)| (distance(unknown, known), *known));
    // A key in the wrong table (`host_url` for `servicenow.host_url`) is near, too.
    let misplaced = || {
        let last = unknown.rsplit('.').next().unwrap_or(unknown);
        KEYS.iter().map(|(known, _)| *known).find(|known| known.rsplit('.').next() == Some(last))
    };
    let (away, known) = candidates.min()?;
    if away <= (unknown.len() / 4).max(2) { Some(known) } else { misplaced() }
}

/// The value that was probably meant; `None` if no value is near.
pub(super) fn nearest_value<'a>(written: &str, values: &[&'a str]) -> Option<&'a str> {
    let written = written.to_lowercase();
    let candidates = values.iter().map(|value| (distance(&written, &value.to_lowercase()), *value));
    candidates.min().filter(|(away, _)| *away <= (written.len() / 3).max(1)).map(|(_, value)| value)
}

/// The number of characters to add, remove or replace to make `a` from `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, left) in a.chars().enumerate() {
        let mut diagonal = line;
        let mut before = line + 1;
        for (cell, right) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = *cell;
            before = replaced.min(before + 1).min(diagonal + 1);
            *cell = before;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_book() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn a_slip_finds_its_key() {
        assert_eq!(nearest("servicenow.hosturl"), Some("servicenow.host_url"));
        assert_eq!(nearest("servicenow.pasword"), Some("servicenow.password"));
        assert_eq!(nearest("delivery.retry.intial"), Some("delivery.retry.initial"));
        assert_eq!(nearest("host_url"), Some("servicenow.host_url"));
        assert_eq!(nearest("colour.of.the.bridge"), None);
    }

    #[test]
    fn a_slip_finds_its_value() {
        let values = ["connect_support", "virtual_agent"];
        assert_eq!(nearest_value("virtual-agent", &values), Some("virtual_agent"));
        assert_eq!(nearest_value("Connect_Suport", &values), Some("connect_support"));
        assert_eq!(nearest_value("soap", &values), None);
        assert_eq!(nearest_value("basc", &["basic", "oauth"]), Some("basic"));
    }

    #[test]
    fn entries_of_lists_are_known() {
        assert_eq!(shown("xo.bots.3.client_secret"), Some(Secret));
        assert_eq!(shown("xo.bots.x.client_secret"), None);
        assert_eq!(shown("xo.texts.fr.joined"), Some(Open));
        assert_eq!(shown("xo.texts.fr.joind"), None);
        assert_eq!(shown("servicenow.routes.0.when.context.session.UserContext.lang"), Some(Open));
        assert_eq!(shown("servicenow.routes.0.whenever.language"), None);
    }
}
