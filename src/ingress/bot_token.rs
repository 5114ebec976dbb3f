//! Verifies the `token` of XO's events: a JWT (RFC 7519) signed with the app's client secret, or XO's older `apikey`.
//!
//! Guarantees: only HS256 and HS512 are accepted, regardless of the token's header. The signature is checked in
//! constant time, before any claim is read. The claims `exp` and `nbf` are enforced to within [`LEEWAY`]. A token
//! without `exp` is accepted: BotKit accepts it, and XO does not document that it always sends one.
//!
//! The code uses `hmac`, a dependency that exists already. The two algorithms need twenty lines, and a JWT library
//! would add the algorithms that must be refused.
//! Not responsible for: to which bot the credential belongs (`botkit`).

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::Value;
use sha2::{Sha256, Sha512};

use crate::http_server::credentials;

/// The tolerated difference between XO's clock and ours, in seconds.
const LEEWAY: f64 = 60.0;
/// The largest token in bytes. A token with two short claims has some hundred bytes.
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// The credentials for the events of one bot.
#[derive(Debug, Clone)]
pub struct BotCredential {
    /// XO's id of the bot, as in the URL.
    pub bot_id: String,
    /// The client id of its app.
    pub app_id: String,
    /// The client secret of its app.
    pub client_secret: SecretString,
}

/// Whether the head of an event carries this bot's credential.
pub(super) fn holds(bot: &BotCredential, headers: &HeaderMap, allow_apikey: bool, now: Timestamp) -> bool {
    let Some(secret) = credentials::usable(Some(&bot.client_secret)) else { return false };
    let given = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let token = given("token").is_some_and(|token| is_signed(token, &bot.app_id, secret, now));
    let apikey = allow_apikey && given("apikey").is_some_and(|key| credentials::same_text(secret, key));
    token || apikey
}

fn is_signed(token: &str, app_id: &str, secret: &str, now: Timestamp) -> bool {
    let Some((signed, signature)) = token.rsplit_once('.').filter(|_| token.len() <= TOKEN_BYTES_MAX) else {
        return false;
    };
    let Some((header, claims)) = signed.split_once('.') else { return false };
    let (Some(header), Ok(signature)) =
        (object(header), URL_SAFE_NO_PAD.decode(signature.trim_end_matches('=')))
    else {
        return false;
    };
    let genuine = match header.get("alg").and_then(Value::as_str) {
        Some("HS256") => Hmac::<Sha256>::new_from_slice(secret.as_bytes())
            .is_ok_and(|mac| mac.chain_update(signed).verify_slice(&signature).is_ok()),
        Some("HS512") => Hmac::<Sha512>::new_from_slice(secret.as_bytes())
            .is_ok_and(|mac| mac.chain_update(signed).verify_slice(&signature).is_ok()),
        _ => false,
    };
    // `crit` lists extensions that a reader must support. This code supports none.
    genuine && header.get("crit").is_none() && object(claims).is_some_and(|claims| says(&claims, app_id, now))
}

fn object(part: &str) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object)
}

