//! Fetches a file that a bot's user sent, with the token of the bot's app.
//!
//! Guarantees: only hosts of `xo.allowed_hosts` are called, also after a redirect, and no other host gets the token.
//! A refused token is replaced once.
//! Not responsible for: the limit of a file's size, the destination of the file.
//! Source: `src/platform/xo/FACTS.md`.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue, LOCATION};
use url::Url;

use super::Xo;
use super::botkit::signed;
use crate::platform::error::{AnswerKind, CallError};
use crate::platform::http::{HttpCall, StreamedBody};

/// The maximum number of redirects.
const REDIRECTS_MAX: u8 = 3;

impl Xo {
    /// Whether this address may be fetched with the token of this bot.
    pub fn may_fetch(&self, bot_id: &str, address: &str) -> bool {
        let settings = self.settings.get();
        settings.bots.iter().any(|bot| bot.bot_id == bot_id) && settings.allowed_hosts.admit(address).is_ok()
    }

    /// Opens a file. The whole file must arrive within `time`.
    pub async fn open_file(
        &self,
        bot_id: &str,
        address: &str,
        time: Duration,
    ) -> Result<StreamedBody, CallError> {
        let settings = self.settings.get();
        let bot = settings.bots.iter().find(|bot| bot.bot_id == bot_id);
        let bot = bot.ok_or_else(|| CallError::refused_here("its bot is not configured"))?;
        let http = self.http.with_timeout(time);
        let (mut url, mut redirects, mut renewed) = (self.fetchable(address)?, 0, false);
        loop {
            let mut headers = signed(bot)?;
            headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
            let call = HttpCall { method: Method::GET, url: url.clone(), headers, body: None };
            let opened = http.open(call).await?;
            let status = opened.status.as_u16();
            match AnswerKind::of_status(status) {
                _ if opened.status.is_success() => return Ok(opened.content),
                AnswerKind::Credentials if !renewed => renewed = true,
                AnswerKind::NotReady(_) if redirects < REDIRECTS_MAX => {
                    redirects += 1;
                    let location = opened.headers.get(LOCATION).and_then(|value| value.to_str().ok());
                    let next = location.and_then(|location| url.join(location).ok());
                    let next = next.ok_or_else(|| CallError::refused_here("its redirect leads nowhere"))?;
                    url = self.fetchable(next.as_str())?;
                }
                kind => return Err(CallError::answered(status, None, kind)),
            }
        }
    }

    fn fetchable(&self, address: &str) -> Result<Url, CallError> {
        let url = self.settings.get().allowed_hosts.admit(address);
        url.map_err(|why| CallError::refused_here(format!("the file's address {why}")))
    }
}
