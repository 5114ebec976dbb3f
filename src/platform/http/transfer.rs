//! Transfers bodies piece by piece: a file from one platform to the other, or to a browser.
//!
//! Guarantees: only a few pieces are in memory at a time. A body that exceeds the limit ends with
//! [`BodyError::TooLarge`] before its end. No redirect is followed.
//! Not responsible for: the meaning of a status (`xo/files.rs`, `servicenow/attachments.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};

use super::{HttpCall, HttpClient, HttpReply, read, traced};
use crate::platform::error::{NoAnswer, NoAnswerKind, SentState};

/// The reason why a body ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The file exceeds the limit.
    #[error("the file is larger than files.max_size")]
    TooLarge,
    /// The sender stopped.
    #[error("the file transfer was interrupted")]
    Cut,
}

/// An answer with an unread body.
pub(crate) struct OpenedBody {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) content: StreamedBody,
}

/// A file in transfer. `Debug` shows no bytes.
pub struct StreamedBody {
    /// The media type, as the sender states it.
    pub content_type: Option<String>,
    /// The length in bytes, if the sender states it.
    pub length: Option<u64>,
    body: BoxStream<'static, Result<Bytes, BodyError>>,
    too_large: Arc<AtomicBool>,
}

impl std::fmt::Debug for StreamedBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamedBody").field("length", &self.length).finish_non_exhaustive()
    }
}

impl StreamedBody {
    /// The same content, which ends with an error if it exceeds `most` bytes.
    #[must_use]
    pub fn limited(self, most: u64) -> Self {
        let (mut passed, too_large) = (0_u64, self.too_large.clone());
        let body = self.body.map(move |piece| {
            let piece = piece?;
            passed += piece.len() as u64;
            if passed > most {
                too_large.store(true, Ordering::Relaxed);
                return Err(BodyError::TooLarge);
            }
            Ok(piece)
        });
        Self { body: body.boxed(), ..self }
    }

    /// Whether the content is empty. Waits for the first byte.
    pub async fn is_empty(&mut self) -> bool {
        if self.length == Some(0) {
            return true;
        }
        loop {
            match self.body.next().await {
                None => return true,
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(first) => {
                    let rest = std::mem::replace(&mut self.body, futures_util::stream::empty().boxed());
                    self.body = futures_util::stream::iter([first]).chain(rest).boxed();
                    return false;
                }
            }
        }
    }

    /// Returns a function that reports whether the content has exceeded the limit.
    pub fn was_too_large(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let too_large = self.too_large.clone();
        move || too_large.load(Ordering::Relaxed)
    }

    /// The content as a stream of pieces.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, BodyError>> {
        self.body
    }
}

impl HttpClient {
    /// Makes one call and leaves the body of the answer unread.
    pub(crate) async fn open(&self, call: HttpCall) -> Result<OpenedBody, NoAnswer> {
        self.may_call()?;
        let mut response = self.send(call.method, call.url, traced(call.headers), None).await?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let content = StreamedBody {
            content_type: text(CONTENT_TYPE),
            length: text(CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            body: response.bytes_stream().map(|piece| piece.map_err(|_| BodyError::Cut)).boxed(),
            too_large: Arc::default(),
        };
        Ok(OpenedBody { status, headers, content })
    }

    /// Makes one call whose body is `content`.
    pub(crate) async fn pass_on(&self, call: HttpCall, content: StreamedBody) -> Result<HttpReply, NoAnswer> {
        self.may_call()?;
        let mut headers = traced(call.headers);
        if let Some(length) = content.length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        let body = reqwest::Body::wrap_stream(content.into_stream());
        let mut response = self.send(call.method, call.url, headers, Some(body)).await?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        Ok(HttpReply { status, headers, body: read(response).await })
    }

    fn may_call(&self) -> Result<(), NoAnswer> {
        if (self.right.0)() {
            return Ok(());
        }
        Err(NoAnswer { sent: SentState::No, kind: NoAnswerKind::NoRight, detail: String::new() })
    }
}
