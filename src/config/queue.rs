//! The settings of the queue: the embedded engine or RabbitMQ.
//!
//! Guarantees: an address with a mistake is never repeated, because it holds a password.
//! Not responsible for: the certificates (`network.rs`).

use secrecy::SecretString;
use url::Url;

use super::network;
use super::parse::choice_of;
use super::reader::SettingsReader;
use super::settings::QueueSettings;
use crate::queue::rabbit::{BrokerUrl, QueueDeclare, TopologyNames};

pub(super) fn settings(reader: &mut SettingsReader) -> QueueSettings {
    let expected = "an address such as amqp://user:password@host:5672/%2f, or with several hosts: amqp://user:password@host1,host2/%2f";
    let url = reader.parsed("queue.url", expected, BrokerUrl::parse);
    let expected = "at most 100 letters, digits and -_.:, such as causeway.";
    let names = reader.parsed("queue.prefix", expected, TopologyNames::parse);
    QueueSettings {
        url,
        // With a mistake no process starts.
        names: names.unwrap_or_default(),
        declare: choice_of(reader, "queue.declare", QueueDeclare::ALL, QueueDeclare::as_str)
            .unwrap_or(QueueDeclare::Make),
        partitions: reader.whole("queue.partitions", 1, 256),
        prefetch: reader.whole("queue.prefetch", 4, u16::MAX),
        heartbeat: reader.duration("queue.heartbeat"),
        publish_timeout: reader.duration("queue.publish_timeout"),
        management_url: management_url(reader),
        tls: network::broker(reader),
    }
}

fn management_url(reader: &mut SettingsReader) -> Option<SecretString> {
    let expected = "the address of RabbitMQ's management API, such as http://user:password@host:15672";
    reader.parsed("queue.management_url", expected, |text| {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(String::new());
        }
        if url.username().is_empty() {
            return Err("names no user".to_owned());
        }
        Ok(SecretString::from(text.to_owned()))
    })
}
