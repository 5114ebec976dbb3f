//! RabbitMQ nodes for tests: one shared by all tests that only need a quiet vhost, and private ones for tests that
//! break their node.
//!
//! `tests/run` provides the shared nodes. Without it, the first test that needs a node starts the RabbitMQ of the
//! distribution for this process. Other nodes of the machine are neither used nor disturbed.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::leash::{Leash, script};
use super::ports::free_ports;
use super::wait::{eventually, eventually_blocking};
use super::{management, told};

const START: Duration = Duration::from_secs(90);

/// The RabbitMQ versions that tests know, each with its name in `tests/run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// The version of the distribution: 3.10 on Debian 12.
    V310,
    /// The current series, if `tests/run` has it.
    V43,
}

impl Version {
    fn lent_as(self) -> &'static str {
        match self {
            Version::V310 => "CAUSEWAY_TEST_RABBITMQ_310",
            Version::V43 => "CAUSEWAY_TEST_RABBITMQ_43",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Broker {
    amqp: SocketAddr,
    management: SocketAddr,
    /// The process, if the test may break it.
    node: Option<Leash>,
}

impl Broker {
    /// The broker that all tests share; no test may break it. Fails the test if the machine has no broker of this
    /// version.
    pub(crate) fn shared(version: Version) -> Option<&'static Broker> {
        static V310: OnceLock<Option<Broker>> = OnceLock::new();
        static V43: OnceLock<Option<Broker>> = OnceLock::new();
        match version {
            Version::V310 => V310.get_or_init(|| Broker::lent(version).or_else(Broker::private)),
            Version::V43 => V43.get_or_init(|| {
                let lent = Broker::lent(version);
                assert!(
                    lent.is_some(),
                    "no RabbitMQ 4.3 here: {} is not set (tests/run sets it)",
                    version.lent_as()
                );
                lent
            }),
        }
        .as_ref()
    }

    /// A broker for one test that stops, kills or pauses it. Fails the test if RabbitMQ is not installed.
    pub(crate) fn private() -> Option<Broker> {
        let installed = Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server").exists();
        assert!(installed, "RabbitMQ is not installed (tests/run installs it)");
        let ports = free_ports::<4>();
        let node = Leash::start("private-rabbitmq", "KILL", &ports.map(|port| port.to_string()));
        let [amqp, management, ..] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let broker = Broker { amqp, management, node: Some(node) };
        eventually_blocking("a private RabbitMQ to start", START, || broker.ready());
        Some(broker)
    }

    fn lent(version: Version) -> Option<Broker> {
        let name = version.lent_as();
        let amqp = address(&told(name)?);
        let management =
            address(&told(&format!("{name}_MANAGEMENT")).expect("tests/run lends both addresses"));
        Some(Broker { amqp, management, node: None })
    }

    fn ready(&self) -> Result<(), String> {
        let log = || self.node.as_ref().map(Leash::log_tail).unwrap_or_default();
        TcpStream::connect(self.amqp).map_err(|error| format!("AMQP port: {error}\n{}", log()))?;
        self.ask("GET", "/api/overview", "").map(|_| ())
    }

    /// The AMQP address of the node, for a proxy.
    pub(crate) fn amqp(&self) -> SocketAddr {
        self.amqp
    }

    /// The AMQP URL of the default vhost.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.amqp)
    }

