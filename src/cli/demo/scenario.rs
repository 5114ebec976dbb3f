//! The scenario: the actions of two users, an agent and the sandbox's faults, act by act. Each act waits for its
//! effects.
//!
//! Guarantees: every wait is for an observation on the other side (ledger, metrics, dead-letter queue) and has a time
//! limit.
//! Not responsible for: printing arrivals (`observer.rs`), the summary (`summary.rs`).

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::environment::{DemoClient, until};
use super::metrics_scrape::{BreakerReading, DemoSide};
use super::observer::DemoObserver;
use super::summary::{done, is_system, notice};
use super::timeline::{DemoTimeline, LineTone};
use crate::app;
use crate::cli::output;
use crate::dead_letters::replay::{self, ReplayAction};
use crate::dead_letters::{self, DeadLetterFilter};
use crate::queue::Queue;
use crate::sandbox::botkit::{BotUser, HeardMessage};
use crate::sandbox::{FaultRule, LedgerEntry, Operation, Side};
use crate::tasks::CancellationToken;

/// A user who asks for a human.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DemoPerson {
    pub(super) name: &'static str,
    /// The conversation id of the handoff API, or XO's id of the user.
    pub(super) conversation: &'static str,
    pub(super) way: DemoPath,
    opening: &'static str,
}

/// The interface over which a user reaches Causeway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DemoPath {
    /// XO's bot, which hands the user over.
    Bot,
    /// The handoff API.
    Api,
}

const ADA: &DemoPerson =
    &DemoPerson { name: "Ada", conversation: "u-ada", way: DemoPath::Bot, opening: "My laptop is on fire" };
const GRACE: &DemoPerson = &DemoPerson {
    name: "Grace",
    conversation: "demo-grace",
    way: DemoPath::Api,
    opening: "There is a moth in my relay",
};
const JOINED: &str = "An agent has joined";

impl DemoPerson {
    pub(super) const ALL: &'static [&'static Self] = &[ADA, GRACE];

    /// Whether this start belongs to the user.
    pub(super) fn opened(&self, start: &LedgerEntry) -> bool {
        start.text.as_deref().is_some_and(|text| text.contains(self.opening))
    }
}

/// A request that Causeway answered with 202.
#[derive(Debug)]
pub(super) struct DemoPost {
    pub(super) person: &'static DemoPerson,
    pub(super) operation: Operation,
    pub(super) text: String,
    /// When the request was posted or replayed.
    pub(super) at: Timestamp,
    pub(super) replayed: bool,
}

#[derive(Debug)]
pub(super) struct DemoScenario<'a> {
    front: &'a DemoClient,
    timeline: &'a DemoTimeline,
    observer: &'a DemoObserver<'a>,
    speed: f64,
    posts: Vec<DemoPost>,
    owed: Vec<(&'static DemoPerson, String)>,
}

impl<'a> DemoScenario<'a> {
    pub(super) fn new(
        front: &'a DemoClient,
        timeline: &'a DemoTimeline,
        observer: &'a DemoObserver<'a>,
        speed: f64,
    ) -> Self {
        Self { front, timeline, observer, speed, posts: Vec::new(), owed: Vec::new() }
    }

    /// All requests that Causeway accepted from the bot side, in order.
    pub(super) fn posts(&self) -> &[DemoPost] {
        &self.posts
    }

