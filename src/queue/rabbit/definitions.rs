//! The exchanges, queues, bindings, policies and users of a deployment, in RabbitMQ's format of definitions.
//!
//! Guarantees: the output holds exactly what [`super::topology`] declares, so a process finds all of it with
//! `queue.declare = "check"`. Each user has the rights of its role and no more, and no password.
//! Not responsible for: importing the output.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};

use super::names::{Exchange, TopologyNames};
use super::topology;
use crate::queue::QueueTuning;

/// The time after which a lost node gives its messages back, for the shipped `queue.heartbeat`: `deploy/README.md` has the
/// reasons.
const CONSUMER_DISCONNECTED: Duration = Duration::from_secs(20);
const LENGTH_MAX: u64 = 1 << 30;

const WORKER: &str = "worker";
const OPERATOR: &str = "operator";

/// What the definitions are made for.
#[derive(Debug, Clone)]
pub struct DefinitionSettings {
    /// The vhost.
    pub vhost: String,
    /// The begin of the names of the users.
    pub users: String,
    /// Major and minor version of the broker.
    pub version: (u32, u32),
    /// The user of the worker has the rights of the operator, too.
    pub worker_is_operator: bool,
}

/// The rights of a role: patterns of the names, behind the prefix, that it configures, writes and reads. Each role also
/// uses temporary queues.
struct Role {
    name: &'static str,
    configure: &'static [&'static str],
    write: &'static [&'static str],
    read: &'static [&'static str],
}

const ROLES: [Role; 3] = [
    Role { name: "ingress", configure: &[], write: &["in", "dlx", "clock"], read: &["clock"] },
    Role {
        name: WORKER,
        configure: &[],
        write: &["in", "dlx", "workers", "clock"],
        // The right to read dead letters lets the worker count them on 4.3.
        read: &[r"w\..+", r"dlq\..+", "unrouted", "workers", "clock"],
    },
    Role {
        name: OPERATOR,
        configure: &[r"reader\..+"],
        write: &["in", "dlx", r"reader\..+", "clock"],
        read: &[r"w\..+", r"dlq\..+", "unrouted", r"reader\..+", "workers", "clock"],
    },
];

impl Role {
    /// The patterns for configure, write and read.
    fn rights(&self, settings: &DefinitionSettings) -> [Vec<&'static str>; 3] {
        let mut rights = [self.configure, self.write, self.read].map(<[_]>::to_vec);
        if self.name == WORKER && settings.worker_is_operator {
            for more in ROLES.iter().filter(|role| role.name == OPERATOR) {
                for (own, more) in rights.iter_mut().zip([more.configure, more.write, more.read]) {
                    own.extend(more.iter().filter(|pattern| !own.contains(pattern)).collect::<Vec<_>>());
                }
            }
        }
        rights
    }
}

/// The definitions as one JSON object.
pub fn definitions(names: &TopologyNames, tuning: &QueueTuning, settings: &DefinitionSettings) -> Value {
    let vhost = &settings.vhost;
    let user = |role: &str| format!("{}-{role}", settings.users);
    let users = ROLES.each_ref().map(|role| {
        // Without a hash the broker refuses every password.
        let hashing = "rabbit_password_hashing_sha256";
        json!({ "name": user(role.name), "password_hash": "", "hashing_algorithm": hashing, "tags": [] })
    });
    let permissions = ROLES.each_ref().map(|role| {
        let [configure, write, read] = role.rights(settings).map(|patterns| names.permission(&patterns));
        json!({ "user": user(role.name), "vhost": vhost, "configure": configure, "write": write, "read": read })
    });
    let mut exchanges: Vec<_> = topology::exchanges(names).into_iter().collect();
    exchanges.push((Exchange::Clock, ExchangeKind::Direct, FieldTable::default()));
    let exchanges: Vec<_> = exchanges
        .into_iter()
        .map(|(exchange, kind, arguments)| {
            json!({ "name": names.exchange(exchange), "vhost": vhost, "type": kind_name(&kind), "durable": true, "auto_delete": false,
                    "internal": false, "arguments": object(&arguments) })
        })
        .collect();
    let (mut queues, mut bindings) = (Vec::new(), Vec::new());
    for queue in topology::queues(names, tuning, CONSUMER_DISCONNECTED) {
        bindings.push(
            json!({ "source": names.exchange(queue.exchange), "vhost": vhost, "destination": queue.name,
            "destination_type": "queue", "routing_key": queue.key, "arguments": {} }),
        );
        queues.push(json!({ "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false,
                            "arguments": object(&queue.arguments) }));
    }
    json!({ "vhosts": [{ "name": vhost }], "users": users, "permissions": permissions,
            "policies": policies(names, settings), "exchanges": exchanges, "queues": queues, "bindings": bindings })
}

