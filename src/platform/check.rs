//! Checks both platforms for `causeway check`. Each finding is one line, with a hint what to do.
//!
//! Guarantees: opens no chat and posts nothing.
//! Not responsible for: printing.

use futures_util::future::join_all;
use jiff::Timestamp;
use url::Url;

use super::error::{AnswerKind, CallError, ErrorAnswer, NoAnswerKind, NotReady};
use super::servicenow::LoginKind;
use super::{ChatApi, QueueState, ServiceNow, Xo, XoBot};
use crate::tls::TlsFault;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformFinding {
    /// `true` if nothing has to be changed.
    pub ok: bool,
    /// The finding in one line.
    pub what: String,
    /// A hint how to proceed. Empty if there is nothing to do.
    pub hint: String,
}

impl PlatformFinding {
    fn good(what: impl Into<String>) -> Self {
        Self { ok: true, what: what.into(), hint: String::new() }
    }

    fn bad(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { ok: false, what: what.into(), hint: hint.into() }
    }
}

/// Checks ServiceNow: connection, login, chat API, queues and clock. `queues` holds a pair of settings key and Queue
/// ID for each queue that a start can go to.
pub async fn servicenow(servicenow: &ServiceNow, queues: &[(String, String)]) -> Vec<PlatformFinding> {
    let (mut findings, clock) = tokio::join!(login_and_queue(servicenow, queues), servicenow.time());
    // If the instance does not answer, `login_and_queue` reports it already.
    if let Ok(Some(theirs)) = clock {
        findings.extend(clocks("ServiceNow", theirs, crate::clock::machine()));
    }
    findings
}

async fn login_and_queue(servicenow: &ServiceNow, queues: &[(String, String)]) -> Vec<PlatformFinding> {
    if let Err(error) = servicenow.log_in().await {
        return no_token(&error, servicenow.login_kind());
    }
    if servicenow.api() == ChatApi::VirtualAgent {
        let mut findings = virtual_agent(servicenow).await;
        if findings.iter().all(|finding| finding.ok) {
            findings.extend(not_asked_for(queues));
        }
        return findings;
    }
    let mut findings = default_queue(servicenow).await;
    if findings.first().is_some_and(|finding| finding.ok) {
        findings.extend(routed_queues(servicenow, queues).await);
    }
    findings
}

/// With the Virtual Agent API a Queue ID is a context variable. Only the conditions of the instance's queues read it.
fn not_asked_for(queues: &[(String, String)]) -> Option<PlatformFinding> {
    let keys: Vec<&str> = queues.iter().map(|(key, _)| key.as_str()).collect();
    (!keys.is_empty()).then(|| PlatformFinding {
        ok: true,
        what: format!("{} cannot be asked for over the Virtual Agent API", keys.join(", ")),
        hint: "the conditions of the instance's work item queues read the context variable: one real chat shows it".into(),
    })
}

/// Checks each queue of the routes. An id that occurs several times is checked once.
async fn routed_queues(servicenow: &ServiceNow, queues: &[(String, String)]) -> Vec<PlatformFinding> {
    let mut ids: Vec<(&str, &str)> = Vec::new();
    for (key, id) in queues.iter().filter(|(_, id)| servicenow.queue_id() != Some(id)) {
        if !ids.iter().any(|(_, known)| known == id) {
            ids.push((key, id));
        }
    }
    let asked = ids.iter().map(async |(key, id)| match servicenow.queue(id).await {
        Ok(queue) => PlatformFinding { what: format!("{key}: {}", opening(&queue).what), ..opening(&queue) },
        Err(error) => {
            let found = refused(&error, true).pop();
            let found = found.unwrap_or_else(|| PlatformFinding::bad(error.to_string(), "try again later"));
            let hint = found.hint.replace("servicenow.queue_id", key);
            PlatformFinding { what: format!("{key}: {}", found.what), hint, ..found }
        }
    });
    join_all(asked).await
}

