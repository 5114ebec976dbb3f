//! The state that the simulators share: the desk, the script, the ledger, the callback sender, and the background
//! tasks. One lock covers both writing a `live_message` row and queueing its callback. Callbacks of one chat
//! therefore leave in the order of its rows.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::botkit::BotKitState;
use super::ledger::Ledger;
use super::script::Script;
use super::servicenow::callbacks::Courier;
use super::servicenow::desk::{Desk, Refusal, Row};
use super::servicenow::files::Files;
use super::servicenow::oauth::Tokens;
use super::servicenow::session::Sessions;
use super::servicenow::tables::Tables;
use super::settings::{Accept, SandboxSettings};

pub(super) struct World {
    pub(super) settings: SandboxSettings,
    pub(super) script: Script,
    pub(super) ledger: Ledger,
    pub(super) sessions: Sessions,
    pub(super) tokens: Tokens,
    pub(super) tables: Tables,
    pub(super) files: Files,
    pub(super) courier: Courier,
    pub(super) botkit: BotKitState,
    /// The address at which the sandbox listens.
    pub(super) url: String,
    pub(super) crew: Crew,
    desk: Mutex<Desk>,
    lines: Mutex<HashMap<String, VecDeque<Posting>>>,
}

impl fmt::Debug for World {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("World").finish_non_exhaustive()
    }
}

/// A row whose callback is queued.
#[derive(Debug)]
struct Posting {
    row: Row,
    done: watch::Sender<bool>,
}

/// Resolves when the Business Rule of a row has run. ServiceNow's transaction does not end earlier.
#[derive(Debug, Clone)]
pub(super) struct Receipt(Option<watch::Receiver<bool>>);

impl Receipt {
    pub(super) async fn settled(self) {
        if let Some(mut done) = self.0 {
            // An error means that the tasks were stopped: no callback will be posted any more.
            let _ = done.wait_for(|done| *done).await;
        }
    }
}

impl World {
    pub(super) fn new(settings: SandboxSettings, url: &str) -> Self {
        Self {
            script: Script::default(),
            ledger: Ledger::new(settings.keep),
            sessions: Sessions::new(settings.session_queue),
            tokens: Tokens::new(settings.oauth.clone()),
            tables: Tables::default(),
            files: Files::default(),
            courier: Courier::new(settings.callback.clone()),
            botkit: BotKitState::new(settings.botkit, settings.botkit_url.clone(), settings.keep),
            url: url.to_owned(),
            crew: Crew::default(),
            desk: Mutex::new(Desk::new(&settings)),
            lines: Mutex::default(),
            settings,
        }
    }

    /// The desk, for reading or for changes that write no row.
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Performs an action that writes a row, and queues the row's callbacks.
    pub(super) fn write(
        self: &Arc<Self>,
        deed: impl FnOnce(&mut Desk) -> Result<Row, Refusal>,
    ) -> Result<(Row, Receipt), Refusal> {
        let mut desk = self.desk();
        let mut row = deed(&mut desk)?;
        if desk.virtual_agent(&row.group).is_some() {
            let callbacks = super::servicenow::virtual_agent::callbacks_of(&mut desk, &mut row);
            let mut posted = Receipt(None);
            for callback in callbacks {
                posted = self.line_up(callback);
            }
            return Ok((row, posted));
        }
        let filtered = row.created_by == self.settings.username && !desk.switches.echo;
        let twice = desk.switches.connect.twice;
        let receipt = if filtered { Receipt(None) } else { self.line_up(row.clone()) };
        if twice && !filtered {
            self.line_up(row.clone());
        }
        Ok((row, receipt))
    }

    /// Queues the callback of a row behind the other callbacks of its chat.
    pub(super) fn line_up(self: &Arc<Self>, row: Row) -> Receipt {
        let (done, receipt) = watch::channel(false);
        let group = row.group.clone();
        let mut lines = self.lines();
        if let Some(line) = lines.get_mut(&group) {
            line.push_back(Posting { row, done });
        } else {
            lines.insert(group.clone(), VecDeque::from([Posting { row, done }]));
            let world = self.clone();
            self.crew.start(async move { world.post_line(&group).await });
        }
        Receipt(Some(receipt))
    }

    async fn post_line(&self, group: &str) {
        loop {
            let next = {
                let mut lines = self.lines();
                let next = lines.get_mut(group).and_then(VecDeque::pop_front);
                if next.is_none() {
                    lines.remove(group);
                }
                next
            };
            let Some(posting) = next else { return };
            let substitutes = self.desk().switches.connect.substitutes_variables;
            self.courier.post(&self.script, &self.ledger, &posting.row, substitutes).await;
            posting.done.send_replace(true);
        }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Posting>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chat was opened. The agent accepts it after the configured delay.
    pub(super) fn agent_notices(self: &Arc<Self>, group: &str) {
        let Accept::After(delay) = self.settings.agent.accept else { return };
        let (world, group) = (self.clone(), group.to_owned());
        self.crew.start(async move {
            tokio::time::sleep(delay).await;
            // The action is refused if the user has left or a test has accepted the chat. Both are fine.
            let _ = world.write(|desk| desk.agent_accepts(&group));
        });
    }

    /// The user wrote. The agent may answer, and may close the chat.
    pub(super) fn agent_hears(self: &Arc<Self>, group: &str, text: &str) {
        let agent = &self.settings.agent;
        let said = self.desk().chat(group).map_or(0, |chat| chat.user_messages);
        let closes = agent.closes_after.is_some_and(|limit| said >= limit);
        if !agent.replies && !closes {
            return;
        }
        let (world, group, answer) = (self.clone(), group.to_owned(), format!("About \"{text}\": I see."));
        self.crew.start(async move {
            let agent = &world.settings.agent;
            tokio::time::sleep(agent.reply_after).await;
            if agent.replies {
                let _ = world.write(|desk| desk.agent_says(&group, &answer));
            }
            if closes {
                let _ = world.write(|desk| desk.agent_closes(&group));
            }
        });
    }
}

/// The sandbox's background tasks. All tasks of the sandbox start here, and all end when the sandbox stops.
#[derive(Debug, Default)]
pub(super) struct Crew {
    tasks: Mutex<JoinSet<()>>,
}

impl Crew {
    pub(super) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    pub(super) fn send_home(&self) {
        self.tasks().abort_all();
    }

    pub(super) async fn leave(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
