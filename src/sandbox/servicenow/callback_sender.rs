//! The Business Rule on `live_message` and its REST message: one POST for each row, synchronous, without retries, at
//! most four at a time. The receiver's answer is only recorded in the ledger.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Client, Method, RequestBuilder, header};
use sha2::Sha256;
use tokio::sync::Semaphore;

use super::workspace::{self, AgentWorkspace, MessageRow, RefusedAction};
use crate::sandbox::fault_rules::{FaultScript, InjectedFault, Operation, SeenCall, Side};
use crate::sandbox::ledger::{ArrivedCall, RequestLedger};
use crate::sandbox::settings::{BodyStyle, CallbackCredential, CallbackSettings};

/// The system property `instance_name`.
const INSTANCE: &str = "sandbox";
/// `glide.http.connection_mgr.max_connections_per_host`.
const AT_ONCE: usize = 4;

#[derive(Debug)]
pub(crate) struct CallbackSender {
    // Without a client no callback is posted. The ledger then shows callbacks without an answer.
    client: Option<Client>,
    settings: Mutex<Option<CallbackSettings>>,
    slots: Semaphore,
}

impl CallbackSender {
    pub(crate) fn new(settings: Option<CallbackSettings>) -> Self {
        Self {
            client: crate::sandbox::http::client("ServiceNow/1.0"),
            settings: Mutex::new(settings),
            slots: Semaphore::new(AT_ONCE),
        }
    }

    pub(crate) fn redirect(&self, settings: Option<CallbackSettings>) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    pub(crate) async fn post(
        &self,
        script: &FaultScript,
        ledger: &RequestLedger,
        row: &MessageRow,
        substitutes: bool,
    ) {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(settings) = settings else { return };
        let Ok(_slot) = self.slots.acquire().await else { return };
        let body = row.callback.clone().unwrap_or_else(|| body(settings.style, row));
        let flight = ledger.open(Side::ServiceNow, Operation::Callback, arrival(&settings, row, &body));
        let seen = SeenCall {
            side: Side::ServiceNow,
            operation: Operation::Callback,
            names: [Some(&row.group), None],
            text: Some(&row.text),
        };
        let spoil = script.judge(seen);
        if let Some(spoil) = &spoil {
            flight.page().spoiled(spoil.fault.name());
        }
        match spoil.map(|spoil| spoil.fault) {
            None => {}
            Some(InjectedFault::Delay { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
            // Every other fault loses the callback.
            Some(_) => return,
        }
        let Some(client) = &self.client else { return };
        let request = client.request(Method::POST, &settings.url).timeout(settings.timeout);
        let request = prove(request, &settings.credential, &body);
        let body = if substitutes { substituted(&body) } else { body };
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        if let Ok(answer) = request.send().await {
            flight.answered(answer.status().as_u16());
            if answer.status().is_success() {
                flight.page().applied(None);
            }
        }
    }
}

/// Posts the callback of a text that an agent wrote in a clone of this instance. The clone has the same chat, and this
/// instance never gets the row.
pub(crate) fn row_of_a_clone(
    workspace: &AgentWorkspace,
    group: &str,
    text: &str,
) -> Result<MessageRow, RefusedAction> {
    let previous = workspace.chat(group)?.rows.last().map(|row| row.sys_id.clone()).unwrap_or_default();
    Ok(MessageRow {
        sys_id: workspace::record_id(),
        group: group.to_owned(),
        created_by: workspace.agent().0,
        created: crate::clock::now(),
        text: text.to_owned(),
        reflected_field: "comments".to_owned(),
        attachments: Vec::new(),
        internal: false,
        previous,
        last_message: None,
        callback: None,
    })
}

fn arrival(settings: &CallbackSettings, row: &MessageRow, body: &str) -> ArrivedCall {
    // The query is omitted, because it may contain the receiver's token.
    let path = settings.url.split('?').next().unwrap_or_default();
    ArrivedCall {
        conversation: Some(row.group.clone()),
        group: Some(row.group.clone()),
        message_id: Some(row.sys_id.clone()),
        event: None,
        text: Some(row.text.clone()),
        method: "POST".to_owned(),
        path: path.to_owned(),
        body: body.to_owned(),
        traceparent: None,
        outbound: true,
    }
}

fn prove(request: RequestBuilder, credential: &CallbackCredential, body: &str) -> RequestBuilder {
    match credential {
        CallbackCredential::None => request,
        CallbackCredential::Header { name, value } => request.header(name, value),
        CallbackCredential::Basic { username, password } => request.basic_auth(username, Some(password)),
        CallbackCredential::Hmac { secret } => {
            let at = crate::clock::now().as_second();
            let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return request };
            mac.update(format!("{at}.").as_bytes());
            mac.update(body.as_bytes());
            let proof = BASE64.encode(mac.finalize().into_bytes());
            request.header("x-causeway-signature", format!("t={at},v1={proof}"))
        }
    }
}

/// The body that the rule writes. This function must not repair mistakes of the real rule.
fn body(style: BodyStyle, row: &MessageRow) -> String {
    let MessageRow { sys_id, group, created_by, text, .. } = row;
    let last_message = row.last_message.as_deref();
    let text = match style {
        BodyStyle::Stringify => {
            return serde_json::json!({
                "group": group,
                "formatted_message": text,
                "sys_created_by": created_by,
                "last_message": last_message.unwrap_or_default(),
                "sys_id": sys_id,
            })
            .to_string();
        }
        BodyStyle::OwnRule => {
            let body = serde_json::json!({
                "group": group,
                "formatted_message": text,
                "sys_created_by": created_by,
                "sys_id": sys_id,
                "instance": INSTANCE,
                "sent_at": row.created.as_millisecond(),
                "previous": row.previous,
                "internal": row.internal.to_string(),
            });
            return escaped(&body);
        }
        BodyStyle::StockScript => escape_for_home_page(text),
        BodyStyle::StockScriptUnescaped => text.clone(),
    };
    let last_message = last_message.unwrap_or("undefined");
    format!(
        "{{\"group\":\"{group}\",\"formatted_message\":\"{text}\",\"sys_created_by\":\"{created_by}\",\
         \"last_message\":\"{last_message}\",\"sys_id\":\"{sys_id}\"}}"
    )
}

/// An object of texts, numbers and null as JSON. Every character of a text outside of a safe set is `\uXXXX`.
fn escaped(body: &serde_json::Value) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || " ,.;:!?()_-".contains(c);
    let text = |text: &str| {
        let units = text.chars().map(|c| {
            let mut units = [0; 2];
            let escapes = c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}"));
            if is_safe(c) { c.to_string() } else { escapes.collect() }
        });
        format!("\"{}\"", units.collect::<String>())
    };
    let members = body.as_object().into_iter().flatten().map(|(name, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), text);
        format!("\"{name}\":{value}")
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// The body without its `${…}`.
fn substituted(body: &str) -> String {
    let mut rest = body;
    let mut kept = String::with_capacity(body.len());
    while let Some((before, variable)) = rest.split_once("${") {
        let Some((_, after)) = variable.split_once('}') else { break };
        kept.push_str(before);
        rest = after;
    }
    kept + rest
}

/// `GlideStringUtil.escapeForHomePage` as documented. Escaping of quotes and backslashes is not documented, so they
/// stay.
fn escape_for_home_page(text: &str) -> String {
    text.replace('<', "%3c").replace('>', "%3e").replace('\n', "\\n")
}