async fn default_queue(servicenow: &ServiceNow) -> Vec<PlatformFinding> {
    let answer = match servicenow.queue_id() {
        Some(id) => servicenow.queue(id).await.map(|queue| vec![queue]),
        None => servicenow.queues().await,
    };
    match answer {
        Ok(queues) => {
            let mut findings =
                vec![PlatformFinding::good("ServiceNow answers, takes the login and has Connect Support")];
            if servicenow.queue_id().is_some() {
                findings.extend(queues.iter().map(opening));
            } else {
                findings.push(no_queue(&queues));
            }
            findings
        }
        Err(error) => refused(&error, servicenow.queue_id().is_some()),
    }
}

/// The largest clock difference in seconds that is not reported. Signatures are valid for 300 s, XO's tokens for 60
/// s.
const CLOCKS_APART_MAX: i64 = 30;

/// Reports the clock difference between the platform and this machine if it exceeds the limit.
fn clocks(who: &str, theirs: Timestamp, ours: Timestamp) -> Option<PlatformFinding> {
    let ahead = theirs.as_second() - ours.as_second();
    let (apart, way) = (ahead.abs(), if ahead > 0 { "ahead of" } else { "behind" });
    (apart > CLOCKS_APART_MAX).then(|| PlatformFinding {
        ok: true,
        what: format!("{who}'s clock is {apart} s {way} ours"),
        hint: "set this machine's clock by NTP: signed callbacks are refused beyond 300 s, XO's tokens beyond 60 s"
            .into(),
    })
}

/// The Virtual Agent API cannot list queues. The status of a GET on its own address shows whether it is installed.
async fn virtual_agent(servicenow: &ServiceNow) -> Vec<PlatformFinding> {
    match servicenow.virtual_agent_installed().await {
        Ok(()) => {
            vec![PlatformFinding::good("ServiceNow answers, takes the login and has the Virtual Agent API")]
        }
        Err(CallError::Answer(answer)) if answer.is_no_such_api() => {
            let hint = "install the store application \"Virtual Agent API\" (sn_va_as_service), which needs a licence; on \
                        Tokyo and lower use servicenow.api = \"connect_support\"";
            vec![
                PlatformFinding::good("ServiceNow answers"),
                PlatformFinding::bad("ServiceNow has no Virtual Agent Bot Integration API", hint),
            ]
        }
        Err(error) => refused(&error, false),
    }
}

fn opening(queue: &QueueState) -> PlatformFinding {
    let name = queue.name.as_deref().unwrap_or("without a name");
    if queue.not_available.is_some() {
        // A closed queue can be correct (outside its schedule), so the finding is not an error.
        let hint = "outside its schedule every start is answered \"no agent\"; see the queue's Schedule";
        return PlatformFinding {
            ok: true,
            what: format!("queue \"{name}\" is closed now"),
            hint: hint.into(),
        };
    }
    PlatformFinding::good(format!("queue \"{name}\" is open"))
}

fn no_queue(queues: &[QueueState]) -> PlatformFinding {
    let listed = queues
        .iter()
        .take(20)
        .map(|queue| format!("{} ({})", queue.sys_id, queue.name.as_deref().unwrap_or("without a name")));
    let listed = listed.collect::<Vec<_>>().join(", ");
    let hint = if listed.is_empty() {
        "the user sees no queue: set servicenow.queue_id, or let every start name its queue".to_owned()
    } else {
        format!("set servicenow.queue_id, or let every start name its queue; the user sees: {listed}")
    };
    PlatformFinding { ok: true, what: "servicenow.queue_id is not set".into(), hint }
}

