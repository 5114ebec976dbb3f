//! The sandbox: a simulated ServiceNow instance and a simulated XO, over real HTTP.
//!
//! With the sandbox, Causeway can be shown and tested without either platform. The sandbox follows the platforms'
//! documents and the code of their own clients. It refuses the requests that they refuse, and fails on demand
//! ([`FaultScript`]). The [`RequestLedger`] records all requests and their order. The sandbox shares no type with Causeway's
//! clients, because shared types would hide misunderstandings of the platforms.
//!
//! One listener serves everything: ServiceNow at the root (`/api/…`), XO under `/xo` (its BotKit API under
//! `/xo/api`), the sandbox's own controls under `/sandbox` (`GET /sandbox` explains them).

pub mod botkit;
mod control;
mod fault_gate;
mod fault_rules;
mod http;
mod ledger;
mod server;
mod servicenow;
mod settings;
mod state;
pub mod traffic;
mod xo;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

pub use botkit::{BotKitSwitches, WantsContext};
pub use fault_rules::{ActiveRule, FaultRule, FaultScript, InjectedFault, Operation, RetryAfter, Side};
pub use ledger::{CallCount, LedgerEntry, LedgerMoment, RequestLedger};
pub use settings::{
    AgentAcceptance, AgentSettings, BasicLogin, BodyStyle, BotSettings, CallbackCredential, CallbackSettings,
    ChatTableAccess, ConnectSwitches, LastMessage, MessageProof, OAuthClient, OAuthSwitches, RowSwitches,
    SandboxQueue, SandboxSettings, SandboxSwitches, TableAccess, VirtualAgentSwitches,
};

pub use servicenow::conversation_messages::{ConversationRowSwitches, RowPayload};
pub use servicenow::files::UploadedFile;
use servicenow::workspace::{AgentWorkspace, MessageRow, RefusedAction};
use state::SandboxState;

/// The reason why the simulated agent could not perform an action.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no chat with this group.
    #[error("there is no chat with this group")]
    NoSuchChat,
    /// The state of the chat does not allow the action.
    #[error("{0}")]
    NotNow(String),
}

impl From<RefusedAction> for AgentError {
    fn from(refusal: RefusedAction) -> Self {
        match refusal {
            RefusedAction::NotFound => Self::NoSuchChat,
            RefusedAction::NotAllowed(words) | RefusedAction::QueueClosed { words, .. } => {
                Self::NotNow(words)
            }
        }
    }
}

/// A message in a simulated chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// The row's `sys_id`.
    pub sys_id: String,
    /// The author: a user name, or `system`.
    pub created_by: String,
    /// The text of the message.
    pub text: String,
}

/// A running sandbox. Dropping it stops it at once; [`Sandbox::stop`] also waits until it has stopped.
#[derive(Debug)]
pub struct Sandbox {
    world: Arc<SandboxState>,
    url: String,
}

impl Sandbox {
    /// Serves on this listener until it is stopped.
    pub async fn start(listener: TcpListener, settings: SandboxSettings) -> Self {
        let url = listener.local_addr().map_or_else(
            |_| String::new(),
            |address| match address.ip() {
                ip if ip.is_unspecified() => format!("http://{}:{}", Ipv4Addr::LOCALHOST, address.port()),
                IpAddr::V4(_) | IpAddr::V6(_) => format!("http://{address}"),
            },
        );
        let world = Arc::new(SandboxState::new(settings, &url));
        let router = Router::new()
            .merge(xo::router(&world))
            .merge(botkit::router(&world))
            .merge(control::router())
            .merge(botkit::control_router())
            .fallback_service(servicenow::router(&world).with_state(world.clone()))
            .with_state(world.clone());
        let served = world.clone();
        world.task_group.start(async move { server::serve(listener, router, served).await });
        Self { world, url }
    }

    /// The address at which the sandbox listens: `http://127.0.0.1:<port>`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The Host URL of the instance.
    pub fn servicenow_url(&self) -> &str {
        &self.url
    }

    /// XO's Callback URL.
    pub fn xo_callback_url(&self) -> String {
        format!("{}/xo/callback", self.url)
    }

    /// A URL that accepts events of API conversations.
    pub fn events_url(&self) -> String {
        format!("{}/xo/events", self.url)
    }

    /// A user of the first bot, on XO's web channel. XO posts the user's events to the BotKit server at `door`.
    pub fn bot_user(&self, door: &str, user: &str) -> botkit::BotUser {
        botkit::BotUser::new(&self.world, &self.url, door, user)
    }

    /// Sets the behaviour of the BotKit API.
    pub fn set_botkit(&self, switches: BotKitSwitches) {
        self.world.botkit.set(switches);
    }

    /// The rules for faults.
    pub fn script(&self) -> &FaultScript {
        &self.world.script
    }

    /// The record of all requests.
    pub fn ledger(&self) -> &RequestLedger {
        &self.world.ledger
    }

    /// Sets the URL to which the instance posts its callbacks.
    pub fn set_callback(&self, callback: Option<CallbackSettings>) {
        self.world.callback_sender.redirect(callback);
    }

    /// Sets the options that the instance's administrator can change.
    pub fn set_switches(&self, switches: SandboxSwitches) {
        self.world.workspace().switches = switches;
    }

    /// Invalidates every access token, as a restart of the instance may do.
    pub fn revoke_tokens(&self) {
        self.world.tokens.revoke();
    }

