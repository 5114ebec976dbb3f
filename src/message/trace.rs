//! Defines the ids that connect a message with the request that caused it, in the logs of all systems.
//!
//! Guarantees: a [`RequestId`] is safe in a log line and in a header. A [`TraceParent`] is valid by W3C Trace Context,
//! version 00. Any other text is no [`TraceParent`], and Causeway never makes one up.
//!
//! Not responsible for: the trace of the running task (`current_trace.rs`), the log lines (`telemetry/message_log.rs`).

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use uuid::Uuid;

/// The longest request id, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The ids that a message carries from the door to its delivery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The `x-request-id` of the request that caused the message.
    pub request_id: Option<RequestId>,
    /// The `traceparent` of the same request.
    pub parent: Option<TraceParent>,
}

/// The id of a request. The answer shows the same id as `x-request-id`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A new id, for a request without a usable id of its own.
    pub fn fresh() -> Self {
        let mut buffer = Uuid::encode_buffer();
        Self(Arc::from(&*Uuid::now_v7().hyphenated().encode_lower(&mut buffer)))
    }

    /// Accepts 1 to 128 of the characters `A-Z a-z 0-9 - _ . : / =`.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/' | b'=');
        let is_sane = (1..=REQUEST_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain);
        is_sane.then(|| Self(Arc::from(text)))
    }
}

impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// The header `traceparent` of W3C Trace Context: `00-<trace id>-<parent id>-<flags>`. Cheap to clone. Most messages have
/// none, so a message has only room for a pointer.
#[derive(Clone, PartialEq, Eq)]
pub struct TraceParent(Arc<[u8; Self::BYTES]>);

impl TraceParent {
    /// The length of version 00.
    const BYTES: usize = 55;

    /// Parses a header. A header of a later version is read as version 00, as the standard demands.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.as_bytes().split_at_checked(Self::BYTES)?;
        let mut bytes: [u8; Self::BYTES] = head.try_into().ok()?;
        let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let given = |part: &[u8]| hex(part) && part.iter().any(|b| *b != b'0');
        let has_shape = [2, 35, 52].iter().all(|at| bytes[*at] == b'-')
            && hex(&bytes[..2])
            && given(&bytes[3..35])
            && given(&bytes[36..52])
            && hex(&bytes[53..]);
        let is_complete = match &bytes[..2] {
            b"00" => rest.is_empty(),
            b"ff" => false,
            _ => matches!(rest, [] | [b'-', ..]),
        };
        if !has_shape || !is_complete {
            return None;
        }
        if !bytes.starts_with(b"00") {
            // Only the flag "sampled" has the same meaning in all versions.
            let is_sampled = matches!(bytes[54], b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f');
            bytes[..2].copy_from_slice(b"00");
            bytes[53..].copy_from_slice(if is_sampled { b"01" } else { b"00" });
        }
        Some(Self(Arc::new(bytes)))
    }

    /// The header as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&*self.0).unwrap_or_default()
    }

    /// The id of the whole trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        &self.as_str()[3..35]
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn header(version: &str, flags: &str) -> String {
        format!("{version}-{TRACE}-00f067aa0ba902b7-{flags}")
    }

    #[test]
    fn a_valid_header_is_kept_as_it_came() {
        let text = header("00", "01");
        let parent = TraceParent::parse(&text).unwrap();
        assert_eq!((parent.as_str(), parent.trace_id()), (text.as_str(), TRACE));
    }

    #[test]
    fn a_later_version_is_read_as_version_00() {
        for (later, flags) in [("01-x", "01"), ("cc", "ff"), ("cc", "02")] {
            let (version, rest) = later.split_at(2);
            let parent = TraceParent::parse(&format!("{}{rest}", header(version, flags))).unwrap();
            assert_eq!(parent.as_str(), header("00", if flags == "02" { "00" } else { "01" }));
        }
    }

    #[test]
    fn anything_else_is_ignored() {
        let good = header("00", "01");
        let zero_trace = good.replace(TRACE, &"0".repeat(32));
        for wrong in [
            "",
            "00",
            &good[..54],
            &format!("{good}-x"),
            &format!("{good} "),
            &header("ff", "01"),
            &header("cc", "01x"),
            &header("cc", "0x"),
            &header("0x", "01"),
            &good.to_uppercase(),
            &zero_trace,
            &good.replace("00f067aa0ba902b7", "0000000000000000"),
            &good.replace('-', "_"),
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_request_id_is_safe_in_a_log_line() {
        for good in ["a", "1-2:3/4_5.6=", &"x".repeat(128), &RequestId::fresh()] {
            assert_eq!(RequestId::parse(good).as_deref(), Some(good));
        }
        for wrong in ["", "a b", "a\nb", "\u{e9}", &"x".repeat(129)] {
            assert_eq!(RequestId::parse(wrong), None, "{wrong}");
        }
    }
}