fn refused(error: &CallError, asked_for_queue: bool) -> Vec<PlatformFinding> {
    let there = || PlatformFinding::good("ServiceNow answers");
    let known = || PlatformFinding::good("ServiceNow takes the login");
    match error {
        CallError::NoAnswer(_) => {
            vec![PlatformFinding::bad(format!("ServiceNow: {}", error.with_words()), unreachable(error))]
        }
        CallError::Answer(answer) if answer.is_no_such_api() => {
            let hint = "the Connect Support plugin is not active, or the instance is Utah or newer, where new ones \
                        have only the Virtual Agent API";
            vec![there(), PlatformFinding::bad("ServiceNow has no Connect Support API", hint)]
        }
        CallError::Answer(answer) => match &answer.kind {
            AnswerKind::Credentials => {
                vec![
                    there(),
                    PlatformFinding::bad(format!("ServiceNow: {}", error.with_words()), next_step(error)),
                ]
            }
            AnswerKind::NotReady(how) => {
                vec![PlatformFinding::bad(format!("ServiceNow: {}", error.with_words()), not_ready(*how))]
            }
            AnswerKind::Gone if asked_for_queue && says_no_record(answer) => {
                let hint = "servicenow.queue_id must be the sys_id of a chat_queue that the user may read";
                vec![there(), known(), PlatformFinding::bad("ServiceNow has no such queue", hint)]
            }
            AnswerKind::Gone => {
                let hint = "the answer does not look like ServiceNow's: servicenow.host_url must be the instance's own address";
                vec![PlatformFinding::bad(format!("ServiceNow: {}", error.with_words()), hint)]
            }
            AnswerKind::Permanent | AnswerKind::Business(_)
                if answer.status == 403 && answer.said.is_empty() =>
            {
                let hint = "ServiceNow states a reason in its own 403, but this answer has none: a proxy or a firewall refused the call, or servicenow.host_url is another host";
                vec![PlatformFinding::bad(format!("ServiceNow: {error}"), hint)]
            }
            AnswerKind::Permanent | AnswerKind::Business(_) if answer.status == 403 => {
                let hint = "give the user the roles that Connect Support needs, such as agent_admin";
                vec![
                    there(),
                    known(),
                    PlatformFinding::bad(format!("ServiceNow: {}", error.with_words()), hint),
                ]
            }
            _ => vec![
                there(),
                PlatformFinding::bad(
                    format!("ServiceNow: {}", error.with_words()),
                    "try again later; see ServiceNow's logs",
                ),
            ],
        },
    }
}

/// True for ServiceNow's own 404, which it sends only after it accepted the login. Other servers send other 404s.
fn says_no_record(answer: &ErrorAnswer) -> bool {
    answer.said.reveal().to_ascii_lowercase().contains("no record found")
}

/// Explains why the login by token was refused.
fn no_token(error: &CallError, kind: LoginKind) -> Vec<PlatformFinding> {
    let credentials = matches!(error, CallError::Answer(answer) if answer.kind == AnswerKind::Credentials);
    if !credentials {
        return refused(error, false);
    }
    let hint = match kind {
        LoginKind::RefreshToken => {
            "the refresh token is refused: revoked, too old, or of another client. Check servicenow.client_id and \
             servicenow.client_secret, then get a new servicenow.refresh_token from the application registry; or leave it \
             out and use client credentials"
        }
        LoginKind::ClientCredentials => {
            "check servicenow.client_id and servicenow.client_secret; if they are right, the client credentials grant is \
             disabled: set the system property glide.oauth.inbound.client.credential.grant_type.enabled to true and name \
             an OAuth Application User in the application registry"
        }
        LoginKind::Basic => "check servicenow.username and servicenow.password",
    };
    vec![
        PlatformFinding::good("ServiceNow answers"),
        PlatformFinding::bad(format!("ServiceNow: {}", error.with_words()), hint),
    ]
}

/// Returns the next step for an error that any call can return.
pub(crate) fn next_step(error: &CallError) -> &'static str {
    match error {
        CallError::NoAnswer(_) => unreachable(error),
        CallError::Answer(answer) if answer.lacks_second_factor() => {
            "the password is right, but the user needs a second factor, which no program has: exempt it from \
             multi-factor authentication (as \"Web service access only\"), or use servicenow.auth = \"oauth\""
        }
        CallError::Answer(answer) => match answer.kind {
            AnswerKind::Credentials if answer.detail.contains("OAuth") => {
                "check servicenow.client_id, servicenow.client_secret and servicenow.refresh_token; `causeway check` says \
                 more"
            }
            AnswerKind::Credentials => {
                "check servicenow.username and servicenow.password; if they are right, Basic login is restricted since \
                 2026: mark the user \"Web service access only\", give it the role snc_basic_auth_api_access, or use \
                 servicenow.auth = \"oauth\""
            }
            AnswerKind::NotReady(how) => not_ready(how),
            _ => "try again later; see ServiceNow's logs",
        },
    }
}

