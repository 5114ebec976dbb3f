//! Tests that settings are valid or every mistake is reported at once, and that no secret is shown.

use std::path::{Path, PathBuf};

use causeway::config::{DirectoryConfig, Environment, RunPurpose, SettingProblems, SettingSource, Settings};
use causeway::platform::ServiceNowLogin;
use secrecy::ExposeSecret;

/// A settings file in its own folder.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("causeway.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn load(text: &str, purpose: RunPurpose) -> Result<Settings, SettingProblems> {
    let (_folder, path) = file(text);
    Settings::load(Some(&path), &Environment::default(), purpose)
}

/// The wrong keys, in alphabetical order.
fn wrong_keys(text: &str, purpose: RunPurpose) -> Vec<String> {
    let mut keys: Vec<String> = load(text, purpose)
        .map_or_else(|problems| problems.0.into_iter().map(|problem| problem.key).collect(), |_| vec![]);
    keys.sort();
    keys
}

const WORKING: &str = r#"
[servicenow]
host_url = "https://example.service-now.com"
username = "chatbot"
password = "pw-in-file"
[ingress.servicenow]
token = "t"
"#;

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
    let (_folder, path) = file("data_dir = \"/from/file\"\ndrain = \"7s\"\n");
    let environment = Environment::from([
        ("CAUSEWAY_DATA_DIR", "/from/environment"),
        ("CAUSEWAY_DELIVERY__DEADLINE__START", ""),
        ("UNRELATED", "x"),
    ]);
    let settings = Settings::load(Some(&path), &environment, RunPurpose::Admin).unwrap();
    assert_eq!(settings.data_dir, Path::new("/from/environment"));
    assert_eq!(settings.drain.as_secs(), 7);
    // Compose passes an unset variable as an empty one.
    assert_eq!(settings.delivery.deadline.start.as_secs(), 120);
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let text = r#"drain = "soon"
[queue]
url = "http://broker"
partitions = 0
prefetch = 70000
[servicenow]
hosturl = "https://example.service-now.com"
[ingress]
listen = "8080"
body_limit = "many"
[delivery.retry]
factor = 0.5
[log]
level = "loud"
format = "xml"
"#;
    let (_folder, path) = file(text);
    let environment = Environment::from([
        ("CAUSEWAY_XO__CALBACK_URL", "x"),
        ("CAUSEWAY_INGRESS__ALLOW_UNAUTHENTICATED", "maybe"),
    ]);
    let problems = Settings::load(Some(&path), &environment, RunPurpose::Ingress).unwrap_err();
    let said = problems.to_string();
    for key in [
        "drain",
        "queue.url",
        "queue.partitions",
        "queue.prefetch",
        "servicenow.hosturl",
        "ingress.listen",
        "ingress.body_limit",
        "delivery.retry.factor",
        "log.level",
        "log.format",
        "xo.calback_url",
        "ingress.allow_unauthenticated",
    ] {
        assert!(said.contains(&format!("\n  {key} (")), "{key} is missing from:\n{said}");
    }
    assert_eq!(problems.0.len(), 12, "{said}");
    assert!(
        said.contains("causeway.toml, line 7): no such key: did you mean servicenow.host_url?"),
        "{said}"
    );
    assert!(said.contains("did you mean CAUSEWAY_XO__CALLBACK_URL?"), "{said}");
    assert!(said.contains("is \"soon\""), "{said}");
    let place =
        problems.0.iter().find(|problem| problem.key == "queue.partitions").map(|problem| &problem.place);
    assert_eq!(place, Some(&SettingSource::File { path, line: 4 }));
}

#[test]
fn a_time_that_no_calendar_holds_is_refused() {
    for key in
        ["drain", "queue.heartbeat", "servicenow.idle_limit", "ingress.read_timeout", "delivery.retry.max"]
    {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        let table = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
        let said =
            load(&format!("{table}{name} = \"99999years\"\n"), RunPurpose::Admin).unwrap_err().to_string();
        assert!(said.contains(key) && said.contains("longer than a year"), "{said}");
    }
}

