//! Posts ServiceNow's callback unchanged to XO, and Causeway's own events to the events URL.
//!
//! Guarantees: the bytes of a callback are posted as they were received. If keys are set, each event is signed by each key.
//! Not responsible for: repairing a callback (`ingress/`).

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret as _;

use super::Xo;
use crate::message::MessageId;
use crate::platform::error::CallError;

impl Xo {
    /// Posts ServiceNow's JSON to XO's Callback URL. Any 2xx is success, unless its body is a web page.
    pub async fn forward_callback(&self, body: Bytes) -> Result<(), CallError> {
        let settings = self.settings.get();
        let url = settings.callback_url.as_ref();
        let url = url.ok_or_else(|| CallError::not_made("xo.callback_url is not set"))?;
        Self::post(&self.http, url, HeaderMap::new(), body).await
    }

    /// Posts an event of an API conversation. A repeated post has the same `Idempotency-Key`.
    pub async fn post_event(&self, body: Vec<u8>, id: MessageId) -> Result<(), CallError> {
        let settings = self.settings.get();
        let url = settings.events_url.as_ref();
        let url = url.ok_or_else(|| CallError::not_made("handoffs.events_url is not set"))?;
        let mut headers = HeaderMap::new();
        let key = HeaderValue::try_from(id.to_string());
        headers.insert(
            HeaderName::from_static("idempotency-key"),
            key.map_err(|_| CallError::not_made("the id does not fit into a header"))?,
        );
        if let Some(token) = &settings.events_token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
                .map_err(|_| CallError::not_made("handoffs.events_token does not fit into a header"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        self.sign(&mut headers, &id.to_string(), &body)?;
        Self::post(&self.events, url, headers, body.into()).await
    }

    /// Adds the headers of Standard Webhooks, with one signature for each key. The time is that of this attempt.
    fn sign(&self, headers: &mut HeaderMap, id: &str, body: &[u8]) -> Result<(), CallError> {
        let keys = &self.settings.get().events_keys;
        if keys.is_empty() {
            return Ok(());
        }
        let at = crate::clock::machine().as_second();
        let signatures: Vec<String> = keys.iter().map(|key| key.sign(id, at, body)).collect();
        for (name, value) in [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", signatures.join(" ")),
        ] {
            let value = HeaderValue::try_from(value)
                .map_err(|_| CallError::not_made("the signature does not fit into a header"))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::super::{WebhookKey, XoSettings};
    use super::*;
    use crate::platform::error::{AnswerKind, NoAnswerKind, NotReady, SentState};
    use crate::platform::peer::{self, Peer};

    fn xo(url: &Url) -> Xo {
        let settings = XoSettings {
            callback_url: Some(url.join("/hooks/secret-path").unwrap()),
            events_url: Some(url.join("/events").unwrap()),
            events_token: Some("token-value".into()),
            ..XoSettings::default()
        };
        Xo::new(peer::http(), settings)
    }

    /// The result of a post with this answer.
    async fn answered(answer: &str) -> Result<(), CallError> {
        let peer = Peer::saying(answer).await;
        xo(&peer.url).forward_callback(Bytes::from_static(b"{}")).await
    }

    #[tokio::test]
    async fn the_bytes_arrive_unchanged() {
        let peer = Peer::saying("HTTP/1.1 200 OK\ncontent-type: text/plain\n\nok").await;
        // A body as the stock rule produces it: an unescaped quote makes it invalid JSON.
        let body = include_bytes!("../../../tests/fixtures/servicenow/callback-unescaped-quote.txt");
        xo(&peer.url).forward_callback(Bytes::from_static(body)).await.unwrap();
        let heard = peer.heard.lock().unwrap().concat();
        let (head, sent) = heard.split_once("\r\n\r\n").unwrap();
        assert_eq!(sent.as_bytes(), body);
        assert!(head.starts_with("POST /hooks/secret-path HTTP/1.1"), "{head}");
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(!head.contains("authorization"), "{head}");
    }

    #[tokio::test]
    async fn any_2xx_but_a_page_is_delivery() {
        answered("HTTP/1.1 204 No Content\n\n").await.unwrap();
        answered("HTTP/1.1 202 Accepted\ncontent-type: application/json\n\n{}").await.unwrap();
        answered(include_str!("../../../tests/fixtures/xo/callback-taken.http")).await.unwrap();
        for taken in [
            include_str!("../../../tests/fixtures/xo/callback-taken-by-express.http"),
            "HTTP/1.1 200 OK\ncontent-type: text/html\n\n",
            "HTTP/1.1 202 Accepted\ncontent-type: text/html\n\n<p>ok</p>",
            "HTTP/1.1 200 OK\ncontent-type: application/xml\n\n<?xml version=\"1.0\"?><ok/>",
        ] {
            answered(taken).await.unwrap();
        }
        for page in [
            "\u{feff}<!DOCTYPE html><title>Sign in</title>",
            "<?xml version=\"1.0\"?>\n<!-- a -->\n<HTML>Sign in",
            "<head><title>502</title></head>",
        ] {
            let page = answered(&format!("HTTP/1.1 200 OK\ncontent-type: text/plain\n\n{page}")).await;
            let Err(CallError::Answer(answer)) = page else { panic!() };
            assert_eq!(answer.kind, AnswerKind::NotReady(NotReady::Html));
        }
        let page = answered(include_str!("../../../tests/fixtures/xo/page.http")).await.unwrap_err();
        let CallError::Answer(answer) = page else { panic!() };
        assert_eq!(answer.kind, AnswerKind::NotReady(NotReady::Html));
    }

    #[tokio::test]
    async fn every_answer_of_xo_is_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/xo");
        let mut seen = 0;
        for file in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = file.file_name().into_string().unwrap();
            let kind = match name.as_str() {
                "SOURCES.md" => continue,
                "callback-taken.http" | "callback-taken-by-express.http" => None,
                "page.http" => Some(AnswerKind::NotReady(NotReady::Html)),
                "error-401-apikey.http" => Some(AnswerKind::Credentials),
                "error-429-rate-limit.http" => Some(AnswerKind::Throttled),
                "error-504-timeout.http" => Some(AnswerKind::Temporary),
                other => panic!("nobody says what {other} means"),
            };
            let error = answered(&std::fs::read_to_string(file.path()).unwrap()).await.err();
            let read = error.map(|error| match error {
                CallError::Answer(answer) => answer.kind,
                CallError::NoAnswer(no_answer) => panic!("{no_answer}"),
            });
            assert_eq!(read, kind, "{name}");
            seen += 1;
        }
        assert_eq!(seen, 6);
    }

    #[tokio::test]
    async fn answers_other_than_2xx_are_distinguished() {
        for (status, kind) in [
            (302, AnswerKind::NotReady(NotReady::Redirect)),
            (401, AnswerKind::Credentials),
            (403, AnswerKind::Permanent),
            (404, AnswerKind::Gone),
            (429, AnswerKind::Throttled),
            (503, AnswerKind::Temporary),
        ] {
            let error =
                answered(&format!("HTTP/1.1 {status} X\nlocation: /elsewhere\n\nbody")).await.unwrap_err();
            let CallError::Answer(answer) = error else { panic!() };
            assert_eq!((answer.status, answer.kind), (status, kind));
        }
    }

    #[tokio::test]
    async fn an_event_carries_its_id_and_its_token() {
        let peer = Peer::saying("HTTP/1.1 200 OK\n\n").await;
        let id = MessageId::fresh();
        xo(&peer.url).post_event(b"{}".to_vec(), id).await.unwrap();
        let heard = peer.heard.lock().unwrap().concat();
        assert!(heard.contains(&format!("idempotency-key: {id}")), "{heard}");
        assert!(heard.contains("authorization: Bearer token-value"), "{heard}");
    }

    #[tokio::test]
    async fn an_event_is_signed_by_each_key() {
        let keys = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
            .map(|key| WebhookKey::parse(key).unwrap());
        for count in 0..=2 {
            let peer = Peer::saying("HTTP/1.1 200 OK\n\n").await;
            let settings = XoSettings {
                events_url: Some(peer.url.join("/events").unwrap()),
                events_keys: keys[..count].to_vec(),
                ..XoSettings::default()
            };
            let (id, before) = (MessageId::fresh(), crate::clock::now().as_second());
            Xo::new(peer::http(), settings).post_event(b"{\"a\": 1}".to_vec(), id).await.unwrap();
            let heard = peer.heard.lock().unwrap().concat();
            let header =
                |name: &str| heard.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if count == 0 {
                assert!(!heard.contains("webhook-"), "{heard}");
                continue;
            }
            assert_eq!(header("webhook-id: "), Some(id.to_string()));
            let at: i64 = header("webhook-timestamp: ").unwrap().parse().unwrap();
            assert!((before..=before + 60).contains(&at), "{at}");
            let expected = keys[..count].iter().map(|key| key.sign(&id.to_string(), at, b"{\"a\": 1}"));
            assert_eq!(header("webhook-signature: "), Some(expected.collect::<Vec<_>>().join(" ")));
        }
    }

    #[tokio::test]
    async fn without_an_address_nothing_was_sent() {
        let xo = Xo::new(peer::http(), XoSettings::default());
        let error = xo.forward_callback(Bytes::new()).await.unwrap_err();
        let CallError::NoAnswer(no_answer) = error else { panic!() };
        assert_eq!((no_answer.sent, no_answer.kind), (SentState::No, NoAnswerKind::Connect));
        assert!(no_answer.detail.contains("xo.callback_url"));
    }

    #[tokio::test]
    async fn nothing_shows_the_address_or_the_token() {
        let error = xo(&peer::nobody().await).forward_callback(Bytes::new()).await.unwrap_err();
        let xo = xo(&Url::parse("https://bots.example/").unwrap());
        let shown = format!("{xo:?} {:?} {error:?} {error}", xo.settings);
        assert!(!shown.contains("secret-path") && !shown.contains("token-value"), "{shown}");
    }
}
