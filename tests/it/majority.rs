//! Promise: a broker that answers and stores nothing, because too few nodes of its queues run, is reported, and the
//! messages of ServiceNow and XO are kept meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness;
use crate::harness::http;
use crate::harness::relay::{PATIENCE, Plan};
use crate::harness::wait::eventually;

const METHOD_FRAME: u8 = 1;
/// Class and method of `basic.ack`.
const ACK: [u8; 4] = [0, 60, 0, 80];

/// Stands before a broker and can hold its confirms back. Everything else passes, as with a queue without a majority.
struct ConfirmGate {
    address: SocketAddr,
    holds: watch::Sender<bool>,
}

impl ConfirmGate {
    async fn start(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (holds, held) = watch::channel(false);
        let gate = Self { address: listener.local_addr().unwrap(), holds };
        harness::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(broker).await else { continue };
                let (mut from_client, to_client) = client.into_split();
                let (from_server, mut to_server) = server.into_split();
                harness::spawn(answers(from_server, to_client, held.clone()));
                harness::spawn(async move { copy(&mut from_client, &mut to_server).await });
            }
        });
        gate
    }
}

/// Passes the frames of the broker on. An error is the end of a connection.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut holds: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut back = Vec::new();
    loop {
        tokio::select! {
            readable = from.readable() => readable?,
            Ok(()) = released(&mut holds), if !back.is_empty() => {
                to.write_all(&std::mem::take(&mut back)).await?;
                continue;
            }
        }
        let frame = frame(&mut from).await?;
        let is_confirm = frame[0] == METHOD_FRAME && frame[7..].starts_with(&ACK);
        if is_confirm && *holds.borrow() {
            back.extend(frame);
        } else {
            to.write_all(&frame).await?;
        }
    }
}

async fn released(holds: &mut watch::Receiver<bool>) -> Result<(), watch::error::RecvError> {
    holds.wait_for(|holds| !holds).await.map(drop)
}

/// One frame: type, channel, length, payload and end.
async fn frame(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 7];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]);
    let mut rest = vec![0; usize::try_from(length).unwrap() + 1];
    from.read_exact(&mut rest).await?;
    frame.extend(rest);
    Ok(frame)
}

on_newest_rabbit! {
    async fn a_queue_that_confirms_nothing_is_reported(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let gate = ConfirmGate::start(vhost.broker()).await;
        let mut relay = Plan::on(&bench)
            .apart(0)
            .set("queue.url", vhost.url_through(gate.address))
            .set("queue.publish_timeout", "1s")
            .start()
            .await;
        relay.callback("a-group", "before", "m-0").await.id();
        gate.holds.send_replace(true);
        let began = std::time::Instant::now();
        relay.callback("a-group", "without a majority", "m-1").await.id();
        let silent = "causeway_queues_without_majority";
        relay.metric_is(silent, &[], |count| count > 0.0).await;
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let warned = relay.processes[0].running.line("queues of the broker confirm nothing", PATIENCE).await;
        assert!(warned.contains("WARN"), "{warned}");
        // The spool has room, so the ingress takes more.
        let ready = http::client().get(format!("{}/readyz", relay.processes[0].admin_url())).send().await.unwrap();
        assert_eq!(ready.status(), 200);
        gate.holds.send_replace(false);
        relay.metric_is(silent, &[], |count| count == 0.0).await;
        relay.metric_is("causeway_spool_messages", &[], |count| count == 0.0).await;
        eventually("the end to be told", PATIENCE, async || {
            let log = relay.processes[0].running.stderr();
            let is_told = log.contains("every queue of the broker confirms again");
            if is_told { Ok(()) } else { Err(log) }
        })
        .await;
    }
}
