//! Builds the admin console from the settings.
//!
//! Guarantees: a session uses none of the connections that deliver messages. A page that needs only the directory works
//! without the broker.
//! Not responsible for: the pages and their acts (`admin/console/`).

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::reload::ChangeHandlers;
use super::{open_admin, open_directory, place};
use crate::admin::{AdminConsole, ConsoleOpeners, ConsoleParts};
use crate::config::Settings;
use crate::conversation::Directory;
use crate::dead_letters::DeadLetterError;
use crate::queue::QueueError;

/// The admin console of the admin listener. Each session opens the same parts as `causeway dead`, so that dead letters have
/// one code path, and a session uses none of the connections that deliver.
pub(super) fn build(settings: &Settings, handlers: &mut ChangeHandlers) -> Option<AdminConsole> {
    let token = settings.admin_token.clone()?;
    let (place, settings) = (place(settings), Arc::new(settings.clone()));
    let of_directory = Arc::clone(&settings);
    let open_parts = move || -> BoxFuture<'static, Result<ConsoleParts, DeadLetterError>> {
        let settings = settings.clone();
        Box::pin(async move {
            let queue =
                open_admin(&settings).await.map_err(|error| match error.downcast::<QueueError>() {
                    Ok(error) => DeadLetterError::Queue(error),
                    Err(error) => DeadLetterError::Queue(QueueError::Unavailable(format!("{error:#}"))),
                })?;
            match directory_of_session(&settings).await {
                Ok(directory) => Ok(ConsoleParts { queue, directory }),
                Err(error) => {
                    queue.close().await;
                    Err(error)
                }
            }
        })
    };
    let open_directory = move || -> BoxFuture<'static, Result<Directory, DeadLetterError>> {
        let settings = of_directory.clone();
        Box::pin(async move { directory_of_session(&settings).await })
    };
    let open = ConsoleOpeners { parts: Arc::new(open_parts), directory: Arc::new(open_directory) };
    let console = AdminConsole::new(token, &place, open);
    let followed = console.clone();
    handlers.add(move |settings| {
        if let Some(token) = &settings.admin_token {
            followed.replace_token(token.clone());
        }
    });
    Some(console)
}

async fn directory_of_session(settings: &Settings) -> Result<Directory, DeadLetterError> {
    open_directory(settings).await.map_err(|error| DeadLetterError::Directory(format!("{error:#}")))
}
