//! Promise: a full disk refuses what it cannot store with 503 and `Retry-After`, loses nothing that was accepted, is shown
//! by `/readyz` and a metric, and heals without a restart.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::binary::{Causeway, Running};
use crate::harness::relay::PATIENCE;
use crate::harness::wait::eventually;
use crate::harness::{http, ports};

/// A library that fails each write to a file as a full disk does, while another file exists.
const FULL_DISK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
static int is_full(int file) {
    const char *flag = getenv("TEST_DISK_FULL");
    struct stat facts;
    return flag && access(flag, F_OK) == 0 && fstat(file, &facts) == 0 && S_ISREG(facts.st_mode);
}
#define FAILING(NAME, OFFSET) \
    ssize_t NAME(int file, const void *bytes, size_t size, OFFSET at) { \
        if (is_full(file)) { errno = ENOSPC; return -1; } \
        return ((ssize_t (*)(int, const void *, size_t, OFFSET))dlsym(RTLD_NEXT, #NAME))(file, bytes, size, at); \
    }
FAILING(pwrite, off_t)
FAILING(pwrite64, off64_t)
ssize_t write(int file, const void *bytes, size_t size) {
    if (is_full(file)) { errno = ENOSPC; return -1; }
    return ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(file, bytes, size);
}
"#;

fn full_disk(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("full.c"), folder.join("full.so"));
    std::fs::write(&source, FULL_DISK).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(built.unwrap().success(), "the linker of Rust compiles C, too");
    library
}

struct Service {
    public: SocketAddr,
    admin: SocketAddr,
    running: Running,
}

impl Service {
    fn start(role: &str, folder: &Path, flag: &Path, settings: &[(&str, &str)]) -> Self {
        let [public, admin] = [ports::free_address(), ports::free_address()];
        let command = Causeway::new([role])
            .env("LD_PRELOAD", full_disk(folder).to_str().unwrap())
            .env("TEST_DISK_FULL", flag.to_str().unwrap())
            .set("data_dir", folder.join("data").to_str().unwrap())
            // Nothing listens there, so each message stays in its queue.
            .set("xo.callback_url", "http://127.0.0.1:9/")
            .set("ingress.servicenow.token", "token")
            .set("ingress.listen", public.to_string())
            .set("admin.listen", admin.to_string());
        let running = settings.iter().fold(command, |command, (key, value)| command.set(key, value)).spawn();
        Self { public, admin, running }
    }

    /// The status, and whether the answer says when to send it again.
    async fn post(&self, sys_id: &str) -> Result<(u16, bool), String> {
        let body = json!({
            "group": "a-group", "formatted_message": sys_id, "sys_created_by": "beth.anglin", "last_message": "",
            "sys_id": sys_id,
        });
        let url = format!("http://{}/v1/callbacks/servicenow", self.public);
        let request = http::client().post(url).header("content-type", "application/json");
        let request = request.header("x-causeway-token", "token").body(body.to_string());
        let answer = request.send().await.map_err(|error| error.to_string())?;
        Ok((answer.status().as_u16(), answer.headers().contains_key("retry-after")))
    }

    async fn takes(&self, sys_id: &str) {
        eventually(&format!("{sys_id} to be taken"), PATIENCE, async || match self.post(sys_id).await {
            Ok((202, _)) => Ok(()),
            other => Err(format!("{other:?} {}", self.running.stderr())),
        })
        .await;
    }

    async fn admin(&self, path: &str) -> Result<(u16, String), String> {
        let answer = http::client().get(format!("http://{}{path}", self.admin)).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        Ok((answer.status().as_u16(), answer.text().await.map_err(|error| error.to_string())?))
    }

    async fn shows(&self, sample: &str) {
        eventually(sample, PATIENCE, async || {
            let (_, text) = self.admin("/metrics").await?;
            if text.lines().any(|line| line == sample) { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

/// `gauge` is 1 while the disk has room, and `count` is the number of accepted messages.
async fn refuses_and_heals(role: &str, settings: &[(&str, &str)], gauge: &str, count: &str) {
    let folder = tempfile::tempdir().unwrap();
    let flag = folder.path().join("full");
    let service = Service::start(role, folder.path(), &flag, settings);
    service.takes("m-0").await;
    std::fs::write(&flag, "").unwrap();
    assert_eq!(service.post("m-1").await, Ok((503, true)));
    eventually("/readyz to say why", PATIENCE, async || match service.admin("/readyz").await? {
        (503, text) if text.contains("cannot be written") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    service.shows(&format!("{gauge} 0")).await;
    std::fs::remove_file(&flag).unwrap();
    service.takes("m-2").await;
    service.shows(&format!("{gauge} 1")).await;
    service.shows(&format!("{count} 2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_engine_on_a_full_disk_refuses_and_heals() {
    let count = "causeway_queue_messages{destination=\"xo\"}";
    refuses_and_heals("serve", &[], "causeway_broker_connected", count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_on_a_full_disk_refuses_and_heals() {
    let away = [("queue.url", "amqp://guest:guest@127.0.0.1:9/%2f")];
    refuses_and_heals("ingress", &away, "causeway_spool_has_room", "causeway_spool_messages").await;
}
