//! `queue.url`: one URL with one or several hosts, or several URLs.
//!
//! lapin's own parser takes one host only. It treats an IPv6 address as localhost, and a list of hosts as a part of the
//! vhost. The broker then repeats this vhost in its errors.
//! Guarantees: every host of the URL is used or the URL is refused. A refusal repeats no part of the URL.
//! Not responsible for: the addresses of a host (`connect.rs`).

use std::net::Ipv6Addr;

use lapin::uri::{AMQPScheme, AMQPUri, AMQPUserInfo};
use secrecy::{ExposeSecret, SecretString};

use crate::live::Live;

/// A valid `queue.url`. Clones share the URL.
#[derive(Debug, Clone)]
pub struct BrokerUrl(Live<SecretString>);

impl BrokerUrl {
    /// Checks the URL. The error says what is allowed, without any part of the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        hosts(text).map(|_| Self(Live::new(text.to_owned().into())))
    }

    /// Uses the user and the password of another URL at the next connection, for all clones.
    pub fn replace_login(&self, other: &Self) {
        self.0.set((*other.0.get()).clone());
    }

    /// Whether two texts differ at most in users and passwords.
    pub fn differ_only_in_login(one: &str, other: &str) -> bool {
        let without_login = |text: &str| {
            let mut hosts = hosts(text).ok()?;
            for uri in &mut hosts {
                uri.authority.userinfo = AMQPUserInfo { username: String::new(), password: String::new() };
            }
            Some(hosts)
        };
        without_login(one).is_some_and(|one| Some(one) == without_login(other))
    }

    /// The hosts and the vhost for a person, without credentials: `host:5672,host:5672/vhost`.
    pub fn place(&self) -> String {
        let hosts = self.hosts();
        let vhost = hosts.first().map(|uri| uri.vhost.clone()).unwrap_or_default();
        let of = |uri: &AMQPUri| format!("{}:{}", uri.authority.host, uri.authority.port);
        format!("{}/{}", hosts.iter().map(of).collect::<Vec<_>>().join(","), vhost.trim_start_matches('/'))
    }

    /// The names of the hosts that are reached without TLS.
    pub fn plain_hosts(&self) -> Vec<String> {
        let plain = self.hosts().into_iter().filter(|uri| uri.scheme == AMQPScheme::AMQP);
        plain.map(|uri| uri.authority.host).collect()
    }

    /// The vhost of the first host.
    pub fn vhost(&self) -> String {
        self.hosts().first().map(|uri| uri.vhost.clone()).unwrap_or_default()
    }

    /// The hosts in their order, each with user, vhost and parameters.
    pub(super) fn hosts(&self) -> Vec<AMQPUri> {
        hosts(self.0.get().expose_secret()).unwrap_or_default()
    }
}

fn hosts(text: &str) -> Result<Vec<AMQPUri>, String> {
    let mut found = Vec::new();
    for url in urls(text) {
        found.extend(hosts_of(url)?);
    }
    Ok(found)
}

/// Splits a list of complete URLs.
fn urls(text: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    let mut begin = 0;
    for (at, _) in text.match_indices(',') {
        let next = text[at + 1..].trim_start();
        if next.starts_with("amqp://") || next.starts_with("amqps://") {
            urls.push(text[begin..at].trim());
            begin = at + 1;
        }
    }
    urls.push(text[begin..].trim());
    urls
}

fn hosts_of(url: &str) -> Result<Vec<AMQPUri>, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme @ ("amqp" | "amqps"), rest)) => (scheme, rest),
        _ => return Err("begins with neither amqp:// nor amqps://".into()),
    };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.contains('@') {
        return Err("the hosts of one list share one user and one password: write user:password@ once, in front of \
                    the first host, or complete URLs with commas between them; an @ of the password is written %40"
            .into());
    }
    check_tail(tail)?;
    let at = if user.is_empty() { "" } else { "@" };
    // The parser's error may repeat the URL, so it is not shown.
    let mut template: AMQPUri = format!("{scheme}://{user}{at}host{tail}").parse().map_err(|_| {
        "special characters of user, password and virtual host are percent-encoded (% is %25), and parameters are numbers"
    })?;
    if template.vhost.is_empty() {
        template.vhost = "/".into();
    }
    let each = hosts.split(',').map(|host| {
        let (host, port) = host_and_port(host.trim())?;
        let mut uri = template.clone();
        uri.authority.port = port.unwrap_or_else(|| uri.scheme.default_port());
        uri.authority.host = host;
        Ok(uri)
    });
    each.collect()
}

/// A list with another separator, or a password with `/`, `?` or `#`, would end up in the vhost, which is not secret.
fn check_tail(tail: &str) -> Result<(), String> {
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let vhost = path.strip_prefix('/').unwrap_or(path);
    if path == "/" {
        return Err("the default virtual host is written /%2f at the end, or leave the / away".into());
    }
    if vhost.contains(['/', ',', ';', '@', '#', ' ']) || query.contains([',', ';', '@', '#', ' ', '/']) {
        return Err("several hosts are separated by one comma each, in front of the virtual host; / , ; @ # and ? of a \
                    user, a password or a virtual host are percent-encoded (%2F %2C %3B %40 %23 %3F)"
            .into());
    }
    Ok(())
}

