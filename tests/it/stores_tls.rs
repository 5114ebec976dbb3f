//! Promise: RabbitMQ and PostgreSQL are reached over TLS with a private authority and a client certificate, and
//! `causeway check` says why TLS failed.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::authority::{Authority, tls_in_front_of};
use crate::harness::binary::{Causeway, Finished};
use crate::harness::postgres::Database;
use crate::harness::relay::{PATIENCE, Plan};

async fn check(folder: &Path, settings: &[(&str, &str)]) -> Finished {
    let check = Causeway::new(["check"]).set("data_dir", folder.to_str().unwrap());
    settings.iter().fold(check, |check, (key, value)| check.set(key, value)).run(PATIENCE).await
}

/// A server that speaks AMQP without TLS as far as its first frame. As RabbitMQ does, it answers anything else with the
/// protocol's name.
async fn plain_broker() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    crate::harness::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 8];
            let _ = stream.read_exact(&mut head).await;
            let answer: &[u8] = if head.starts_with(b"AMQP") {
                b"\x01\x00\x00\x00\x00\x00\x0a\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00"
            } else {
                b"AMQP\x00\x00\x09\x01"
            };
            let _ = stream.write_all(answer).await;
        }
    });
    address
}

/// The answer of a PostgreSQL server without TLS to a request for it.
async fn plain_postgres() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    crate::harness::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read_exact(&mut [0; 8]).await;
            let _ = stream.write_all(b"N").await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_fault_and_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (trusted, unknown) = (Authority::new(), Authority::new());
    let ca = trusted.write(folder.path(), "ca.pem");
    let (broker, database) = (plain_broker().await, plain_postgres().await);
    let server = |name: &str, years, asks| trusted.server(name, years, asks);
    let front = async |acceptor: TlsAcceptor, postgres| tls_in_front_of(broker, acceptor, postgres).await;
    let good = server("localhost", 2020..2090, false);
    for (acceptor, says, hint) in [
        (unknown.server("localhost", 2020..2090, false), "issued by", "ca_file"),
        (server("localhost", 2001..2002, false), "has expired", "renew the certificate"),
        (server("localhost", 2080..2090, false), "is not valid", "clock by NTP"),
        (
            server("other.example", 2020..2090, false),
            "for other.example, not for localhost",
            "a name in the certificate",
        ),
        (
            server("localhost", 2020..2090, true),
            "client certificate is refused or missing",
            "client_cert_file",
        ),
    ] {
        let port = front(acceptor.clone(), false).await;
        let url = format!("amqps://u:hunter2@localhost:{port}/%2f");
        let of_broker = check(folder.path(), &[("queue.url", &url), ("queue.ca_file", &ca)]).await;
        let port = front(acceptor, true).await;
        let url = format!("postgres://u:hunter2@localhost:{port}/causeway");
        let of_database = check(folder.path(), &[("directory.url", &url), ("directory.ca_file", &ca)]).await;
        for (run, own_hint) in
            [(of_broker, format!("queue.{hint}")), (of_database, format!("directory.{hint}"))]
        {
            assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
            let hints = [hint.to_owned(), own_hint];
            let hint = if hint.ends_with("_file") { &hints[1] } else { &hints[0] };
            for part in [says, hint.as_str()] {
                assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
            }
            assert!(!run.stdout.contains("hunter2"));
        }
    }
    let secure = front(good, false).await;
    for (key, url, says, hint) in [
        ("queue.url", format!("amqp://u:p@localhost:{secure}/%2f"), "speaks TLS", "amqps://"),
        ("queue.url", format!("amqps://u:p@localhost:{}/%2f", broker.port()), "without TLS", "amqp://"),
        (
            "directory.url",
            format!("postgres://u:p@{database}/d?sslmode=require"),
            "does not support TLS",
            "ssl = on",
        ),
        (
            "directory.url",
            format!("postgres://u:p@localhost:{secure}/d"),
            "speaks TLS",
            "name PostgreSQL itself",
        ),
    ] {
        let run = check(folder.path(), &[(key, &url)]).await;
        assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
        for part in [says, hint] {
            assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
        }
    }
}

on_every_rabbit! {
    // Both stores ask for a client certificate. RabbitMQ's own greeting shows what the plain port says.
    async fn a_conversation_passes_over_tls(bench: Bench) {
        let authority = Authority::new();
        let (ca, client) = (authority.write(bench.folder(), "ca.pem"), authority.client(bench.folder()));
        let vhost = bench.vhost().unwrap();
        let port = tls_in_front_of(vhost.broker(), authority.server("localhost", 2020..2090, true), false).await;
        let secure = vhost.url_through(vhost.broker());
        let secure = secure.replace("amqp://", "amqps://").replace(&vhost.broker().to_string(), &format!("localhost:{port}"));
        let database = Database::create().await;
        let acceptor = authority.server("localhost", 2020..2090, true);
        let port = tls_in_front_of(database.address(), acceptor, true).await;
        let directory = database.url().replace(&database.address().to_string(), &format!("localhost:{port}"));
        let relay = Plan::on(&bench)
            .set("queue.url", secure.as_str())
            .set("queue.ca_file", ca.as_str())
            .set("queue.client_cert_file", client.as_str())
            .set("directory.url", directory)
            .set("directory.ca_file", ca.as_str())
            .set("directory.client_cert_file", client.as_str())
            .start()
            .await;
        let group = relay.open("c-1").await;
        relay.say("c-1", "over TLS").await;
        relay.until("the words", |relay| {
            if relay.said(&group).len() > 1 { Ok(()) } else { Err("not yet".to_owned()) }
        }).await;
        let checked = relay.tool(["check"]).run(PATIENCE).await;
        for part in [
            "queue: RabbitMQ ",
            "directory: PostgreSQL, can be written",
            "certificate of broker at localhost: (CN=localhost) is valid until 2090-01-01",
            "certificate of directory at localhost: (CN=localhost) is valid until 2090-01-01",
            "certificate of Causeway for broker: (CN=causeway-client) is valid until 2090-01-01",
            "certificate of Causeway for directory: (CN=causeway-client) is valid until 2090-01-01",
        ] {
            assert!(checked.stdout.contains(part), "{part}: {}", checked.stdout);
        }
        for (peer, kind) in [("broker", "server"), ("directory", "server"), ("broker", "client"), ("directory", "client")] {
            let labels = [("peer", peer), ("kind", kind)];
            relay.metric_is("causeway_certificate_expiry_timestamp_seconds", &labels, |at| at > 3.7e9).await;
        }
        let plain = secure.replace(&format!("localhost:{}", port_of(&secure)), &vhost.broker().to_string());
        let run = check(bench.folder(), &[("queue.url", &plain), ("queue.ca_file", &ca)]).await;
        assert!(run.stdout.contains("without TLS"), "{}", run.stdout);
    }
}

fn port_of(url: &str) -> u16 {
    let port = url.split("localhost:").nth(1).unwrap();
    port.split('/').next().unwrap().parse().unwrap()
}
