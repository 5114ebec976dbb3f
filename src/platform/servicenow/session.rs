//! ServiceNow's session cookies: one small jar for each conversation, and one call in flight for each jar.
//!
//! Why: without cookies each call opens another login session. With one shared jar ServiceNow would process all calls
//! one after the other, and would answer 202 once too many wait. A jar for each conversation keeps the order and
//! prevents the overflow. ServiceNow also processes a read after a timed-out write only behind that write, so a
//! timeout keeps the jar.
//! Guarantees: at most `max` jars, not counting jars in use; the jar that was idle longest is dropped first. The
//! cookies of a forgotten conversation are dropped when its call ends.
//! Not responsible for: which answers end a session (`mod.rs`).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cookie::Cookie;
use reqwest::header::{HeaderMap, HeaderValue, SET_COOKIE};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use url::Url;

use crate::message::ConversationId;

/// The maximum number of cookies in a jar. An instance sets about six.
const COOKIES_MAX: usize = 24;
/// The longest cookie in bytes that is kept, name and value.
const COOKIE_BYTES_MAX: usize = 4096;

/// All cookie jars.
pub(super) struct SessionTable {
    max: usize,
    table: Mutex<SessionMap>,
}

#[derive(Default)]
struct SessionMap {
    sessions: HashMap<ConversationId, (u64, Arc<ChatSession>)>,
    /// Least recently used first.
    order: BTreeMap<u64, ConversationId>,
    tick: u64,
}

#[derive(Default)]
struct ChatSession {
    jar: Arc<tokio::sync::Mutex<CookieJar>>,
    /// Set while a call is in flight: the jar is emptied when the call ends.
    forgotten: AtomicBool,
}

/// The exclusive right to make one call of a conversation.
pub(super) struct SessionGuard {
    session: Arc<ChatSession>,
    jar: OwnedMutexGuard<CookieJar>,
}

impl SessionTable {
    pub(super) fn new(max: usize) -> Self {
        Self { max, table: Mutex::default() }
    }

    /// Waits until no other call of the conversation is in flight.
    pub(super) async fn lock(&self, conversation: &ConversationId) -> SessionGuard {
        let session = self.touch(conversation);
        let jar = session.jar.clone().lock_owned().await;
        SessionGuard { session, jar }
    }

    /// Drops the conversation's cookies, now or when its call in flight ends.
    pub(super) fn forget(&self, conversation: &ConversationId) {
        let mut table = self.table();
        let Some((tick, session)) = table.sessions.get(conversation) else { return };
        // Others get a session only through this table, so a reference count of one means that the session is unused.
        if Arc::strong_count(session) == 1 {
            let tick = *tick;
            table.order.remove(&tick);
            table.sessions.remove(conversation);
        } else {
            session.forgotten.store(true, Ordering::Release);
        }
    }

    /// Whether a call of the conversation is in flight or waits for its turn.
    pub(super) fn busy(&self, conversation: &ConversationId) -> bool {
        self.table().sessions.get(conversation).is_some_and(|(_, session)| Arc::strong_count(session) > 1)
    }

    fn touch(&self, conversation: &ConversationId) -> Arc<ChatSession> {
        let mut table = self.table();
        table.tick += 1;
        let tick = table.tick;
        let (old, session) = match table.sessions.get_mut(conversation) {
            Some((used, session)) => (Some(std::mem::replace(used, tick)), session.clone()),
            None => {
                let session = Arc::<ChatSession>::default();
                table.sessions.insert(conversation.clone(), (tick, session.clone()));
                (None, session)
            }
        };
        if let Some(old) = old {
            table.order.remove(&old);
        }
        table.order.insert(tick, conversation.clone());
        if table.sessions.len() > self.max {
            table.evict();
        }
        session
    }

    fn table(&self) -> MutexGuard<'_, SessionMap> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table().sessions.len()
    }
}

impl SessionMap {
    /// Drops the unused session that was idle longest.
    fn evict(&mut self) {
        let idle = self.order.iter().find(|(_, conversation)| {
            self.sessions.get(conversation).is_some_and(|(_, session)| Arc::strong_count(session) == 1)
        });
        if let Some((tick, conversation)) = idle.map(|(tick, conversation)| (*tick, conversation.clone())) {
            self.order.remove(&tick);
            self.sessions.remove(&conversation);
        }
    }
}

impl SessionGuard {
    pub(super) fn jar(&mut self) -> &mut CookieJar {
        &mut self.jar
    }

    /// Marks the chat as over, so that its cookies are dropped.
    pub(super) fn end(self) {
        self.session.forgotten.store(true, Ordering::Release);
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if self.session.forgotten.swap(false, Ordering::AcqRel) {
            self.jar.clear();
        }
    }
}

/// The cookies of one session with one host.
#[derive(Default)]
pub(super) struct CookieJar(Vec<StoredCookie>);

struct StoredCookie {
    name: String,
    value: String,
    path: String,
    secure: bool,
    until: Option<Instant>,
}

impl CookieJar {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Stores the cookies of an answer. A new session cookie replaces the old one of the same name.
    pub(super) fn keep(&mut self, url: &Url, headers: &HeaderMap) {
        for header in headers.get_all(SET_COOKIE) {
            let text = String::from_utf8_lossy(header.as_bytes());
            if text.len() <= COOKIE_BYTES_MAX
                && let Ok(cookie) = Cookie::parse(text.into_owned())
                && for_host(&cookie, url)
            {
                self.put(&cookie);
            }
        }
    }

