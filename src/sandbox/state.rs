//! The state that the simulators share: the chats of the instance, the fault script, the ledger, the callback sender,
//! and the background tasks. One lock covers both writing a `live_message` row and queueing its callback. Callbacks of
//! one chat therefore leave in the order of its rows.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::botkit::BotKitState;
use super::fault_rules::FaultScript;
use super::ledger::RequestLedger;
use super::servicenow::callback_sender::CallbackSender;
use super::servicenow::files::StoredFiles;
use super::servicenow::oauth::IssuedTokens;
use super::servicenow::session::SandboxSessions;
use super::servicenow::tables::RecordTables;
use super::servicenow::workspace::{AgentWorkspace, MessageRow, RefusedAction};
use super::settings::{AgentAcceptance, SandboxSettings};

pub(super) struct SandboxState {
    pub(super) settings: SandboxSettings,
    pub(super) script: FaultScript,
    pub(super) ledger: RequestLedger,
    pub(super) sessions: SandboxSessions,
    pub(super) tokens: IssuedTokens,
    pub(super) tables: RecordTables,
    pub(super) files: StoredFiles,
    pub(super) callback_sender: CallbackSender,
    pub(super) botkit: BotKitState,
    /// The address at which the sandbox listens.
    pub(super) url: String,
    pub(super) task_group: TaskGroup,
    workspace: Mutex<AgentWorkspace>,
    lines: Mutex<HashMap<String, VecDeque<QueuedCallback>>>,
}

impl fmt::Debug for SandboxState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SandboxState").finish_non_exhaustive()
    }
}

/// A row whose callback is queued.
#[derive(Debug)]
struct QueuedCallback {
    row: MessageRow,
    done: watch::Sender<bool>,
}

/// Resolves when the Business Rule of a row has run. ServiceNow's transaction does not end earlier.
#[derive(Debug, Clone)]
pub(super) struct DeliveryReceipt(Option<watch::Receiver<bool>>);

impl DeliveryReceipt {
    pub(super) async fn settled(self) {
        if let Some(mut done) = self.0 {
            // An error means that the tasks were stopped: no callback will be posted any more.
            let _ = done.wait_for(|done| *done).await;
        }
    }
}

impl SandboxState {
    pub(super) fn new(settings: SandboxSettings, url: &str) -> Self {
        Self {
            script: FaultScript::default(),
            ledger: RequestLedger::new(settings.keep),
            sessions: SandboxSessions::new(settings.session_queue),
            tokens: IssuedTokens::new(settings.oauth.clone()),
            tables: RecordTables::default(),
            files: StoredFiles::default(),
            callback_sender: CallbackSender::new(settings.callback.clone()),
            botkit: BotKitState::new(settings.botkit, settings.botkit_url.clone(), settings.keep),
            url: url.to_owned(),
            task_group: TaskGroup::default(),
            workspace: Mutex::new(AgentWorkspace::new(&settings)),
            lines: Mutex::default(),
            settings,
        }
    }

    /// The chats of the instance, for reading or for changes that write no row.
    pub(super) fn workspace(&self) -> MutexGuard<'_, AgentWorkspace> {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Performs an action that writes a row, and queues the row's callbacks.
    pub(super) fn write(
        self: &Arc<Self>,
        action: impl FnOnce(&mut AgentWorkspace) -> Result<MessageRow, RefusedAction>,
    ) -> Result<(MessageRow, DeliveryReceipt), RefusedAction> {
        let mut workspace = self.workspace();
        let mut row = action(&mut workspace)?;
        if workspace.virtual_agent(&row.group).is_some() {
            let callbacks = super::servicenow::virtual_agent::callbacks_of(&mut workspace, &mut row);
            let mut posted = DeliveryReceipt(None);
            for callback in callbacks {
                posted = self.line_up(callback);
            }
            return Ok((row, posted));
        }
        let filtered = row.created_by == self.settings.username && !workspace.switches.echo;
        let twice = workspace.switches.connect.twice;
        let receipt = if filtered { DeliveryReceipt(None) } else { self.line_up(row.clone()) };
        if twice && !filtered {
            self.line_up(row.clone());
        }
        Ok((row, receipt))
    }

    /// Queues the callback of a row behind the other callbacks of its chat.
    pub(super) fn line_up(self: &Arc<Self>, row: MessageRow) -> DeliveryReceipt {
        let (done, receipt) = watch::channel(false);
        let group = row.group.clone();
        let mut lines = self.lines();
        if let Some(line) = lines.get_mut(&group) {
            line.push_back(QueuedCallback { row, done });
        } else {
            lines.insert(group.clone(), VecDeque::from([QueuedCallback { row, done }]));
            let world = self.clone();
            self.task_group.start(async move { world.post_line(&group).await });
        }
        DeliveryReceipt(Some(receipt))
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
            let substitutes = self.workspace().switches.connect.substitutes_variables;
            self.callback_sender.post(&self.script, &self.ledger, &posting.row, substitutes).await;
            posting.done.send_replace(true);
        }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<String, VecDeque<QueuedCallback>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chat was opened. The agent accepts it after the configured delay.
    pub(super) fn agent_notices(self: &Arc<Self>, group: &str) {
        let AgentAcceptance::After(delay) = self.settings.agent.accept else { return };
        let (world, group) = (self.clone(), group.to_owned());
        self.task_group.start(async move {
            tokio::time::sleep(delay).await;
            // The action is refused if the user has left or a test has accepted the chat. Both are fine.
            let _ = world.write(|workspace| workspace.agent_accepts(&group));
        });
    }

    /// The user wrote. The agent may answer, and may close the chat.
    pub(super) fn agent_hears(self: &Arc<Self>, group: &str, text: &str) {
        let agent = &self.settings.agent;
        let said = self.workspace().chat(group).map_or(0, |chat| chat.user_messages);
        let closes = agent.closes_after.is_some_and(|limit| said >= limit);
        if !agent.replies && !closes {
            return;
        }
        let (world, group, answer) = (self.clone(), group.to_owned(), format!("About \"{text}\": I see."));
        self.task_group.start(async move {
            let agent = &world.settings.agent;
            tokio::time::sleep(agent.reply_after).await;
            if agent.replies {
                let _ = world.write(|workspace| workspace.agent_says(&group, &answer));
            }
            if closes {
                let _ = world.write(|workspace| workspace.agent_closes(&group));
            }
        });
    }
}

/// The sandbox's background tasks. All tasks of the sandbox start here, and all end when the sandbox stops.
#[derive(Debug, Default)]
pub(super) struct TaskGroup {
    tasks: Mutex<JoinSet<()>>,
}

impl TaskGroup {
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
