//! The ingress: it accepts HTTP requests and publishes them to the queue. Routes are data ([`IngressRoute`]); each request
//! goes through [`answer`].
//!
//! Guarantees: a 2xx is sent only after the queue has the message. A request that was received completely is
//! published even if its caller disconnects. Each answer carries `x-request-id`. Each refusal is counted, and is
//! logged without content.
//! Not responsible for: connections, limits and the format of a refusal (`http_server/`), the meaning of a body (the
//! routes), the delivery (`worker/`).
//!
//! A new route needs a variant of [`IngressRoute`] with its paths, and a file in this folder.

mod availability;
mod bot_token;
mod botkit;
mod callback_credentials;
mod callback_fields;
mod conversations;
mod fields;
mod handoffs;
mod idempotency;
mod lenient;
mod servicenow;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method};
use axum::response::Response;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::time::Instant;

pub use availability::{AskError, AskQueue, AvailabilitySettings, QueueAvailability, QueueFacts};
pub use bot_token::BotCredential;
pub use botkit::{BotKitIngress, ReplyContextMode, UserPaths};
pub use idempotency::IdempotencyKeys;

use crate::conversation::Directory;
use crate::http_server::problem::ApiError;
use crate::http_server::read_budget::{ReadBudget, SenderTrust};
use crate::http_server::refusal_log::{self, RefusalEntry};
use crate::http_server::request_id::{self, request_id};
use crate::http_server::secrets::AcceptedSecrets;
use crate::http_server::{body, server};
use crate::live::Live;
use crate::message::current_trace;
use crate::message::{BotSide, DeadLetter, Message, Trace, TraceParent};
use crate::queue::spool::Spool;
use crate::queue::{Queue, QueueError};
use crate::tasks::{self, CancellationToken};
use crate::telemetry::{self, Metrics, Settled};
use crate::tls::ServerTls;

/// The header of W3C Trace Context. Its trace id travels with the message to the outgoing call.
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// The settings of the public listener.
#[derive(Debug, Clone)]
pub struct IngressSettings {
    /// The largest body in bytes.
    pub body_limit: usize,
    /// The time limit for a head, for a body, and for an idle keep-alive connection.
    pub read_timeout: Duration,
    /// The credentials for callbacks.
    pub servicenow: CallbackAuth,
    /// The token for handoffs and for the state of conversations. That API is off without a token.
    pub handoffs_token: AcceptedSecrets,
    /// The settings of XO's BotKit protocol.
    pub botkit: BotKitIngress,
    /// The destination of each conversation.
    pub bot_side: BotSide,
}

/// The credentials of the callback route. One valid credential is sufficient.
#[derive(Debug, Clone, Default)]
pub struct CallbackAuth {
    /// The user name for HTTP Basic, used with `password`.
    pub username: Option<String>,
    /// The password for HTTP Basic.
    pub password: AcceptedSecrets,
    /// The token for `Authorization: Bearer`, `x-causeway-token` and `?token=`.
    pub token: AcceptedSecrets,
    /// The secret for `x-causeway-signature`.
    pub hmac_secret: AcceptedSecrets,
    /// Refuses a caller without a client certificate, whatever other credential it has.
    pub demands_certificate: bool,
    /// Accepts all callers if no credential is set.
    pub allow_unauthenticated: bool,
    /// Our own user in ServiceNow. Callbacks with messages of this user are ignored.
    pub own_user: Option<String>,
    /// The name of our ServiceNow instance. A callback with another name is refused.
    pub instance: Option<String>,
}

impl CallbackAuth {
    /// Whether any credential is set.
    pub fn is_guarded(&self) -> bool {
        let basic = self.username.is_some() && self.password.is_set();
        basic || self.token.is_set() || self.hmac_secret.is_set()
    }
}

/// Whether a sender repeats a request that was refused with 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SenderRepeats {
    /// ServiceNow and XO.
    Never,
    /// Callers of the handoff API.
    OnRefusal,
}

