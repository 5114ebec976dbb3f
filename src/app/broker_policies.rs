//! Reads the policies that the broker applies to the queues, and the nodes of the queues, through its management API.
//!
//! Guarantees: a queue is reported if its effective policy, with the operator policy merged in, can delete messages or
//! move them without their history, or if no majority of its nodes runs. AMQP shows neither, so without `queue.management_url` nothing is known. Neither
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
use crate::queue::rabbit::TopologyNames;
use crate::tls::TlsPeer;

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

/// What the management API shows about the queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueFindings {
    /// The queues whose policies delete messages now.
    pub unsafe_queues: Vec<UnsafeQueue>,
    /// The queues of which no majority of nodes runs.
    pub without_majority: Vec<String>,
}

/// A client of the management API for one vhost.
#[derive(Debug, Clone)]
pub struct BrokerPolicies {
    http: HttpClient,
    url: Live<Url>,
    names: TopologyNames,
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
    /// The nodes of a quorum queue, and those of them that run.
    #[serde(default)]
    members: Vec<serde_json::Value>,
    #[serde(default)]
    online: Vec<serde_json::Value>,
}

impl BrokerPolicies {
    /// `None` without `queue.management_url`.
    pub fn new(settings: &Settings) -> Result<Option<Self>, HttpProblem> {
        let Some(url) = address(settings)? else { return Ok(None) };
        let network = NetworkSettings {
            tls: settings.queue.tls.clone(),
            peer: TlsPeer::Management,
            ..NetworkSettings::default()
        };
        let user_agent = concat!("causeway/", env!("CARGO_PKG_VERSION")).to_owned();
        let http = HttpClient::new(&HttpSettings { timeout: TIMEOUT, user_agent, network })?;
        Ok(Some(Self { http, url: url.into(), names: settings.queue.names.clone() }))
    }

    /// Uses the address of these settings from now on.
    pub(super) fn replace_address(&self, settings: &Settings) {
        if let Ok(Some(url)) = address(settings) {
            self.url.set(url);
        }
    }

    /// Asks for all queues.
    pub async fn findings(&self) -> Result<QueueFindings, String> {
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
        let silent = page.items.iter().filter(|row| row.has_no_majority()).map(|row| clean(&row.name));
        Ok(QueueFindings {
            unsafe_queues: page.items.iter().filter_map(|row| row.judge(&self.names)).collect(),
            without_majority: silent.collect(),
        })
    }
}

/// A name of the broker for a person.
fn clean(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(100).collect()
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
        ("name", &settings.queue.names.keeping()),
        ("columns", "name,policy,operator_policy,effective_policy_definition,members,online"),
    ]);
    Ok(Some(url))
}

impl QueueRow {
    /// A queue of another type has no members.
    fn has_no_majority(&self) -> bool {
        !self.members.is_empty() && self.online.len() * 2 <= self.members.len()
    }

    fn judge(&self, names: &TopologyNames) -> Option<UnsafeQueue> {
        let definition = &self.effective_policy_definition;
        let has = |name: &str| definition.get(name).is_some_and(|value| !value.is_null());
        let mut entries = Vec::new();
        for name in ["message-ttl", "expires"] {
            if has(name) {
                entries.push(name);
            }
        }
        // Without an overflow of the policy that of the queue applies: a full queue refuses messages.
        let overflow = definition.get("overflow").and_then(serde_json::Value::as_str);
        if overflow.is_some_and(|overflow| overflow != "reject-publish") {
            for name in ["max-length", "max-length-bytes"] {
                if has(name) {
                    entries.push(name);
                }
            }
        }
        let limit = definition.get("delivery-limit").and_then(serde_json::Value::as_u64);
        if names.is_partition(&self.name) && limit.is_some_and(|limit| limit < DELIVERY_LIMIT) {
            entries.push("delivery-limit");
        }
        if entries.is_empty() {
            return None;
        }
        let named = |kind: &str, name: &Option<String>| {
            let name = name.as_ref().filter(|name| !name.is_empty())?;
            Some(format!("{kind} {}", clean(name)))
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

    fn names() -> TopologyNames {
        TopologyNames::parse("causeway.").unwrap()
    }

    fn judged(name: &str, definition: serde_json::Value) -> Vec<&'static str> {
        let row = json!({ "name": name, "policy": "theirs", "effective_policy_definition": definition });
        let row: QueueRow = serde_json::from_value(row).unwrap();
        row.judge(&names()).map(|found| found.entries).unwrap_or_default()
    }

    #[test]
    fn a_policy_that_deletes_differs_from_one_that_refuses() {
        let ours = json!({ "max-length-bytes": 1_073_741_824, "overflow": "reject-publish" });
        for (name, definition, entries) in [
            ("causeway.dlq.xo", ours.clone(), vec![]),
            ("causeway.w.xo.0", ours, vec![]),
            ("causeway.dlq.xo", json!([]), vec![]),
            ("causeway.dlq.xo", json!({ "max-length": 10 }), vec![]),
            ("causeway.dlq.xo", json!({ "max-length": 10, "overflow": "drop-head" }), vec!["max-length"]),
            (
                "causeway.unrouted",
                json!({ "max-length-bytes": 10, "overflow": "drop-head" }),
                vec!["max-length-bytes"],
            ),
            (
                "causeway.dlq.xo",
                json!({ "message-ttl": 2000, "expires": 3000 }),
                vec!["message-ttl", "expires"],
            ),
            ("causeway.w.xo.0", json!({ "max-length": 10 }), vec![]),
            ("causeway.w.xo.0", json!({ "max-length": 10, "overflow": "drop-head" }), vec!["max-length"]),
            ("causeway.w.xo.0", json!({ "message-ttl": 2000 }), vec!["message-ttl"]),
            ("causeway.w.xo.0", json!({ "delivery-limit": 20 }), vec!["delivery-limit"]),
            ("causeway.w.xo.0", json!({ "delivery-limit": 2_000_000 }), vec![]),
        ] {
            assert_eq!(judged(name, definition.clone()), entries, "{name} {definition}");
        }
        let row = json!({ "name": "causeway.dlq.xo", "policy": "", "operator_policy": "theirs",
                          "effective_policy_definition": { "message-ttl": 1 } });
        let row: QueueRow = serde_json::from_value(row).unwrap();
        assert_eq!(
            row.judge(&names()).unwrap().to_string(),
            "causeway.dlq.xo: message-ttl of the operator policy theirs"
        );
    }

    #[test]
    fn a_majority_is_more_than_half() {
        for (members, online, lacks) in [
            (0, 0, false),
            (1, 1, false),
            (1, 0, true),
            (3, 2, false),
            (3, 1, true),
            (4, 2, true),
            (5, 3, false),
        ] {
            let nodes = |count| (0..count).map(|node| format!("rabbit@{node}")).collect::<Vec<_>>();
            let row = json!({ "name": "w.xo.0", "members": nodes(members), "online": nodes(online) });
            let row: QueueRow = serde_json::from_value(row).unwrap();
            assert_eq!(row.has_no_majority(), lacks, "{online} of {members}");
        }
    }
}
