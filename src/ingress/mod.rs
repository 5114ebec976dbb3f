//! IN: from HTTP to the queue, and nothing else. Routes are data ([`Door`]); every request goes through [`answer`].
//!
//! Guarantees: a 2xx is sent only after the queue has the message; what was received whole is queued even if its
//! caller hangs up; every answer carries `x-request-id`; every refusal is counted and logged without content.
//! Leaves to others: who is right (`verify`), what a body means (the doors), what becomes of a message (`worker/`).
//!
//! A new door is a variant of [`Door`] with its paths, and a file beside these.

mod accepted;
mod admin;
mod body;
mod botkit;
mod budget;
mod callback_fields;
mod conversations;
mod desk;
mod fields;
mod handoffs;
mod idempotency;
mod lenient;
mod places;
mod problem;
mod refusal_log;
mod server;
mod servicenow;
#[cfg(test)]
mod tests;
mod token;
mod verify;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::Response;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::time::Instant;

pub use accepted::Accepted;
pub use admin::{AdminState, serve_admin};
pub use botkit::{BotKitDoor, Kept, UserPaths};
pub use budget::ReadBudget;
use budget::Sender;
pub use desk::{Desk, DeskParts};
pub use idempotency::IdempotencyKeys;
use problem::Refusal;
use refusal_log::Refused;
pub use token::BotDoor;

use crate::conversation::Directory;
use crate::message::{BotSide, DeadLetter, Message};
use crate::queue::{Queue, QueueError};
use crate::tasks::{self, Stop};
use crate::telemetry::Metrics;

/// The header by which a request is found again in the logs of both sides.
const REQUEST_ID: &str = "x-request-id";

/// How the public listener behaves.
#[derive(Debug, Clone)]
pub struct IngressSettings {
    /// The largest body, in bytes.
    pub body_limit: usize,
    /// How long a head may take, how long a body may take, and how long a kept connection may idle.
    pub read_timeout: Duration,
    /// Who may post callbacks.
    pub servicenow: ServiceNowDoor,
    /// Who may post handoffs and ask about conversations; without it that API is off.
    pub handoffs_token: Accepted,
    /// XO's BotKit protocol.
    pub botkit: BotKitDoor,
    /// Which destination a conversation belongs to.
    pub bot_side: BotSide,
}

/// The credentials of the callback door: any one that is set and holds is enough.
#[derive(Debug, Clone, Default)]
pub struct ServiceNowDoor {
    /// For HTTP Basic, together with `password`.
    pub username: Option<String>,
    /// For HTTP Basic.
    pub password: Accepted,
    /// For `Authorization: Bearer`, `x-causeway-token` and `?token=`.
    pub token: Accepted,
    /// For `x-causeway-signature`.
    pub hmac_secret: Accepted,
    /// Lets everybody in, where no credential is set.
    pub allow_unauthenticated: bool,
    /// Our own user in ServiceNow: what it wrote comes back and is ignored.
    pub own_user: Option<String>,
    /// The name of our instance of ServiceNow: a callback that names another one is refused.
    pub instance: Option<String>,
}

impl ServiceNowDoor {
    /// Whether any credential is set.
    pub fn is_guarded(&self) -> bool {
        let basic = self.username.is_some() && self.password.is_set();
        basic || self.token.is_set() || self.hmac_secret.is_set()
    }
}

/// What the doors share.
#[derive(Debug)]
pub struct IngressState {
    /// Where everything goes.
    pub queue: Queue,
    /// What is known of conversations; the callback relay needs none.
    pub directory: Option<Directory>,
    /// Which keys were used for which handoff requests.
    pub idempotency_keys: IdempotencyKeys,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// How to behave.
    pub settings: IngressSettings,
    /// How many bytes of bodies there may be at once.
    pub budget: Arc<ReadBudget>,
}

impl IngressState {
    /// For a sender whose credential holds.
    fn limits(&self) -> body::Limits {
        self.limits_for(Sender::Proven)
    }

    fn limits_for(&self, sender: Sender) -> body::Limits {
        let budget = Some((Arc::clone(&self.budget), sender));
        body::Limits { bytes: self.settings.body_limit, time: self.settings.read_timeout, budget }
    }

    /// Publishes to the end, also when the caller hangs up meanwhile: ServiceNow does not send a second time.
    async fn keep(self: &Arc<Self>, message: Message) -> Result<(), QueueError> {
        let state = Arc::clone(self);
        tasks::to_the_end(async move {
            let began = Instant::now();
            state.queue.publish(&message).await?;
            state.metrics.publish_duration.observe(began.elapsed().as_secs_f64());
            Ok(())
        })
        .await
    }

    /// Buries to the end, like [`Self::keep`].
    async fn bury(self: &Arc<Self>, dead: DeadLetter) -> Result<(), QueueError> {
        let state = Arc::clone(self);
        tasks::to_the_end(async move {
            state.queue.bury(&dead).await?;
            let labels = [dead.message.destination.as_str(), dead.reason.as_str()];
            state.metrics.dead_letters.with_label_values(&labels).inc();
            Ok(())
        })
        .await
    }
}