/// The state that all routes share.
#[derive(Debug)]
pub struct IngressState {
    /// The queue for all messages.
    pub queue: Queue,
    /// The spool for the messages of senders that never repeat; `None` if `ingress.spool` is off.
    pub spool: Option<Spool>,
    /// Whether messages of the handoff API are spooled, too.
    pub spools_handoffs: bool,
    /// The directory of conversations. The callback relay needs none.
    pub directory: Option<Directory>,
    /// The answers about ServiceNow's queues; `None` in a deployment without a login for ServiceNow.
    pub availability: Option<Arc<QueueAvailability>>,
    /// The idempotency keys that were used recently.
    pub idempotency_keys: IdempotencyKeys,
    /// The metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The settings of the listener. A request uses the settings of the moment at which it is checked.
    pub settings: Live<IngressSettings>,
    /// The budget for the bytes of all bodies.
    pub budget: Arc<ReadBudget>,
}

impl IngressState {
    fn spool_for(&self, sender: SenderRepeats) -> Option<&Spool> {
        self.spool.as_ref().filter(|_| sender == SenderRepeats::Never || self.spools_handoffs)
    }

    /// The limits for an authenticated sender.
    fn limits(&self) -> body::BodyLimits {
        self.limits_for(SenderTrust::Proven)
    }

    fn limits_for(&self, sender: SenderTrust) -> body::BodyLimits {
        let settings = self.settings.get();
        let budget = Some((Arc::clone(&self.budget), sender));
        body::BodyLimits { bytes: settings.body_limit, time: settings.read_timeout, budget }
    }

    /// Publishes the message, even if the caller disconnects in the meantime, because ServiceNow does not repeat a
    /// callback.
    async fn publish_to_completion(
        self: &Arc<Self>,
        message: Message,
        sender: SenderRepeats,
    ) -> Result<(), QueueError> {
        let state = Arc::clone(self);
        tasks::run_to_completion(async move {
            let began = Instant::now();
            match state.spool_for(sender) {
                Some(spool) => spool.publish(&message).await?,
                None => state.queue.publish(&message).await?,
            }
            let took = began.elapsed();
            state.metrics.publish_duration.observe(took.as_secs_f64());
            telemetry::log_accepted(&message, took);
            Ok(())
        })
        .await
    }

    /// Writes the dead letter, even if the caller disconnects, like [`Self::publish_to_completion`].
    async fn dead_letter(self: &Arc<Self>, dead: DeadLetter) -> Result<(), QueueError> {
        let state = Arc::clone(self);
        tasks::run_to_completion(async move {
            match &state.spool {
                Some(spool) => spool.dead_letter(&dead).await?,
                None => state.queue.dead_letter(&dead).await?,
            }
            let labels = [dead.message.destination.as_str(), dead.reason.as_str()];
            state.metrics.dead_letters.with_label_values(&labels).inc();
            telemetry::log_settled(&dead.message, Settled::DeadLettered(dead.reason), 0);
            Ok(())
        })
        .await
    }
}

/// The routes of the public listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IngressRoute {
    ServiceNow,
    Handoffs,
    Conversations,
    Availability,
    BotKit,
}

impl IngressRoute {
    const ALL: &'static [Self] =
        &[Self::ServiceNow, Self::Handoffs, Self::Conversations, Self::Availability, Self::BotKit];

    const fn paths(self) -> &'static [&'static str] {
        match self {
            Self::ServiceNow => &["/v1/callbacks/servicenow"],
            Self::Handoffs => &["/v1/handoffs"],
            Self::Conversations => &["/v1/conversations/{conversation_id}"],
            Self::Availability => &["/v1/availability"],
            Self::BotKit => {
                &["/sdk/bots/{bot_id}/{event}", "/sdk/bots/{bot_id}/components/{component_id}/{event}"]
            }
        }
    }

    const fn allow(self) -> &'static str {
        match self {
            Self::ServiceNow | Self::Handoffs | Self::BotKit => "POST",
            Self::Conversations | Self::Availability => "GET, HEAD",
        }
    }

    fn takes(self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }

    /// The label in metrics and the route in logs.
    const fn source(route: Option<Self>) -> &'static str {
        match route {
            Some(Self::ServiceNow) => "servicenow",
            Some(Self::Handoffs) => "handoffs",
            Some(Self::Conversations) => "conversations",
            Some(Self::Availability) => "availability",
            Some(Self::BotKit) => "botkit",
            None => "other",
        }
    }
}

