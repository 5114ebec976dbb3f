#![doc = include_str!("README.md")]

pub mod message;

pub mod admin;
pub mod bridge;
pub mod dead_letters;
pub mod delivery;
pub mod files;
pub mod http_server;
pub mod ingress;
pub mod platform;
pub mod queue;
pub mod worker;

pub mod conversation;
pub mod course;
mod status;

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data_files;
pub mod live;
#[cfg(feature = "tools")]
pub mod sandbox;
pub mod tasks;
pub mod telemetry;
pub mod tls;
