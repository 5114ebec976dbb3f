//! `causeway servicenow rule`: prints the script of the Business Rule with the given names and the given kind of
//! credential.
//!
//! Guarantees: the script is `deploy/servicenow/live_message.js`, except for the values of the variables at its top.

use super::super::{CliFailure, output};
use super::{own_user, records};
use crate::config::Settings;

const SOURCE: &str = include_str!("../../../deploy/servicenow/live_message.js");

/// The name of the HTTP method.
pub(super) const METHOD: &str = "post";
/// The system property that holds the signing key.
pub(super) const KEY_PROPERTY: &str = "causeway.signing_key";
/// The default name of the REST Message and of the Business Rule.
pub(super) const NAME: &str = "Causeway";

#[derive(Debug, clap::Args)]
pub(super) struct RuleArgs {
    /// Name of the REST Message
    #[arg(long, default_value = NAME, value_parser = records::name)]
    name: String,
    /// User whose own messages are not sent back to Causeway; default: servicenow.username
    #[arg(long, value_name = "USER")]
    own_user: Option<String>,
    /// Sign each callback with the key in the system property causeway.signing_key (the default, unless only
    /// ingress.servicenow.token is set)
    #[arg(long, conflicts_with = "token")]
    signed: bool,
    /// Do not sign: the HTTP method's header x-causeway-token carries the token
    #[arg(long)]
    token: bool,
}

/// The values that can differ between instances.
pub(super) struct RuleScript {
    pub(super) name: String,
    pub(super) own_user: String,
    pub(super) signed: bool,
}

pub(super) fn run(args: &RuleArgs, settings: &Settings) -> Result<(), CliFailure> {
    let ingress = &settings.ingress;
    let only_token = ingress.token.is_set() && !ingress.hmac_secret.is_set();
    let signed = args.signed || (!args.token && !only_token);
    let own_user = args.own_user.as_deref().or_else(|| own_user(settings)).unwrap_or("chatbot_interface");
    let script = RuleScript { name: args.name.clone(), own_user: user(own_user)?, signed };
    Ok(output::line(render(&script).trim_end())?)
}

/// The name of the event that retries callbacks. Each rule has an event of its own: if two rules of one instance shared an
/// event, the delivery of one rule would end the retries of the other.
pub(super) fn retry_event(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    format!("{}.retry", name.chars().map(plain).collect::<String>())
}

/// Validates a user name for use in a script and in a filter.
pub(super) fn user(name: &str) -> Result<String, CliFailure> {
    if name.is_empty() || name.contains(['\'', '\\', '^', '\n', '\r']) {
        let words = "the integration user's name cannot be used in a script: no quotes, backslashes or ^";
        return Err(CliFailure::Usage(words.to_owned()));
    }
    Ok(name.to_owned())
}

/// The script with these values.
pub(super) fn render(script: &RuleScript) -> String {
    let credential = if script.signed { "signature" } else { "token" };
    let event = retry_event(&script.name);
    let values = [
        ("REST_MESSAGE", script.name.as_str()),
        ("OWN_USER", &script.own_user),
        ("CREDENTIAL", credential),
        ("RETRY_EVENT", &event),
    ];
    let lines = SOURCE.lines().map(|line| {
        let named = values.iter().find(|(name, _)| line.starts_with(&format!("  var {name} = ")));
        named.map_or_else(|| line.to_owned(), |(name, value)| format!("  var {name} = '{value}';"))
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_the_usual_values_it_is_the_file() {
        let usual = RuleScript { name: NAME.into(), own_user: "chatbot_interface".into(), signed: true };
        assert_eq!(render(&usual), SOURCE);
        for (variable, value) in [("METHOD", METHOD), ("KEY_PROPERTY", KEY_PROPERTY)] {
            assert!(SOURCE.contains(&format!("  var {variable} = '{value}';\n")), "{variable}");
        }
    }

    #[test]
    fn each_value_has_one_place() {
        let other = render(&RuleScript { name: "Other (2)".into(), own_user: "relay".into(), signed: false });
        let changed: Vec<&str> =
            other.lines().zip(SOURCE.lines()).filter(|(new, old)| new != old).map(|(new, _)| new).collect();
        let expected = [
            "  var REST_MESSAGE = 'Other (2)';",
            "  var OWN_USER = 'relay';",
            "  var CREDENTIAL = 'token';",
            "  var RETRY_EVENT = 'other__2_.retry';",
        ];
        assert_eq!(changed, expected);
    }

    #[test]
    fn a_user_cannot_break_out_of_the_script() {
        assert!(user("o'hara").is_err() && user("a\\").is_err() && user("a^b").is_err() && user("").is_err());
        assert!(user("chatbot_interface").is_ok() && user("söhne@example.com").is_ok());
    }
}
