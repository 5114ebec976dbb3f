//! The steps of the pilot, as data: the person, the act, and the event that shows the act.

use crate::conversation::ConversationState;
use crate::message::Kind;

/// The word that skips a step.
pub(super) const PERSON_SKIPS: &str = "skip";

/// The text that must reach the user unchanged.
pub(super) const PLACEHOLDER: &str = "${pilot}";
/// The first word of the internal note of the agent.
pub(super) const NOTE: &str = "pilot-note";

/// The event that ends a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepGoal {
    /// The calls of the integration user are answered.
    Rights,
    /// A conversation that began after the step is in ServiceNow's queue.
    NewChat,
    /// The conversation is in this state.
    State(ConversationState),
    /// A message of this kind was settled.
    Settled(Kind),
    /// The rows of the chat show whether they hold the internal note.
    InternalNote,
    /// A message was relayed, and its row shows the placeholder or not.
    Placeholder,
}

/// One step.
#[derive(Debug)]
pub(super) struct PilotStep {
    pub(super) name: &'static str,
    pub(super) who: &'static str,
    pub(super) prompt: &'static str,
    pub(super) goal: StepGoal,
    /// A question whose answer only a person knows.
    pub(super) question: Option<&'static str>,
    /// The name of the answer in the report.
    pub(super) answer_name: &'static str,
}

const fn step(
    name: &'static str,
    who: &'static str,
    prompt: &'static str,
    goal: StepGoal,
    question: Option<&'static str>,
) -> PilotStep {
    PilotStep { name, who, prompt, goal, question, answer_name: "person_says" }
}

impl PilotStep {
    /// All steps. `with_bot`: the user talks to a bot of XO, whose turns are observed, too.
    pub(super) fn all(with_bot: bool) -> Vec<Self> {
        let before = [
            step("rights", "causeway", "the calls of the integration user are tried", StepGoal::Rights, None),
            step(
                "bot_turn",
                "user",
                "write any question to the bot and wait for its answer",
                StepGoal::Settled(Kind::BotUserMessage),
                Some("Did the bot answer once, within a few seconds?"),
            ),
        ];
        let chat = [
            step(
                "start",
                "user",
                "ask for a human agent",
                StepGoal::NewChat,
                Some("Did the user read that an agent will come?"),
            ),
            step("accept", "agent", "accept the chat", StepGoal::State(ConversationState::Active), None),
            step(
                "agent_writes",
                "agent",
                "write a sentence with an umlaut, a quotation mark and an emoji",
                StepGoal::Settled(Kind::CallbackMessage),
                Some("Did the user read the same sentence once?"),
            ),
            step(
                "user_writes",
                "user",
                "write a sentence to the agent",
                StepGoal::Settled(Kind::HandoffMessage),
                Some("Did the agent read the same sentence once?"),
            ),
            step(
                "internal_note",
                "agent",
                "write an internal note (for agents only) that begins with pilot-note",
                StepGoal::InternalNote,
                Some("Did the note stay hidden from the user?"),
            ),
            step(
                "placeholder",
                "agent",
                "write ${pilot} with the dollar sign and the braces",
                StepGoal::Placeholder,
                Some("Did the user read ${pilot} unchanged?"),
            ),
            step("end", "agent", "end the chat", StepGoal::State(ConversationState::Ended), None),
        ];
        let after = [step(
            "bot_again",
            "user",
            "write to the bot again",
            StepGoal::Settled(Kind::BotUserMessage),
            Some("Did the bot answer?"),
        )];
        let [rights, bot_turn] = before;
        let bot = if with_bot { vec![bot_turn] } else { Vec::new() };
        let after = if with_bot { after.into_iter().collect() } else { Vec::new() };
        std::iter::once(rights).chain(bot).chain(chat).chain(after).collect()
    }
}
