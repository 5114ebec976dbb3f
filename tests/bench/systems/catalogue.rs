//! The compared systems as data: how each role is started, and which address accepts posts.
//!
//! All systems get the same virtual host of the same broker, the address of the sink, and 64 requests in flight. A
//! peer is a folder in `tests/bench/peers/` with a script `start ROLE`, which gets all other values in `BENCH_*`
//! variables. `tests/bench/run` installs the dependencies of a peer into `target/bench/`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::running::Recipe;
use super::shape::Shape;

/// The number of parallel requests to the destination, for each system.
pub(crate) const IN_FLIGHT: usize = 64;

/// One system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The order that it promises within a conversation.
    pub(crate) order: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bare { queues: usize },
    Causeway { embedded: bool },
    Peer,
}

const fn system(name: &'static str, kind: Kind, order: &'static str) -> System {
    System { name, kind, order }
}

/// All systems, in the order of the table.
pub(crate) const ALL: &[System] = &[
    system("bare", Kind::Bare { queues: 1 }, "no"),
    system("bare-8", Kind::Bare { queues: 8 }, "no"),
    system("causeway", Kind::Causeway { embedded: false }, "kept"),
    system("embedded", Kind::Causeway { embedded: true }, "kept"),
    system("amqplib", Kind::Peer, "no"),
    system("celery", Kind::Peer, "no"),
    system("dramatiq", Kind::Peer, "no"),
    system("faststream", Kind::Peer, "no"),
    system("restate", Kind::Peer, "kept"),
];

/// The part of a system that is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The whole system, in as few processes as it allows.
    Whole,
    /// The part from HTTP to the queue.
    Front,
    /// The part from the queue to HTTP.
    Worker,
}

/// The environment of a system.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) amqp: String,
    pub(crate) sink: SocketAddr,
    /// Free ports. The first one accepts posts.
    pub(crate) ports: [u16; 8],
    /// The number of the next worker. Each worker has a port of its own.
    pub(crate) worker: usize,
    /// The folder of this job.
    pub(crate) folder: PathBuf,
    /// The database of a two-way run; without it messages are relayed only.
    pub(crate) postgres: Option<String>,
    /// Additional settings of Causeway for this run.
    pub(crate) settings: Vec<(String, String)>,
}

impl Place {
    pub(crate) fn listen(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[0]))
    }

    fn port(&self, index: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[index]))
    }
}

impl System {
    pub(crate) fn find(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|system| system.name == name)
    }

    pub(crate) const fn is_causeway(&self) -> bool {
        matches!(self.kind, Kind::Causeway { .. })
    }

    /// The URL that accepts posts. `{group}` stands for the conversation.
    pub(crate) fn path(&self, shape: Shape) -> String {
        match (self.kind, self.name) {
            (Kind::Causeway { .. }, _) => shape.path(),
            (_, "restate") => "/Conversation/{group}/deliver/send".to_owned(),
            _ => "/".to_owned(),
        }
    }

    /// Why the system cannot run here, if the reason is known.
    pub(crate) fn absent(&self) -> Option<String> {
        if self.kind != Kind::Peer {
            return None;
        }
        let note = target().join(self.name).join("absent");
        match std::fs::read_to_string(note) {
            Ok(reason) => Some(reason.trim().to_owned()),
            Err(_) if target().join(self.name).join("versions").exists() => None,
            Err(_) => Some("not installed: run tests/bench/run".to_owned()),
        }
    }

    /// The folder with the installed dependencies.
    pub(crate) fn versions(&self) -> String {
        match self.kind {
            Kind::Bare { .. } => "lapin, reqwest and axum as in Cargo.lock".to_owned(),
            Kind::Causeway { .. } => format!("this tree ({})", env!("CARGO_PKG_VERSION")),
            Kind::Peer => std::fs::read_to_string(target().join(self.name).join("versions"))
                .map_or_else(|_| "?".to_owned(), |text| text.trim().replace('\n', ", ")),
        }
    }

    /// The processes of a role. If a system has no single process for the whole, both parts are started.
    pub(crate) fn recipes(&self, role: Role, place: &Place) -> Vec<Recipe> {
        match self.kind {
            Kind::Bare { queues } => vec![bare(role, queues, place)],
            Kind::Causeway { embedded } => vec![causeway(role, embedded, place)],
            Kind::Peer => {
                let roles: &[Role] = match role {
                    Role::Whole => &[Role::Front, Role::Worker],
                    Role::Front => &[Role::Front],
                    Role::Worker => &[Role::Worker],
                };
                roles.iter().map(|role| peer(self.name, *role, place)).collect()
            }
        }
    }

    /// The program of the worker with another verb.
    pub(crate) fn verb(&self, args: &[&str], place: &Place) -> Option<Recipe> {
        let Kind::Causeway { embedded } = self.kind else { return None };
        let recipe = causeway(Role::Worker, embedded, place);
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Some(Recipe { role: "verb", args, ready: None, ..recipe })
    }

    /// Whether the process that accepts posts also holds the queue, so that it must keep running.
    pub(crate) fn front_is_queue(&self) -> bool {
        self.name == "restate"
    }

    /// Whether ingress and worker can run separately at the same time.
    pub(crate) const fn comes_apart(&self) -> bool {
        !matches!(self.kind, Kind::Causeway { embedded: true })
    }
}

