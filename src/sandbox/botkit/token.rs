//! The tokens of the BotKit protocol: JWTs as XO signs and verifies them. The sandbox has its own implementation on
//! purpose, because shared code would hide mistakes of the product.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::{Sha256, Sha512};

/// The signature algorithm of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningAlgorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-512.
    Hs512,
    /// Unsigned.
    None,
}

/// Creates a token with these claims.
pub fn token(algorithm: SigningAlgorithm, claims: &Value, secret: &str) -> String {
    let name = match algorithm {
        SigningAlgorithm::Hs256 => "HS256",
        SigningAlgorithm::Hs512 => "HS512",
        SigningAlgorithm::None => "none",
    };
    let signed = format!(
        "{}.{}",
        BASE64.encode(json!({ "typ": "JWT", "alg": name }).to_string()),
        BASE64.encode(claims.to_string())
    );
    format!("{signed}.{}", BASE64.encode(signature(algorithm, &signed, secret)))
}

/// The claims of a token, if its signature is valid for this algorithm and this secret.
pub(super) fn claims(token: &str, wanted: SigningAlgorithm, secret: &str) -> Option<Value> {
    let (signed, given) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let header: Value = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
    let algorithm = match header.get("alg")?.as_str()? {
        "HS256" => SigningAlgorithm::Hs256,
        "HS512" => SigningAlgorithm::Hs512,
        _ => return None,
    };
    if algorithm != wanted || BASE64.decode(given).ok()? != signature(algorithm, signed, secret) {
        return None;
    }
    serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()
}

fn signature(algorithm: SigningAlgorithm, signed: &str, secret: &str) -> Vec<u8> {
    let of256 = || Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let of512 = || Hmac::<Sha512>::new_from_slice(secret.as_bytes());
    match algorithm {
        SigningAlgorithm::Hs256 => {
            of256().map(|mac| mac.chain_update(signed).finalize().into_bytes().to_vec())
        }
        SigningAlgorithm::Hs512 => {
            of512().map(|mac| mac.chain_update(signed).finalize().into_bytes().to_vec())
        }
        SigningAlgorithm::None => Ok(Vec::new()),
    }
    .unwrap_or_default()
}