    /// The notices that must have reached the bot side.
    pub(super) fn owed(&self) -> &[(&'static DemoPerson, String)] {
        &self.owed
    }

    pub(super) async fn perform(&mut self) -> anyhow::Result<()> {
        self.talk_to_the_bot().await?;
        self.ask_for_a_human().await?;
        self.agent_joins().await?;
        self.talk().await?;
        self.outage().await?;
        let refused = self.refusal().await?;
        self.replay(refused).await?;
        self.end().await
    }

    async fn talk_to_the_bot(&mut self) -> anyhow::Result<()> {
        self.heading("1  Ada writes to XO's bot")?;
        self.write_to_bot("Hello", "What is it about?").await?;
        self.pause(1.5).await;
        Ok(())
    }

    async fn ask_for_a_human(&mut self) -> anyhow::Result<()> {
        self.heading("2  Two users need a human: one asks, one is handed over by the bot")?;
        self.start(GRACE).await?;
        self.noticed(GRACE, "waiting 1").await?;
        self.pause(0.8).await;
        let post = DemoPost {
            person: ADA,
            operation: Operation::Start,
            text: ADA.opening.to_owned(),
            at: crate::clock::now(),
            replayed: false,
        };
        self.posts.push(post);
        self.write_to_bot(ADA.opening, "That is one for an agent.").await?;
        self.reads(ADA, "Please wait").await?;
        self.pause(1.5).await;
        Ok(())
    }

    async fn agent_joins(&mut self) -> anyhow::Result<()> {
        self.heading("3  The queue moves, the agent joins")?;
        for person in [GRACE, ADA] {
            self.tell("Beth", LineTone::Act, &format!("takes {}'s chat", person.name))?;
            self.front.sandbox.agent_accept(&self.group(person)?).await?;
            match person.way {
                DemoPath::Api => self.noticed(person, "joined").await?,
                DemoPath::Bot => self.reads(person, JOINED).await?,
            }
            self.pause(1.0).await;
        }
        self.settled().await
    }

    async fn talk(&mut self) -> anyhow::Result<()> {
        self.heading("4  Messages both ways; the bot side stumbles twice, and no user notices")?;
        self.beth(ADA, "How big is the fire?").await?;
        self.pause(1.0).await;
        self.write(ADA, "About one keyboard wide").await?;
        self.pause(0.8).await;
        self.front
            .sandbox
            .script()
            .fail(FaultRule::new(Side::BotKit).operation(Operation::Tell).times(2).status(503));
        self.beth(ADA, "Please pour it out of the window").await?;
        self.beth(ADA, "The laptop, not the coffee").await?;
        self.write(GRACE, "It is quite dead, I taped it into my logbook").await?;
        self.settled().await?;
        self.pause(1.0).await;
        Ok(())
    }

    async fn outage(&mut self) -> anyhow::Result<()> {
        self.heading("5  ServiceNow goes down")?;
        let script = self.front.sandbox.script();
        let rule = script.fail(FaultRule::new(Side::ServiceNow).html_page());
        self.write(ADA, "It is out of the window").await?;
        self.breaker("trips", |breaker| breaker != BreakerReading::Passing).await?;
        let before_the_probe = self.pages();
        for text in ["It is still burning", "There is a cat down there"] {
            self.pause(0.6).await;
            self.write(ADA, text).await?;
        }
        self.write(GRACE, "Should I keep the moth?").await?;
        // The other direction is neither down nor delayed.
        self.beth(ADA, "I am still here, only my desk is asleep").await?;
        self.all_taken_by_xo().await?;
        until("ServiceNow's queue holds four messages", async || {
            Ok(self.front.scrape().await?.waiting(DemoSide::ServiceNow) == 4)
        })
        .await?;
        self.tell("Causeway", LineTone::Act, "4 messages wait on disk, in order")?;
        until("a probe meets the outage", async || Ok(self.pages() > before_the_probe)).await?;

        self.heading("6  ServiceNow comes back")?;
        script.remove(rule);
        self.tell("ServiceNow", LineTone::Act, "wakes up; nobody tells Causeway")?;
        self.breaker("passes again", |breaker| breaker == BreakerReading::Passing).await?;
        self.settled().await?;
        self.pause(1.5).await;
        Ok(())
    }

    /// Returns the rejected text.
    async fn refusal(&mut self) -> anyhow::Result<&'static str> {
        self.heading("7  ServiceNow refuses one message for good; no other message waits for it")?;
        let refused = "The cat says <script>";
        let rule = FaultRule::new(Side::ServiceNow).operation(Operation::Message).conversation(refused);
        self.front.sandbox.script().fail(rule.status(400));
        self.write(ADA, refused).await?;
        let (moth, cat) = ("The moth is fine in the logbook", "The cat is fine, too");
        self.write(GRACE, moth).await?;
        self.write(ADA, cat).await?;
        let queue = app::open_admin(&self.front.settings).await?;
        let buried = until("the refused message is a dead letter", async || {
            Ok(!dead_letters::list(&queue, &DeadLetterFilter::default()).await?.is_empty())
        })
        .await;
        let told = match buried {
            Ok(()) => self.tell_dead(&queue).await,
            Err(error) => Err(error),
        };
        queue.close().await;
        told?;
        self.taken_but(Some(refused)).await?;
        let (grace, ada) = (self.took(moth)?.as_millis(), self.took(cat)?.as_millis());
        let others = format!("Grace's message had arrived after {grace} ms, Ada's next one after {ada} ms");
        self.tell("Causeway", LineTone::Good, &others)?;
        self.pause(1.5).await;
        Ok(refused)
    }

