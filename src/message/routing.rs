//! Chooses the queue of a start and its context variables, by rules on the bot, the language, the channel and any value
//! of the bot side.
//!
//! Guarantees: the first route whose conditions all match wins. A missing value matches no condition. The decision
//! depends only on the start and the settings, so each attempt of a start chooses the same queue.
//!
//! Not responsible for: reading values of XO's payload (`ingress/botkit/routing.rs`), whether a queue exists at
//! ServiceNow.

use std::collections::{BTreeMap, BTreeSet};

use super::handoff::HandoffStart;

/// The prefix, before a path, of the metadata names that carry a value of XO's payload.
const OF_PAYLOAD: &str = "payload:";

/// A condition of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteCondition {
    /// `bot`, `language`, `channel`, `metadata.<name>`, or a path into XO's payload.
    pub name: String,
    /// The required value.
    pub value: String,
}

/// A route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueRoute {
    /// The conditions, which must all match. A route without conditions always matches.
    pub when: Vec<RouteCondition>,
    /// The Queue ID; the default if absent.
    pub queue_id: Option<String>,
    /// Context variables for the Virtual Agent API.
    pub context_variables: BTreeMap<String, String>,
}

/// `[[servicenow.routes]]`, in their order.
#[derive(Debug, Clone, Default)]
pub struct QueueRoutes {
    routes: Vec<QueueRoute>,
    /// The names of bots by bot id.
    bots: BTreeMap<String, String>,
}

impl RouteCondition {
    /// The path into XO's payload, if this condition has one.
    fn path(&self) -> Option<&str> {
        let known = matches!(self.name.as_str(), "bot" | "language" | "channel");
        (!known && self.name.contains('.') && self.metadata().is_none()).then_some(self.name.as_str())
    }

    fn metadata(&self) -> Option<&str> {
        self.name.strip_prefix("metadata.")
    }
}

impl QueueRoutes {
    /// Creates the routes. `bots`: the name of each bot, by bot id.
    pub const fn new(routes: Vec<QueueRoute>, bots: BTreeMap<String, String>) -> Self {
        Self { routes, bots }
    }

    /// The paths into XO's payload whose values the routes need.
    pub fn paths(&self) -> BTreeSet<String> {
        let conditions = self.routes.iter().flat_map(|route| &route.when);
        conditions.filter_map(RouteCondition::path).map(str::to_owned).collect()
    }

    /// The first route that matches.
    pub fn choose(&self, start: &HandoffStart) -> Option<&QueueRoute> {
        self.routes.iter().find(|route| route.when.iter().all(|condition| self.holds(condition, start)))
    }

    fn holds(&self, condition: &RouteCondition, start: &HandoffStart) -> bool {
        let wanted = condition.value.as_str();
        match condition.name.as_str() {
            "bot" => start.reply.as_ref().is_some_and(|reply| {
                reply.bot_id == wanted || self.bots.get(&reply.bot_id).is_some_and(|name| name == wanted)
            }),
            "language" => {
                let of_user = start.user.as_ref().and_then(|user| user.language.as_deref());
                let language = of_user.or_else(|| start.reply.as_ref()?.language.as_deref());
                language.is_some_and(|language| is_language(language, wanted))
            }
            "channel" => {
                let channel = start.reply.as_ref().and_then(|reply| reply.channel_type());
                channel.is_some_and(|channel| channel.eq_ignore_ascii_case(wanted))
            }
            name => {
                let found = match condition.path() {
                    Some(path) => start.metadata.get(&payload_name(path)),
                    None => start.metadata.get(condition.metadata().unwrap_or(name)),
                };
                found.is_some_and(|found| found.trim() == wanted)
            }
        }
    }
}

/// Whether a language matches: `fr` matches `fr-CA` and `fr_FR`.
fn is_language(language: &str, wanted: &str) -> bool {
    let (language, wanted) = (language.trim().to_ascii_lowercase(), wanted.to_ascii_lowercase());
    language.replace('_', "-") == wanted.replace('_', "-")
        || language.strip_prefix(&wanted).is_some_and(|rest| rest.starts_with(['-', '_']))
}

/// The metadata name for a path into XO's payload.
pub fn payload_name(path: &str) -> String {
    format!("{OF_PAYLOAD}{path}")
}

/// Whether a metadata name is only for the routes and must not be sent to ServiceNow.
pub fn is_payload_name(name: &str) -> bool {
    name.starts_with(OF_PAYLOAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::handoff::ChatUser;
    use crate::message::{ConversationId, ReplyHandle};

    fn start(language: Option<&str>, metadata: &[(&str, &str)]) -> HandoffStart {
        HandoffStart {
            conversation_id: ConversationId::parse("c").unwrap(),
            queue_id: None,
            message: "hi".into(),
            user: language
                .map(|language| ChatUser { language: Some(language.into()), ..ChatUser::default() }),
            transcript: Vec::new(),
            metadata: metadata.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            reply: Some(Box::new(ReplyHandle {
                bot_id: "st-1".into(),
                component_id: String::new(),
                request_id: String::new(),
                base_url: String::new(),
                send_user_message_url: String::new(),
                channel: serde_json::json!({"type": "rtm"}),
                context: serde_json::Value::Null,
                language: None,
            })),
        }
    }

    fn routes(all: &[(&[&str], &str)]) -> QueueRoutes {
        let condition = |text: &&str| {
            let (name, value) = text.split_once('=').unwrap();
            RouteCondition { name: name.into(), value: value.into() }
        };
        let route = |(when, queue): &(&[&str], &str)| QueueRoute {
            when: when.iter().map(condition).collect(),
            queue_id: Some((*queue).to_owned()),
            ..QueueRoute::default()
        };
        QueueRoutes::new(
            all.iter().map(route).collect(),
            BTreeMap::from([("st-1".into(), "helpdesk".into())]),
        )
    }

    #[test]
    fn the_first_that_fits_wins() {
        let routes = routes(&[
            (&["language=fr", "metadata.region=ca"], "q-ca"),
            (&["language=fr"], "q-fr"),
            (&["channel=RTM", "bot=helpdesk", "context.session.UserContext.customData.vip=true"], "q-vip"),
            (&["bot=st-1", "department=hr"], "q-hr"),
        ]);
        let queue = |start: &HandoffStart| routes.choose(start).and_then(|route| route.queue_id.clone());
        assert_eq!(queue(&start(Some("fr-CA"), &[("region", "ca")])).as_deref(), Some("q-ca"));
        assert_eq!(queue(&start(Some("FR_fr"), &[])).as_deref(), Some("q-fr"));
        assert_eq!(queue(&start(Some("frisian"), &[])), None, "a language is no prefix of letters");
        let vip = payload_name("context.session.UserContext.customData.vip");
        assert_eq!(queue(&start(None, &[(&vip, "true")])).as_deref(), Some("q-vip"));
        assert_eq!(queue(&start(None, &[("department", "hr")])).as_deref(), Some("q-hr"));
        assert_eq!(queue(&start(None, &[])), None);
        assert_eq!(
            routes.paths().into_iter().collect::<Vec<_>>(),
            ["context.session.UserContext.customData.vip"]
        );
    }
}
