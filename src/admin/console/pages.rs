//! The admin console in a browser: plain forms and links, without external content. No act needs a script.
//!
//! Guarantees: each page except the login needs a session. Each change is a POST with the form token of the same
//! session. Each answer forbids inline scripts, frames, other origins and caching. The only script is `local-time.js`.
//! Not responsible for: the layout (`view`), the actions (`mod.rs`).

use axum::extract::Request;
use axum::http::header::{
    CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY, SET_COOKIE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use maud::Markup;

use super::query::{DeadLetterQuery, fault};
use super::session::ConsoleSession;
use super::view::{self, ListPage, PageFrame, PageRefresh};
use super::{AdminConsole, ConsoleSite, operator};
use crate::clock;
use crate::conversation::ConversationState;
use crate::dead_letters::{DeadLetterFilter, filter};
use crate::http_server::body;
use crate::http_server::problem::{self, ApiError};
use crate::http_server::refusal_log::{self, RefusalEntry};
use crate::http_server::request_id::{REQUEST_ID, request_id};
use crate::http_server::server::PeerAddress;
use crate::telemetry::{Act, Ending, Operator, audit};

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = include_str!("style.css");
const LOCAL_TIME: &str = include_str!("local-time.js");
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// The parameter by which a user turns the repeated loading of a page on and off.
const REFRESH: &str = "refresh";
/// The most dead letters on one page.
const LETTERS_MAX: usize = 100;
/// The number of conversations that the list shows.
const CONVERSATIONS_SHOWN: u32 = 100;
/// The largest form of an authenticated session in bytes. It may list many dead letters.
const FORM_BYTES_MAX: usize = 1 << 20;
/// The largest login form in bytes. Unauthenticated callers may send it.
const LOGIN_BYTES_MAX: usize = 16 << 10;

pub(super) async fn answer(site: &ConsoleSite, mut request: Request) -> Response {
    let (console, id) = (&site.console, request_id(Some(request.headers())));
    let session = ConsoleSession::of(&console.tokens.get(), request.headers(), clock::now());
    let form = session.as_ref().map(|session| session.form_token());
    let from = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    let mut response = match dispatch(site, session, &mut request).await {
        Ok(response) => response,
        Err(refusal) => {
            let (status, title) = refusal.status_and_title();
            let (reason, status_code) = (refusal.slug(), status.as_u16());
            refusal_log::write(RefusalEntry {
                route: "desk",
                reason,
                status: status_code,
                request_id: &id,
                from,
            });
            let frame = PageFrame {
                form: form.as_deref(),
                place: &console.facts.place,
                may_act: true,
                refresh: None,
            };
            html(status, view::refusal(frame, title, &refusal))
        }
    };
    body::drain_body(request);
    let headers = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static(REQUEST_ID), &*id),
    ];
    for (name, value) in headers {
        response.headers_mut().extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
    }
    response
}

/// An authenticated session and its form token.
struct PageHandler<'a> {
    site: &'a ConsoleSite,
    console: &'a AdminConsole,
    session: ConsoleSession,
    form: String,
    operator: Operator,
}

async fn dispatch(
    site: &ConsoleSite,
    session: Option<ConsoleSession>,
    request: &mut Request,
) -> Result<Response, ApiError> {
    let console = &site.console;
    let path = request.uri().path().trim_start_matches("/desk").trim_matches('/').to_owned();
    let method = if request.method() == "HEAD" { "GET".to_owned() } else { request.method().to_string() };
    match (method.as_str(), path.as_str()) {
        ("GET", "style.css") => Ok(problem::answer(StatusCode::OK, "text/css; charset=utf-8", STYLE)),
        ("GET", "local-time.js") => {
            Ok(problem::answer(StatusCode::OK, "text/javascript; charset=utf-8", LOCAL_TIME))
        }
        ("POST", "login") => login(console, request).await,
        ("GET", _) if session.is_none() => {
            let back = request.uri().path_and_query().map(|it| it.as_str()).unwrap_or_default();
            Ok(html(StatusCode::UNAUTHORIZED, view::login(inside(back), false)))
        }
        _ => {
            let session = session.ok_or(ApiError::Unauthorized("Bearer realm=\"causeway\""))?;
            let form = session.form_token();
            let operator = operator(session.token(), request);
            let visitor = PageHandler { site, console, session, form, operator };
            match method.as_str() {
                "GET" => {
                    let query = request.uri().query().unwrap_or_default().to_owned();
                    visitor.show_page(&path, &query).await
                }
                "POST" => visitor.run_action(&path, request).await,
                _ => Err(ApiError::WrongMethod("GET, HEAD, POST")),
            }
        }
    }
}

