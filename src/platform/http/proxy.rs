//! Decides whether a request goes through a proxy, and through which one.
//!
//! Guarantees: a URL that matches no exception goes through the proxy of its scheme, or is not sent at all. The name of the
//! destination is resolved by the proxy. `Debug` shows neither the user nor the password of a proxy.
//! Not responsible for: the connection to the proxy (reqwest), reading the settings (`config/network.rs`).

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use url::{Host, Url};

/// A forward proxy. Requests to `http://` use the absolute form, requests to `https://` use CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyAddress {
    /// Without user and password.
    url: Url,
    /// `Proxy-Authorization`, if the proxy has a user.
    credentials: Option<HeaderValue>,
    /// The setting or the variable that names the proxy.
    origin: String,
}

/// The proxy of each scheme, and the hosts that need none. The default is no proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyRules {
    /// The proxy for `http://`.
    pub http: Option<ProxyAddress>,
    /// The proxy for `https://`.
    pub https: Option<ProxyAddress>,
    /// The hosts that are called directly.
    pub except: Vec<HostPattern>,
}

/// An entry of `http.no_proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    host: HostRule,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostRule {
    Any,
    /// This name and every name below it. Lower case, without a dot at either end.
    Domain(String),
    /// The addresses whose first bits are those of this address.
    Addresses(IpAddr, u8),
}

impl ProxyAddress {
    /// Reads `http://[user:password@]host:port` or the same with `https://`. `origin` is the setting that names the proxy.
    pub fn parse(text: &str, origin: &str) -> Result<Self, String> {
        if !text.contains("://") {
            return Err("begins with neither http:// nor https://".to_owned());
        }
        let mut url = Url::parse(text).map_err(|error| error.to_string())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(
                "begins with neither http:// nor https://: other kinds of proxy are not supported".into()
            );
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("names no host".to_owned());
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err("has more than a host and a port".to_owned());
        }
        let credentials = basic(&url)?;
        // Neither call fails: the URL has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(Self { url, credentials, origin: origin.to_owned() })
    }

    /// Host and port, without credentials.
    pub fn host_and_port(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        format!("{host}:{}", self.url.port_or_known_default().unwrap_or_default())
    }

    /// The setting or the environment variable that names the proxy.
    pub fn origin(&self) -> &str {
        &self.origin
    }
}

/// The header for the user of the URL. Special characters in a URL are percent-encoded.
fn basic(url: &Url) -> Result<Option<HeaderValue>, String> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let mut pair = percent_decoded(url.username());
    pair.push(b':');
    pair.extend(percent_decoded(url.password().unwrap_or_default()));
    let header = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)));
    let mut header = header.map_err(|_| "has unreadable credentials".to_owned())?;
    header.set_sensitive(true);
    Ok(Some(header))
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = text.get(at + 1..at + 3).filter(|_| *byte == b'%');
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) => {
                decoded.push(code);
                at += 3;
            }
            None => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

impl fmt::Debug for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.host_and_port(), self.origin)
    }
}

impl ProxyRules {
    /// The rules with one proxy for both schemes.
    pub fn all(proxy: ProxyAddress, except: Vec<HostPattern>) -> Self {
        Self { http: Some(proxy.clone()), https: Some(proxy), except }
    }

    /// The proxy of a request. `None`: the request goes to its destination directly.
    pub fn proxy_of(&self, url: &Url) -> Option<&ProxyAddress> {
        let proxy = if url.scheme() == "https" { self.https.as_ref() } else { self.http.as_ref() };
        proxy.filter(|_| !self.except.iter().any(|pattern| pattern.matches(url)))
    }

    /// The rules in the form that reqwest needs.
    pub(super) fn to_reqwest(&self) -> Vec<reqwest::Proxy> {
        let of_scheme = |scheme: &'static str, proxy: &ProxyAddress| {
            let (rules, address) = (self.clone(), proxy.url.clone());
            let chosen = reqwest::Proxy::custom(move |url| {
                (url.scheme() == scheme && rules.proxy_of(url).is_some()).then(|| address.clone())
            });
            match &proxy.credentials {
                Some(credentials) => chosen.custom_http_auth(credentials.clone()),
                None => chosen,
            }
        };
        let http = self.http.iter().map(|proxy| of_scheme("http", proxy));
        http.chain(self.https.iter().map(|proxy| of_scheme("https", proxy))).collect()
    }
}

impl HostPattern {
    /// The patterns of this machine: its name and its loopback addresses.
    pub fn loopback() -> Vec<Self> {
        let parsed = ["localhost", "127.0.0.0/8", "::1"].map(Self::parse);
        parsed.into_iter().flatten().collect()
    }