/// `name`, `name:port`, `[IPv6]` or `[IPv6]:port`.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    if let Some((address, after)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let address: Ipv6Addr = address.parse().map_err(|_| "no IPv6 address is between the brackets")?;
        let port = match after {
            "" => None,
            _ => Some(port(after.strip_prefix(':').unwrap_or_default())?),
        };
        return Ok((address.to_string(), port));
    }
    let (name, number) = match text.split_once(':') {
        Some((name, number)) => (name, Some(number)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("names no host, or has one comma too many".into());
    }
    if number.is_some_and(|number| number.contains(':')) {
        return Err("an IPv6 address is written in brackets: [::1]:5672".into());
    }
    if !name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_')) {
        return Err(
            "a host has a character that no host has; several hosts are separated by one comma each".into()
        );
    }
    Ok((name.to_owned(), number.map(port).transpose()?))
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("a port is a number from 1 to 65535; / ? # and @ of a password are percent-encoded".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(url: &str) -> Vec<String> {
        let uris = BrokerUrl::parse(url).unwrap_or_else(|why| panic!("{url}: {why}")).hosts();
        uris.iter()
            .map(|uri| format!("{}@{}:{}", uri.vhost, uri.authority.host, uri.authority.port))
            .collect()
    }

    #[test]
    fn a_replaced_login_is_that_of_every_clone() {
        let url = BrokerUrl::parse("amqp://u:old@one,two/chat").unwrap();
        let clone = url.clone();
        url.replace_login(&BrokerUrl::parse("amqp://u:new@one,two/chat").unwrap());
        let passwords: Vec<_> =
            clone.hosts().into_iter().map(|uri| uri.authority.userinfo.password).collect();
        assert_eq!(passwords, ["new", "new"]);
        assert!(BrokerUrl::differ_only_in_login("amqp://u:a@one,two", "amqp://v:b@one,two"));
        for other in
            ["amqp://u:a@one", "amqps://u:a@one,two", "amqp://u:a@one,two/x", "amqp://u:a@two,one", "no"]
        {
            assert!(!BrokerUrl::differ_only_in_login("amqp://u:a@one,two", other), "{other}");
        }
    }

    #[test]
    fn every_host_of_a_list_is_taken_in_its_order() {
        assert_eq!(places("amqp://u:p@one"), ["/@one:5672"]);
        assert_eq!(places("amqps://u:p@one,two:5673/chat"), ["chat@one:5671", "chat@two:5673"]);
        assert_eq!(places("amqp://u:p@one:1/%2f, amqps://u:q@two/b"), ["/@one:1", "b@two:5671"]);
        assert_eq!(
            places("amqp://[::1]:7,[fd00::2],10.0.0.1"),
            ["/@::1:7", "/@fd00::2:5672", "/@10.0.0.1:5672"]
        );
        assert_eq!(
            places("amqp://u:p,q@one?heartbeat=5"),
            ["/@one:5672"],
            "a comma of a password is no separator"
        );
    }

    #[test]
    fn user_and_password_belong_to_every_host_of_their_url() {
        for uri in BrokerUrl::parse("amqp://u:p%2Fq@one,two/%2f?frame_max=9000").unwrap().hosts() {
            let user = &uri.authority.userinfo;
            assert_eq!((user.username.as_str(), user.password.as_str()), ("u", "p/q"));
            assert_eq!(uri.query.frame_max, Some(9000));
        }
        let url = BrokerUrl::parse("amqp://u:one@a,amqp://v:two@b").unwrap();
        let passwords: Vec<_> =
            url.hosts().iter().map(|uri| uri.authority.userinfo.password.clone()).collect();
        assert_eq!(passwords, ["one", "two"]);
    }

    #[test]
    fn no_vhost_is_the_default_one() {
        for url in ["amqp://u:p@host:5672", "amqp://u:p@host:5672/%2f"] {
            assert_eq!(places(url), ["/@host:5672"], "{url}");
        }
        assert_eq!(places("amqp://u:p@host:5672/causeway"), ["causeway@host:5672"]);
    }

    #[test]
    fn an_invalid_list_is_refused_without_the_password() {
        for url in [
            "amqp://u:hunter2@one/%2f;amqp://u:hunter2@two/%2f",
            "amqp://u:hunter2@one;two/%2f",
            "amqp://u:hunter2@one two",
            "amqp://u:hunter2@one,u:hunter2@two/%2f",
            "amqp://u:hunter2@one/%2f,two/%2f",
            "amqp://u:hunter2@one,,two",
            "amqp://u:hunter2@one,",
            "amqp://u:hunter2@::1/%2f",
            "amqp://u:hunter2@[::g]/%2f",
            "amqp://u:hunter2@[::1]5672/%2f",
            "amqp://u:hunter2@one:0",
            "amqp://u:hunter2@one:65536",
            "amqp://u:1/hunter2@one/%2f",
            "amqp://u:hun/ter2@one",
            "amqp://u:5672?hunter2@one",
            "amqp://u:hunter2#@one",
            "amqp://u:hunter2@one/",
            "amqp://u:hunter2@one//",
            "amqp://u:hunter2@one?heartbeat=x",
            "amqp://u:hunter2@one?heartbeat=5,amqp:/two",
            "amqp://u:hunter2@/%2f",
            "http://u:hunter2@one",
            "one:5672",
            "",
        ] {
            let why = BrokerUrl::parse(url).map(|url| url.hosts().len()).expect_err(url);
            assert!(!why.contains("hunter2") && !why.contains("ter2"), "{why}");
        }
    }
}