const fn kind_name(kind: &ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Fanout => "fanout",
        _ => "direct",
    }
}

/// The policies of `deploy/rabbitmq/definitions.json`, as far as this version of the broker knows their entries.
fn policies(names: &TopologyNames, settings: &DefinitionSettings) -> Value {
    let kind = if settings.version >= (4, 0) { "quorum_queues" } else { "queues" };
    let mut partitions = json!({ "max-length-bytes": LENGTH_MAX, "overflow": "reject-publish" });
    let dead_letters = partitions.clone();
    if settings.version >= (4, 3) {
        partitions["consumer-disconnected-timeout"] = json!(CONSUMER_DISCONNECTED.as_secs() * 1_000);
    }
    let policy = |name: &str, pattern: String, definition: Value| {
        json!({ "vhost": settings.vhost, "name": name, "pattern": pattern, "apply-to": kind, "priority": 10,
                "definition": definition })
    };
    json!([
        policy("partitions", names.pattern(r"w\."), partitions),
        policy("dead-letters", names.pattern(r"(dlq\.|unrouted)"), dead_letters),
    ])
}

fn object(arguments: &FieldTable) -> Value {
    let value = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Value::from(text.to_string()),
        AMQPValue::LongInt(number) => Value::from(*number),
        AMQPValue::Boolean(flag) => Value::from(*flag),
        _ => Value::Null,
    };
    let pairs = arguments.inner().iter().map(|(name, found)| (name.to_string(), value(found)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Destination, Destinations};

    fn made(version: (u32, u32)) -> Value {
        let destinations = Destinations::new([Destination::Xo]);
        let publish_timeout = Duration::from_secs(5);
        let tuning = QueueTuning { destinations, partitions: 2, prefetch: 4, publish_timeout };
        let names = TopologyNames::parse("causeway.").unwrap();
        let vhost = "causeway".to_owned();
        let settings =
            DefinitionSettings { vhost, users: "causeway".into(), version, worker_is_operator: true };
        definitions(&names, &tuning, &settings)
    }

    #[test]
    fn everything_that_is_declared_is_defined() {
        let made = made((4, 3));
        let names = |what: &str| -> Vec<String> {
            let all = made[what].as_array().unwrap().iter();
            let mut names: Vec<_> = all.map(|one| one["name"].as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(
            names("queues"),
            ["causeway.dlq.xo", "causeway.unrouted", "causeway.w.xo.0", "causeway.w.xo.1"]
        );
        assert_eq!(
            names("exchanges"),
            ["causeway.clock", "causeway.dlx", "causeway.in", "causeway.in.unrouted", "causeway.workers"]
        );
        assert_eq!(names("users"), ["causeway-ingress", "causeway-operator", "causeway-worker"]);
        let bindings = made["bindings"].as_array().unwrap();
        assert_eq!(bindings.len(), 4);
        // A message that comes during an import is returned to its sender until its partition is bound.
        assert_eq!(bindings[3]["destination"], "causeway.unrouted");
        assert!(!made.to_string().contains("null"), "{made}");
    }

    #[test]
    fn the_users_of_the_shipped_stack_have_these_rights() {
        let roles = std::fs::read_to_string("deploy/secrets/demo/rabbitmq_roles.json").unwrap();
        let roles: Value = serde_json::from_str(&roles).unwrap();
        assert_eq!(roles["permissions"], made((4, 3))["permissions"]);
        // The script writes the same text into a new folder, with other passwords.
        let script = std::fs::read_to_string("deploy/secrets/generate").unwrap();
        for permission in roles["permissions"].as_array().unwrap() {
            for right in ["configure", "write", "read"] {
                let written = format!("\"{right}\": {}", permission[right]);
                assert!(script.contains(&written), "deploy/secrets/generate lacks {written}");
            }
        }
    }

    #[test]
    fn the_policies_are_those_of_the_shipped_stack() {
        let shipped = std::fs::read_to_string("deploy/rabbitmq/definitions.json").unwrap();
        let shipped: Value = serde_json::from_str(&shipped).unwrap();
        assert_eq!(made((4, 3))["policies"], shipped["policies"]);
        let older = made((3, 10))["policies"].to_string();
        assert!(!older.contains("quorum_queues") && !older.contains("disconnected"), "{older}");
    }
}