async fn login(console: &AdminConsole, request: &mut Request) -> Result<Response, ApiError> {
    let from = request.extensions().get::<PeerAddress>().map(|peer| tracing::field::display(peer.0));
    let fields = form(request, LOGIN_BYTES_MAX).await?;
    let field = |wanted: &str| value_of(&fields, wanted);
    let back = field("back");
    let Some(session) = ConsoleSession::begin(&console.tokens.get(), field("token").trim(), clock::now())
    else {
        tracing::info!(from, "a login to the admin console was refused");
        return Ok(html(StatusCode::UNAUTHORIZED, view::login(inside(&back), true)));
    };
    tracing::info!(name = session.token().name, "a user logged in to the admin console");
    Ok(with_cookie(see(inside(&back)), &session.cookie()))
}

impl PageHandler<'_> {
    fn frame(&self) -> PageFrame<'_> {
        PageFrame {
            form: Some(&self.form),
            place: &self.console.facts.place,
            may_act: self.session.token().may_act().is_ok(),
            refresh: None,
        }
    }

    async fn show_page(&self, path: &str, query: &str) -> Result<Response, ApiError> {
        // The list of dead letters was at this address in earlier versions.
        if path.is_empty() && url::form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name != REFRESH) {
            return Ok(see(&format!("/desk/letters?{query}")));
        }
        let refresh = self.refresh(path, query)?;
        let frame = PageFrame { refresh: refresh.as_ref(), ..self.frame() };
        let page = self.page(frame, path, query).await?;
        let mut response = html(StatusCode::OK, page);
        if let Some(refresh) = refresh.filter(|refresh| refresh.is_on) {
            response.headers_mut().insert("refresh", HeaderValue::from(refresh.seconds));
        }
        Ok(response)
    }

    /// Whether this page is loaded again and again. A page with fields is loaded again only if the user wants it.
    fn refresh(&self, path: &str, query: &str) -> Result<Option<PageRefresh>, ApiError> {
        let (seconds, by_default) = match path {
            "" => (10, true),
            "progress" if self.console.progress().is_some_and(|run| run.ended.is_none()) => (2, true),
            "letters" | "conversation" => (10, false),
            _ => return Ok(None),
        };
        let is_on = match value_of(query, REFRESH).as_str() {
            "" => by_default,
            "on" => true,
            "off" => false,
            _ => return Err(ApiError::Invalid(vec![fault(REFRESH, "must be on or off")])),
        };
        let mut other = url::form_urlencoded::Serializer::new(String::new());
        other.extend_pairs(url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != REFRESH));
        other.append_pair(REFRESH, if is_on { "off" } else { "on" });
        let place = if path.is_empty() { "/desk".to_owned() } else { format!("/desk/{path}") };
        Ok(Some(PageRefresh { seconds, is_on, other: format!("{place}?{}", other.finish()) }))
    }

    async fn page(&self, frame: PageFrame<'_>, path: &str, query: &str) -> Result<Markup, ApiError> {
        Ok(match path {
            "" => view::overview(frame, &self.site.overview().await, self.console.progress().as_ref()),
            "letters" => self.letters(frame, query).await?,
            "replay" => {
                self.session.token().may_act()?;
                let asked = selection(query)?;
                let plan = self.console.plan(&asked.filter).await?;
                view::plan(frame, &asked.filter, &plan)
            }
            "discard" => {
                self.session.token().may_act()?;
                let asked = selection(query)?;
                let found = self.console.find(&asked.filter, 0).await?;
                view::question(frame, &asked.filter, &found.entries)
            }
            "conversations" => self.conversations(frame, query).await?,
            "conversation" => self.conversation(frame, query).await?,
            "progress" => view::progress(frame, self.console.progress().as_ref()),
            letter if letter.ends_with("/edit") => self.edit(frame, letter).await?,
            letter => {
                self.letter(letter.strip_prefix("letters/").ok_or(ApiError::UnknownRoute)?, query).await?
            }
        })
    }

    async fn letters(&self, frame: PageFrame<'_>, query: &str) -> Result<Markup, ApiError> {
        let asked = DeadLetterQuery::of_form(query, &["limit", "before", "sort", REFRESH])?;
        let size = asked.limit.clamp(1, LETTERS_MAX);
        let list = ListPage { before: asked.before, size, newest_first: asked.newest_first };
        let positions = list.before..list.before.saturating_add(size);
        let found = self.console.list(&asked.filter, positions, list.newest_first).await?;
        Ok(view::letters(frame, &asked.filter, &found, list, self.console.progress().as_ref()))
    }

    async fn conversations(&self, frame: PageFrame<'_>, query: &str) -> Result<Markup, ApiError> {
        let (name, state) = (value_of(query, "name"), value_of(query, "state"));
        let state = match state.as_str() {
            "" => None,
            text => Some(ConversationState::parse(text).ok_or_else(|| {
                ApiError::Invalid(vec![fault("state", "is not a state of a conversation")])
            })?),
        };
        let found = match name.trim() {
            "" => self.console.newest_conversations(state, CONVERSATIONS_SHOWN).await?,
            name => {
                let mut found = self.console.conversations_named(name).await?;
                found.retain(|it| state.is_none_or(|state| it.state == state));
                found
            }
        };
        Ok(view::conversations(frame, name.trim(), state, &found, CONVERSATIONS_SHOWN))
    }

    /// The conversation of this name with its course, or the course of a message.
    async fn conversation(&self, frame: PageFrame<'_>, query: &str) -> Result<Markup, ApiError> {
        let name = value_of(query, "name");
        let name = name.trim();
        let found = self.console.conversations_named(name).await?;
        if found.len() > 1 {
            return Ok(view::conversations(frame, name, None, &found, CONVERSATIONS_SHOWN));
        }
        let course = self.console.course_of_directory(name).await?;
        Ok(match found.as_slice() {
            [only] => view::conversation(frame, only, &course),
            _ if !course.events.is_empty() => view::course(frame, &course),
            none => view::conversations(frame, name, None, none, CONVERSATIONS_SHOWN),
        })
    }

    async fn letter(&self, id: &str, query: &str) -> Result<Markup, ApiError> {
        let id = filter::id(id).map_err(|_| ApiError::UnknownDeadLetter)?;
        let reveal = DeadLetterQuery::of_form(query, &["reveal"])?.reveal;
        if reveal {
            self.session.token().may_act()?;
        }
        let found = self
            .console
            .find(&DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() }, usize::MAX)
            .await?;
        if found.letters.is_empty() {
            return Err(ApiError::UnknownDeadLetter);
        }
        if reveal {
            let shown = found.letters.len() as u64;
            audit(Act::Reveal, &self.operator, format_args!("id={id}"), shown, Ending::Done(None));
        }
        let may_edit = self.console.may_edit().is_ok() && self.session.token().may_act().is_ok();
        Ok(view::letter(self.frame(), id, &found.letters, (reveal, may_edit)))
    }

    /// The form with the text of a message, which a user may change.
    async fn edit(&self, frame: PageFrame<'_>, path: &str) -> Result<Markup, ApiError> {
        self.session.token().may_act()?;
        self.console.may_edit()?;
        let id = path.strip_prefix("letters/").and_then(|rest| rest.strip_suffix("/edit"));
        let id = filter::id(id.ok_or(ApiError::UnknownRoute)?).map_err(|_| ApiError::UnknownDeadLetter)?;
        let filter = DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() };
        let found = self.console.find(&filter, usize::MAX).await?;
        let dead = found.letters.last().ok_or(ApiError::UnknownDeadLetter)?;
        audit(Act::Reveal, &self.operator, format_args!("id={id}"), 1, Ending::Done(None));
        Ok(view::edit(frame, dead))
    }

    async fn run_action(&self, path: &str, request: &mut Request) -> Result<Response, ApiError> {
        let fields = form(request, FORM_BYTES_MAX).await?;
        let mut pairs = url::form_urlencoded::parse(fields.as_bytes());
        let given = pairs.find(|(name, _)| name == "form").map(|(_, value)| value.into_owned());
        if !self.session.sent(&given.unwrap_or_default()) {
            return Err(ApiError::Unauthorized("Bearer realm=\"causeway\""));
        }
        if path != "logout" {
            self.session.token().may_act()?;
        }
        match path {
            "stop" => {
                self.console.stop(&self.operator);
                Ok(see("/desk/progress"))
            }
            "logout" => Ok(with_cookie(see("/desk"), &ConsoleSession::no_cookie())),
            "replay" => {
                let asked = DeadLetterQuery::of_form(&fields, &["form", "rate"])?;
                self.console.replay(asked.filter, asked.rate, asked.wait, self.operator.clone()).await?;
                Ok(see("/desk/progress"))
            }
            "edit" => {
                let wrong = |name: &str, why: String| ApiError::Invalid(vec![fault(name, &why)]);
                let id = filter::id(&value_of(&fields, "id")).map_err(|why| wrong("id", why))?;
                let died_at = value_of(&fields, "died_at");
                let died_at = filter::moment(&died_at).map_err(|why| wrong("died_at", why))?;
                let body = value_of(&fields, "body");
                self.console.edit((id, Some(died_at)), body, self.operator.clone()).await?;
                Ok(see("/desk/progress"))
            }
            "discard" => {
                let asked = DeadLetterQuery::of_form(&fields, &["form", "confirm"])?;
                let missing =
                    || ApiError::Invalid(vec![fault("confirm", "is missing: the number that was shown")]);
                let confirmed = asked.confirm.ok_or_else(missing)?;
                let gone = self.console.discard(&asked.filter, confirmed, &self.operator).await?;
                Ok(html(StatusCode::OK, view::discarded(self.frame(), gone)))
            }
            "export" => {
                let asked = DeadLetterQuery::of_form(&fields, &["form"])?;
                let lines = self.console.export(asked.filter, self.operator.clone()).await?;
                let mut response = problem::answer(StatusCode::OK, "application/x-ndjson", lines);
                let name = HeaderValue::from_static("attachment; filename=\"dead-letters.jsonl\"");
                response.headers_mut().insert(CONTENT_DISPOSITION, name);
                Ok(response)
            }
            _ => Err(ApiError::UnknownRoute),
        }
    }
}

