//! All integration tests in one binary. Each module is named after the promise that it tests.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "the helpers around a test fail it the way the test itself would, and say what a machine lacks"
)]

#[macro_use]
mod harness;

mod audit;
mod availability;
mod bot_conversation;
mod bot_mode;
mod botkit;
mod botkit_ends;
mod botkit_topics;
mod breaker;
mod broker_refusals;
mod bulk_read;
mod cli;
mod compose;
mod config;
mod console;
mod conversations;
mod course;
mod dead_letter;
mod demo;
mod destinations;
mod directory;
mod examples;
mod faults;
mod files;
mod full_disk;
mod gaps;
mod handoff_scope;
mod idempotency;
mod inbound_tls;
mod incidents;
mod ingress;
mod least_privilege;
mod majority;
mod manifests;
mod memory;
mod metrics;
mod network;
mod oauth;
mod openapi;
mod ordering;
mod pilot;
mod pins;
mod platforms;
mod pooler;
mod private;
mod prove;
mod queue_contract;
mod queue_embedded;
mod rabbit;
mod read_rate;
mod reload;
mod replay;
mod replay_outcomes;
mod retention;
mod retry;
mod routing;
mod rows;
mod scale_out;
mod servicenow_retry;
mod servicenow_rule;
mod servicenow_verbs;
mod settings_of_delivery;
mod shutdown;
mod soak;
mod spool;
mod status;
mod stores_tls;
mod surroundings;
mod systemd;
mod tidy;
mod trace;
mod transcript;
mod traps;
mod unknowns;
mod virtual_agent;
mod virtual_agent_rows;
mod watching;
