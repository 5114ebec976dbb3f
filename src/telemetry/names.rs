//! The name and help text of every metric. No other file names a metric.

macro_rules! names {
    ($($constant:ident = $name:literal, $help:literal;)+) => {
        $(pub(super) const $constant: (&str, &str) = ($name, $help);)+
    };
}

names! {
    INGRESS_REQUESTS = "causeway_ingress_requests_total", "Requests answered by the ingress.";
    INGRESS_DURATION = "causeway_ingress_request_duration_seconds", "Time from a request's head to its answer.";
    PUBLISH_DURATION = "causeway_publish_duration_seconds", "Time until the queue confirmed a message.";
    ATTEMPTS = "causeway_delivery_attempts_total", "Delivery attempts, by outcome.";
    ATTEMPT_DURATION = "causeway_delivery_attempt_duration_seconds", "Time of one attempt.";
    LATENCY = "causeway_delivery_latency_seconds", "Time from accepted to delivered.";
    RETRIES = "causeway_retries_total", "Attempts that must be repeated, by reason.";
    DEAD_LETTERS = "causeway_dead_letters_total", "Messages that became dead letters, by reason.";
    DEAD_LETTER_MESSAGES = "causeway_dead_letter_messages", "Dead letters that wait for replay or discard.";
    REPLAYED = "causeway_replayed_total", "Messages delivered after a replay.";
    QUEUE_MESSAGES = "causeway_queue_messages", "Messages not delivered yet: waiting in the queue or unacked in this worker.";
    OLDEST_AGE = "causeway_oldest_message_age_seconds", "Age of the oldest message that is not delivered yet.";
    LANES = "causeway_lanes", "Lanes with messages in this worker, by state of their first message.";
    IN_FLIGHT = "causeway_in_flight", "Attempts in flight.";
    BREAKER_STATE = "causeway_breaker_state", "0 passing, 1 tripped, 2 probing.";
    BREAKER_TRIPS = "causeway_breaker_trips_total", "How often the breaker tripped, by reason.";
    BROKER_CONNECTED = "causeway_broker_connected", "1 while the queue can be used.";
    DIRECTORY_UP = "causeway_directory_up", "1 while the directory can be read and written.";
    CLOCK_AHEAD = "causeway_clock_ahead_seconds", "How far the clock of this machine is ahead of the broker's. From 5 s on, either way, messages are timed by the broker's clock.";
    UNSAFE_QUEUES = "causeway_queues_with_unsafe_policy", "Queues whose policy deletes messages, as queue.management_url shows.";
    SILENT_QUEUES = "causeway_queues_without_majority", "Queues that confirm nothing because too few of their nodes run.";
    CERTIFICATE_EXPIRY = "causeway_certificate_expiry_timestamp_seconds", "When a certificate expires, by peer: of the server, or our own (client). Of several hosts the first one.";
    SPOOL_MESSAGES = "causeway_spool_messages", "Messages that this ingress keeps on its disk until the broker confirms them.";
    SPOOL_OLDEST_AGE = "causeway_spool_oldest_age_seconds", "Age of the oldest message in the spool of this ingress.";
    SPOOL_HAS_ROOM = "causeway_spool_has_room", "1 while the spool of this ingress can take a message: below ingress.spool_max, on a disk that can be written.";
    PARTITIONS_OWNED = "causeway_partitions_owned", "Partitions that this worker should own and is subscribed to.";
    DIRECTORY_COMMIT = "causeway_directory_commit_seconds", "Time of one transaction of the directory, which holds the writes of many messages.";
    CONVERSATIONS = "causeway_conversations", "Conversations in the directory, by state.";
    ASTRAY = "causeway_unroutable_messages", "Unroutable messages: no queue took them. Any value but 0 is an alarm.";
    UNCONFIRMED = "causeway_unconfirmed_callbacks_total", "Callbacks that were dropped because ServiceNow has no such message: sent by a clone, or forged.";
    UNCONFIRMED_ENDS = "causeway_unconfirmed_ends_total", "Chats that the idle limit ended although a sentence of ServiceNow announced their end: no state and no callback confirmed the end.";
    READS = "causeway_servicenow_reads_total", "Requests that read chats back at ServiceNow, by what was read.";
    OLDEST_UNREAD = "causeway_servicenow_oldest_unread_seconds", "Time since the last poll of the open chat that was not polled for the longest time.";
    REPAIRED = "causeway_repaired_messages_total", "Agents' messages that were read back because their callback was lost.";
    UNREADABLE_ROWS = "causeway_unreadable_rows_total", "Agents' messages over the Virtual Agent API that have no callback and whose row has no readable text. Users do not get them.";
    ENDED = "causeway_conversations_ended_total", "Ended conversations, by reason.";
    AGENT_WAIT = "causeway_agent_wait_seconds", "Time from a handoff's request to its first agent.";
    UNKNOWN_ITEMS = "causeway_unknown_items_total", "Items of Virtual Agent callbacks with an unknown type.";
    BUILD_INFO = "causeway_build_info", "Always 1.";
}
