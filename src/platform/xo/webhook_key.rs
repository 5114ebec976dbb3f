//! Signs events in the format of Standard Webhooks (<https://www.standardwebhooks.com>), so that a receiver can check who
//! sent an event and when.
//!
//! Guarantees: a key is never printed.
//!
//! Not responsible for: when an event is posted (`callback.rs`).

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::STANDARD as BASE64;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretSlice};
use sha2::Sha256;

/// The start of a written key.
const PREFIX: &str = "whsec_";
/// The shortest and the longest key in bytes, as the specification demands.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A key that signs events.
#[derive(Clone)]
pub struct WebhookKey(Arc<SecretSlice<u8>>);

impl WebhookKey {
    /// Reads `whsec_` and the base64 of the key, with or without padding.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let written = text.strip_prefix(PREFIX).ok_or("does not begin with whsec_")?;
        let any_padding =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let key = GeneralPurpose::new(&STANDARD, any_padding).decode(written);
        let key = key.map_err(|_| "is not base64 after whsec_")?;
        if !KEY_BYTES.contains(&key.len()) {
            return Err("does not hold 24 to 64 bytes");
        }
        Ok(Self(Arc::new(SecretSlice::from(key))))
    }

    /// The signature of an event: `v1,` and the base64 of HMAC-SHA256 over `<id>.<unix seconds>.<body>`.
    pub fn sign(&self, id: &str, at: i64, body: &[u8]) -> String {
        // HMAC accepts a key of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.expose_secret()) else {
            return String::new();
        };
        mac.update(format!("{id}.{at}.").as_bytes());
        mac.update(body);
        format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    }
}

impl std::fmt::Debug for WebhookKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebhookKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    #[test]
    fn the_published_example_is_signed_as_published() {
        let key = WebhookKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signature = key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(format!("{key:?}"), "WebhookKey");
    }

    #[test]
    fn an_invalid_key_is_refused() {
        let of_bytes = |count: usize| format!("whsec_{}", BASE64.encode(vec![7; count]));
        for good in [of_bytes(24), of_bytes(32), of_bytes(64), of_bytes(32).trim_end_matches('=').to_owned()]
        {
            assert!(WebhookKey::parse(&good).is_ok(), "{good}");
        }
        for (wrong, why) in [
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), "begin"),
            ("whsec_not base64!".to_owned(), "base64"),
            (of_bytes(23), "24 to 64"),
            (of_bytes(65), "24 to 64"),
            ("whsec_".to_owned(), "24 to 64"),
        ] {
            assert!(WebhookKey::parse(&wrong).unwrap_err().contains(why), "{wrong}");
        }
    }
}