    async fn tell_dead(&self, queue: &Queue) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        dead_letters::look::<anyhow::Error>(queue, &DeadLetterFilter::default(), |dead| {
            let (reason, kind) = (dead.reason, dead.message.kind);
            lines.push(format!(
                "dead letter: {kind}, {reason}, attempts: {}; kept until an operator decides",
                dead.story.count()
            ));
            Ok(())
        })
        .await?;
        Ok(lines.iter().try_for_each(|line| self.tell("Causeway", LineTone::Bad, line))?)
    }

    async fn replay(&mut self, refused: &str) -> anyhow::Result<()> {
        self.heading("8  The cause is removed, the dead letter is replayed")?;
        self.front.sandbox.script().clear();
        self.tell("ServiceNow", LineTone::Act, "its administrator removes the rule that refused the text")?;
        self.pause(1.0).await;
        self.tell("operator", LineTone::Act, "causeway dead replay --yes")?;
        let post = self.posts.iter_mut().find(|post| post.text == refused);
        let post = post.context("the refused message was never sent")?;
        (post.at, post.replayed) = (crate::clock::now(), true);
        let replayed = replay_all(self.front).await?;
        self.tell("operator", LineTone::Good, &format!("replayed {}", output::counted(replayed, "message")))?;
        self.settled().await?;
        self.pause(1.5).await;
        Ok(())
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        self.heading("9  The chats end, the bot takes over")?;
        self.tell("Beth", LineTone::Act, "closes Ada's chat")?;
        self.front.sandbox.agent_closes(&self.group(ADA)?).await?;
        let ada = self.user(ADA);
        until("the bot has Ada back", async || Ok(ada.clears() > 0)).await?;
        self.write_to_bot("Thank you", "You said: Thank you").await?;
        self.pause(0.8).await;
        self.tell(GRACE.name, LineTone::Act, "says good-bye")?;
        let request = json!({ "type": "end", "conversation_id": GRACE.conversation, "reason": "user" });
        self.post(GRACE, Operation::Leave, "", &request).await?;
        self.noticed(GRACE, "ended").await?;
        self.settled().await
    }

    /// Ada writes to the bot and reads the bot's answer.
    async fn write_to_bot(&mut self, text: &str, answer: &str) -> anyhow::Result<()> {
        self.tell(ADA.name, LineTone::Act, &format!("writes to the bot: \"{text}\""))?;
        let user = self.user(ADA);
        user.says(text).await;
        self.reads(ADA, answer).await?;
        // Messages that XO shows without its BotKit server are in no ledger.
        let direct = |read: &HeardMessage| read.handle.is_empty() && read.text.contains(answer);
        if let Some(read) = user.heard().into_iter().find(direct) {
            self.tell("XO", LineTone::Arrived, &format!("{} reads the bot: \"{}\"", ADA.name, read.text))?;
        }
        Ok(())
    }

    fn user(&self, person: &DemoPerson) -> BotUser {
        self.front.bot_user(person.conversation)
    }

    /// Waits until a user of the bot has read these words.
    async fn reads(&self, person: &DemoPerson, text: &str) -> anyhow::Result<()> {
        let user = self.user(person);
        until(&format!("{} reads \"{text}\"", person.name), async || {
            Ok(user.heard_texts().iter().any(|read| read.contains(text)))
        })
        .await
    }

    async fn start(&mut self, person: &'static DemoPerson) -> anyhow::Result<()> {
        self.tell(person.name, LineTone::Act, &format!("asks for a human: \"{}\"", person.opening))?;
        let user = json!({ "id": person.conversation, "name": person.name });
        let (conversation, message) = (person.conversation, person.opening);
        let request =
            json!({ "type": "start", "conversation_id": conversation, "message": message, "user": user });
        self.post(person, Operation::Start, person.opening, &request).await
    }

    async fn write(&mut self, person: &'static DemoPerson, text: &str) -> anyhow::Result<()> {
        self.tell(person.name, LineTone::Act, &format!("writes: \"{text}\""))?;
        if person.way == DemoPath::Api {
            let request =
                json!({ "type": "message", "conversation_id": person.conversation, "message": text });
            return self.post(person, Operation::Message, text, &request).await;
        }
        let at = crate::clock::now();
        let answer = self.user(person).says(text).await;
        anyhow::ensure!(
            answer.status == 200,
            "on_user_message was answered {} instead of 200",
            answer.status
        );
        let (operation, text) = (Operation::Message, text.to_owned());
        self.posts.push(DemoPost { person, operation, text, at, replayed: false });
        Ok(())
    }

    async fn post(
        &mut self,
        person: &'static DemoPerson,
        operation: Operation,
        text: &str,
        request: &Value,
    ) -> anyhow::Result<()> {
        let at = crate::clock::now();
        self.front.hand_off(request).await?;
        self.posts.push(DemoPost { person, operation, text: text.to_owned(), at, replayed: false });
        Ok(())
    }

    async fn beth(&self, to: &DemoPerson, text: &str) -> anyhow::Result<()> {
        self.tell("Beth", LineTone::Act, &format!("writes to {}: \"{text}\"", to.name))?;
        Ok(self.front.sandbox.agent_says(&self.group(to)?, text).await?)
    }

    /// The user whose chat has this group.
    pub(super) fn person_of(&self, group: &str) -> Option<&'static DemoPerson> {
        let starts = self.front.sandbox.ledger().find(|entry| {
            entry.operation == Operation::Start && entry.applied && entry.group.as_deref() == Some(group)
        });
        DemoPerson::ALL.iter().copied().find(|person| starts.iter().any(|start| person.opened(start)))
    }

    /// ServiceNow's group for a user's chat, read from the ledger.
    fn group(&self, person: &DemoPerson) -> anyhow::Result<String> {
        let starts = self
            .front
            .sandbox
            .ledger()
            .find(|entry| entry.operation == Operation::Start && entry.applied && person.opened(entry));
        let group = starts.into_iter().find_map(|start| start.group);
        group.with_context(|| format!("{} has no chat", person.name))
    }

    /// Waits until the bot side has accepted a notice, and records that the notice was due.
    async fn noticed(&mut self, person: &'static DemoPerson, what: &str) -> anyhow::Result<()> {
        self.owed.push((person, what.to_owned()));
        let is_it = |entry: &LedgerEntry| {
            let body = serde_json::from_str::<Value>(&entry.body).unwrap_or_default();
            notice(&body).as_deref() == Some(what)
        };
        let arrived = |entry: &LedgerEntry| {
            entry.side == Side::Events
                && entry.applied
                && entry.conversation.as_deref() == Some(person.conversation)
                && is_it(entry)
        };
        until(&format!("{} is told \"{what}\"", person.name), async || {
            Ok(self.front.sandbox.ledger().count(arrived) > 0)
        })
        .await
    }

    async fn breaker(&self, what: &str, holds: impl Fn(BreakerReading) -> bool) -> anyhow::Result<()> {
        until(&format!("the breaker {what}"), async || {
            Ok(holds(self.front.scrape().await?.breaker(DemoSide::ServiceNow)))
        })
        .await
    }

    /// The number of requests that met the outage.
    fn pages(&self) -> usize {
        self.front.sandbox.ledger().count(|entry| entry.fault == Some("html_page"))
    }

    /// Waits until all messages sent so far have arrived.
    async fn settled(&self) -> anyhow::Result<()> {
        self.taken_but(None).await?;
        self.all_taken_by_xo().await
    }

    async fn taken_but(&self, missing: Option<&str>) -> anyhow::Result<()> {
        let wanted = self.posts.iter().filter(|post| missing != Some(post.text.as_str())).count();
        until("ServiceNow has taken what the users sent", async || {
            let taken = |entry: &LedgerEntry| {
                entry.side == Side::ServiceNow && !entry.outbound && entry.operation.moves()
            };
            Ok(self.front.sandbox.ledger().count(|entry| taken(entry) && entry.applied) >= wanted)
        })
        .await
    }

    async fn all_taken_by_xo(&self) -> anyhow::Result<()> {
        until("the bot side has taken what the agent sent", async || {
            let ledger = self.front.sandbox.ledger();
            let of_bot = |entry: &LedgerEntry| {
                let person = entry.group.as_deref().and_then(|group| self.person_of(group));
                person.is_some_and(|person| person.way == DemoPath::Bot)
            };
            let told_in_own_words = |entry: &LedgerEntry| is_system(entry) && of_bot(entry);
            let posted: Vec<LedgerEntry> = ledger.find(|entry| entry.outbound);
            let posted = posted.iter().filter(|entry| !told_in_own_words(entry)).count();
            let said = Some("callback.message");
            let told = ledger
                .count(|entry| entry.side == Side::Events && entry.applied && entry.event.as_deref() == said);
            let read = self.user(ADA).heard().iter().filter(|read| read.as_agent).count();
            Ok(told + read >= posted)
        })
        .await
    }

    fn heading(&self, title: &str) -> std::io::Result<()> {
        self.observer.catch_up()?;
        self.timeline.heading(title)
    }

    fn tell(&self, who: &str, tone: LineTone, what: &str) -> std::io::Result<()> {
        self.observer.catch_up()?;
        self.timeline.tell(who, tone, what)
    }

    /// The time from a message's post to its delivery.
    fn took(&self, text: &str) -> anyhow::Result<Duration> {
        let post = self.posts.iter().find(|post| post.text == text).context("it was never sent")?;
        let ledger = self.front.sandbox.ledger();
        let arrived = ledger.find(|entry| entry.applied && entry.text.as_deref() == Some(text));
        let done = arrived.first().map(done).context("it never arrived")?;
        Ok(Duration::try_from(done.duration_since(post.at)).unwrap_or_default())
    }

    async fn pause(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds / self.speed)).await;
    }
}

/// The same as `causeway dead replay --yes`, beside the running relay.
async fn replay_all(front: &DemoClient) -> anyhow::Result<u64> {
    let queue = app::open_admin(&front.settings).await?;
    let done = async {
        let directory = app::open_directory(&front.settings).await?;
        let filter = DeadLetterFilter::default();
        let plan = replay::plan(&queue, &filter, &directory).await;
        directory.close().await;
        let plan = plan?;
        anyhow::ensure!(
            plan.count(ReplayAction::Replay) == 1,
            "there is not exactly one dead letter to replay"
        );
        let replayed = replay::run(&queue, &filter, &plan, None, &CancellationToken::default(), |_| {}).await;
        match replayed.trouble {
            Some(error) => Err(error.into()),
            None => Ok(replayed.replay_counts.replayed),
        }
    };
    let done = done.await;
    queue.close().await;
    done
}
