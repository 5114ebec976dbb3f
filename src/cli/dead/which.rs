//! The filter flags of `causeway dead`, and the filter that they mean.
//!
//! Guarantees: an unclear flag is an error, never a wider filter. The directory is read only for `--conversation`, and
//! its file is not created.

use std::collections::BTreeSet;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;

use super::super::CliFailure;
use crate::app;
use crate::config::{DirectoryConfig, Settings};
use crate::dead_letters::filter::{self, IdOrEnd};
use crate::dead_letters::{self, DeadLetterError, DeadLetterFilter};
use crate::message::{DeadReason, Destination, MessageId};
use crate::queue::Queue;

/// Selects dead letters. Without any of these options, all dead letters match.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct FilterArgs {
    /// Their destination: servicenow, xo, events, callbacks or `bot:NAME`
    #[arg(long, value_parser = filter::destination)]
    destination: Option<Destination>,
    /// Their conversation, both directions: its id, or ServiceNow's group or number (CHAT0001234) of its chat
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// Their reason; repeatable
    #[arg(long, value_parser = reason(), value_delimiter = ',')]
    reason: Vec<DeadReason>,
    /// Died at this time or later: 2026-11-22, "2026-11-22 10:03" (UTC), RFC 3339, or how long ago: 90m, "2 hours ago"
    #[arg(long, value_name = "TIME", value_parser = filter::moment)]
    since: Option<Timestamp>,
    /// Died before this time, in the same format
    #[arg(long, value_name = "TIME", value_parser = filter::moment)]
    until: Option<Timestamp>,
    /// Exactly this message: its id, or the end of its id as `list` shows it; repeatable
    #[arg(long, value_name = "ID", value_parser = filter::id_or_end, value_delimiter = ',')]
    pub(super) id: Vec<IdOrEnd>,
}

/// clap lists the reasons in the help and in the completions, and suggests one for a misspelled one.
fn reason() -> impl TypedValueParser<Value = DeadReason> {
    let names = DeadReason::ALL.iter().map(|reason| reason.as_str());
    PossibleValuesParser::new(names).try_map(|text| filter::reason(&text))
}

impl FilterArgs {
    /// The filter, with all names of its conversation and with complete ids.
    pub(super) async fn filter(
        self,
        queue: &Queue,
        settings: &Settings,
    ) -> Result<DeadLetterFilter, CliFailure> {
        let Self { destination, conversation, reason, since, until, id } = self;
        let reasons = reason.into_iter().collect();
        let mut filter = DeadLetterFilter {
            destination,
            conversation,
            reasons,
            since,
            until,
            ..DeadLetterFilter::default()
        };
        filter.check().map_err(|reason| CliFailure::Usage(format!("--since and --until: {reason}")))?;
        if filter.conversation.is_some() {
            find_names(&mut filter, settings).await?;
        }
        filter.ids = complete(id, queue).await?;
        Ok(filter)
    }
}

/// The pure callback relay has no directory: there the name itself is all that is known.
async fn find_names(filter: &mut DeadLetterFilter, settings: &Settings) -> Result<(), CliFailure> {
    if let DirectoryConfig::Sqlite(path) = &settings.directory
        && !path.exists()
    {
        return Ok(());
    }
    let directory = app::open_directory(settings).await?;
    let found = filter.find_names(&directory).await;
    directory.close().await;
    Ok(found.map_err(DeadLetterError::from)?)
}

/// Completes shortened ids among all dead letters.
async fn complete(ids: Vec<IdOrEnd>, queue: &Queue) -> Result<BTreeSet<MessageId>, CliFailure> {
    let is_short = |id: &IdOrEnd| matches!(id, IdOrEnd::End(_));
    let known: BTreeSet<MessageId> = if ids.iter().any(is_short) {
        let entries = dead_letters::list(queue, &DeadLetterFilter::default()).await?;
        entries.into_iter().map(|entry| entry.key.id).collect()
    } else {
        BTreeSet::new()
    };
    let one = |id: IdOrEnd| match id {
        IdOrEnd::Id(id) => Ok(id),
        IdOrEnd::End(end) => completed(&end, &known).map_err(CliFailure::Usage),
    };
    ids.into_iter().map(one).collect()
}

fn completed(end: &str, known: &BTreeSet<MessageId>) -> Result<MessageId, String> {
    let mut ids = known.iter().filter(|id| id.to_string().ends_with(end));
    match (ids.next(), ids.next()) {
        (Some(id), None) => Ok(*id),
        (None, _) => Err(format!("--id: no dead letter has an id that ends with {end}")),
        (Some(one), Some(other)) => {
            Err(format!("--id: {end} is the end of several ids, such as {one} and {other}: give more of it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_id_means_one_message_or_is_an_error() {
        let ids = ["019ac5f2-0000-7000-8000-0000aabbccdd", "019ac5f2-0000-7000-8000-1111aabbccdd"];
        let known = ids.map(|id| MessageId::parse(id).unwrap()).into();
        assert_eq!(completed("1111aabbccdd", &known).unwrap().to_string(), ids[1]);
        assert!(completed("aabbccdd", &known).unwrap_err().contains("several ids"));
        assert!(completed("11223344", &known).unwrap_err().contains("no dead letter"));
    }
}
