//! The reply handle: the part of a BotKit event that is needed to send a message to the user of the event.
//!
//! XO calls the handle a request id. It expires after minutes, so the newest handle is used: each event brings one, and
//! `extendcallid` extends one (`src/platform/xo/FACTS.md`).
//!
//! Guarantees: `Debug` shows neither addresses nor user data. [`AllowedHosts`] decides which addresses may be called,
//! because the addresses come from outside, and a call carries a credential and a chat's text.
//!
//! Not responsible for: parsing an event (`ingress/botkit`), calling (`platform/xo`). The field names come from
//! Koredotcom/BotKit, lib/sdk/ObjectTypes.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::{Host, Url};

/// One reply handle.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHandle {
    /// `botId`, which selects the credential.
    pub bot_id: String,
    /// `componentId`; BotKit uses `default` if the address names none.
    pub component_id: String,
    /// `requestId`, converted to text.
    pub request_id: String,
    /// `baseUrl`: `https://{host}/api/botsdk/stream/{botId}`.
    pub base_url: String,
    /// `sendUserMessageUrl`
    pub send_user_message_url: String,
    /// `channel`, reduced to the fields that identify the channel and its user.
    #[serde(default)]
    pub channel: Value,
    /// The language that the user speaks with the bot, such as `fr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// `context`, reduced to the fields that the settings send back.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub context: Value,
}

impl std::fmt::Debug for ReplyHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyHandle").field("bot_id", &self.bot_id).finish_non_exhaustive()
    }
}

impl ReplyHandle {
    /// The user whose messages `getMessages` returns: `channel.channelInfos.from`, otherwise `channel.from` (as in
    /// BotKit), otherwise the user of the context.
    pub fn user(&self) -> Option<&str> {
        let of_channel =
            ["/channelInfos/from", "/from"].iter().filter_map(|place| self.channel.pointer(place));
        let named = of_channel.chain(self.context.pointer("/session/UserContext/_id"));
        named.filter_map(Value::as_str).find(|user| !user.is_empty())
    }

    /// The type of the channel: `rtm`, `msteams`, … The field is in the channel itself or under `channelInfos`.
    pub fn channel_type(&self) -> Option<&str> {
        let flat = self.channel.get("type");
        flat.or_else(|| self.channel.pointer("/channelInfos/type")).and_then(Value::as_str)
    }
}

/// The hosts of reply addresses that may be called: `xo.allowed_hosts`.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Each as `host` or `host:port`, lower case. `http://` before an entry allows plain HTTP to a host of another machine.
    pub const fn new(hosts: Vec<String>) -> Self {
        Self(hosts)
    }

    /// The hosts as configured.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The address if it may be called; otherwise the reason, without the address.
    pub fn admit(&self, address: &str) -> Result<Url, &'static str> {
        let url = Url::parse(address).map_err(|_| "is not an address")?;
        let Some(host) = url.host() else { return Err("names no host") };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user or a password");
        }
        let name = host.to_string().to_ascii_lowercase();
        let name = url.port().map_or(name.clone(), |port| format!("{name}:{port}"));
        let is_listed = self.0.contains(&name);
        match url.scheme() {
            "http" if self.0.contains(&format!("http://{name}")) => Ok(url),
            "http" if is_loopback(&host) && is_listed => Ok(url),
            "https" if is_listed => Ok(url),
            "https" => Err("points to a host that is not in xo.allowed_hosts"),
            "http" if is_loopback(&host) => Err("points to a host that is not in xo.allowed_hosts"),
            _ => Err("must begin with https://"),
        }
    }
}

/// Whether plain HTTP to this host stays on this machine.
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
        let plain = AllowedHosts::new(vec!["http://sandbox:9470".to_owned()]);
        assert!(plain.admit("http://sandbox:9470/x").is_ok());
        for bad in ["https://sandbox:9470/x", "http://sandbox/x", "http://other:9470/x"] {
            assert!(plain.admit(bad).is_err(), "{bad}");
        }
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
