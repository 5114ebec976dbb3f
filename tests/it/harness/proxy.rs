//! A TCP proxy that breaks on command, as the network between two parts of a test.
//!
//! The proxy breaks like a network: a refused port is really closed, and a cut is a reset. A black hole keeps
//! connections open and loses no data: data on the way arrives after [`Proxy::heal`], as with a router that comes back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::ports::free_address;
use super::wait::{eventually, let_pass};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Refused,
    BlackHole,
}

#[derive(Debug, Clone, Copy)]
struct State {
    way: Way,
    /// The number of cuts so far. A connection ends if the number has changed since the connection was opened.
    cuts: u64,
    /// The delay before each piece of data, in both directions.
    delay: Duration,
}

/// The proxy. It breaks permanently when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
}

impl Proxy {
    /// Starts a proxy to `target` on a free port.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let address = free_address();
        let (state, watched) = watch::channel(State { way: Way::Open, cuts: 0, delay: Duration::ZERO });
        super::spawn(listen(address, target, watched));
        let proxy = Self { address, state };
        proxy.answers(true).await;
        proxy
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection; new ones are accepted.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Resets connections and refuses new ones, as if the process behind the proxy had died.
    pub(crate) async fn refuse(&self) {
        self.state.send_modify(|state| {
            state.way = Way::Refused;
            state.cuts += 1;
        });
        self.answers(false).await;
    }

    /// Keeps connections open and accepts new ones, but moves no data, as if a cable was pulled.
    pub(crate) fn black_hole(&self) {
        self.state.send_modify(|state| state.way = Way::BlackHole);
    }

    /// Repairs everything at once, on the same address. Data that a black hole held back moves on.
    pub(crate) async fn heal(&self) {
        self.state.send_modify(|state| {
            state.way = Way::Open;
            state.delay = Duration::ZERO;
        });
        self.answers(true).await;
    }

    /// Delays every piece of data by this time, in both directions, until [`Proxy::heal`].
    pub(crate) fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Waits until the port is open or closed as wanted, so that no test must guess when a change takes effect.
    async fn answers(&self, wanted: bool) {
        let timeout = Duration::from_secs(10);
        eventually("the proxy to open or close its port", timeout, async || {
            let open = TcpStream::connect(self.address).await.is_ok();
            if open == wanted { Ok(()) } else { Err(format!("open: {open}")) }
        })
        .await;
    }
}

async fn listen(address: SocketAddr, target: SocketAddr, mut state: watch::Receiver<State>) {
    loop {
        // The port is only open while it should answer.
        if state.wait_for(|state| state.way != Way::Refused).await.is_err() {
            return;
        }
        let listener = TcpListener::bind(address).await.expect("the proxy's port is still free");
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
                super::spawn(relay(client, target, state.clone(), born));
            }
        }
    }
}

async fn relay(client: TcpStream, target: SocketAddr, state: watch::Receiver<State>, born: u64) {
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
            // Dropping the half would send a regular close first.
            half.forget();
        }
    }
}

/// Carries one direction until its end, and forwards the end.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    state: &mut watch::Receiver<State>,
) -> Option<()> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut piece).await.unwrap_or(0);
        let delay = passable(state).await?;
        let_pass(delay).await;
        if read == 0 {
            return to.shutdown().await.ok();
        }
        to.write_all(&piece[..read]).await.ok()?;
    }
}

/// Waits while the proxy is a black hole, and returns the current delay.
async fn passable(state: &mut watch::Receiver<State>) -> Option<Duration> {
    state.wait_for(|state| state.way == Way::Open).await.ok().map(|state| state.delay)
}

async fn cut(state: &mut watch::Receiver<State>, born: u64) {
    // An error means that the proxy itself was dropped, which also cuts.
    let _ = state.wait_for(|state| state.cuts != born).await;
}

/// Makes the next close of this socket a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    /// A server that echoes, a proxy before it, and a client that has made one exchange.
    async fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        super::super::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                super::super::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let proxy = Proxy::start(target).await;
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut client, b"hello").await.unwrap(), b"hello");
        (proxy, client)
    }

    async fn say(client: &mut TcpStream, words: &[u8]) -> std::io::Result<Vec<u8>> {
        client.write_all(words).await?;
        hear(client, words.len()).await
    }

    async fn hear(client: &mut TcpStream, length: usize) -> std::io::Result<Vec<u8>> {
        let mut answer = vec![0; length];
        tokio::time::timeout(Duration::from_millis(400), client.read_exact(&mut answer)).await??;
        Ok(answer)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cut_resets_what_is_open_and_welcomes_what_is_new() {
        let (proxy, mut client) = echo().await;
        proxy.cut();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let mut next = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut next, b"again").await.unwrap(), b"again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn refuse_closes_the_port_until_healed() {
        let (proxy, mut client) = echo().await;
        proxy.refuse().await;
        assert!(client.read_u8().await.is_err());
        assert_eq!(TcpStream::connect(proxy.addr()).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        proxy.heal().await;
        let mut next = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut next, b"back").await.unwrap(), b"back");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_black_hole_stalls_old_and_new_and_gives_back_what_it_held() {
        let (proxy, mut old) = echo().await;
        proxy.black_hole();
        assert_eq!(say(&mut old, b"held").await.unwrap_err().kind(), ErrorKind::TimedOut);
        let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut new, b"too").await.unwrap_err().kind(), ErrorKind::TimedOut);
        proxy.heal().await;
        assert_eq!(hear(&mut old, 4).await.unwrap(), b"held");
        assert_eq!(hear(&mut new, 3).await.unwrap(), b"too");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn delay_slows_each_way() {
        let (proxy, mut client) = echo().await;
        proxy.delay(Duration::from_millis(60));
        let started = std::time::Instant::now();
        say(&mut client, b"slow").await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(120), "{:?}", started.elapsed());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_end_of_one_direction_is_passed_on() {
        let (_proxy, mut client) = echo().await;
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "the echo's own end comes back");
    }
}
