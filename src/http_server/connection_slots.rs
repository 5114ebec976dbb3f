//! The connections of a listener: which connection gets a place, and which one is closed when all places are taken.
//!
//! A connection is proven once one of its requests was answered with success. A proven connection has a place of its
//! own. All other connections (strangers) share [`STRANGERS_MAX`] places, and one address has at most half of these.
//! When the places are taken, the stranger that connected first among the idle ones is closed, so that idle
//! connections cannot block new ones.
//! Guarantees: a connection with a request in progress is never closed here.
//! Not responsible for: accepting and serving (`server.rs`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The number of places for connections that are not proven.
pub(crate) const STRANGERS_MAX: usize = 1_024;
/// The number of places for proven connections.
const PROVEN_MAX: usize = 4_096;

/// All places of one listener.
#[derive(Debug, Default)]
pub(crate) struct ConnectionSlots(Mutex<OccupiedSlots>);

#[derive(Debug, Default)]
struct OccupiedSlots {
    count: u64,
    /// Sorted by number, so the oldest connection comes first.
    strangers: BTreeMap<u64, Arc<SlotState>>,
    proven: usize,
}

#[derive(Debug)]
struct SlotState {
    address: IpAddr,
    is_answered: AtomicBool,
    leave: Notify,
}

/// The place of one connection. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    number: u64,
    slot_state: Arc<SlotState>,
    is_proven: AtomicBool,
}

impl ConnectionSlots {
    /// A place for a new connection. `None` if all places are taken and all their connections have a request in
    /// progress.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionSlot> {
        let mut taken = self.taken();
        let of_address = taken.strangers.values().filter(|slot_state| slot_state.address == address).count();
        if of_address >= STRANGERS_MAX / 2 {
            taken.send_away(|slot_state| slot_state.address == address)?;
        } else if taken.strangers.len() >= STRANGERS_MAX {
            taken.send_away(|_| true)?;
        }
        taken.count += 1;
        let number = taken.count;
        let slot_state =
            Arc::new(SlotState { address, is_answered: AtomicBool::new(false), leave: Notify::new() });
        taken.strangers.insert(number, Arc::clone(&slot_state));
        Some(ConnectionSlot {
            slots: Arc::clone(self),
            number,
            slot_state,
            is_proven: AtomicBool::new(false),
        })
    }

    /// Closes the oldest idle stranger, because the system has no free socket.
    pub(crate) fn make_room(&self) {
        let _ = self.taken().send_away(|_| true);
    }

    fn taken(&self) -> MutexGuard<'_, OccupiedSlots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OccupiedSlots {
    fn send_away(&mut self, may_leave: impl Fn(&SlotState) -> bool) -> Option<()> {
        let idle =
            |slot_state: &SlotState| !slot_state.is_answered.load(Ordering::Relaxed) && may_leave(slot_state);
        let number =
            self.strangers.iter().find(|(_, slot_state)| idle(slot_state)).map(|(number, _)| *number)?;
        self.strangers.remove(&number)?.leave.notify_one();
        Some(())
    }
}

impl ConnectionSlot {
    /// The remote address of the connection.
    pub(crate) fn address(&self) -> IpAddr {
        self.slot_state.address
    }

    /// Waits until the connection has to close.
    pub(crate) async fn lost(&self) {
        self.slot_state.leave.notified().await;
    }

    /// Marks the start of a request.
    pub(crate) fn answering(&self) {
        self.slot_state.is_answered.store(true, Ordering::Relaxed);
    }

    /// Marks the end of a request. Returns whether the connection is proven, by this request or an earlier one.
    pub(crate) fn answered(&self, with_success: bool) -> bool {
        self.slot_state.is_answered.store(false, Ordering::Relaxed);
        if with_success && !self.is_proven.load(Ordering::Relaxed) {
            let mut taken = self.slots.taken();
            if taken.proven < PROVEN_MAX && taken.strangers.remove(&self.number).is_some() {
                taken.proven += 1;
                self.is_proven.store(true, Ordering::Relaxed);
            }
        }
        with_success || self.is_proven.load(Ordering::Relaxed)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        if self.is_proven.load(Ordering::Relaxed) {
            taken.proven -= 1;
        } else {
            taken.strangers.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn has_lost(slot: &ConnectionSlot) -> bool {
        slot.lost().now_or_never().is_some()
    }

    #[test]
    fn the_stranger_that_idles_longest_makes_room() {
        let slots = Arc::new(ConnectionSlots::default());
        let all: Vec<ConnectionSlot> =
            (0..STRANGERS_MAX).map(|n| slots.take(address(u8::try_from(n % 4).unwrap())).unwrap()).collect();
        all[0].answering();
        assert!(all[1].answered(true), "it is proven");
        let _instead_of_the_proven_one = slots.take(address(9)).unwrap();
        assert!(!all.iter().any(has_lost));
        let _newcomer = slots.take(address(9)).unwrap();
        assert!(has_lost(&all[2]));
        assert!(!has_lost(&all[0]) && !has_lost(&all[1]));
        drop(all);
        let taken = slots.taken();
        assert_eq!((taken.proven, taken.strangers.len()), (0, 2));
    }

    #[test]
    fn one_address_has_half_of_the_places() {
        let slots = Arc::new(ConnectionSlots::default());
        let other = slots.take(address(1)).unwrap();
        let mut held: Vec<ConnectionSlot> =
            (0..STRANGERS_MAX).filter_map(|_| slots.take(address(2))).collect();
        assert!(!has_lost(&other));
        assert_eq!(slots.taken().strangers.len(), STRANGERS_MAX / 2 + 1);
        held.retain(|slot| !has_lost(slot));
        held.iter().for_each(ConnectionSlot::answering);
        assert!(slots.take(address(2)).is_none(), "all of its connections are being answered");
        assert!(slots.take(address(3)).is_some());
    }
}
