//! Where XO takes what is said back to its user: the small part of a BotKit event that a reply needs.
//!
//! XO calls it a request id; it lapses after minutes, so the newest one counts (FACTS.md XO-32: each event brings one,
//! `extendcallid` keeps it alive). Guarantees: `Debug` shows neither addresses nor anything of the user.
//! [`AllowedHosts`] says which addresses may be called: they come from outside, and what is posted there carries a credential
//! and a chat's text. Leaves to others: reading it out of an event (`ingress/botkit`), calling (`platform/xo`).
//! Source of the names: Koredotcom/BotKit, lib/sdk/ObjectTypes, and the smallest body that is known to work.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::{Host, Url};

/// One reply handle.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHandle {
    /// `botId`: chooses the credential.
    pub bot_id: String,
    /// `componentId`; BotKit says `default` where the address names none.
    pub component_id: String,
    /// `requestId`, as text whatever its type was.
    pub request_id: String,
    /// `baseUrl`: `https://{host}/api/botsdk/stream/{botId}`.
    pub base_url: String,
    /// `sendUserMessageUrl`
    pub send_user_message_url: String,
    /// `channel`, cut down to what names the channel and its user.
    #[serde(default)]
    pub channel: Value,
    /// The language that the user speaks with the bot, such as `fr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// `context`, as far as the settings say that it goes back.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub context: Value,
}

impl std::fmt::Debug for ReplyHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyHandle").field("bot_id", &self.bot_id).finish_non_exhaustive()
    }
}

impl ReplyHandle {
    /// The user whose messages `getMessages` gives: `channel.channelInfos.from`, else `channel.from`, as BotKit asks; else the user of
    /// the context.
    pub fn user(&self) -> Option<&str> {
        let of_channel =
            ["/channelInfos/from", "/from"].iter().filter_map(|place| self.channel.pointer(place));
        let named = of_channel.chain(self.context.pointer("/session/UserContext/_id"));
        named.filter_map(Value::as_str).find(|user| !user.is_empty())
    }

    /// `rtm`, `msteams`, …: an event names it flat or under `channelInfos`.
    pub fn channel_type(&self) -> Option<&str> {
        let flat = self.channel.get("type");
        flat.or_else(|| self.channel.pointer("/channelInfos/type")).and_then(Value::as_str)
    }
}

/// Where reply addresses may point: `xo.allowed_hosts`.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Each as `host` or `host:port`, lower case.
    pub const fn new(hosts: Vec<String>) -> Self {
        Self(hosts)
    }

    /// The hosts as they were configured.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The address, where it may be called; otherwise why not, without repeating it.
    pub fn admit(&self, address: &str) -> Result<Url, &'static str> {
        let url = Url::parse(address).map_err(|_| "is not an address")?;
        let Some(host) = url.host() else { return Err("names no host") };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user or a password");
        }
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&host) => {}
            _ => return Err("must begin with https://"),
        }
        let name = host.to_string().to_ascii_lowercase();
        let name = url.port().map_or(name.clone(), |port| format!("{name}:{port}"));
        if self.0.contains(&name) { Ok(url) } else { Err("points to a host that is not in xo.allowed_hosts") }
    }
}

/// Whether plain HTTP stays on this machine.
fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_hosts_are_called() {
        let allowed = AllowedHosts::new(
            ["platform.kore.ai", "bots.example:8443", "127.0.0.1:8090", "[::1]:8090"]
                .map(str::to_owned)
                .into(),
        );
        for good in [
            "https://platform.kore.ai/api/botsdk/stream/st-1",
            "https://PLATFORM.kore.ai:443/x",
            "https://bots.example:8443/x",
            "http://127.0.0.1:8090/x",
            "http://[::1]:8090/x",
        ] {
            assert!(allowed.admit(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "platform.kore.ai",
            "http://platform.kore.ai/x",
            "https://platform.kore.ai:8443/x",
            "https://bots.example/x",
            "https://platform.kore.ai.evil.example/x",
            "https://platform.kore.ai@evil.example/x",
            "https://user@platform.kore.ai/x",
            "https://evil.example/platform.kore.ai",
            "https://evil.example\\@platform.kore.ai/",
            "http://127.0.0.1:8091/x",
            "file:///platform.kore.ai",
            "gopher://platform.kore.ai/",
        ] {
            assert!(allowed.admit(bad).is_err(), "{bad}");
        }
        assert!(AllowedHosts::default().admit("https://platform.kore.ai/x").is_err());
    }

    #[test]
    fn the_channel_names_its_type_in_two_places() {
        let of = |channel: Value| {
            let empty = String::new;
            ReplyHandle {
                bot_id: empty(),
                component_id: empty(),
                request_id: empty(),
                base_url: empty(),
                send_user_message_url: empty(),
                channel,
                language: None,
                context: Value::Null,
            }
            .channel_type()
            .map(str::to_owned)
        };
        assert_eq!(of(serde_json::json!({"type": "rtm"})).as_deref(), Some("rtm"));
        assert_eq!(of(serde_json::json!({"channelInfos": {"type": "msteams"}})).as_deref(), Some("msteams"));
        assert_eq!(of(Value::Null), None);
    }
}
