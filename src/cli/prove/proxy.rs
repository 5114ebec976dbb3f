//! A TCP proxy that breaks on command. It simulates the network between two parts of a run.
//!
//! The proxy breaks as networks do. A refused port is really closed, and a cut is a TCP reset. A black hole keeps
//! connections open and loses no data: data on its way arrives after [`TcpProxy::heal`], as after the return of a
//! router.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::tasks;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProxyMode {
    Open,
    Refused,
    BlackHole,
}

#[derive(Debug, Clone, Copy)]
struct ProxyState {
    way: ProxyMode,
    /// The number of cuts. A connection ends when this number differs from the one at its start.
    cuts: u64,
}

/// Dropping the proxy breaks it for good.
#[derive(Debug)]
pub(super) struct TcpProxy {
    address: SocketAddr,
    state: watch::Sender<ProxyState>,
}

impl TcpProxy {
    /// Listens on a free loopback port and forwards to `target`.
    pub(super) async fn start(target: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port")?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(ProxyState { way: ProxyMode::Open, cuts: 0 });
        tasks::spawn(listen(listener, address, target, watched));
        Ok(Self { address, state })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection. New connections are accepted.
    pub(super) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Resets every connection and refuses new ones, as if the process behind the proxy had died.
    pub(super) fn refuse(&self) {
        self.state.send_modify(|state| {
            state.way = ProxyMode::Refused;
            state.cuts += 1;
        });
    }

    /// Keeps connections open and accepts new ones, but moves no data, as if a cable was unplugged.
    pub(super) fn black_hole(&self) {
        self.state.send_modify(|state| state.way = ProxyMode::BlackHole);
    }

    /// Restores the connection on the same address. Data that a black hole held back moves on.
    pub(super) fn heal(&self) {
        self.state.send_modify(|state| state.way = ProxyMode::Open);
    }
}

async fn listen(
    listener: TcpListener,
    address: SocketAddr,
    target: String,
    mut state: watch::Receiver<ProxyState>,
) {
    let mut listening = Some(listener);
    loop {
        // The port is closed while the proxy refuses connections.
        if state.wait_for(|state| state.way != ProxyMode::Refused).await.is_err() {
            return;
        }
        let listener = match listening.take() {
            Some(listener) => listener,
            None => match TcpListener::bind(address).await {
                Ok(listener) => listener,
                // An outgoing connection may use the port for a moment.
                Err(_) => {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        loop {
            let accepted = tokio::select! {
                refused = state.wait_for(|state| state.way == ProxyMode::Refused) => match refused {
                    Ok(_) => break,
                    Err(_) => return,
                },
                accepted = listener.accept() => accepted,
            };
            if let Ok((client, _)) = accepted {
                let born = state.borrow().cuts;
                tasks::spawn(relay(client, target.clone(), state.clone(), born));
            }
        }
    }
}

async fn relay(client: TcpStream, target: String, state: watch::Receiver<ProxyState>, born: u64) {
    let mut watched = state.clone();
    let open = async {
        passable(&mut state.clone()).await?;
        TcpStream::connect(target).await.ok()
    };
    let server = tokio::select! {
        server = open => server,
        () = cut(&mut watched, born) => None,
    };
    let Some(server) = server else { return reset(&client) };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let both_ways = async {
        let (mut up, mut down) = (state.clone(), state.clone());
        tokio::join!(
            pump(&mut from_client, &mut to_server, &mut up),
            pump(&mut from_server, &mut to_client, &mut down)
        )
    };
    let broken = tokio::select! {
        _ = both_ways => false,
        () = cut(&mut watched, born) => true,
    };
    if broken {
        for half in [to_client, to_server] {
            reset(half.as_ref());
            // Dropping the write half would send a FIN before the reset.
            half.forget();
        }
    }
}

/// Copies one direction until its end, then passes on the end of the stream.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    state: &mut watch::Receiver<ProxyState>,
) -> Option<()> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut piece).await.unwrap_or(0);
        passable(state).await?;
        if read == 0 {
            return to.shutdown().await.ok();
        }
        to.write_all(piece.get(..read)?).await.ok()?;
    }
}

/// Waits while the proxy is a black hole.
async fn passable(state: &mut watch::Receiver<ProxyState>) -> Option<()> {
    state.wait_for(|state| state.way == ProxyMode::Open).await.ok().map(|_| ())
}

async fn cut(state: &mut watch::Receiver<ProxyState>, born: u64) {
    // An error means that the proxy was dropped. That cuts the connection, too.
    let _ = state.wait_for(|state| state.cuts != born).await;
}

/// Makes the next close of this socket a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> (TcpProxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        tasks::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tasks::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let proxy = TcpProxy::start(target).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_all(b"a").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'a');
        (proxy, client)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cut_is_a_reset() {
        let (proxy, mut client) = echo().await;
        proxy.cut();
        assert_eq!(client.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        let mut next = TcpStream::connect(proxy.address()).await.unwrap();
        next.write_all(b"b").await.unwrap();
        assert_eq!(next.read_u8().await.unwrap(), b'b');
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_black_hole_gives_back_what_it_held() {
        let (proxy, mut client) = echo().await;
        proxy.black_hole();
        client.write_all(b"c").await.unwrap();
        proxy.heal();
        assert_eq!(client.read_u8().await.unwrap(), b'c');
    }
}
