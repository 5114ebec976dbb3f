//! `causeway healthcheck`: asks the admin listener of a running process whether the process is ready. A container
//! then needs no other tool for its health check. The request is plain HTTP over one connection, without redirects
//! and retries.

use url::Url;

use super::{CliFailure, SettingFiles, admin_listener, output};
use crate::config::RunPurpose;

#[derive(Debug, clap::Args)]
pub(super) struct HealthcheckArgs {
    /// URL to ask instead of /readyz at admin.listen, for example http://127.0.0.1:9464/livez
    #[arg(long)]
    url: Option<Url>,
}

pub(super) async fn run(args: &HealthcheckArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => {
            let listener = admin_listener::local(sources.settings(RunPurpose::Admin)?.admin_listen)?;
            admin_listener::path(&listener, "/readyz")
        }
    };
    let (status, body) = admin_listener::get(&url, None).await?;
    let said = output::harmless(body.trim());
    if status == 200 {
        output::line(if said.is_empty() { "ready" } else { &said })?;
        return Ok(());
    }
    Err(anyhow::anyhow!("{url} answered {status}: {said}").into())
}
