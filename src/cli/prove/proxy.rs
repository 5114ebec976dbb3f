//! A TCP proxy that breaks on command: the network between two parts of a run.
//!
//! It breaks the way networks do: a refused port is really closed, a cut is a reset, a black hole keeps connections open and
//! swallows nothing: what was on its way arrives after [`Proxy::heal`], as with a router that came back.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::tasks;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Refused,
    BlackHole,
}

#[derive(Debug, Clone, Copy)]
struct State {
    way: Way,
    /// Counts the cuts: a connection ends when it is no longer the number it was born under.
    cuts: u64,
}

/// Breaks for good when dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
}

impl Proxy {
    /// Stands before `target` on a free port of loopback.
    pub(super) async fn start(target: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port")?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State { way: Way::Open, cuts: 0 });
        tasks::spawn(listen(listener, address, target, watched));
        Ok(Self { address, state })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection; new ones are welcome.
    pub(super) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// As if the process behind had died: connections are reset, new ones refused.
    pub(super) fn refuse(&self) {
        self.state.send_modify(|state| {
            state.way = Way::Refused;
            state.cuts += 1;
        });
    }

    /// As if a cable was pulled: connections stay open, new ones are accepted, nothing moves in either direction.
    pub(super) fn black_hole(&self) {
        self.state.send_modify(|state| state.way = Way::BlackHole);
    }

    /// All well again, on the same address, and what a black hole held back moves on.
    pub(super) fn heal(&self) {
        self.state.send_modify(|state| state.way = Way::Open);
    }
}

async fn listen(
    listener: TcpListener,
    address: SocketAddr,
    target: String,
    mut state: watch::Receiver<State>,
) {
    let mut listening = Some(listener);
    loop {
        // The port is only held while it is meant to answer.
        if state.wait_for(|state| state.way != Way::Refused).await.is_err() {
            return;
        }
        let listener = match listening.take() {
            Some(listener) => listener,
            None => match TcpListener::bind(address).await {
                Ok(listener) => listener,
                // An outgoing connection may sit on the port for a moment.
                Err(_) => {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        loop {
            let accepted = tokio::select! {
                refused = state.wait_for(|state| state.way == Way::Refused) => match refused {
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

async fn relay(client: TcpStream, target: String, state: watch::Receiver<State>, born: u64) {
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
            // Dropping it would say a polite goodbye first.
            half.forget();
        }
    }
}

/// Carries one direction to its end, then passes the end on.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    state: &mut watch::Receiver<State>,
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

/// Waits while the way is a black hole.
async fn passable(state: &mut watch::Receiver<State>) -> Option<()> {
    state.wait_for(|state| state.way == Way::Open).await.ok().map(|_| ())
}

async fn cut(state: &mut watch::Receiver<State>, born: u64) {
    // An error means that the proxy itself was dropped, which cuts as well.
    let _ = state.wait_for(|state| state.cuts != born).await;
}

/// The next close of this socket is a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> (Proxy, TcpStream) {
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
        let proxy = Proxy::start(target).await.unwrap();
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