/// Serves the public listener until `stop`, then accepts no new connection and finishes the requests in flight.
/// `beside`: routes of another component that are served here, too.
pub async fn serve_public(
    listener: TcpListener,
    state: Arc<IngressState>,
    beside: Option<Router>,
    tls: Option<ServerTls>,
    stop: CancellationToken,
) -> io::Result<()> {
    let read_timeout = state.settings.get().read_timeout;
    let routes = beside.into_iter().fold(router(state), Router::merge);
    server::serve(listener, routes, read_timeout, tls, stop).await
}

fn router(state: Arc<IngressState>) -> Router {
    let at = |route: Option<IngressRoute>| {
        any(move |State(state): State<Arc<IngressState>>, request: Request| answer(state, route, request))
    };
    let routes =
        IngressRoute::ALL.iter().flat_map(|route| route.paths().iter().map(move |path| (*path, *route)));
    let router = routes.fold(Router::new(), |router, (path, route)| router.route(path, at(Some(route))));
    router.fallback_service(at(None).with_state(Arc::clone(&state))).with_state(state)
}

/// Handles each request: assigns an id, answers, counts.
async fn answer(state: Arc<IngressState>, route: Option<IngressRoute>, mut request: Request) -> Response {
    let began = Instant::now();
    let id = request_id(Some(request.headers()));
    let source = IngressRoute::source(route);
    let from = request.extensions().get::<server::PeerAddress>().map(|peer| peer.0);
    let trace = Trace { request_id: Some(id.clone()), parent: trace_parent(request.headers()) };
    let mut response = match current_trace::within(trace, dispatch(&state, route, &mut request)).await {
        Ok(response) => response,
        Err(refusal) => {
            let reason = refusal.slug();
            // XO understands only BotKit's error format.
            let response = match route {
                Some(IngressRoute::BotKit) => botkit::refused(refusal, &id),
                _ => refusal.into_response(&id),
            };
            let status = response.status().as_u16();
            refusal_log::write(RefusalEntry { route: source, reason, status, request_id: &id, from });
            body::drain_body(request);
            response
        }
    };
    request_id::add_to(response.headers_mut(), &id);
    state.metrics.ingress_requests.with_label_values(&[source, response.status().as_str()]).inc();
    state.metrics.ingress_duration.with_label_values(&[source]).observe(began.elapsed().as_secs_f64());
    response
}

async fn dispatch(
    state: &Arc<IngressState>,
    route: Option<IngressRoute>,
    request: &mut Request,
) -> Result<Response, ApiError> {
    let route = route.ok_or(ApiError::UnknownRoute)?;
    if !route.takes(request.method()) {
        return Err(ApiError::WrongMethod(route.allow()));
    }
    match route {
        IngressRoute::ServiceNow => servicenow::answer(state, request).await,
        // Boxed, because otherwise each request of the busiest route would use the memory of the largest future.
        IngressRoute::Handoffs => Box::pin(handoffs::answer(state, request)).await,
        IngressRoute::Conversations => Box::pin(conversations::answer(state, request)).await,
        IngressRoute::Availability => Box::pin(availability::answer(state, request)).await,
        IngressRoute::BotKit => Box::pin(botkit::answer(state, request)).await,
    }
}

/// The caller's `traceparent`. An invalid one is ignored, and so are several, because none of them is the caller's.
fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(TRACE_PARENT).iter();
    let only = given.next().filter(|_| given.next().is_none());
    only.and_then(|value| value.to_str().ok()).and_then(TraceParent::parse)
}
