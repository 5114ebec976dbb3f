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
pub(super) const STRANGERS_MAX: usize = 1_024;
/// The number of places for proven connections.
const PROVEN_MAX: usize = 4_096;

/// All places of one listener.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    count: u64,
    /// Sorted by number, so the oldest connection comes first.
    strangers: BTreeMap<u64, Arc<Seat>>,
    proven: usize,
}

#[derive(Debug)]
struct Seat {
    address: IpAddr,
    is_answered: AtomicBool,
    leave: Notify,
}

/// The place of one connection. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    seat: Arc<Seat>,
    is_proven: AtomicBool,
}

impl Places {
    /// A place for a new connection. `None` if all places are taken and all their connections have a request in
    /// progress.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        let of_address = taken.strangers.values().filter(|seat| seat.address == address).count();
        if of_address >= STRANGERS_MAX / 2 {
            taken.send_away(|seat| seat.address == address)?;
        } else if taken.strangers.len() >= STRANGERS_MAX {
            taken.send_away(|_| true)?;
        }
        taken.count += 1;
        let number = taken.count;
        let seat = Arc::new(Seat { address, is_answered: AtomicBool::new(false), leave: Notify::new() });
        taken.strangers.insert(number, Arc::clone(&seat));
        Some(Place { places: Arc::clone(self), number, seat, is_proven: AtomicBool::new(false) })
    }

    /// Closes the oldest idle stranger, because the system has no free socket.
    pub(super) fn make_room(&self) {
        let _ = self.taken().send_away(|_| true);
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn send_away(&mut self, may_leave: impl Fn(&Seat) -> bool) -> Option<()> {
        let idle = |seat: &Seat| !seat.is_answered.load(Ordering::Relaxed) && may_leave(seat);
        let number = self.strangers.iter().find(|(_, seat)| idle(seat)).map(|(number, _)| *number)?;
        self.strangers.remove(&number)?.leave.notify_one();
        Some(())
    }
}

impl Place {
    /// The remote address of the connection.
    pub(super) fn address(&self) -> IpAddr {
        self.seat.address
    }

    /// Waits until the connection has to close.
    pub(super) async fn lost(&self) {
        self.seat.leave.notified().await;
    }

    /// Marks the start of a request.
    pub(super) fn answering(&self) {
        self.seat.is_answered.store(true, Ordering::Relaxed);
    }

    /// Marks the end of a request. Returns whether the connection is proven, by this request or an earlier one.
    pub(super) fn answered(&self, with_success: bool) -> bool {
        self.seat.is_answered.store(false, Ordering::Relaxed);
        if with_success && !self.is_proven.load(Ordering::Relaxed) {
            let mut taken = self.places.taken();
            if taken.proven < PROVEN_MAX && taken.strangers.remove(&self.number).is_some() {
                taken.proven += 1;
                self.is_proven.store(true, Ordering::Relaxed);
            }
        }
        with_success || self.is_proven.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
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

    fn has_lost(place: &Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    #[test]
    fn the_stranger_that_idles_longest_makes_room() {
        let places = Arc::new(Places::default());
        let all: Vec<Place> =
            (0..STRANGERS_MAX).map(|n| places.take(address(u8::try_from(n % 4).unwrap())).unwrap()).collect();
        all[0].answering();
        assert!(all[1].answered(true), "it is proven");
        let _instead_of_the_proven_one = places.take(address(9)).unwrap();
        assert!(!all.iter().any(has_lost));
        let _newcomer = places.take(address(9)).unwrap();
        assert!(has_lost(&all[2]));
        assert!(!has_lost(&all[0]) && !has_lost(&all[1]));
        drop(all);
        let taken = places.taken();
        assert_eq!((taken.proven, taken.strangers.len()), (0, 2));
    }

    #[test]
    fn one_address_has_half_of_the_places() {
        let places = Arc::new(Places::default());
        let other = places.take(address(1)).unwrap();
        let mut held: Vec<Place> = (0..STRANGERS_MAX).filter_map(|_| places.take(address(2))).collect();
        assert!(!has_lost(&other));
        assert_eq!(places.taken().strangers.len(), STRANGERS_MAX / 2 + 1);
        held.retain(|place| !has_lost(place));
        held.iter().for_each(Place::answering);
        assert!(places.take(address(2)).is_none(), "all of its connections are being answered");
        assert!(places.take(address(3)).is_some());
    }
}