const fn not_ready(how: NotReady) -> &'static str {
    match how {
        NotReady::Html => "the instance hibernates or is in maintenance: wake it by signing in to it",
        NotReady::Redirect => "servicenow.host_url must be the instance's own address, with https",
        NotReady::Accepted => "the instance is overloaded: try again later",
    }
}

fn unreachable(error: &CallError) -> &'static str {
    match error {
        CallError::NoAnswer(no_answer) => match no_answer.kind {
            NoAnswerKind::Tls(fault) => tls_hint(fault),
            NoAnswerKind::Proxy => {
                "see http.proxy and the proxy of this destination, such as servicenow.proxy: is the address right, are user \
                 and password right, and does the proxy allow the destination? http.no_proxy lists hosts that need no proxy"
            }
            NoAnswerKind::NotHttp => "the address does not speak plain HTTP: does it need https://?",
            NoAnswerKind::BadBody | NoAnswerKind::TooLarge => {
                "the address answers, but not like the platform: check the address"
            }
            NoAnswerKind::Connect => "check the address, the name service and the firewall",
            NoAnswerKind::Timeout | NoAnswerKind::Reset => {
                "the address exists but does not answer: check the firewall"
            }
            NoAnswerKind::NoRight => "",
        },
        CallError::Answer(_) => "",
    }
}

/// The next step after a failure of TLS. The finding itself names the certificate.
const fn tls_hint(fault: TlsFault) -> &'static str {
    match fault {
        TlsFault::UnknownIssuer => {
            "if the issuer is your company's, or a proxy that inspects TLS: name its certificate with http.ca_file"
        }
        TlsFault::Expired => {
            "its owner must renew the certificate; if the date is wrong, set this machine's clock by NTP"
        }
        TlsFault::NotYetValid => "set this machine's clock by NTP",
        TlsFault::WrongName => "the address must be a name of the certificate: check the address",
        TlsFault::NotTls => "the address does not speak TLS: check the port, or does it need http://?",
        TlsFault::TlsNeeded => "the address speaks TLS: does it need https://?",
        TlsFault::ClientCertificate => {
            "the server wants a client certificate that it trusts: see servicenow.client_cert_file and \
             servicenow.client_key_file"
        }
        TlsFault::Other => {
            "is the port right, and does the address speak TLS 1.2 or later? A firewall may also end the connection"
        }
    }
}

/// Checks XO: do the configured addresses answer, and does XO accept the credentials of the bots? Any further check
/// would have to post something.
pub async fn xo(xo: &Xo) -> Vec<PlatformFinding> {
    let mut findings = Vec::new();
    for (key, url) in [("xo.callback_url", xo.callback_url()), ("handoffs.events_url", xo.events_url())] {
        if let Some(url) = url {
            findings.extend(knocked(xo, key, &url, true).await);
        }
    }
    let (bots, hosts) = xo.bots();
    let hosts: Vec<Url> = hosts.iter().filter_map(|host| root(host)).collect();
    for host in hosts.iter().filter(|_| !bots.is_empty()) {
        findings.extend(knocked(xo, "xo.allowed_hosts", host, false).await);
    }
    findings.extend(join_all(bots.iter().map(|bot| credential(xo, bot, &hosts))).await.into_iter().flatten());
    if !bots.is_empty() {
        findings.push(PlatformFinding {
            ok: true,
            what: "XO has no call that lists which of its events are subscribed".into(),
            hint: SUBSCRIPTIONS.into(),
        });
    }
    findings
}

/// Shown as a hint because XO has no call that lists the subscriptions.
const SUBSCRIPTIONS: &str = "in XO's BotKit settings subscribe to OnMessage (both message events), OnAgentTransfer and OnEvent; also \
                             to OnAlert, OnClientEvent, OnHook and OnVariableUpdate if the bot has them. With OnMessage the bot \
                             answers only through Causeway: XO waits until Causeway has passed each message on";

fn root(host: &str) -> Option<Url> {
    if host.starts_with("http://") {
        return Url::parse(host).ok();
    }
    let loopback = host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]");
    Url::parse(&format!("{}://{host}/", if loopback { "http" } else { "https" })).ok()
}

