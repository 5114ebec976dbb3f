//! Counts the spooled messages of each lane.
//!
//! Guarantees: a lane is counted before its first message is written, and until its last message has been deleted.

use std::collections::HashMap;

use crate::message::{Destination, LaneKey, Message};

/// The size of a row without its body: ids, lane, and its share of the pages.
const ROW_BYTES: u64 = 512;

/// The spooled messages, by destination and lane.
#[derive(Debug, Default)]
pub(super) struct SpooledLanes {
    lanes: HashMap<Destination, HashMap<LaneKey, u64>>,
    messages: u64,
    bytes: u64,
}

impl SpooledLanes {
    pub(super) fn has(&self, message: &Message) -> bool {
        self.lanes.get(&message.destination).is_some_and(|lanes| lanes.contains_key(&message.lane))
    }

    pub(super) fn add(&mut self, destination: Destination, lane: &LaneKey, body_bytes: u64) {
        let lanes = self.lanes.entry(destination).or_default();
        match lanes.get_mut(lane) {
            Some(count) => *count += 1,
            None => drop(lanes.insert(lane.clone(), 1)),
        }
        self.messages += 1;
        self.bytes += ROW_BYTES + body_bytes;
    }

    pub(super) fn remove(&mut self, destination: Destination, lane: &LaneKey, body_bytes: u64) {
        let Some(lanes) = self.lanes.get_mut(&destination) else { return };
        let Some(count) = lanes.get_mut(lane) else { return };
        *count -= 1;
        if *count == 0 {
            lanes.remove(lane);
        }
        self.messages -= 1;
        self.bytes = self.bytes.saturating_sub(ROW_BYTES + body_bytes);
    }

    pub(super) const fn messages(&self) -> u64 {
        self.messages
    }

    /// The bytes on disk after one more body.
    pub(super) const fn bytes_with(&self, body_bytes: u64) -> u64 {
        self.bytes + ROW_BYTES + body_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Kind, MessageId};

    #[test]
    fn a_lane_counts_until_its_last_message_has_left() {
        let lane = |name: &str| LaneKey::parse(name).unwrap();
        let message = |destination, name: &str| {
            Message::new(MessageId::fresh(), Kind::CallbackMessage, destination, lane(name), "{}")
        };
        let mut lanes = SpooledLanes::default();
        lanes.add(Destination::Xo, &lane("a"), 2);
        lanes.add(Destination::Xo, &lane("a"), 2);
        assert!(lanes.has(&message(Destination::Xo, "a")) && !lanes.has(&message(Destination::Xo, "b")));
        assert!(!lanes.has(&message(Destination::Events, "a")), "each destination has lanes of its own");
        assert_eq!((lanes.messages(), lanes.bytes_with(8)), (2, 2 * 514 + 520));
        lanes.remove(Destination::Xo, &lane("a"), 2);
        assert!(lanes.has(&message(Destination::Xo, "a")));
        lanes.remove(Destination::Xo, &lane("a"), 2);
        lanes.remove(Destination::Xo, &lane("a"), 2);
        assert_eq!((lanes.messages(), lanes.bytes_with(0)), (0, 512));
        assert!(!lanes.has(&message(Destination::Xo, "a")));
    }
}
