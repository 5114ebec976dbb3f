//! Builds the admin console from the settings.
//!
//! Guarantees: a session uses none of the connections that deliver messages. A page that needs only the directory works
//! without the broker.
//! Not responsible for: the pages and their acts (`admin/console/`).

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::reload::ChangeHandlers;
use super::{open_admin, open_directory, place};
use crate::admin::{AdminConsole, ConsoleFacts, ConsoleOpeners};
use crate::config::Settings;
use crate::conversation::Directory;
use crate::dead_letters::DeadLetterError;
use crate::queue::{Queue, QueueError};

/// The admin console of the admin listener. Each session opens the same parts as `causeway dead`, so that dead letters have
/// one code path. `queue` is the queue of the process, which only counts for the console.
pub(super) fn build(
    settings: &Settings,
    queue: Queue,
    handlers: &mut ChangeHandlers,
) -> Option<AdminConsole> {
    let tokens = settings.admin_tokens.clone();
    if tokens.is_empty() {
        return None;
    }
    let facts = ConsoleFacts {
        place: place(settings),
        address: settings.admin_listen.to_string(),
        partitions: settings.queue.partitions,
        edit: settings.admin_edit,
        late: settings.delivery.deadline.message / 2,
    };
    let settings = Arc::new(settings.clone());
    let of_directory = Arc::clone(&settings);
    let open_queue = move || -> BoxFuture<'static, Result<Queue, DeadLetterError>> {
        let settings = settings.clone();
        Box::pin(async move {
            open_admin(&settings).await.map_err(|error| match error.downcast::<QueueError>() {
                Ok(error) => DeadLetterError::Queue(error),
                Err(error) => DeadLetterError::Queue(QueueError::Unavailable(format!("{error:#}"))),
            })
        })
    };
    let open_directory = move || -> BoxFuture<'static, Result<Directory, DeadLetterError>> {
        let settings = of_directory.clone();
        Box::pin(async move { directory_of_session(&settings).await })
    };
    let open = ConsoleOpeners { queue: Arc::new(open_queue), directory: Arc::new(open_directory) };
    let console = AdminConsole::new(tokens, facts, queue, open);
    let followed = console.clone();
    handlers.add(move |settings| followed.replace_tokens(settings.admin_tokens.clone()));
    Some(console)
}

async fn directory_of_session(settings: &Settings) -> Result<Directory, DeadLetterError> {
    open_directory(settings).await.map_err(|error| DeadLetterError::Directory(format!("{error:#}")))
}