/// Checks whether XO accepts a bot's credential at any of the allowed hosts. Returns `None` if no host answers,
/// because that is reported already.
async fn credential(xo: &Xo, bot: &XoBot, hosts: &[Url]) -> Option<PlatformFinding> {
    let answers = join_all(hosts.iter().map(|host| xo.try_bot(bot, host))).await;
    let statuses: Vec<u16> = answers.into_iter().flatten().map(|status| status.as_u16()).collect();
    let (name, first) = (format!("bot {}", bot.bot_id), *statuses.first()?);
    if statuses.iter().any(|status| (200..300).contains(status)) {
        return Some(PlatformFinding::good(format!("{name}: XO takes its credential")));
    }
    if let Some(refused) = statuses.iter().find(|status| [401, 403].contains(*status)) {
        let hint = "xo.bot_id, xo.app_id and xo.client_secret must be of one app of the bot (App settings > BotKit, HS256 or \
                    HS512), and a token lives for a minute: set the clock by NTP. With a wrong secret XO's own events get 401 \
                    here, too";
        return Some(PlatformFinding::bad(
            format!("{name}: XO refuses its credential (status {refused})"),
            hint,
        ));
    }
    // XO does not document which other statuses it sends.
    let what = format!("{name}: could not find out whether XO takes its credential (status {first})");
    Some(PlatformFinding { ok: true, what, hint: "one real chat shows it".into() })
}