/// The routes of the public listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    ServiceNow,
    Handoffs,
    Conversations,
    BotKit,
}

impl Door {
    const ALL: &'static [Self] = &[Self::ServiceNow, Self::Handoffs, Self::Conversations, Self::BotKit];

    const fn paths(self) -> &'static [&'static str] {
        match self {
            Self::ServiceNow => &["/v1/callbacks/servicenow"],
            Self::Handoffs => &["/v1/handoffs"],
            Self::Conversations => &["/v1/conversations/{conversation_id}"],
            Self::BotKit => {
                &["/sdk/bots/{bot_id}/{event}", "/sdk/bots/{bot_id}/components/{component_id}/{event}"]
            }
        }
    }

    const fn allow(self) -> &'static str {
        match self {
            Self::ServiceNow | Self::Handoffs | Self::BotKit => "POST",
            Self::Conversations => "GET, HEAD",
        }
    }

    fn takes(self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }

    /// The label in metrics, the route in logs.
    const fn source(door: Option<Self>) -> &'static str {
        match door {
            Some(Self::ServiceNow) => "servicenow",
            Some(Self::Handoffs) => "handoffs",
            Some(Self::Conversations) => "conversations",
            Some(Self::BotKit) => "botkit",
            None => "other",
        }
    }
}

/// Serves the public listener until `stop`: then accepts nothing more and finishes what is in flight.
/// `beside`: routes of another part that are served here, too.
pub async fn serve_public(
    listener: TcpListener,
    state: Arc<IngressState>,
    beside: Option<Router>,
    stop: Stop,
) -> io::Result<()> {
    let read_timeout = state.settings.read_timeout;
    let routes = beside.into_iter().fold(router(state), Router::merge);
    server::serve(listener, routes, read_timeout, stop).await
}

/// Serves the routes of another part on a listener of their own, as carefully as the public one.
pub async fn serve_beside(
    listener: TcpListener,
    routes: Router,
    read_timeout: Duration,
    stop: Stop,
) -> io::Result<()> {
    server::serve(listener, routes, read_timeout, stop).await
}

fn router(state: Arc<IngressState>) -> Router {
    let at = |door: Option<Door>| {
        any(move |State(state): State<Arc<IngressState>>, request: Request| answer(state, door, request))
    };
    let routes = Door::ALL.iter().flat_map(|door| door.paths().iter().map(move |path| (*path, *door)));
    let router = routes.fold(Router::new(), |router, (path, door)| router.route(path, at(Some(door))));
    router.fallback_service(at(None).with_state(Arc::clone(&state))).with_state(state)
}

/// The way of every request: name it, answer it, count it.
async fn answer(state: Arc<IngressState>, door: Option<Door>, mut request: Request) -> Response {
    let began = Instant::now();
    let id = request_id(Some(request.headers()));
    let source = Door::source(door);
    let from = request.extensions().get::<server::Peer>().map(|peer| peer.0);
    let mut response = match through(&state, door, &mut request).await {
        Ok(response) => response,
        Err(refusal) => {
            let reason = refusal.slug();
            // XO reads refusals in BotKit's words only.
            let response = match door {
                Some(Door::BotKit) => botkit::refused(refusal, &id),
                _ => refusal.into_response(&id),
            };
            let status = response.status().as_u16();
            refusal_log::write(Refused { route: source, reason, status, request_id: &id, from });
            body::linger(request);
            response
        }
    };
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    state.metrics.ingress_requests.with_label_values(&[source, response.status().as_str()]).inc();
    state.metrics.ingress_duration.with_label_values(&[source]).observe(began.elapsed().as_secs_f64());
    response
}

async fn through(
    state: &Arc<IngressState>,
    door: Option<Door>,
    request: &mut Request,
) -> Result<Response, Refusal> {
    let door = door.ok_or(Refusal::UnknownRoute)?;
    if !door.takes(request.method()) {
        return Err(Refusal::WrongMethod(door.allow()));
    }
    match door {
        Door::ServiceNow => servicenow::answer(state, request).await,
        // Boxed: the busiest door's requests would carry the room for all.
        Door::Handoffs => Box::pin(handoffs::answer(state, request)).await,
        Door::Conversations => Box::pin(conversations::answer(state, request)).await,
        Door::BotKit => Box::pin(botkit::answer(state, request)).await,
    }
}

/// The caller's name for the request, where it can safely stand in a log line; otherwise a new one.
fn request_id(headers: Option<&HeaderMap>) -> String {
    let is_sane = |id: &&str| {
        (1..=128).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/' | b'='))
    };
    let given = headers.and_then(|headers| headers.get(REQUEST_ID)?.to_str().ok()).filter(is_sane);
    given.map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}
