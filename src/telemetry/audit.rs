//! Writes one log line for each act of an operator that shows, changes or removes messages.
//!
//! Guarantees: the line names the operator, the address or terminal, the filter, the number of messages and the outcome.
//! It contains no text of a chat and no secret. `log.level` does not switch the line off, unless it names the target
//! `causeway::audit`.
//! Not responsible for: authentication (`ingress/console/session.rs`), the acts themselves (`dead/`).

use std::fmt::Display;
use std::net::IpAddr;

use crate::message::named;

pub(super) const TARGET: &str = "causeway::audit";

named! {
    /// An act of an operator.
    Act {
        /// Dead letters are published again. One line when the replay starts, and one when it ends.
        Replay = "replay",
        /// A running replay is stopped.
        Stop = "stop",
        /// The message of a dead letter is edited and sent as a new message. One line when it is sent, and one when it ends.
        Edit = "edit",
        /// Dead letters are removed for good.
        Discard = "discard",
        /// Dead letters are written to a file or to a client, with their texts.
        Export = "export",
        /// Dead letters are read from a file.
        Import = "import",
        /// The texts of dead letters are shown.
        Reveal = "reveal",
        /// A conversation is removed everywhere.
        Erase = "erase",
    }
}

/// The person who acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The name of the token, or the user of the operating system.
    pub name: String,
    /// The remote address, or the terminal.
    pub from: String,
}

impl Operator {
    /// An operator of the admin console or of its API, who has the token of this name.
    pub fn with_token(name: &str, from: Option<IpAddr>) -> Self {
        let from = from.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        Self { name: name.to_owned(), from }
    }
}

/// How an act ended.
#[derive(Debug, Clone, Copy)]
pub enum Ending<'a> {
    /// The act begins. Another line follows.
    Started,
    /// All was done. The text adds counts.
    Done(Option<&'a str>),
    /// The operator stopped the act.
    Interrupted,
    /// An error ended the act. Some of the messages may be affected.
    Failed(&'a str),
}

/// Writes the line. `messages`: how many messages the act concerned.
pub fn audit(act: Act, operator: &Operator, filter: impl Display, messages: u64, ending: Ending<'_>) {
    let (outcome, detail) = match ending {
        Ending::Started => ("started", None),
        Ending::Done(detail) => ("done", detail),
        Ending::Interrupted => ("interrupted", None),
        Ending::Failed(detail) => ("failed", Some(detail)),
    };
    tracing::info!(
        target: TARGET,
        act = act.as_str(),
        who = operator.name,
        from = operator.from,
        %filter,
        messages,
        outcome,
        detail,
        "operator"
    );
}