    /// A vhost for one test. It is deleted when the value is dropped.
    pub(crate) fn vhost(&self) -> Vhost {
        let name = format!("test-{}", Uuid::new_v4().simple());
        let make = self.ask("PUT", &format!("/api/vhosts/{name}"), "{}");
        make.expect("a new vhost");
        let all = r#"{"configure":".*","write":".*","read":".*"}"#;
        self.ask("PUT", &format!("/api/permissions/{name}/guest"), all).expect("the rights to it");
        Vhost { name, users: Mutex::default(), amqp: self.amqp, management: self.management }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value, String> {
        management::ask(self.management, method, path, body)
    }

    /// Closes every client connection from the broker's side.
    pub(crate) async fn close_connections(&mut self) {
        self.ctl(&["close_all_connections", "asked by a test"]).await;
    }

    /// Stops the application in an orderly way while the node stays: clients get a regular close.
    pub(crate) async fn stop_app(&mut self) {
        self.ctl(&["stop_app"]).await;
    }

    pub(crate) async fn start_app(&mut self) {
        self.ctl(&["start_app"]).await;
        self.up("RabbitMQ after start_app").await;
    }

    /// Kills the node; clients get no close.
    pub(crate) async fn kill9(&mut self) {
        self.node().signal("KILL");
        let amqp = self.amqp;
        eventually("a killed RabbitMQ to be gone", START, async || match TcpStream::connect(amqp) {
            Ok(_) => Err("its port still answers".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
    }

    /// Starts the node again on the same files, after [`Broker::kill9`] or by killing the running node.
    pub(crate) async fn restart(&mut self) {
        self.node.as_mut().expect("only a private broker may be restarted").run_again();
        self.up("a restarted RabbitMQ").await;
    }

    /// Freezes the node: connections stay open, and no answer comes.
    pub(crate) fn pause(&mut self) {
        self.node().signal("STOP");
    }

    pub(crate) fn resume(&mut self) {
        self.node().signal("CONT");
    }

    /// Runs a `rabbitmqctl` command on a private broker and returns what it prints.
    pub(crate) async fn ctl(&self, args: &[&str]) -> String {
        let mut command = Command::new(script("private-rabbitmq"));
        command.arg(self.node().dir()).arg("ctl").args(args);
        let run = tokio::task::spawn_blocking(move || command.output().expect("rabbitmqctl runs"));
        let output = run.await.expect("rabbitmqctl is waited for");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "rabbitmqctl {args:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    async fn up(&self, what: &str) {
        eventually(what, START, async || self.ready()).await;
    }

    fn node(&self) -> &Leash {
        self.node.as_ref().expect("only a private broker may be broken: use Broker::private()")
    }
}

/// The vhost of one test.
#[derive(Debug)]
pub(crate) struct Vhost {
    name: String,
    users: Mutex<Vec<String>>,
    amqp: SocketAddr,
    management: SocketAddr,
}

impl Vhost {
    pub(crate) fn url(&self) -> String {
        self.url_through(self.amqp)
    }

    /// The name of the vhost.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Imports definitions, as an administrator does. Their users are deleted with the vhost.
    pub(crate) fn import(&self, definitions: &Value) {
        let text = definitions.to_string();
        management::ask(self.management, "POST", "/api/definitions", &text).expect("definitions");
        let users = definitions["users"].as_array().into_iter().flatten();
        let users = users.filter_map(|user| user["name"].as_str().map(str::to_owned));
        self.users.lock().expect("no test panics here").extend(users);
    }

    /// The management API, with user and password.
    pub(crate) fn management_url(&self) -> String {
        format!("http://guest:guest@{}", self.management)
    }

    /// The AMQP address of the broker, for a proxy.
    pub(crate) fn broker(&self) -> SocketAddr {
        self.amqp
    }

    /// The URL of the vhost through a proxy.
    pub(crate) fn url_through(&self, address: SocketAddr) -> String {
        format!("amqp://guest:guest@{address}/{}", self.name)
    }

    /// The URL of the vhost for a new user with this password. The user is deleted with the vhost.
    pub(crate) fn url_with_password(&self, password: &str) -> String {
        let user = serde_json::json!({ "password": password, "tags": "" }).to_string();
        let all = r#"{"configure":".*","write":".*","read":".*"}"#;
        let rights = format!("/api/permissions/{}/{}", self.name, self.name);
        for (path, body) in [(format!("/api/users/{}", self.name), user.as_str()), (rights, all)] {
            management::ask(self.management, "PUT", &path, body).expect("a user with a password");
        }
        format!("amqp://{}:{password}@{}/{}", self.name, self.amqp, self.name)
    }

    /// The URL of the vhost for a new user of this role with these rights to configure, write and read. The user is deleted
    /// with the vhost.
    pub(crate) fn url_with_rights(&self, role: &str, configure: &str, write: &str, read: &str) -> String {
        let user = format!("{}-{role}", self.name);
        let body = serde_json::json!({ "password": "pw", "tags": "" }).to_string();
        management::ask(self.management, "PUT", &format!("/api/users/{user}"), &body).expect("a user");
        self.set_rights(&user, configure, write, read);
        self.users.lock().expect("no test panics here").push(user.clone());
        format!("amqp://{user}:pw@{}/{}", self.amqp, self.name)
    }

    /// Sets the rights of a user to configure, write and read.
    pub(crate) fn set_rights(&self, user: &str, configure: &str, write: &str, read: &str) {
        let rights = serde_json::json!({ "configure": configure, "write": write, "read": read });
        let path = format!("/api/permissions/{}/{user}", self.name);
        management::ask(self.management, "PUT", &path, &rights.to_string()).expect("the rights are changed");
    }

    /// The queues in the form of the management API: `name`, `messages`, `arguments`, … Counts are up to 5 s old.
    pub(crate) fn queues(&self) -> Vec<Value> {
        let answer = management::ask(self.management, "GET", &format!("/api/queues/{}", self.name), "");
        answer.expect("the queues of a vhost").as_array().cloned().unwrap_or_default()
    }

    /// The consumers in the form of the management API: `queue`, `consumer_tag`, `active`, `prefetch_count`, …
    pub(crate) fn consumers(&self) -> Vec<Value> {
        let answer = management::ask(self.management, "GET", &format!("/api/consumers/{}", self.name), "");
        answer.expect("the consumers of a vhost").as_array().cloned().unwrap_or_default()
    }

    /// Sets a policy for the queues whose names match, as an operator may do.
    pub(crate) fn set_policy(&self, pattern: &str, definition: Value) {
        let path = format!("/api/policies/{}/of-a-test", self.name);
        let policy =
            serde_json::json!({ "pattern": pattern, "definition": definition, "apply-to": "queues" });
        management::ask(self.management, "PUT", &path, &policy.to_string()).expect("the policy is set");
    }

    /// Deletes a queue although it is in use.
    pub(crate) fn delete_queue(&self, queue: &str) {
        let path = format!("/api/queues/{}/{queue}", self.name);
        management::ask(self.management, "DELETE", &path, "").expect("the queue is deleted");
    }

    /// Forbids publishing to this exchange.
    pub(crate) fn forbid_writing_to(&self, exchange: &str) {
        let path = format!("/api/permissions/{}/guest", self.name);
        let rights =
            serde_json::json!({ "configure": ".*", "read": ".*", "write": format!("^(?!{exchange}$).*") });
        management::ask(self.management, "PUT", &path, &rights.to_string()).expect("the rights are changed");
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // A broker that its test killed has no vhosts to delete, and a second panic must not hide the first.
        let users = self.users.get_mut().map(std::mem::take).unwrap_or_default();
        let users = users.into_iter().chain([self.name.clone()]).map(|user| format!("/api/users/{user}"));
        for path in [format!("/api/vhosts/{}", self.name)].into_iter().chain(users) {
            let _ = management::ask(self.management, "DELETE", &path, "");
        }
    }
}

/// The address in `amqp://user:password@127.0.0.1:5672/%2f` or `http://127.0.0.1:15672`.
fn address(url: &str) -> SocketAddr {
    let url = url::Url::parse(url).expect("tests/run lends URLs");
    let host = url.host_str().expect("with a host");
    format!("{host}:{}", url.port().expect("and a port")).parse().expect("as numbers")
}

#[cfg(test)]
mod tests {
    use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
    use lapin::types::FieldTable;
    use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

    use super::super::wait::let_pass;
    use super::*;

    async fn open(url: &str) -> (Connection, Channel) {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    async fn declare(channel: &Channel, passive: bool) -> lapin::Result<u32> {
        let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
        channel
            .queue_declare("q".into(), options, FieldTable::default())
            .await
            .map(|queue| queue.message_count())
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs RabbitMQ 4.3: tests/run starts it"]
    async fn vhosts_see_nothing_of_each_other_and_go_with_their_test() {
        for version in [Version::V310, Version::V43] {
            let Some(broker) = Broker::shared(version) else { continue };
            let (one, two) = (broker.vhost(), broker.vhost());
            let (_kept, in_one) = open(&one.url()).await;
            declare(&in_one, false).await.unwrap();
            let (_kept_too, in_two) = open(&two.url()).await;
            assert!(declare(&in_two, true).await.is_err(), "a queue of one vhost is seen in another");
            assert_eq!(one.queues().len(), 1);
            let gone = one.url();
            drop(one);
            assert!(Connection::connect(&gone, ConnectionProperties::default()).await.is_err());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_private_broker_is_stopped_killed_paused_and_keeps_its_messages() {
        let Some(mut broker) = Broker::private() else { return };
        let vhost = broker.vhost();
        let (_kept, channel) = open(&vhost.url()).await;
        declare(&channel, false).await.unwrap();
        // A queue that was declared shortly before a kill -9 is not on the disk yet, even if its messages were
        // confirmed.
        let_pass(Duration::from_secs(3)).await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let publish =
            channel.basic_publish("".into(), "q".into(), BasicPublishOptions::default(), b"kept", persistent);
        publish.await.unwrap().await.unwrap();

        broker.kill9().await;
        assert!(TcpStream::connect(broker.amqp()).is_err());
        broker.restart().await;
        assert_eq!(
            declare(&open(&vhost.url()).await.1, true).await.unwrap(),
            1,
            "the message survived the kill"
        );

        broker.stop_app().await;
        assert!(TcpStream::connect(broker.amqp()).is_err(), "a stopped application listens no more");
        broker.start_app().await;

        broker.pause();
        let url = vhost.url();
        let connect = Connection::connect(&url, ConnectionProperties::default());
        let frozen = tokio::time::timeout(Duration::from_millis(500), connect).await;
        assert!(frozen.is_err(), "a paused broker answers nobody");
        broker.resume();
        assert_eq!(declare(&open(&vhost.url()).await.1, true).await.unwrap(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_of_a_private_broker_is_left_behind() {
        let Some(broker) = Broker::private() else { return };
        let (amqp, dir) = (broker.amqp(), broker.node().dir().to_owned());
        assert!(dir.exists());
        drop(broker);
        assert!(TcpStream::connect(amqp).is_err());
        assert!(!dir.exists());
    }
}
