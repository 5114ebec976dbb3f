#![doc = include_str!("README.md")]

pub mod clock;
pub mod message;
pub mod queue;
pub mod tasks;
pub mod telemetry;
