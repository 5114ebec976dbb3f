//! The part of HTTP/1.1 that a load generator and a sink need, on raw sockets.
//!
//! Why: both share two cores with the measured systems, so their processor time reduces the result.
//! Guarantees: keep-alive on both sides; bodies with a length or in chunks.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HEAD_MAX: usize = 64 * 1024;

/// One message of either direction in a connection's buffer.
#[derive(Debug)]
pub(crate) struct Framed {
    /// The start of the body and the end of the message.
    pub(crate) body: std::ops::Range<usize>,
    /// The connection ends with this message.
    close: bool,
}

/// A connection with bytes that were read and not used yet.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
    used: usize,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream, buffer: Vec::with_capacity(16 * 1024), used: 0 }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads the next message. `None` if the remote side closed the connection between two messages.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Framed>> {
        self.buffer.drain(..std::mem::take(&mut self.used));
        let mut searched = 0;
        let head = loop {
            if let Some(end) = find(&self.buffer[searched..], b"\r\n\r\n") {
                break searched + end + 4;
            }
            searched = self.buffer.len().saturating_sub(3);
            if searched > HEAD_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                let between = self.buffer.is_empty();
                return if between { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        };
        let fields = &self.buffer[..head];
        let close = field(fields, b"connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
        if fields.starts_with(b"HTTP/1.1 100") {
            self.used = head;
            return Box::pin(self.next()).await;
        }
        let end = if let Some(length) = field(fields, b"content-length") {
            let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<usize>().ok());
            head + length.ok_or(io::ErrorKind::InvalidData)?
        } else if field(fields, b"transfer-encoding").is_some() {
            self.chunks_end(head).await?
        } else {
            head
        };
        while self.buffer.len() < end {
            self.buffer.reserve(end - self.buffer.len());
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.used = end;
        Ok(Some(Framed { body: head..end, close }))
    }

    /// The remote sides do not pipeline, so the last chunk ends the buffer.
    async fn chunks_end(&mut self, head: usize) -> io::Result<usize> {
        while !(self.buffer.len() >= head + 5 && self.buffer.ends_with(b"0\r\n\r\n")) {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.len())
    }
}

/// The connection of a client, which is opened again if it is lost.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    peer: Option<Peer>,
}

impl Client {
    pub(crate) const fn new(address: SocketAddr) -> Self {
        Self { address, peer: None }
    }

    /// Sends a request and returns the status of the answer. A failed request is not repeated, because this could
    /// double a message.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<u16> {
        let mut peer = match self.peer.take() {
            Some(peer) => peer,
            None => Peer::new(TcpStream::connect(self.address).await?),
        };
        peer.write(request).await?;
        let answer = peer.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = peer.buffer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        if !answer.close {
            self.peer = Some(peer);
        }
        status.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// The position of `needle`.
pub(crate) fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|byte| byte == first) {
        from += at + 1;
        if hay[from..].starts_with(rest) {
            return Some(from - 1);
        }
    }
    None
}

fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (given, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        given.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
}
