//! Reads the policies that the broker applies to the queues, through its management API.
//!
//! Guarantees: a queue is reported if its effective policy, with the operator policy merged in, can delete messages or
//! move them without their history. AMQP shows no policies, so without `queue.management_url` nothing is known. Neither
//! the address nor an answer is repeated in an error.
//! Not responsible for: the reaction (`watch.rs`, `cli/check/stores.rs`).

use std::fmt;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use secrecy::ExposeSecret;
use serde::Deserialize;
use url::Url;

use crate::config::Settings;
use crate::live::Live;
use crate::platform::http::HttpCall;
use crate::platform::{HttpClient, HttpProblem, HttpSettings, NetworkSettings};

const TIMEOUT: Duration = Duration::from_secs(5);
/// The delivery limit of Causeway's partitions (`queue/rabbit/topology.rs`). The smaller of two limits applies.
const DELIVERY_LIMIT: u64 = 1_000_000;
/// Queues in one answer. A deployment with more has more than 30 destinations of 16 partitions.
const PAGE: &str = "500";

/// A queue whose policy deletes messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafeQueue {
    /// The name of the queue.
    pub queue: String,
    /// The entries of the policy that delete messages.
    pub entries: Vec<&'static str>,
    /// The policy and the operator policy, as far as there are any.
    pub policies: Vec<String>,
}

impl fmt::Display for UnsafeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {}", self.queue, self.entries.join(", "), self.policies.join(" and "))
    }
}

/// A client of the management API for one vhost.
#[derive(Debug, Clone)]
pub struct BrokerPolicies {
    http: HttpClient,
    url: Live<Url>,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<QueueRow>,
}

#[derive(Deserialize)]
struct QueueRow {
    name: String,
    policy: Option<String>,
    operator_policy: Option<String>,
    #[serde(default)]
    effective_policy_definition: serde_json::Value,
}

impl BrokerPolicies {
    /// `None` without `queue.management_url`.
    pub fn new(settings: &Settings) -> Result<Option<Self>, HttpProblem> {
        let Some(url) = address(settings)? else { return Ok(None) };
        let network = NetworkSettings { tls: settings.queue.tls.clone(), ..NetworkSettings::default() };
        let user_agent = concat!("causeway/", env!("CARGO_PKG_VERSION")).to_owned();
        let http = HttpClient::new(&HttpSettings { timeout: TIMEOUT, user_agent, network })?;
        Ok(Some(Self { http, url: url.into() }))
    }

    /// Uses the address of these settings from now on.
    pub(super) fn replace_address(&self, settings: &Settings) {
        if let Ok(Some(url)) = address(settings) {
            self.url.set(url);
        }
    }

    /// The queues whose policies delete messages now.
    pub async fn unsafe_queues(&self) -> Result<Vec<UnsafeQueue>, String> {
        // User and password of the URL become a header of HTTP Basic.
        let (method, url) = (Method::GET, (*self.url.get()).clone());
        let call = HttpCall { method, url, headers: HeaderMap::new(), body: None };
        let reply = self.http.call(call).await.map_err(|error| error.detail)?;
        match reply.status.as_u16() {
            200 => {}
            status @ (401 | 403) => {
                let why = "its user needs the tag management and a right on the vhost";
                return Err(format!("status {status}: {why}"));
            }
            status => return Err(format!("status {status}")),
        }
        let body = reply.body.map_err(|error| error.detail)?;
        let page: Page =
            serde_json::from_slice(&body).map_err(|_| "the answer is not that of RabbitMQ".to_owned())?;
        Ok(page.items.iter().filter_map(QueueRow::judge).collect())
    }
}