/// The folder into which `tests/bench/run` installs and writes.
pub(crate) fn target() -> PathBuf {
    // Cargo's folder for files of tests and benchmarks is `target/tmp`.
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench")
}

const fn named(role: Role) -> &'static str {
    match role {
        Role::Whole => "serve",
        Role::Front => "front",
        Role::Worker => "worker",
    }
}

fn bare(role: Role, queues: usize, place: &Place) -> Recipe {
    let mut args = vec!["bare".to_owned(), "--amqp".to_owned(), place.amqp.clone()];
    args.extend(["--queues".to_owned(), queues.to_string()]);
    if role != Role::Worker {
        args.extend(["--listen".to_owned(), place.listen().to_string()]);
    }
    if let Some(postgres) = &place.postgres {
        args.extend(["--postgres".to_owned(), postgres.clone()]);
    }
    if role != Role::Front {
        args.extend(["--sink".to_owned(), format!("http://{}/", place.sink)]);
        args.extend(["--in-flight".to_owned(), IN_FLIGHT.to_string()]);
    }
    let program = std::env::current_exe().unwrap_or_default().to_string_lossy().into_owned();
    let ready = (role != Role::Worker).then(|| place.listen());
    Recipe { role: named(role), program, args, env: Vec::new(), ready }
}

fn causeway(role: Role, embedded: bool, place: &Place) -> Recipe {
    let (verb, ready) = match role {
        Role::Whole => ("serve", place.listen()),
        Role::Front => ("ingress", place.listen()),
        Role::Worker => ("worker", place.port(2 + place.worker)),
    };
    let admin = if role == Role::Worker { ready } else { place.port(1) };
    let mut settings = vec![
        ("data_dir", place.folder.join("data").to_string_lossy().into_owned()),
        ("ingress.listen", place.listen().to_string()),
        ("ingress.servicenow.token", "bench".to_owned()),
        ("admin.listen", admin.to_string()),
        ("xo.callback_url", format!("http://{}/", place.sink)),
        ("delivery.xo.concurrency", IN_FLIGHT.to_string()),
        ("log.level", "warn".to_owned()),
    ];
    if !embedded {
        settings.push(("queue.url", place.amqp.clone()));
    }
    let own = place.settings.iter().map(|(key, value)| (key.as_str(), value.clone()));
    let variable = |key: &str| format!("CAUSEWAY_{}", key.replace('.', "__").to_uppercase());
    let env = settings.into_iter().chain(own).map(|(key, value)| (variable(key), value)).collect();
    let program = env!("CARGO_BIN_EXE_causeway").to_owned();
    Recipe { role: named(role), program, args: vec![verb.to_owned()], env, ready: Some(ready) }
}

fn peer(name: &str, role: Role, place: &Place) -> Recipe {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/peers").join(name);
    let text = |text: &str| text.to_owned();
    #[expect(clippy::disallowed_methods, reason = "a peer needs the caller's PATH to find its interpreter")]
    let path = std::env::var("PATH").unwrap_or_default();
    let env = vec![
        (text("PATH"), path),
        (text("HOME"), place.folder.to_string_lossy().into_owned()),
        (text("LANG"), text("C.UTF-8")),
        (text("BENCH_HOME"), target().join(name).to_string_lossy().into_owned()),
        (text("BENCH_FOLDER"), place.folder.to_string_lossy().into_owned()),
        (text("BENCH_AMQP"), place.amqp.clone()),
        (text("BENCH_PORTS"), place.ports.map(|port| port.to_string()).join(" ")),
        (text("BENCH_PORT"), place.ports[0].to_string()),
        (text("BENCH_SINK"), format!("http://{}/", place.sink)),
        (text("BENCH_IN_FLIGHT"), IN_FLIGHT.to_string()),
        (text("BENCH_POSTGRES"), place.postgres.clone().unwrap_or_default()),
    ];
    let program = folder.join("start").to_string_lossy().into_owned();
    let ready = (role == Role::Front).then(|| place.listen());
    Recipe { role: named(role), program, args: vec![named(role).to_owned()], env, ready }
}
