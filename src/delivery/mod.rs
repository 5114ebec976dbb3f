//! The parts that every attempt needs: the gate of a destination with its breaker and its limits, the meaning of an answer, and
//! the backoff.
//!
//! Guarantees: nothing here knows a conversation or a platform's client. Each destination has a gate of its own.
//! Not responsible for: the calls of an attempt (`bridge/`); order and settling (`worker/`).

mod attempt;
pub mod backoff;
pub mod breaker;
pub mod classify;
mod gate;
mod recent_keys;

pub(crate) use attempt::InternalError;
pub use attempt::{Attempt, PriorAttempts};
pub use gate::{Gate, GateSettings};
pub(crate) use gate::{GatePermit, RateLimiter};
pub(crate) use recent_keys::RecentKeys;