fn says(claims: &Value, app_id: &str, now: Timestamp) -> bool {
    let now = now.as_duration().as_secs_f64();
    // BotKit writes fractions of seconds.
    let time = |name: &str, is_kept: &dyn Fn(f64) -> bool| match claims.get(name) {
        None | Some(Value::Null) => true,
        Some(time) => time.as_f64().is_some_and(is_kept),
    };
    let ours = claims.get("appId").and_then(Value::as_str) == Some(app_id);
    ours && time("exp", &|exp| now < exp + LEEWAY) && time("nbf", &|nbf| nbf - LEEWAY <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use serde_json::json;

    const NOW: i64 = 1_790_000_000;

    fn bot() -> BotCredential {
        BotCredential { bot_id: "st-1".into(), app_id: "cs-1".into(), client_secret: "shared".into() }
    }

    fn part(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    fn token(header: &Value, claims: &Value, secret: &str) -> String {
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = match header["alg"].as_str() {
            Some("HS512") => {
                let mac = Hmac::<Sha512>::new_from_slice(secret.as_bytes()).unwrap();
                mac.chain_update(&signed).finalize().into_bytes().to_vec()
            }
            Some("none") => Vec::new(),
            _ => {
                let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
                mac.chain_update(&signed).finalize().into_bytes().to_vec()
            }
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn passes(name: &'static str, value: &str, allow_apikey: bool) -> bool {
        let headers = HeaderMap::from_iter([(
            axum::http::HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        )]);
        holds(&bot(), &headers, allow_apikey, Timestamp::from_second(NOW).unwrap())
    }

    #[test]
    fn a_token_counts_for_its_app_and_its_time() {
        let hs256 = json!({"alg": "HS256", "typ": "JWT"});
        for (claims, good) in [
            (json!({"appId": "cs-1", "exp": NOW + 60}), true),
            (json!({"appId": "cs-1", "exp": NOW as f64 + 0.5}), true),
            (json!({"appId": "cs-1", "exp": NOW - 59}), true),
            (json!({"appId": "cs-1", "exp": NOW - 60}), false),
            (json!({"appId": "cs-1"}), true),
            (json!({"appId": "cs-1", "exp": "soon"}), false),
            (json!({"appId": "cs-1", "nbf": NOW + 59}), true),
            (json!({"appId": "cs-1", "nbf": NOW + 61}), false),
            (json!({"appId": "cs-2", "exp": NOW + 60}), false),
            (json!({"appid": "cs-1", "exp": NOW + 60}), false),
            (json!({"exp": NOW + 60}), false),
        ] {
            assert_eq!(passes("token", &token(&hs256, &claims, "shared"), false), good, "{claims}");
        }
    }

    #[test]
    fn the_algorithm_is_ours_to_choose() {
        let claims = json!({"appId": "cs-1", "exp": NOW + 60});
        for (header, good) in [
            (json!({"alg": "HS256"}), true),
            (json!({"alg": "HS512", "typ": "JWT"}), true),
            (json!({"alg": "HS384"}), false),
            (json!({"alg": "none"}), false),
            (json!({"alg": "None"}), false),
            (json!({"alg": "RS256"}), false),
            (json!({}), false),
            (json!({"alg": "HS256", "crit": ["b64"]}), false),
        ] {
            assert_eq!(passes("token", &token(&header, &claims, "shared"), false), good, "{header}");
        }
    }

    #[test]
    fn a_changed_token_is_refused() {
        let claims = json!({"appId": "cs-1", "exp": NOW + 60});
        let good = token(&json!({"alg": "HS256"}), &claims, "shared");
        assert!(passes("token", &good, false));
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let (header, _) = signed.split_once('.').unwrap();
        let later = part(&json!({"appId": "cs-1", "exp": NOW + 6000}));
        for bad in [
            token(&json!({"alg": "HS256"}), &claims, "other"),
            token(&json!({"alg": "HS256"}), &claims, ""),
            format!("{header}.{later}.{signature}"),
            format!("{signed}."),
            format!("{signed}.{}", &signature[..signature.len() - 2]),
            signed.to_owned(),
            good.replace('.', "-"),
            format!("Bearer {good}"),
            "..".to_owned(),
            String::new(),
        ] {
            assert!(!passes("token", &bad, false), "{bad}");
        }
    }

    #[test]
    fn the_older_key_opens_only_where_it_may() {
        assert!(passes("apikey", "shared", true));
        assert!(!passes("apikey", "shared", false));
        assert!(!passes("apikey", "share", true));
        let empty = BotCredential { client_secret: "".into(), ..bot() };
        let headers = HeaderMap::from_iter([(
            axum::http::HeaderName::from_static("apikey"),
            HeaderValue::from_static(""),
        )]);
        assert!(!holds(&empty, &headers, true, Timestamp::from_second(NOW).unwrap()));
    }
}
