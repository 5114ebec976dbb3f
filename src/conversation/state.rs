//! The life of a conversation as one pure function: what each event does in each state.
//!
//! ```text
//!             opened            observed             ended
//! requested ─────────> waiting <────────> active ───────────> ended
//!     │                   │                                     │
//!     └───────────────────┴──── failed ──> failed               │
//!     ^                                      │                  │
//!     └──────────────── requested ───────────┴──────────────────┘
//! ```
//!
//! Guarantees: an event that comes twice, late, or from an earlier chat of the conversation changes nothing. Only a closed
//! conversation becomes `requested` again. A conversation of a bot never becomes one of the handoff API.
//! Not responsible for: the owner of a group, and protection against simultaneous changes (`directory`).

use jiff::Timestamp;

use super::{Conversation, ConversationState, Observation, OpenedChat, Origin};
use crate::message::ConversationId;

/// The events of a conversation.
#[derive(Debug, Clone, Copy)]
pub(super) enum StateEvent<'a> {
    Requested { origin: Origin, queue_id: Option<&'a str> },
    Accepted { origin: Origin, queue_id: Option<&'a str>, at: Timestamp },
    AgentRequested { group: &'a str },
    Opened(&'a OpenedChat),
    Observed { group: &'a str, seen: &'a Observation },
    Ended { group: Option<&'a str>, reason: &'a str },
    Failed { reason: &'a str },
    Released,
}

/// The conversation after the event; `None` if the event changes nothing.
pub(super) fn step(
    id: &ConversationId,
    before: Option<&Conversation>,
    event: StateEvent<'_>,
    now: Timestamp,
) -> Option<Conversation> {
    let Some(before) = before else {
        return match event {
            StateEvent::Requested { origin, queue_id } | StateEvent::Accepted { origin, queue_id, .. } => {
                Some(requested(id, origin, queue_id, now))
            }
            _ => None,
        };
    };
    let after = match event {
        StateEvent::Requested { origin, queue_id } => on_requested(before, origin, queue_id, now)?,
        // A conversation that changed after the acceptance was closed by the accepted start itself: its end must stay.
        StateEvent::Accepted { at, .. } if before.updated_at.as_millisecond() >= at.as_millisecond() => {
            return None;
        }
        StateEvent::Accepted { origin, queue_id, .. } => on_requested(before, origin, queue_id, now)?,
        StateEvent::AgentRequested { group } => on_asked(before, group)?,
        StateEvent::Opened(opened) => on_opened(before, opened)?,
        StateEvent::Observed { group, seen } => on_observed(before, group, seen)?,
        StateEvent::Ended { group, reason } => on_ended(before, group, reason)?,
        StateEvent::Failed { reason } => on_failed(before, reason)?,
        StateEvent::Released if before.released_at.is_some() => return None,
        StateEvent::Released => Conversation { released_at: Some(now), ..before.clone() },
    };
    let left = before.state == ConversationState::Active && after.state == ConversationState::Waiting;
    let after = if left { Conversation { waiting_since: now, ..after } } else { after };
    // Only a change counts as an update: a poll without news costs no write.
    (after != *before).then_some(Conversation { updated_at: now, ..after })
}

fn requested(id: &ConversationId, origin: Origin, queue_id: Option<&str>, now: Timestamp) -> Conversation {
    Conversation {
        id: id.clone(),
        origin,
        state: ConversationState::Requested,
        group: None,
        number: None,
        queue_id: queue_id.map(str::to_owned),
        position: None,
        wait: None,
        agent: None,
        reason: None,
        opened_at: now,
        waiting_since: now,
        updated_at: now,
        released_at: None,
    }
}

fn on_requested(
    before: &Conversation,
    origin: Origin,
    queue_id: Option<&str>,
    now: Timestamp,
) -> Option<Conversation> {
    match before.state {
        ConversationState::Requested | ConversationState::Waiting | ConversationState::Active => None,
        // A caller of the handoff API cannot take over the conversation of a bot's user.
        ConversationState::Ended | ConversationState::Failed
            if before.origin == Origin::BotKit && origin == Origin::Api =>
        {
            None
        }
        ConversationState::Ended | ConversationState::Failed => {
            Some(requested(&before.id, origin, queue_id, now))
        }
    }
}

/// The chat has an id before it has a position in a queue.
fn on_asked(before: &Conversation, group: &str) -> Option<Conversation> {
    let chat = || Conversation { group: Some(group.to_owned()), ..before.clone() };
    (before.state == ConversationState::Requested).then(chat)
}

/// A second chat replaces the first one (a start whose first attempt succeeded without an answer). The starter goes on with
/// the second chat.
fn on_opened(before: &Conversation, opened: &OpenedChat) -> Option<Conversation> {
    let known = before.group.as_deref() == Some(opened.group.as_str());
    let active = match before.state {
        ConversationState::Ended | ConversationState::Failed => return None,
        ConversationState::Requested | ConversationState::Waiting => opened.active,
        // A repeat of the start's answer: an agent who came since then stays.
        ConversationState::Active if known => return None,
        ConversationState::Active => opened.active,
    };
    let chat = Conversation {
        group: Some(opened.group.clone()),
        number: opened.number.clone(),
        queue_id: Some(opened.queue_id.clone()),
        ..before.clone()
    };
    Some(seen_as(chat, active, opened.position, opened.wait.as_deref(), opened.agent.as_deref()))
}

/// If an agent returns the chat to a queue, the conversation waits again.
fn on_observed(before: &Conversation, group: &str, seen: &Observation) -> Option<Conversation> {
    match before.state {
        ConversationState::Ended | ConversationState::Failed => None,
        // Otherwise a reading from before an agent joined could undo this state, and no notice would say that the agent left.
        _ if seen.decided_on.is_some_and(|known| known != before.updated_at) => None,
        ConversationState::Requested | ConversationState::Waiting | ConversationState::Active
            if before.group.as_deref() != Some(group) =>
        {
            None
        }
        ConversationState::Requested | ConversationState::Waiting | ConversationState::Active => Some(
            seen_as(before.clone(), seen.active, seen.position, seen.wait.as_deref(), seen.agent.as_deref()),
        ),
    }
}

fn seen_as(
    before: Conversation,
    active: bool,
    position: Option<u32>,
    wait: Option<&str>,
    agent: Option<&str>,
) -> Conversation {
    Conversation {
        state: if active { ConversationState::Active } else { ConversationState::Waiting },
        // A chat with an agent has no position in a queue.
        position: position.filter(|_| !active),
        wait: wait.filter(|_| !active).map(str::to_owned),
        agent: agent.map(str::to_owned),
        ..before
    }
}

/// A caller that ends the conversation itself gives no group. A caller that saw a chat end names the chat, and may be late.
fn on_ended(before: &Conversation, group: Option<&str>, reason: &str) -> Option<Conversation> {
    match before.state {
        ConversationState::Ended | ConversationState::Failed => None,
        ConversationState::Requested | ConversationState::Waiting | ConversationState::Active
            if group.is_some() && before.group.as_deref() != group =>
        {
            None
        }
        ConversationState::Requested | ConversationState::Waiting | ConversationState::Active => {
            Some(closed(before, ConversationState::Ended, reason))
        }
    }
}

fn on_failed(before: &Conversation, reason: &str) -> Option<Conversation> {
    match before.state {
        ConversationState::Requested | ConversationState::Waiting => {
            Some(closed(before, ConversationState::Failed, reason))
        }
        ConversationState::Active | ConversationState::Ended | ConversationState::Failed => None,
    }
}

fn closed(before: &Conversation, state: ConversationState, reason: &str) -> Conversation {
    Conversation { state, position: None, wait: None, reason: Some(reason.to_owned()), ..before.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURRENT: &str = "g-current";
    const EARLIER: &str = "g-earlier";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn id() -> ConversationId {
        ConversationId::parse("c-1").unwrap()
    }

    fn in_state(state: ConversationState) -> Conversation {
        let chat = (state != ConversationState::Requested).then(|| CURRENT.to_owned());
        let agent = (state == ConversationState::Active).then(|| "Ada".to_owned());
        let base = requested(&id(), Origin::Api, Some("q-1"), at(1));
        Conversation { state, group: chat, agent, ..base }
    }

    fn chat(group: &str, active: bool) -> OpenedChat {
        OpenedChat {
            group: group.to_owned(),
            number: Some("IMS1".to_owned()),
            queue_id: "q-1".to_owned(),
            position: Some(3),
            wait: Some("2 Minutes".to_owned()),
            agent: None,
            active,
        }
    }

    #[test]
    fn every_event_in_every_state() {
        use ConversationState::{Active, Ended, Failed, Requested, Waiting};
        let nothing = Observation::default();
        let waits = Observation { position: Some(2), ..Observation::default() };
        let talks = Observation { active: true, agent: Some("Grace".to_owned()), ..Observation::default() };
        let again = StateEvent::Requested { origin: Origin::BotKit, queue_id: Some("q-2") };
        let (opened, opened_active) = (chat(CURRENT, false), chat(CURRENT, true));
        let (second, second_active) = (chat("g-second", false), chat("g-second", true));
        let ended = |group| StateEvent::Ended { group, reason: "agent" };
        let failed = StateEvent::Failed { reason: "no_agent" };
        // The conversations of the table last changed in second 1.
        let accepted = |at| StateEvent::Accepted { origin: Origin::Api, queue_id: None, at };
        let seen = |group, seen| StateEvent::Observed { group, seen };
        // The next state from requested, waiting, active, ended, failed; `None`: no change.
        let table: [(&str, StateEvent<'_>, [Option<ConversationState>; 5]); 15] = [
            ("requested again", again, [None, None, None, Some(Requested), Some(Requested)]),
            ("accepted later", accepted(at(2)), [None, None, None, Some(Requested), Some(Requested)]),
            ("accepted before its end", accepted(at(1)), [None; 5]),
            ("opened", StateEvent::Opened(&opened), [Some(Waiting), Some(Waiting), None, None, None]),
            (
                "opened, active",
                StateEvent::Opened(&opened_active),
                [Some(Active), Some(Active), None, None, None],
            ),
            (
                "another chat",
                StateEvent::Opened(&second),
                [Some(Waiting), Some(Waiting), Some(Waiting), None, None],
            ),
            (
                "another chat, active",
                StateEvent::Opened(&second_active),
                [Some(Active), Some(Active), Some(Active), None, None],
            ),
            ("seen waiting", seen(CURRENT, &waits), [None, Some(Waiting), Some(Waiting), None, None]),
            ("seen with an agent", seen(CURRENT, &talks), [None, Some(Active), Some(Active), None, None]),
            ("an earlier chat seen", seen(EARLIER, &talks), [None; 5]),
            ("ended", ended(None), [Some(Ended), Some(Ended), Some(Ended), None, None]),
            ("this chat ended", ended(Some(CURRENT)), [None, Some(Ended), Some(Ended), None, None]),
            ("an earlier chat ended", ended(Some(EARLIER)), [None; 5]),
            ("failed", failed, [Some(Failed), Some(Failed), None, None, None]),
            ("seen as it is", seen(CURRENT, &nothing), [None, None, Some(Waiting), None, None]),
        ];
        for (name, event, expected) in table {
            for (state, expected) in ConversationState::ALL.iter().zip(expected) {
                let before = in_state(*state);
                let after = step(&before.id, Some(&before), event, at(9));
                assert_eq!(after.as_ref().map(|after| after.state), expected, "{name} while {state}");
                let Some(after) = after else { continue };
                assert_eq!(after.updated_at, at(9), "{name} while {state}");
                assert_eq!(step(&after.id, Some(&after), event, at(10)), None, "{name} twice while {state}");
            }
        }
    }

    #[test]
    fn nothing_but_a_request_begins_a_conversation() {
        let opened = chat(CURRENT, true);
        for event in [
            StateEvent::Opened(&opened),
            StateEvent::Observed { group: CURRENT, seen: &Observation::default() },
            StateEvent::Ended { group: None, reason: "user" },
            StateEvent::Failed { reason: "no_agent" },
        ] {
            assert_eq!(step(&id(), None, event, at(1)), None, "{event:?}");
        }
        let event = StateEvent::Requested { origin: Origin::Api, queue_id: None };
        assert_eq!(step(&id(), None, event, at(1)), Some(requested(&id(), Origin::Api, None, at(1))));
    }

    #[test]
    fn a_new_episode_knows_nothing_of_the_last_one() {
        let last = closed(&in_state(ConversationState::Active), ConversationState::Ended, "agent");
        let event = StateEvent::Requested { origin: Origin::BotKit, queue_id: Some("q-2") };
        let next = step(&last.id, Some(&last), event, at(9));
        assert_eq!(next, Some(requested(&last.id, Origin::BotKit, Some("q-2"), at(9))));
    }

    #[test]
    fn a_caller_of_the_api_cannot_take_over_the_conversation_of_a_bot() {
        let of_a_bot = Conversation { origin: Origin::BotKit, ..in_state(ConversationState::Active) };
        let last = closed(&of_a_bot, ConversationState::Ended, "agent");
        let requested = StateEvent::Requested { origin: Origin::Api, queue_id: None };
        let accepted = StateEvent::Accepted { origin: Origin::Api, queue_id: None, at: at(8) };
        for event in [requested, accepted] {
            assert_eq!(step(&last.id, Some(&last), event, at(9)), None);
        }
    }

    #[test]
    fn the_queue_is_forgotten_once_an_agent_has_the_chat() {
        let waiting = step(
            &id(),
            Some(&in_state(ConversationState::Requested)),
            StateEvent::Opened(&chat(CURRENT, false)),
            at(2),
        )
        .unwrap();
        assert_eq!((waiting.position, waiting.wait.as_deref()), (Some(3), Some("2 Minutes")));
        let seen = Observation { position: Some(1), active: true, ..Observation::default() };
        let active =
            step(&id(), Some(&waiting), StateEvent::Observed { group: CURRENT, seen: &seen }, at(3)).unwrap();
        assert_eq!((active.position, active.wait), (None, None));
        assert_eq!(active.number.as_deref(), Some("IMS1"));
    }

    #[test]
    fn a_user_without_the_agent_waits_again() {
        let waits = |seen: &Observation, before: &Conversation, second| {
            let event = StateEvent::Observed { group: CURRENT, seen };
            step(&before.id, Some(before), event, at(second)).unwrap()
        };
        let placed = |position| Observation { position: Some(position), ..Observation::default() };
        let talks = Observation { active: true, agent: Some("Grace".to_owned()), ..Observation::default() };
        let first = waits(&placed(3), &in_state(ConversationState::Waiting), 2);
        assert_eq!(first.waiting_since, at(1), "another place in the queue is the same wait");
        let left = waits(&placed(1), &waits(&talks, &first, 3), 900);
        assert_eq!((left.opened_at, left.waiting_since), (at(1), at(900)));
        let passed_on = StateEvent::Opened(&chat("g-second", false));
        let before = waits(&talks, &left, 901);
        let passed_on = step(&before.id, Some(&before), passed_on, at(902)).unwrap();
        assert_eq!((passed_on.state, passed_on.waiting_since), (ConversationState::Waiting, at(902)));
    }

    #[test]
    fn a_reading_from_before_a_change_has_no_effect() {
        let observed = |seen: &Observation, before: &Conversation, second| {
            step(&before.id, Some(before), StateEvent::Observed { group: CURRENT, seen }, at(second))
        };
        let waiting = in_state(ConversationState::Waiting);
        let known = Some(waiting.updated_at);
        let waits = Observation { position: Some(0), decided_on: known, ..Observation::default() };
        let talks = Observation { active: true, agent: Some("Grace".to_owned()), ..Observation::default() };
        // A poll reads the row, an agent joins and leaves, and the poll reads the state of the chat.
        let active = observed(&talks, &waiting, 2).unwrap();
        assert_eq!(observed(&waits, &active, 3), None, "the next poll says that the agent left");
        let decided_on = Some(active.updated_at);
        let left = observed(&Observation { decided_on, ..waits.clone() }, &active, 4).unwrap();
        assert_eq!(left.state, ConversationState::Waiting);
        assert!(observed(&waits, &waiting, 3).is_some(), "nothing has changed since");
    }

    #[test]
    fn the_chat_and_the_agent_are_still_known_after_the_end() {
        let event = StateEvent::Ended { group: None, reason: "agent" };
        let ended = step(&id(), Some(&in_state(ConversationState::Active)), event, at(2)).unwrap();
        assert_eq!(ended.group.as_deref(), Some(CURRENT));
        assert_eq!((ended.agent.as_deref(), ended.reason.as_deref()), (Some("Ada"), Some("agent")));
    }
}