/// `takes_posts`: messages are posted to exactly this address, so a 404 is an error.
async fn knocked(xo: &Xo, key: &str, url: &Url, takes_posts: bool) -> Vec<PlatformFinding> {
    let host = url.host_str().unwrap_or_default();
    match xo.probe_url(url).await {
        Ok((status @ (404 | 410), _)) if takes_posts => {
            let hint = "the path does not exist, so every message to it would become a dead letter: check the address";
            vec![PlatformFinding::bad(format!("{key}: {host} answers status {status}"), hint)]
        }
        Ok((status, theirs)) => {
            let there = PlatformFinding::good(format!("{key}: {host} answers (status {status} to a GET)"));
            let clocks = theirs.and_then(|theirs| clocks(host, theirs, crate::clock::machine()));
            std::iter::once(there).chain(clocks).collect()
        }
        Err(error) => vec![PlatformFinding::bad(format!("{key}: {host}: {error}"), unreachable(&error))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::AllowedHosts;
    use crate::platform::peer::{self, Peer};
    use crate::platform::xo::TokenAlgorithm;
    use crate::platform::{ServiceNowLogin, ServiceNowSettings, XoSettings};

    async fn asked(answer: &str, queue_id: Option<&str>) -> Vec<PlatformFinding> {
        let peer = Peer::saying(answer).await;
        let settings = ServiceNowSettings {
            host_url: peer.url.clone(),
            login: ServiceNowLogin::Basic { username: "u".into(), password: "p".into() },
            queue_id: queue_id.map(str::to_owned),
        };
        servicenow(&ServiceNow::new(peer::http(), settings), &[]).await
    }

    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!("../../tests/fixtures/servicenow/", $name))
        };
    }

    #[tokio::test]
    async fn each_trouble_has_its_hint() {
        for (answer, says) in [
            (fixture!("error-401-not-authenticated.http"), "snc_basic_auth_api_access"),
            (fixture!("error-400-no-such-resource.http"), "plugin"),
            (fixture!("error-404-no-record.http"), "sys_id"),
            ("HTTP/1.1 404 Not Found\ncontent-type: text/html\n\n<html>no such page</html>", "own address"),
            (
                "HTTP/1.1 404 Not Found\ncontent-type: application/json\n\n{\"message\":\"not found\"}",
                "own address",
            ),
            ("HTTP/1.1 403 Forbidden\ncontent-type: text/plain\n\nforbidden", "proxy"),
            (fixture!("error-403-insufficient-rights.http"), "roles"),
            (fixture!("page-hibernating.http"), "hibernates"),
            (fixture!("redirect-login.http"), "host_url"),
            (fixture!("error-429-rate-limit.http"), "later"),
        ] {
            let findings = asked(answer, Some("q")).await;
            let last = findings.last().unwrap();
            assert!(!last.ok && last.hint.contains(says), "{last:?}");
            let foreign = ["own address", "proxy"].contains(&says);
            assert!(!foreign || !findings.iter().any(|finding| finding.ok), "{findings:?}");
        }
    }

    #[tokio::test]
    async fn an_open_and_a_closed_queue_are_found() {
        let ok = "HTTP/1.1 200 OK\ncontent-type: application/json;charset=UTF-8\n\n";
        let findings = asked(&format!("{ok}{}", fixture!("queue-open.json")), Some("q")).await;
        assert!(findings.iter().all(|finding| finding.ok && finding.hint.is_empty()), "{findings:?}");
        let findings = asked(&format!("{ok}{}", fixture!("queue-closed.json")), Some("q")).await;
        assert!(findings[1].what.contains("closed now"), "{findings:?}");
        let findings = asked(&format!("{ok}{}", fixture!("queues.json")), None).await;
        assert!(findings[1].hint.contains("IT Support"), "{findings:?}");
    }

    #[tokio::test]
    async fn the_credential_of_a_bot_is_judged_by_what_xo_answers() {
        for (answer, ok, says) in [
            ("HTTP/1.1 200 OK\n\n", true, ""),
            ("HTTP/1.1 401 Unauthorized\n\n", false, "xo.client_secret"),
            ("HTTP/1.1 403 Forbidden\n\n", false, "xo.client_secret"),
            // XO documents no other answers, so another status is reported without a verdict.
            ("HTTP/1.1 404 Not Found\n\n", true, "one real chat"),
        ] {
            let peer = Peer::saying(answer).await;
            let (bot_id, app_id, client_secret) = ("st-1".into(), "cs-1".into(), "s".into());
            let bot = XoBot { bot_id, app_id, client_secret, algorithm: TokenAlgorithm::default() };
            let host = format!("{}:{}", peer.url.host_str().unwrap(), peer.url.port().unwrap());
            let allowed_hosts = AllowedHosts::new(vec![host]);
            let settings = XoSettings { bots: vec![bot], allowed_hosts, ..XoSettings::default() };
            let findings = xo(&Xo::new(peer::http(), settings)).await;
            let last = findings.iter().rfind(|finding| finding.what.contains("st-1")).unwrap();
            assert!(last.ok == ok && last.what.contains("st-1"), "{findings:?}");
            assert_eq!(
                (last.hint.contains(says), last.hint.is_empty()),
                (true, says.is_empty()),
                "{findings:?}"
            );
            let heard = peer.heard.lock().unwrap();
            assert!(heard.iter().all(|request| request.starts_with("GET ")), "{heard:?}");
            let asked =
                heard.iter().find(|request| request.starts_with("GET /api/botsdk/stream/st-1/getMessages?"));
            assert!(asked.is_some_and(|request| request.contains("\r\nauth: ")), "{heard:?}");
        }
    }

    #[tokio::test]
    async fn xo_is_only_knocked_at() {
        let peer = Peer::saying("HTTP/1.1 405 Method Not Allowed\n\n").await;
        let settings = XoSettings { callback_url: Some(peer.url.clone()), ..XoSettings::default() };
        let findings = xo(&Xo::new(peer::http(), settings)).await;
        assert!(findings[0].ok, "{findings:?}");
        assert!(peer.heard.lock().unwrap()[0].starts_with("GET / "));
        let missing = Peer::saying("HTTP/1.1 404 Not Found\n\n").await;
        for settings in [
            XoSettings { callback_url: Some(missing.url.clone()), ..XoSettings::default() },
            XoSettings { events_url: Some(missing.url.clone()), ..XoSettings::default() },
        ] {
            let findings = xo(&Xo::new(peer::http(), settings)).await;
            assert!(!findings[0].ok && findings[0].what.contains("404"), "{findings:?}");
        }
        let settings = XoSettings { callback_url: Some(peer::nobody().await), ..XoSettings::default() };
        assert!(!xo(&Xo::new(peer::http(), settings)).await[0].ok);
    }
}