    /// Reads a host name, which stands for every name below it too, an address, a network such as `10.0.0.0/8`, or `*`. A
    /// name or an address may have a port.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const WRONG: &str = "is not a host name, an address, a network such as 10.0.0.0/8, or *";
        if text == "*" {
            return Ok(Self { host: HostRule::Any, port: None });
        }
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| WRONG)?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.parse().ok().filter(|bits| *bits <= most).ok_or(WRONG)?;
            return Ok(Self { host: HostRule::Addresses(address, bits), port: None });
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { host: whole(address), port: None });
        }
        let name = text.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(text);
        let name = name.strip_prefix('.').unwrap_or(name);
        if name.contains(['@', '?', '#', '/', '\\']) {
            return Err(WRONG);
        }
        let url = Url::parse(&format!("http://{name}/")).map_err(|_| WRONG)?;
        let host = match url.host().ok_or(WRONG)? {
            Host::Domain(domain) => HostRule::Domain(domain.trim_end_matches('.').to_owned()),
            Host::Ipv4(address) => whole(address.into()),
            Host::Ipv6(address) => whole(address.into()),
        };
        // `Url` drops the port 80, the default of http://.
        let port = name.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        Ok(Self { host, port })
    }

    fn matches(&self, url: &Url) -> bool {
        if self.port.is_some() && self.port != url.port_or_known_default() {
            return false;
        }
        match (&self.host, url.host()) {
            (HostRule::Any, _) => true,
            (HostRule::Domain(domain), Some(Host::Domain(name))) => {
                let name = name.trim_end_matches('.');
                let above = name.strip_suffix(domain.as_str());
                above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            (HostRule::Addresses(network, bits), Some(Host::Ipv4(address))) => {
                shares_bits(*network, address.into(), *bits)
            }
            (HostRule::Addresses(network, bits), Some(Host::Ipv6(address))) => {
                shares_bits(*network, address.into(), *bits)
            }
            _ => false,
        }
    }
}

const fn whole(address: IpAddr) -> HostRule {
    HostRule::Addresses(address, if address.is_ipv4() { 32 } else { 128 })
}

/// Whether the first `bits` bits are equal.
fn shares_bits(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let aligned = |address: IpAddr| match address {
        IpAddr::V4(address) => (true, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (false, address.to_bits()),
    };
    let ((four, one), (other_four, other)) = (aligned(one), aligned(other));
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    four == other_four && (one ^ other) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        let proxy =
            ProxyAddress::parse("http://us%65r:p%40ss:w%2fd@proxy.example:3128", "http.proxy").unwrap();
        assert_eq!(proxy.host_and_port(), "proxy.example:3128");
        let header = proxy.credentials.clone().unwrap();
        assert_eq!(header.to_str().unwrap(), format!("Basic {}", STANDARD.encode("user:p@ss:w/d")));
        assert_eq!(format!("{proxy:?} {header:?}"), "proxy.example:3128 (http.proxy) Sensitive");
        assert!(!proxy.url.as_str().contains("ss"));
        for wrong in [
            "proxy.example:3128",
            "socks5://proxy",
            "http://",
            "http://proxy/path",
            "http://p?x",
            "ftp://p",
            "",
        ] {
            assert!(ProxyAddress::parse(wrong, "http.proxy").is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_exception_is_a_name_an_address_or_a_network() {
        for (pattern, matched, other) in [
            ("corp.example", "http://corp.example", "http://notcorp.example"),
            (".corp.example", "https://a.b.Corp.example.", "https://corp.example.org"),
            ("*.corp.example", "https://a.corp.example", "https://example"),
            ("sandbox:8090", "http://sandbox:8090", "http://sandbox"),
            ("sandbox:80", "http://sandbox", "http://sandbox:81"),
            ("10.0.0.0/8", "http://10.255.0.1", "http://11.0.0.1"),
            ("10.1.2.3", "http://10.1.2.3:99", "http://10.1.2.4"),
            ("0.0.0.0/0", "http://10.1.2.4", "http://[::1]"),
            ("fd00::/8", "http://[fdff::1]", "http://[fc00::1]"),
            ("::1", "http://[::1]:8080", "http://[::2]"),
            ("[::1]:8080", "http://[::1]:8080", "http://[::1]:8081"),
        ] {
            let pattern = HostPattern::parse(pattern).unwrap_or_else(|why| panic!("{pattern} {why}"));
            assert!(pattern.matches(&url(matched)), "{pattern:?} {matched}");
            assert!(!pattern.matches(&url(other)), "{pattern:?} {other}");
        }
        assert!(HostPattern::parse("*").unwrap().matches(&url("https://any.example")));
        for wrong in ["", "10.0.0.0/33", "10/8", "a b", "http://x", "x/y", "u@x", "x:port", "fd00::/129"] {
            assert!(HostPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_scheme_without_a_proxy_is_called_directly() {
        let proxy = ProxyAddress::parse("http://proxy.example:3128", "HTTPS_PROXY").unwrap();
        let rules =
            ProxyRules { https: Some(proxy.clone()), except: HostPattern::loopback(), ..Default::default() };
        assert_eq!(rules.proxy_of(&url("https://a.example")), Some(&proxy));
        for direct in ["http://a.example", "https://localhost", "https://127.0.0.9:1", "https://[::1]"] {
            assert_eq!(rules.proxy_of(&url(direct)), None, "{direct}");
        }
        let all = ProxyRules::all(proxy, Vec::new());
        assert!(all.proxy_of(&url("http://127.0.0.1")).is_some());
    }
}
