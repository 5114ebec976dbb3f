//! Promise: a connection pooler before PostgreSQL is found without a setting, and no statement gets a name in a session
//! that is not our own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use causeway::conversation::{Directory, DirectorySettings, DirectoryUrl, Origin};
use causeway::message::ConversationId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::harness;
use crate::harness::postgres::Database;

const REQUEST_FOR_TLS: u32 = 80_877_103;

/// What the pooler does with the parameter `options` of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Options {
    Refused,
    LeftOut,
    PassedOn,
}

/// Stands before a server, as PgBouncer does.
struct Pooler {
    address: SocketAddr,
    /// From now on the session of a statement with a name is another one.
    loses_names: Arc<AtomicBool>,
    /// The number of statements with a name.
    named: Arc<AtomicUsize>,
}

impl Pooler {
    async fn start(server: SocketAddr, options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pooler = Self {
            address: listener.local_addr().unwrap(),
            loses_names: Arc::default(),
            named: Arc::default(),
        };
        let (loses_names, named) = (pooler.loses_names.clone(), pooler.named.clone());
        harness::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (loses_names, named) = (loses_names.clone(), named.clone());
                harness::spawn(async move {
                    // An error is the end of one of the two connections.
                    let _ = serve(client, server, options, loses_names, named).await;
                });
            }
        });
        pooler
    }
}

async fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    options: Options,
    loses_names: Arc<AtomicBool>,
    named: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let mut login = sized(&mut client).await?;
    if login.starts_with(&REQUEST_FOR_TLS.to_be_bytes()) {
        client.write_all(b"N").await?;
        login = sized(&mut client).await?;
    }
    let has_options = login.windows(9).any(|part| part == b"\0options\0");
    if has_options && options == Options::Refused {
        return client.write_all(&refusal("08P01", "unsupported startup parameter: options")).await;
    }
    if options == Options::LeftOut {
        login = without_options(&login);
    }
    let (mut from_server, mut to_server) = TcpStream::connect(server).await?.into_split();
    write_sized(&mut to_server, &login).await?;
    let (from_client, to_client) = client.into_split();
    let to_client = Arc::new(Mutex::new(to_client));
    let answers = to_client.clone();
    harness::spawn(async move {
        let mut part = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut part).await {
            if answers.lock().await.write_all(&part[..length]).await.is_err() {
                break;
            }
        }
        let _ = answers.lock().await.shutdown().await;
    });
    requests(from_client, to_server, to_client, loses_names, named).await
}

async fn requests(
    mut from_client: OwnedReadHalf,
    mut to_server: OwnedWriteHalf,
    to_client: Arc<Mutex<OwnedWriteHalf>>,
    loses_names: Arc<AtomicBool>,
    named: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let mut is_lost = false;
    loop {
        let kind = from_client.read_u8().await?;
        let body = sized(&mut from_client).await?;
        if has_name(kind, &body) {
            named.fetch_add(1, Ordering::SeqCst);
            is_lost |= loses_names.load(Ordering::SeqCst);
        }
        if !is_lost {
            to_server.write_u8(kind).await?;
            write_sized(&mut to_server, &body).await?;
        } else if kind == b'S' {
            is_lost = false;
            let mut answer = refusal("26000", "prepared statement does not exist");
            answer.extend(b"Z\0\0\0\x05I");
            to_client.lock().await.write_all(&answer).await?;
        }
    }
}

/// Whether a request prepares or uses a statement with a name.
fn has_name(kind: u8, body: &[u8]) -> bool {
    let mut texts = body.split(|byte| *byte == 0);
    match kind {
        b'P' => texts.next().is_some_and(|name| !name.is_empty()),
        // The first text is the portal.
        b'B' => texts.nth(1).is_some_and(|name| !name.is_empty()),
        _ => false,
    }
}

async fn sized(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    let mut body = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn write_sized(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> std::io::Result<()> {
    let mut whole = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
    whole.extend(body);
    stream.write_all(&whole).await
}

fn refusal(code: &str, words: &str) -> Vec<u8> {
    let fields = format!("SERROR\0VERROR\0C{code}\0M{words}\0\0");
    let mut whole = vec![b'E'];
    whole.extend(u32::try_from(fields.len() + 4).unwrap().to_be_bytes());
    whole.extend(fields.as_bytes());
    whole
}

fn without_options(login: &[u8]) -> Vec<u8> {
    let (version, rest) = login.split_at(4);
    let texts: Vec<_> = rest.split(|byte| *byte == 0).take_while(|text| !text.is_empty()).collect();
    let mut kept = version.to_vec();
    for pair in texts.chunks(2).filter(|pair| pair[0] != b"options") {
        for text in pair {
            kept.extend_from_slice(text);
            kept.push(0);
        }
    }
    kept.push(0);
    kept
}

async fn open(database: &Database, pooler: &Pooler) -> Directory {
    let url = DirectoryUrl::Postgres(database.url_through(pooler.address).into());
    Directory::open(&DirectorySettings { url }).await.unwrap()
}

async fn write_and_read(directory: &Directory, name: &str) {
    let id = ConversationId::parse(name).unwrap();
    directory.mark_requested(&id, Origin::Api, None).await.unwrap();
    assert!(directory.find(&id).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_pooler_is_found_before_the_first_statement() {
    for options in [Options::Refused, Options::LeftOut] {
        let database = Database::create().await;
        let pooler = Pooler::start(database.address(), options).await;
        let directory = open(&database, &pooler).await;
        assert!(directory.is_pooled(), "{options:?}");
        write_and_read(&directory, "c-1").await;
        assert_eq!(pooler.named.load(Ordering::SeqCst), 0, "{options:?}");
        directory.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_pooler_that_appears_later_fails_no_statement() {
    let database = Database::create().await;
    let pooler = Pooler::start(database.address(), Options::PassedOn).await;
    let directory = open(&database, &pooler).await;
    write_and_read(&directory, "c-1").await;
    assert!(!directory.is_pooled());
    assert!(pooler.named.load(Ordering::SeqCst) > 0, "a session of our own has prepared statements");
    pooler.loses_names.store(true, Ordering::SeqCst);
    write_and_read(&directory, "c-2").await;
    assert!(directory.is_pooled());
    let named = pooler.named.load(Ordering::SeqCst);
    write_and_read(&directory, "c-3").await;
    assert_eq!(pooler.named.load(Ordering::SeqCst), named);
    directory.close().await;
}