#[test]
fn broken_toml_is_told_without_its_line() {
    let problems = load("[servicenow]\npassword = \"hunter2\nusername = \"u\"\n", RunPurpose::Admin)
        .unwrap_err()
        .to_string();
    assert!(problems.contains("line 2): is not TOML"), "{problems}");
    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn secrets_are_never_shown() {
    let secret = "S3cret-Value";
    let text = format!(
        r#"
[queue]
url = "amqp://user:{secret}@"
[directory]
url = "mysql://user:{secret}@host/db"
[servicenow]
host_url = "https://user:{secret}@example.service-now.com"
pasword = "{secret}"
[xo]
callback_url = "ftp://x/{secret}"
app_id = ["{secret}"]
[handoffs]
events_url = "nonsense {secret}"
"#
    );
    let problems = load(&text, RunPurpose::Serve).unwrap_err();
    assert!(problems.0.len() >= 7, "{problems}");
    assert!(
        !problems.to_string().contains(secret) && !format!("{problems:?}").contains(secret),
        "{problems}"
    );

    let text = format!(
        r#"
[queue]
url = "amqp://user:{secret}@host"
[directory]
url = "postgres://user:{secret}@host/db"
[servicenow]
host_url = "https://example.service-now.com"
username = "u"
password = "{secret}"
[xo]
callback_url = "https://xo.example.com/{secret}"
bot_id = "st-1"
app_id = "cs-1"
client_secret = "{secret}"
[handoffs]
events_url = "https://bot.example.com/{secret}"
events_token = "{secret}"
[ingress.servicenow]
token = "{secret}"
hmac_secret = "{secret}"
[ingress.handoffs]
token = "{secret}"
"#
    );
    let settings = load(&text, RunPurpose::Serve).unwrap();
    assert!(!format!("{settings:?}").contains(secret));
}

#[test]
fn a_secret_can_be_read_from_a_file() {
    let (folder, path) = file(WORKING);
    let secret = folder.path().join("password");
    std::fs::write(&secret, "pw-in-secret\n").unwrap();
    let password = |environment: Environment| {
        let settings = Settings::load(Some(&path), &environment, RunPurpose::Worker)?;
        let Some(ServiceNowLogin::Basic { password, .. }) =
            settings.servicenow.map(|servicenow| servicenow.login)
        else {
            return Ok(String::new());
        };
        Ok::<_, SettingProblems>(password.expose_secret().to_owned())
    };
    let name = "CAUSEWAY_SERVICENOW__PASSWORD_FILE";
    let pointer = secret.to_str().unwrap();
    assert_eq!(password(Environment::from([(name, pointer)])).unwrap(), "pw-in-secret");

    let both = Environment::from([(name, pointer), ("CAUSEWAY_SERVICENOW__PASSWORD", "another")]);
    let said = password(both).unwrap_err().to_string();
    assert!(said.contains("keep one of the two") && !said.contains("another"), "{said}");

    let said = password(Environment::from([(name, "/no/such/file")])).unwrap_err().to_string();
    assert!(
        said.contains("servicenow.password_file (CAUSEWAY_SERVICENOW__PASSWORD_FILE): cannot read"),
        "{said}"
    );

    let said = Settings::load(None, &Environment::from([("CAUSEWAY_DATA_DIR_FILE", "x")]), RunPurpose::Admin);
    assert!(said.unwrap_err().to_string().contains("no such key"), "only secrets can be read from files");
}

#[test]
fn each_role_says_what_it_cannot_do_without() {
    assert_eq!(wrong_keys("", RunPurpose::Admin), Vec::<String>::new());
    assert_eq!(wrong_keys("", RunPurpose::Check), Vec::<String>::new());
    assert_eq!(wrong_keys("", RunPurpose::Worker), ["servicenow.host_url"]);
    assert_eq!(wrong_keys("", RunPurpose::Ingress), ["ingress.servicenow"]);
    assert_eq!(wrong_keys("", RunPurpose::Serve), ["ingress.servicenow", "servicenow.host_url"]);
    assert_eq!(wrong_keys("ingress.allow_unauthenticated = true", RunPurpose::Ingress), Vec::<String>::new());
    assert_eq!(wrong_keys("xo.callback_url = \"https://xo\"", RunPurpose::Worker), Vec::<String>::new());
    assert_eq!(wrong_keys(WORKING, RunPurpose::Serve), Vec::<String>::new());
}

#[test]
fn settings_that_belong_together_are_checked_together() {
    let servicenow = |rest: &str| {
        wrong_keys(&format!("[servicenow]\nhost_url = \"https://x\"\n{rest}"), RunPurpose::Worker)
    };
    assert_eq!(servicenow(""), ["servicenow.password", "servicenow.username"]);
    assert_eq!(servicenow("auth = \"oauth\""), ["servicenow.client_id", "servicenow.client_secret"]);
    assert_eq!(
        servicenow("auth = \"oauth\"\nclient_id = \"i\"\nclient_secret = \"s\"\nusername = \"u\""),
        Vec::<String>::new()
    );
    // Without a user name our own messages cannot be distinguished from an agent's. The Virtual Agent API names the
    // author.
    let nameless = "auth = \"oauth\"\nclient_id = \"i\"\nclient_secret = \"s\"\n";
    assert_eq!(servicenow(nameless), ["servicenow.username"]);
    assert_eq!(servicenow(&format!("{nameless}api = \"virtual_agent\"")), Vec::<String>::new());
    assert_eq!(servicenow("auth = \"kerberos\""), ["servicenow.auth"]);
    assert_eq!(
        wrong_keys("servicenow.username = \"u\"\nxo.callback_url = \"https://x\"", RunPurpose::Worker),
        ["servicenow.host_url", "servicenow.password"]
    );

    let rabbit = "queue.url = \"amqp://broker\"\n";
    assert_eq!(
        wrong_keys(&format!("{rabbit}queue.heartbeat = \"10s\""), RunPurpose::Admin),
        ["delivery.servicenow.timeout", "delivery.xo.timeout"]
    );
    assert_eq!(wrong_keys("queue.heartbeat = \"10s\"", RunPurpose::Admin), Vec::<String>::new());
    assert_eq!(wrong_keys("delivery.retry.max = \"100ms\"", RunPurpose::Admin), ["delivery.retry.max"]);
    assert_eq!(
        wrong_keys("ingress.servicenow.username = \"u\"", RunPurpose::Ingress),
        ["ingress.servicenow.password"]
    );
    assert_eq!(wrong_keys("handoffs.events_token = \"t\"", RunPurpose::Admin), ["handoffs.events_url"]);
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    for name in ["events_secret", "events_secret_next"] {
        let set = |value: &str| format!("handoffs.{name} = \"{value}\"\n");
        assert_eq!(wrong_keys(&set(key), RunPurpose::Admin), ["handoffs.events_url"]);
        let url = "handoffs.events_url = \"https://bot.example.com\"\n";
        assert_eq!(wrong_keys(&format!("{url}{}", set(key)), RunPurpose::Admin), Vec::<String>::new());
        let text = format!("{url}{}", set("whsec_c2hvcnQ="));
        assert_eq!(wrong_keys(&text, RunPurpose::Admin), [format!("handoffs.{name}")]);
        let said = load(&text, RunPurpose::Admin).unwrap_err().to_string();
        assert!(said.contains("24 to 64") && !said.contains("c2hvcnQ"), "{said}");
    }
    assert_eq!(wrong_keys("xo.bot_id = \"b\"", RunPurpose::Admin), ["xo.app_id", "xo.client_secret"]);
    let bot = "[[xo.bots]]\nbot_id = \"b\"\napp_id = \"a\"\nclient_secret = \"s\"\n";
    assert_eq!(wrong_keys(&format!("{bot}{bot}"), RunPurpose::Admin), ["xo.bots"]);
}

#[test]
fn broker_and_directory_addresses_are_read_strictly() {
    let queue = |url: &str| wrong_keys(&format!("queue.url = \"{url}\""), RunPurpose::Admin).is_empty();
    assert!(queue("amqp://u:p@host") && queue("amqps://host:5671/%2f") && queue("amqp://host/vhost"));
    assert!(!queue("amqp://host/") && !queue("host:5672") && !queue("https://host"));
    let said = load("queue.url = \"amqp://host/\"", RunPurpose::Admin).unwrap_err().to_string();
    assert!(said.contains("/%2f"), "{said}");
    assert!(queue("amqp://u:p@one:1,two:2/%2f") && queue("amqp://u:p@[::1]:5672,[::1]"));
    for list in ["amqp://u:hunter2@one/%2f;amqp://u:hunter2@two/%2f", "amqp://u:hunter2@one,u:hunter2@two"] {
        let said = load(&format!("queue.url = \"{list}\""), RunPurpose::Admin).unwrap_err().to_string();
        assert!(said.contains("one comma each") || said.contains("one user"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    for (declare, fits) in [("\"true\"", true), ("true", true), ("\"check\"", true), ("false", false)] {
        assert_eq!(
            wrong_keys(&format!("queue.declare = {declare}"), RunPurpose::Admin).is_empty(),
            fits,
            "{declare}"
        );
    }

    let directory =
        |url: &str| load(&format!("directory.url = \"{url}\""), RunPurpose::Admin).map(|all| all.directory);
    assert!(
        matches!(directory("sqlite:/x/y.db").unwrap(), DirectoryConfig::Sqlite(path) if path == Path::new("/x/y.db"))
    );
    assert!(matches!(directory("postgres://u:p@host/db").unwrap(), DirectoryConfig::Postgres(_)));
    for list in [
        "postgres://u:hunter2@a,b/db",
        "postgres://u:p@a/db,postgres://u:hunter2@b/db",
        "postgres://u:hunter2@a:1,b:2/db",
    ] {
        let said = directory(list).unwrap_err().to_string();
        assert!(said.contains("takes one host") && !said.contains("hunter2"), "{said}");
    }
    for wrong in ["sqlite:", "postgres:", "postgres:///db", "mysql://host/db", "/x/y.db"] {
        assert!(directory(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn lists_and_bots_can_come_from_the_environment() {
    let environment = Environment::from([
        ("CAUSEWAY_XO__CALLBACK_URL", "https://Platform.Example.com:8443/callback"),
        ("CAUSEWAY_XO__END_WORDS", "bye, see you ,"),
        ("CAUSEWAY_XO__BOTS__0__BOT_ID", "st-1"),
        ("CAUSEWAY_XO__BOTS__0__APP_ID", "cs-1"),
        ("CAUSEWAY_XO__BOTS__0__CLIENT_SECRET", "s"),
    ]);
    let xo = Settings::load(None, &environment, RunPurpose::Worker).unwrap().xo;
    assert_eq!(xo.end_words, ["bye", "see you"]);
    assert_eq!(xo.allowed_hosts, ["platform.example.com:8443"]);
    assert_eq!(xo.bots.len(), 1);

    let hosts = Environment::from([("CAUSEWAY_XO__ALLOWED_HOSTS", "a.example.com, B.example.com:444")]);
    let xo = Settings::load(None, &hosts, RunPurpose::Admin).unwrap().xo;
    assert_eq!(xo.allowed_hosts, ["a.example.com", "b.example.com:444"]);
    assert_eq!(
        wrong_keys("xo.allowed_hosts = [\"https://a\", \"b/c\"]", RunPurpose::Admin),
        ["xo.allowed_hosts", "xo.allowed_hosts"]
    );
}