    /// The records of a table that were written over the Table API (or with [`Self::plant`]), oldest first.
    pub fn records(&self, table: &str) -> Vec<BTreeMap<String, String>> {
        self.world.tables.all(table)
    }

    /// Adds a record to a table, as an administrator would. Returns its `sys_id`.
    pub fn plant(&self, table: &str, fields: &[(&str, &str)]) -> String {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.world.tables.insert(table, "admin", fields.collect())["sys_id"].clone()
    }

    /// Opens or closes a queue. Returns false if there is no queue with this id.
    pub fn set_queue_open(&self, queue: &str, open: bool) -> bool {
        let mut workspace = self.world.workspace();
        let found = workspace.queues.get_mut(queue);
        found.map(|queue| queue.open = open).is_some()
    }

    /// The groups of all chats in any state.
    pub fn groups(&self) -> Vec<String> {
        self.world.workspace().chats().map(|chat| chat.group.clone()).collect()
    }

    /// `chat_queue_entry.state` of a chat: 1, 2, 3, 4, 7 or 8.
    pub fn state(&self, group: &str) -> Option<u8> {
        self.world.workspace().chat(group).ok().map(|chat| chat.state().number())
    }

    /// The messages of a chat, oldest first.
    pub fn messages(&self, group: &str) -> Vec<ChatMessage> {
        let shown = |row: &MessageRow| ChatMessage {
            sys_id: row.sys_id.clone(),
            created_by: row.created_by.clone(),
            text: row.text.clone(),
        };
        self.world
            .workspace()
            .chat(group)
            .map_or_else(|_| Vec::new(), |chat| chat.rows.iter().map(shown).collect())
    }

    /// The agent accepts the chat. Like each action here, the call returns when the callback was answered or given
    /// up.
    pub async fn agent_accept(&self, group: &str) -> Result<(), AgentError> {
        self.action(|workspace| workspace.agent_accepts(group)).await
    }

    /// The agent writes a message.
    pub async fn agent_says(&self, group: &str, text: &str) -> Result<(), AgentError> {
        self.action(|workspace| workspace.agent_says(group, text)).await
    }

    /// The agent sends a file.
    pub async fn agent_sends_file(
        &self,
        group: &str,
        name: &str,
        content_type: &str,
        bytes: &[u8],
    ) -> Result<(), AgentError> {
        let id = self.keep_file(group, name, content_type, bytes);
        self.action(|workspace| workspace.agent_sends(group, name, &id)).await
    }

    /// Stores a file in the instance. Returns its `sys_id`.
    pub fn keep_file(&self, group: &str, name: &str, content_type: &str, bytes: &[u8]) -> String {
        let (name, content_type, group) = (name.to_owned(), content_type.to_owned(), group.to_owned());
        self.world.files.keep(UploadedFile { name, content_type, group, bytes: bytes.to_vec() })
    }

    /// Every file in the instance.
    pub fn files(&self) -> Vec<UploadedFile> {
        self.world.files.list()
    }

    /// The agent writes a row for other agents. Users cannot read it.
    pub async fn agent_whispers(&self, group: &str, text: &str) -> Result<(), AgentError> {
        self.action(|workspace| workspace.agent_whispers(group, text)).await
    }

    /// An agent writes in a clone of the instance, which has the same chat. The Business Rule of the clone posts to our
    /// endpoint, and this instance has no such row. Returns the row's `sys_id`.
    pub async fn clone_says(&self, group: &str, text: &str) -> Result<String, AgentError> {
        let row = servicenow::callback_sender::row_of_a_clone(&self.world.workspace(), group, text)?;
        let sys_id = row.sys_id.clone();
        self.world.line_up(row).settled().await;
        Ok(sys_id)
    }

    /// The agent ends the chat.
    pub async fn agent_closes(&self, group: &str) -> Result<(), AgentError> {
        self.action(|workspace| workspace.agent_closes(group)).await
    }

    /// The agent leaves without ending the chat.
    pub async fn agent_leaves(&self, group: &str) -> Result<(), AgentError> {
        self.action(|workspace| workspace.agent_leaves(group)).await
    }

    /// The agent types. Only chats of the Virtual Agent API show that.
    pub async fn agent_types(&self, group: &str) -> Result<(), AgentError> {
        let item = servicenow::virtual_agent::typing(self.world.workspace().switches.virtual_agent);
        self.virtual_agent_posts(group, vec![item]).await
    }

    /// The Virtual Agent posts these items of `body` unchanged for a chat of its API.
    pub async fn virtual_agent_posts(
        &self,
        group: &str,
        items: Vec<serde_json::Value>,
    ) -> Result<(), AgentError> {
        servicenow::virtual_agent::post(&self.world, group, items)?.settled().await;
        Ok(())
    }

    /// Moves the chat to the queue that its own queue escalates to. Without such a queue the chat ends.
    pub fn agent_escalates(&self, group: &str) -> Result<(), AgentError> {
        Ok(self.world.workspace().escalates(group, None)?)
    }

    async fn action(
        &self,
        action: impl FnOnce(&mut AgentWorkspace) -> Result<MessageRow, RefusedAction>,
    ) -> Result<(), AgentError> {
        let (_, receipt) = self.world.write(action)?;
        receipt.settled().await;
        Ok(())
    }

    /// Stops the sandbox, closes its connections and frees the port.
    pub async fn stop(self) {
        self.world.task_group.leave().await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.world.task_group.send_home();
    }
}
