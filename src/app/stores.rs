//! Opens the queue, the spool and the directory that the settings name.
//!
//! Not responsible for: their use (`app.rs`).

use std::time::Duration;

use anyhow::Context;

use crate::config::{self, Settings, SpooledSenders};
use crate::conversation::{Directory, DirectoryError, DirectorySettings, DirectoryUrl};
use crate::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
use crate::queue::rabbit::{self, BrokerUrl, GreetingError, RabbitQueue, RabbitSettings, RabbitUse};
use crate::queue::spool::{Spool, SpoolSettings};
use crate::queue::{Queue, QueueTuning};

/// How long commands of the CLI wait for the broker.
const CONSOLE_WAIT: Duration = Duration::from_secs(10);

/// Opens the spool, unless the settings switch it off. The embedded engine needs none: its queue is on this disk.
pub(super) async fn open_spool(settings: &Settings, queue: &Queue) -> anyhow::Result<Option<Spool>> {
    if settings.ingress.spool == SpooledSenders::Off || !queue.shared() {
        return Ok(None);
    }
    let spool = SpoolSettings {
        folder: settings.data_dir.join("spool"),
        max_bytes: settings.ingress.spool_max as u64,
        destinations: settings.destinations(),
    };
    let opened = Spool::open(spool, queue.clone()).await;
    let hint = "ingress.spool: cannot open the spool. Mount a data_dir that can be written, or set ingress.spool = \"off\"";
    Ok(Some(opened.context(hint)?))
}

/// Opens the engine for an operator, beside the processes that serve it: to publish and to read dead letters.
pub async fn open_admin(settings: &Settings) -> anyhow::Result<Queue> {
    ready(open(settings, RabbitUse::Admin).await?).await
}

/// The place of a deployment for a person: the data folder of the embedded engine, or host and vhost of the broker, without
/// credentials.
pub fn place(settings: &Settings) -> String {
    settings.queue.url.as_ref().map_or_else(|| settings.data_dir.display().to_string(), BrokerUrl::place)
}

/// The version of the configured broker, if the broker reports one; `None` for the embedded engine.
pub async fn broker_version(settings: &Settings) -> Result<Option<String>, GreetingError> {
    let Some(url) = settings.queue.url.clone() else { return Ok(None) };
    rabbit::version(&rabbit_settings(url, settings, RabbitUse::Publish)).await
}

/// Opens the engine as a serving process would, and waits until it is usable.
pub async fn open_queue(settings: &Settings) -> anyhow::Result<Queue> {
    ready(open(settings, RabbitUse::Publish).await?).await
}

async fn ready(queue: Queue) -> anyhow::Result<Queue> {
    if let Queue::Rabbit(rabbit) = &queue {
        rabbit.ready(CONSOLE_WAIT).await?;
    }
    Ok(queue)
}

/// Makes the exchanges, queues and bindings of the broker that `queue.url` names, whatever `queue.declare` says.
pub async fn declare(settings: &Settings, limit: Duration) -> anyhow::Result<()> {
    let url = settings.queue.url.clone();
    let url = url.context("queue.url is missing: the embedded engine needs no declaration")?;
    Ok(rabbit::declare(&rabbit_settings(url, settings, RabbitUse::Admin), limit).await?)
}

pub(super) async fn open(settings: &Settings, usage: RabbitUse) -> anyhow::Result<Queue> {
    let Some(url) = settings.queue.url.clone() else {
        let tuning = tuning(settings);
        let embedded = EmbeddedSettings { data_dir: settings.data_dir.clone(), tuning, max_messages: None };
        return Ok(Queue::Embedded(match usage {
            RabbitUse::Admin => EmbeddedQueue::open_admin(embedded).await?,
            RabbitUse::Publish | RabbitUse::Work => EmbeddedQueue::open(embedded).await?,
        }));
    };
    Ok(Queue::Rabbit(RabbitQueue::open(rabbit_settings(url, settings, usage))))
}

fn rabbit_settings(url: BrokerUrl, settings: &Settings, usage: RabbitUse) -> RabbitSettings {
    let worker = process_name(&std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default());
    RabbitSettings {
        url,
        tls: settings.queue.tls.clone(),
        names: settings.queue.names.clone(),
        declare: settings.queue.declare,
        heartbeat: settings.queue.heartbeat,
        tuning: tuning(settings),
        usage,
        worker,
    }
}

/// The name of this process at the broker, unique to each process. It begins with the machine, for a person who looks at the
/// connections and consumers.
fn process_name(host: &str) -> String {
    let is_plain = |letter: &char| letter.is_ascii_alphanumeric() || "-_.".contains(*letter);
    let host: String = host.chars().filter(is_plain).take(63).collect();
    let random = uuid::Uuid::new_v4().simple();
    if host.is_empty() { random.to_string() } else { format!("{host}-{random}") }
}

/// The settings of the queue that both engines share.
pub fn tuning(settings: &Settings) -> QueueTuning {
    QueueTuning {
        destinations: settings.destinations(),
        partitions: settings.queue.partitions,
        prefetch: settings.queue.prefetch,
        publish_timeout: settings.queue.publish_timeout,
    }
}

/// Opens the configured directory.
pub async fn open_directory(settings: &Settings) -> anyhow::Result<Directory> {
    Directory::open(&directory_settings(settings)).await.context("directory.url")
}

/// Opens the directory for a process that stays while the server is away.
pub(super) async fn start_directory(
    settings: &Settings,
) -> anyhow::Result<(Option<Directory>, Option<DirectoryError>)> {
    let (directory, trouble) =
        Directory::start(&directory_settings(settings)).await.context("directory.url")?;
    Ok((Some(directory), trouble))
}

pub(super) fn directory_settings(settings: &Settings) -> DirectorySettings {
    let url = match &settings.directory {
        config::DirectoryConfig::Sqlite(path) => DirectoryUrl::Sqlite(path.clone()),
        config::DirectoryConfig::Postgres(url) => DirectoryUrl::Postgres(url.clone()),
    };
    DirectorySettings { url }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_called_after_its_machine() {
        let (one, other) = (process_name("chat-1.example\n"), process_name("chat-1.example\n"));
        assert!(one.starts_with("chat-1.example-") && one != other, "{one} {other}");
        assert_eq!(process_name("").len(), 32);
        assert!(process_name(&"x".repeat(300)).len() < 100, "a tag of a consumer has at most 255 bytes");
    }
}