/// The address of the list of queues. `None` without `queue.management_url`.
fn address(settings: &Settings) -> Result<Option<Url>, HttpProblem> {
    let (Some(address), Some(broker)) = (&settings.queue.management_url, &settings.queue.url) else {
        return Ok(None);
    };
    let mut url = address
        .expose_secret()
        .parse::<Url>()
        .map_err(|_| HttpProblem::Unusable("queue.management_url is not a URL".to_owned()))?;
    let vhost = broker.vhost();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["api", "queues", vhost.as_str()]);
    }
    url.query_pairs_mut().extend_pairs([
        ("page", "1"),
        ("page_size", PAGE),
        ("use_regex", "true"),
        ("name", r"^(w\.|dlq\.|unrouted$)"),
        ("columns", "name,policy,operator_policy,effective_policy_definition"),
    ]);
    Ok(Some(url))
}

impl QueueRow {
    fn judge(&self) -> Option<UnsafeQueue> {
        let definition = &self.effective_policy_definition;
        let has = |name: &str| definition.get(name).is_some_and(|value| !value.is_null());
        let mut entries = Vec::new();
        for name in ["message-ttl", "expires"] {
            if has(name) {
                entries.push(name);
            }
        }
        if self.name.starts_with("w.") {
            // The partitions have the argument x-overflow, so a length only makes them refuse messages.
            let limit = definition.get("delivery-limit").and_then(serde_json::Value::as_u64);
            if limit.is_some_and(|limit| limit < DELIVERY_LIMIT) {
                entries.push("delivery-limit");
            }
        } else if definition.get("overflow").and_then(serde_json::Value::as_str) != Some("reject-publish") {
            for name in ["max-length", "max-length-bytes"] {
                if has(name) {
                    entries.push(name);
                }
            }
        }
        if entries.is_empty() {
            return None;
        }
        let named = |kind: &str, name: &Option<String>| {
            let name = name.as_ref().filter(|name| !name.is_empty())?;
            let name: String = name.chars().filter(|letter| !letter.is_control()).take(100).collect();
            Some(format!("{kind} {name}"))
        };
        let policies =
            [named("the policy", &self.policy), named("the operator policy", &self.operator_policy)];
        let policies = policies.into_iter().flatten().collect();
        Some(UnsafeQueue { queue: self.name.clone(), entries, policies })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(name: &str, definition: serde_json::Value) -> Vec<&'static str> {
        let row = json!({ "name": name, "policy": "theirs", "effective_policy_definition": definition });
        let row: QueueRow = serde_json::from_value(row).unwrap();
        row.judge().map(|found| found.entries).unwrap_or_default()
    }

    #[test]
    fn what_deletes_messages_is_told_from_what_refuses_them() {
        let ours = json!({ "max-length-bytes": 1_073_741_824, "overflow": "reject-publish" });
        for (name, definition, entries) in [
            ("dlq.xo", ours.clone(), vec![]),
            ("w.xo.0", ours, vec![]),
            ("dlq.xo", json!([]), vec![]),
            ("dlq.xo", json!({ "max-length": 10 }), vec!["max-length"]),
            (
                "unrouted",
                json!({ "max-length-bytes": 10, "overflow": "drop-head" }),
                vec!["max-length-bytes"],
            ),
            ("dlq.xo", json!({ "message-ttl": 2000, "expires": 3000 }), vec!["message-ttl", "expires"]),
            ("w.xo.0", json!({ "max-length": 10 }), vec![]),
            ("w.xo.0", json!({ "message-ttl": 2000 }), vec!["message-ttl"]),
            ("w.xo.0", json!({ "delivery-limit": 20 }), vec!["delivery-limit"]),
            ("w.xo.0", json!({ "delivery-limit": 2_000_000 }), vec![]),
        ] {
            assert_eq!(judged(name, definition.clone()), entries, "{name} {definition}");
        }
        let row = json!({ "name": "dlq.xo", "policy": "", "operator_policy": "theirs",
                          "effective_policy_definition": { "message-ttl": 1 } });
        let row: QueueRow = serde_json::from_value(row).unwrap();
        assert_eq!(row.judge().unwrap().to_string(), "dlq.xo: message-ttl of the operator policy theirs");
    }
}