    fn put(&mut self, cookie: &Cookie<'_>) {
        let path = cookie.path().filter(|path| path.starts_with('/')).unwrap_or("/").to_owned();
        self.0.retain(|kept| kept.name != cookie.name() || kept.path != path);
        let Ok(life) = life(cookie) else { return };
        if self.0.len() < COOKIES_MAX {
            let (name, value) = (cookie.name().to_owned(), cookie.value().to_owned());
            let until = life.and_then(|life| Instant::now().checked_add(life));
            self.0.push(StoredCookie { name, value, path, secure: cookie.secure().unwrap_or(false), until });
        }
    }

    /// The `Cookie` header for a call, if there are cookies to send.
    pub(super) fn header(&mut self, url: &Url) -> Option<HeaderValue> {
        let now = Instant::now();
        self.0.retain(|kept| kept.until.is_none_or(|until| until > now));
        let fits =
            |kept: &&StoredCookie| (!kept.secure || url.scheme() == "https") && under(url.path(), &kept.path);
        let pairs = self.0.iter().filter(fits).map(|kept| format!("{}={}", kept.name, kept.value));
        let line = pairs.collect::<Vec<_>>().join("; ");
        let mut value = HeaderValue::try_from(line).ok().filter(|value| !value.is_empty())?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// The lifetime of a cookie. `None`: as long as the jar; `Err`: the cookie is being removed.
fn life(cookie: &Cookie<'_>) -> Result<Option<Duration>, ()> {
    let seconds = match (cookie.max_age(), cookie.expires_datetime()) {
        (Some(age), _) => age.whole_seconds(),
        (None, Some(date)) => date.unix_timestamp().saturating_sub(crate::clock::machine().as_second()),
        (None, None) => return Ok(None),
    };
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(|s| Some(Duration::from_secs(s))).ok_or(())
}

/// Keeps only cookies for the one host that the client calls.
fn for_host(cookie: &Cookie<'_>, url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    cookie.domain().is_none_or(|domain| {
        let domain = domain.trim_start_matches('.').to_ascii_lowercase();
        host == domain || host.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'))
    })
}

fn under(path: &str, cookie_path: &str) -> bool {
    path.strip_prefix(cookie_path)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || cookie_path.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jar(lines: &[&'static str]) -> CookieJar {
        let mut jar = CookieJar::default();
        fill(&mut jar, lines);
        jar
    }

    fn fill(jar: &mut CookieJar, lines: &[&'static str]) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(SET_COOKIE, HeaderValue::from_static(line));
        }
        jar.keep(&url(), &headers);
    }

    fn url() -> Url {
        Url::parse("https://example.service-now.com/api/now/connect/support/queues").unwrap()
    }

    fn sent(jar: &mut CookieJar) -> String {
        jar.header(&url()).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    fn conversation(name: &str) -> ConversationId {
        ConversationId::parse(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn cookies_rotate_expire_and_go() {
        let mut jar = jar(&[
            "JSESSIONID=one; Path=/; HttpOnly; Secure",
            "glide_session_store=s; Max-Age=1800; Path=/",
            "other=x; Domain=evil.example",
            "deep=x; Path=/login",
            "BIGipServerpool_dev=\"1.2\"; Path=/",
        ]);
        assert_eq!(sent(&mut jar), "JSESSIONID=one; glide_session_store=s; BIGipServerpool_dev=\"1.2\"");
        fill(&mut jar, &["JSESSIONID=two; Path=/; HttpOnly; Secure"]);
        assert_eq!(sent(&mut jar), "glide_session_store=s; BIGipServerpool_dev=\"1.2\"; JSESSIONID=two");
        fill(&mut jar, &["BIGipServerpool_dev=; Max-Age=0; Path=/"]);
        fill(&mut jar, &["JSESSIONID=; Expires=Thu, 01 Jan 1970 00:00:10 GMT; Path=/"]);
        tokio::time::advance(Duration::from_secs(1801)).await;
        assert_eq!(sent(&mut jar), "");
    }

    #[test]
    fn a_secure_cookie_stays_off_plain_http() {
        let mut jar = jar(&["JSESSIONID=one; Path=/; Secure"]);
        assert!(jar.header(&Url::parse("http://example.service-now.com/api").unwrap()).is_none());
    }

    #[test]
    fn a_jar_is_small() {
        let mut jar = CookieJar::default();
        let mut headers = HeaderMap::new();
        for number in 0..100 {
            headers.append(SET_COOKIE, HeaderValue::try_from(format!("c{number}=x; Path=/")).unwrap());
        }
        jar.keep(&url(), &headers);
        assert_eq!(jar.0.len(), COOKIES_MAX);
    }

    #[tokio::test]
    async fn the_longest_idle_jar_goes_first_and_none_in_use() {
        let sessions = SessionTable::new(2);
        let held = sessions.lock(&conversation("a")).await;
        for name in ["b", "c"] {
            drop(sessions.lock(&conversation(name)).await);
        }
        assert_eq!(sessions.len(), 2);
        assert!(sessions.busy(&conversation("a")));
        assert!(!sessions.table().sessions.contains_key(&conversation("b")));
        drop(held);
        assert!(!sessions.busy(&conversation("a")));
    }

    #[tokio::test]
    async fn forgetting_waits_for_the_call_in_flight() {
        let sessions = SessionTable::new(8);
        let mut guard = sessions.lock(&conversation("a")).await;
        sessions.forget(&conversation("a"));
        // The next call still waits for the call in flight, and does not get a second session.
        assert!(futures_util::FutureExt::now_or_never(sessions.lock(&conversation("a"))).is_none());
        fill(guard.jar(), &["JSESSIONID=one; Path=/"]);
        drop(guard);
        assert_eq!(sent(sessions.lock(&conversation("a")).await.jar()), "");
        sessions.forget(&conversation("a"));
        assert_eq!((sessions.len(), sessions.table().order.len()), (0, 0));
    }
}
