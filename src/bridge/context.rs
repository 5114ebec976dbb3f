//! The settings, the clients and the stores that all parts of the bridge share.
//!
//! Guarantees: a context has no state of its own and no cache. Each part of the bridge holds the caches that only this
//! part uses.
//! Not responsible for: attempts (`to_agent/`, `to_bot/`), polls (`watch/`).

use std::sync::Arc;

use crate::bridge::settings::DeliverySettings;
use crate::conversation::{Conversation, Directory, Origin};
use crate::delivery::{Attempt, Gate, Gates, InternalError};
use crate::message::Destination;
use crate::platform::{ServiceNow, Xo};
use crate::queue::Queue;
use crate::telemetry::Metrics;

/// The clients and stores that a worker is built from.
#[derive(Debug, Clone)]
pub struct DelivererParts {
    /// The client of ServiceNow, if one is configured.
    pub servicenow: Option<ServiceNow>,
    /// The client of XO.
    pub xo: Xo,
    /// The directory of conversations; `None` in the pure callback relay.
    pub directory: Option<Directory>,
    /// The queue that notices are published to.
    pub queue: Queue,
    /// The gates of the destinations.
    pub gates: Arc<Gates>,
    /// The metrics of attempts.
    pub metrics: Arc<Metrics>,
}

/// The settings, the clients and the stores, shared by all parts of the bridge.
#[derive(Debug)]
pub(in crate::bridge) struct BridgeContext {
    pub(in crate::bridge) settings: DeliverySettings,
    pub(in crate::bridge) servicenow: Option<ServiceNow>,
    pub(in crate::bridge) xo: Xo,
    /// `None` in the pure callback relay, which has no directory.
    pub(in crate::bridge) directory: Option<Directory>,
    pub(in crate::bridge) queue: Queue,
    pub(in crate::bridge) gates: Arc<Gates>,
    pub(in crate::bridge) metrics: Arc<Metrics>,
}

impl BridgeContext {
    pub(in crate::bridge) fn new(parts: DelivererParts, settings: DeliverySettings) -> Arc<Self> {
        let DelivererParts { servicenow, xo, directory, queue, gates, metrics } = parts;
        Arc::new(Self { settings, servicenow, xo, directory, queue, gates, metrics })
    }

    /// The gate of a destination.
    pub(in crate::bridge) fn gate(&self, destination: Destination) -> &Gate {
        self.gates.gate(destination)
    }

    /// Reports a call to ServiceNow that no message of the queue made.
    pub(in crate::bridge) fn record_call_to_servicenow(&self, attempt: &Attempt) {
        self.gates.record_in_breaker(Destination::ServiceNow, None, attempt);
    }

    /// Counts requests that read chats back in the metrics.
    pub(in crate::bridge) fn count_reads(&self, what: &str, requests: u64) {
        self.metrics.servicenow_reads.with_label_values(&[what]).inc_by(requests);
    }

    /// The directory, for work that cannot be done without one.
    pub(in crate::bridge) fn known_directory(&self) -> Result<&Directory, InternalError> {
        self.directory.as_ref().ok_or_else(|| InternalError::temporary("this worker has no directory"))
    }

    /// The instance to which relative addresses belong.
    pub(in crate::bridge) fn instance(&self) -> Option<&url::Url> {
        self.servicenow.as_ref().map(ServiceNow::instance)
    }

    /// Whether the messages of this conversation's agents have a receiver.
    pub(in crate::bridge) fn is_heard(&self, conversation: &Conversation) -> bool {
        conversation.origin == Origin::BotKit || self.settings.tells_events
    }
}
