//! Limits the number of bytes of request bodies that the ingress holds at once.
//!
//! Guarantees: a body is read only after its bytes are reserved. The bytes stay reserved until the last copy of the
//! body is dropped, including the copies for the publish. Senders that are not authenticated yet have a small budget
//! of their own, so they cannot use up the budget of authenticated senders. A request that gets no budget in time is
//! refused with a `Retry-After`.
//! Not responsible for: authentication (`credentials.rs`), reading (`body.rs`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::ApiError;

const KIB: usize = 1 << 10;
/// The budget for authenticated senders in bytes. For a moment each body exists up to three times: as received, in
/// the channel to the publisher, and in the writes to the broker.
const PROVEN_BYTES: usize = 24 << 20;
/// The budget in bytes for small bodies of senders that are authenticated only by a signature over the body.
const UNPROVEN_SMALL_BYTES: usize = 2 << 20;
/// Larger bodies have a separate budget for two bodies, so that they cannot block the small ones.
const SMALL_BYTES: usize = 64 * KIB;
const UNPROVEN_LARGE_BODIES: usize = 2;
/// The time limit for waiting for budget.
const PROVEN_WAIT: Duration = Duration::from_secs(5);
const UNPROVEN_WAIT: Duration = Duration::from_secs(2);

/// Whether the sender is known before its body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SenderTrust {
    /// A credential in the head of the request is valid.
    Proven,
    /// Only the body can prove the credential.
    Unproven,
}

/// The budgets for bodies that are being read or published.
#[derive(Debug)]
pub struct ReadBudget {
    proven: BudgetShare,
    unproven_small: BudgetShare,
    unproven_large: BudgetShare,
}

#[derive(Debug)]
struct BudgetShare {
    /// One permit for each KiB.
    free: Arc<Semaphore>,
    total: usize,
}

impl BudgetShare {
    fn of(bytes: usize) -> Self {
        let total = kib(bytes).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(total)), total }
    }

    async fn reserve(&self, bytes: usize, wait: Duration) -> Result<ReservedBytes, ApiError> {
        // A single body that exceeds the budget takes the whole budget.
        let wanted = u32::try_from(kib(bytes).min(self.total)).unwrap_or(u32::MAX);
        let turn = tokio::time::timeout(wait, Arc::clone(&self.free).acquire_many_owned(wanted)).await;
        match turn {
            Ok(Ok(permit)) => Ok(ReservedBytes(permit)),
            _ => Err(ApiError::Overloaded),
        }
    }
}

const fn kib(bytes: usize) -> usize {
    bytes.div_ceil(KIB)
}

impl ReadBudget {
    /// The budgets for bodies of at most `body_limit` bytes.
    pub fn new(body_limit: usize) -> Self {
        Self {
            proven: BudgetShare::of(PROVEN_BYTES.max(body_limit)),
            unproven_small: BudgetShare::of(UNPROVEN_SMALL_BYTES),
            unproven_large: BudgetShare::of(body_limit.saturating_mul(UNPROVEN_LARGE_BODIES)),
        }
    }

    /// Reserves room for a body of at most `bytes` bytes.
    pub(crate) async fn reserve(&self, sender: SenderTrust, bytes: usize) -> Result<ReservedBytes, ApiError> {
        match sender {
            SenderTrust::Proven => self.proven.reserve(bytes, PROVEN_WAIT).await,
            SenderTrust::Unproven if bytes <= SMALL_BYTES => {
                self.unproven_small.reserve(bytes, UNPROVEN_WAIT).await
            }
            SenderTrust::Unproven => self.unproven_large.reserve(bytes, UNPROVEN_WAIT).await,
        }
    }
}

/// Reserved bytes. Dropping them frees the reservation.
#[derive(Debug)]
pub(crate) struct ReservedBytes(OwnedSemaphorePermit);

impl ReservedBytes {
    /// Returns the body. Dropping its last copy frees the reservation.
    pub(crate) fn hold(mut self, body: Vec<u8>) -> Bytes {
        let surplus = self.0.num_permits().saturating_sub(kib(body.len()));
        drop(self.0.split(surplus));
        Bytes::from_owner(ReservedBody { body, _reserved: self })
    }
}

struct ReservedBody {
    body: Vec<u8>,
    _reserved: ReservedBytes,
}

impl AsRef<[u8]> for ReservedBody {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 2 << 20;

    #[tokio::test(start_paused = true)]
    async fn unproven_bodies_cannot_take_the_share_of_proven_ones() {
        let budget = ReadBudget::new(LIMIT);
        let mut held = Vec::new();
        while let Ok(reserved) = budget.reserve(SenderTrust::Unproven, LIMIT).await {
            held.push(reserved);
        }
        assert_eq!(held.len(), UNPROVEN_LARGE_BODIES);
        assert!(
            budget.reserve(SenderTrust::Unproven, 500).await.is_ok(),
            "small ones have a share of their own"
        );
        while let Ok(reserved) = budget.reserve(SenderTrust::Unproven, SMALL_BYTES).await {
            held.push(reserved);
        }
        assert!(budget.reserve(SenderTrust::Proven, LIMIT).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_is_free_again_when_the_last_copy_of_its_body_is_gone() {
        let budget = ReadBudget::new(LIMIT);
        let first = budget.reserve(SenderTrust::Unproven, 2 * LIMIT).await.unwrap().hold(vec![0; 2 * LIMIT]);
        let copy = first.clone();
        drop(first);
        let refused = budget.reserve(SenderTrust::Unproven, LIMIT).await;
        assert!(matches!(refused, Err(ApiError::Overloaded)));
        drop(copy);
        let small = budget.reserve(SenderTrust::Unproven, 2 * LIMIT).await.unwrap().hold(vec![0; 10]);
        let rest = budget.reserve(SenderTrust::Unproven, 2 * LIMIT - KIB).await;
        assert!(rest.is_ok(), "a short body keeps what it needs");
        assert_eq!(small.len(), 10);
    }
}