/// The filters of a page that asks for a decision. A form of boxes without a checked box would mean all dead letters.
fn selection(query: &str) -> Result<DeadLetterQuery, ApiError> {
    let asked = DeadLetterQuery::of_form(query, &["selected"])?;
    if asked.selected && asked.filter.ids.is_empty() {
        return Err(ApiError::Invalid(vec![fault("id", "is missing: select at least one dead letter")]));
    }
    Ok(asked)
}

async fn form(request: &mut Request, bytes: usize) -> Result<String, ApiError> {
    let headers = request.headers().clone();
    let limits = body::BodyLimits { bytes, time: std::time::Duration::from_secs(10), budget: None };
    let read = body::read(&headers, request.body_mut(), limits).await?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// The first value of this name in a query, and an empty text if there is none.
fn value_of(query: &str, name: &str) -> String {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// Accepts only a path inside the admin console, so that a link cannot redirect the user to another site.
fn inside(back: &str) -> &str {
    let is_ours = back == "/desk" || back.starts_with("/desk/") || back.starts_with("/desk?");
    if is_ours && !back.contains('\\') { back } else { "/desk" }
}

fn see(place: &str) -> Response {
    let mut response = problem::answer(StatusCode::SEE_OTHER, HTML, "");
    response.headers_mut().extend(HeaderValue::from_str(place).ok().map(|place| (LOCATION, place)));
    response
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    response.headers_mut().extend(HeaderValue::from_str(cookie).ok().map(|cookie| (SET_COOKIE, cookie)));
    response
}

fn html(status: StatusCode, page: Markup) -> Response {
    problem::answer(status, HTML, page.into_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_nowhere_else() {
        for ours in ["/desk", "/desk?reason=expired", "/desk/letters/x"] {
            assert_eq!(inside(ours), ours);
        }
        for theirs in ["", "//evil.example", "https://evil.example", "/deskevil", "/desk/\\evil", "/metrics"]
        {
            assert_eq!(inside(theirs), "/desk", "{theirs}");
        }
    }
}
