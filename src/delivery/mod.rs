//! The parts that every attempt needs: the gates of the destinations with their breakers and limits, the meaning of an
//! answer, and the backoff.
//!
//! Guarantees: nothing here knows a conversation or a platform's client. Each destination has a gate of its own.
//! Not responsible for: the calls of an attempt (`bridge/`); order and settling (`worker/`).

mod attempt;
pub mod backoff;
pub mod breaker;
pub mod classify;
mod gate;
mod gates;
mod recent_keys;

pub(crate) use attempt::InternalError;
pub use attempt::{Attempt, PriorAttempts};
pub use gate::{Gate, GateSettings};
pub(crate) use gate::{GatePermit, RateLimiter};
pub use gates::Gates;
pub(crate) use gates::lane_number;
pub(crate) use recent_keys::RecentKeys;
