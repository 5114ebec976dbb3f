//! The systems that are compared, as data: how each is started in each role, and where it takes posts.
//!
//! All of them get the same: a virtual host of the same broker, the address of the sink, 64 requests in flight. A peer is a
//! folder below `tests/bench/peers/` with a script `start ROLE` that is told the rest by `BENCH_*` variables; what a peer needs
//! was installed into `target/bench/` by `tests/bench/run`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::running::Recipe;

/// Requests to the destination at once, for every system.
pub(crate) const IN_FLIGHT: usize = 64;

/// One system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What it promises of order within a conversation.
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

/// In the order of the table.
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

/// Which part of a system is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything, in as few processes as the system allows.
    Whole,
    /// From HTTP to the queue.
    Front,
    /// From the queue to HTTP.
    Worker,
}

/// What a system is told.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) amqp: String,
    pub(crate) sink: SocketAddr,
    /// Free ports: the first takes posts.
    pub(crate) ports: [u16; 8],
    /// Which worker is started next; each has a port of its own.
    pub(crate) worker: usize,
    /// A folder of its own, for this job.
    pub(crate) folder: PathBuf,
    /// Settings of Causeway beside those that all jobs use.
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

    /// Where it takes posts; `{group}` stands for the conversation.
    pub(crate) fn path(&self) -> &'static str {
        match (self.kind, self.name) {
            (Kind::Causeway { .. }, _) => "/v1/callbacks/servicenow?token=bench",
            (_, "restate") => "/Conversation/{group}/deliver/send",
            _ => "/",
        }
    }

    /// Why it cannot be run here, where that is known.
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

    /// What was installed for it.
    pub(crate) fn versions(&self) -> String {
        match self.kind {
            Kind::Bare { .. } => "lapin, reqwest and axum as in Cargo.lock".to_owned(),
            Kind::Causeway { .. } => format!("this tree ({})", env!("CARGO_PKG_VERSION")),
            Kind::Peer => std::fs::read_to_string(target().join(self.name).join("versions"))
                .map_or_else(|_| "?".to_owned(), |text| text.trim().replace('\n', ", ")),
        }
    }

    /// The processes of a role. Where a system has no single process for everything, the whole is both parts.
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

    /// The same program as the worker, with another verb.
    pub(crate) fn verb(&self, args: &[&str], place: &Place) -> Option<Recipe> {
        let Kind::Causeway { embedded } = self.kind else { return None };
        let recipe = causeway(Role::Worker, embedded, place);
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Some(Recipe { role: "verb", args, ready: None, ..recipe })
    }

    /// Whether the process that takes posts also holds the queue, so that it has to stay.
    pub(crate) fn front_is_queue(&self) -> bool {
        self.name == "restate"
    }

    /// Whether ingress and worker can run apart at the same time.
    pub(crate) const fn comes_apart(&self) -> bool {
        !matches!(self.kind, Kind::Causeway { embedded: true })
    }
}

/// Where `tests/bench/run` installs and writes.
pub(crate) fn target() -> PathBuf {
    // Cargo's folder for what tests and benchmarks write is `target/tmp`.
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
    ];
    let program = folder.join("start").to_string_lossy().into_owned();
    let ready = (role == Role::Front).then(|| place.listen());
    Recipe { role: named(role), program, args: vec![named(role).to_owned()], env, ready }
}
