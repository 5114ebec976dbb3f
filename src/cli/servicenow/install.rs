//! `causeway servicenow install`: shows the differences, asks for confirmation, writes the records, and verifies that
//! the instance stored them.
//!
//! Guarantees: the command reads all records and asks for confirmation before the first write. A second run changes
//! nothing. The next run completes an interrupted one.

use anyhow::Context as _;
use url::Url;

use super::super::{CliFailure, confirm, output};
use super::plan::{self, InstallStep};
use super::records::{self, RecordOwner, RuleProof, WantedRecord};
use super::rule::{self, RuleScript};
use super::{InstallerLogin, client, failed, own_user, stock};
use crate::config::Settings;
use crate::platform::ChatApi;
use crate::platform::{ServiceNow, TableRow};

#[derive(Debug, clap::Args)]
pub(super) struct InstallArgs {
    /// URL of Causeway's ingress as ServiceNow reaches it: https://…/v1/callbacks/servicenow
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    endpoint: Url,
    /// Name of the REST Message and of the Business Rule
    #[arg(long, default_value = rule::NAME, value_parser = records::name)]
    name: String,
    /// User whose own messages are not sent back to Causeway; default: servicenow.username
    #[arg(long, value_name = "USER")]
    own_user: Option<String>,
    /// Show the differences, then exit
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    who: InstallerLogin,
}

/// The path at which the ingress accepts callbacks. A proxy may add a prefix.
const CALLBACK_PATH: &str = "/v1/callbacks/servicenow";

/// Validates the address. The instance stores it in the clear, so it may hold no credentials and no query.
fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none() {
        return Err("must begin with https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(
            "must contain neither credentials nor a query: ingress.servicenow.* holds the credentials of callbacks".to_owned()
        );
    }
    // Every other path of the ingress answers 404, so that no callback would be accepted.
    if !url.path().ends_with(CALLBACK_PATH) {
        return Err(format!("must end with {CALLBACK_PATH}: the ingress accepts callbacks only there"));
    }
    Ok(url)
}

pub(super) async fn run(args: InstallArgs, settings: &Settings) -> Result<(), CliFailure> {
    let servicenow = client(settings, &args.who)?;
    if settings.servicenow.as_ref().is_some_and(|servicenow| servicenow.api == ChatApi::VirtualAgent) {
        return stock::show(&servicenow, &args.endpoint, &proof(settings)?).await;
    }
    let own_user = args.own_user.as_deref().or_else(|| own_user(settings)).unwrap_or_default();
    let proof = proof(settings)?;
    let signed = matches!(proof, RuleProof::Signature(_));
    let script = RuleScript { name: args.name.clone(), own_user: rule::user(own_user)?, signed };
    let wanted = records::wanted(args.endpoint.as_str(), &script, &proof);
    let steps = look(&servicenow, &wanted).await?;
    for (wanted, step) in wanted.iter().zip(&steps) {
        output::line(printable(&plan::describe(wanted, step)))?;
    }
    for other in others(&servicenow, &args.name).await {
        output::line(format_args!("! {other}"))?;
    }
    let todo = steps.iter().filter(|step| !matches!(step, InstallStep::Keep { .. })).count() as u64;
    if todo == 0 {
        return Ok(output::line("nothing to do: everything is as it should be")?);
    }
    if args.dry_run {
        return Ok(output::line(format_args!(
            "{} to write; nothing was written",
            output::counted(todo, "record")
        ))?);
    }
    if !confirm::agreed(&format!("Write {}?", output::counted(todo, "record")), args.yes).await? {
        return Ok(output::line("nothing was written")?);
    }
    write(&servicenow, &wanted, &steps).await?;
    Ok(output::line(format_args!("wrote {}", output::counted(todo, "record")))?)
}

/// The strongest credential that the settings configure for callbacks.
fn proof(settings: &Settings) -> Result<RuleProof, CliFailure> {
    let ingress = &settings.ingress;
    // During a rotation the ingress accepts both secrets; the next one is installed.
    match (ingress.hmac_secret.newest(), ingress.token.newest()) {
        (Some(secret), _) => Ok(RuleProof::Signature(secret.clone())),
        (None, Some(token)) => Ok(RuleProof::Token(token.clone())),
        (None, None) if ingress.allow_unauthenticated => Ok(RuleProof::Nothing),
        (None, None) => Err(CliFailure::Usage(
            "set ingress.servicenow.hmac_secret (or ingress.servicenow.token) to the value of the ingress: ServiceNow's \
             callbacks must be authenticated"
                .to_owned(),
        )),
    }
}

/// The step for each record, owners first.
async fn look(servicenow: &ServiceNow, wanted: &[WantedRecord]) -> Result<Vec<InstallStep>, CliFailure> {
    let mut steps = Vec::new();
    for record in wanted {
        let found = match plan::query(record, &steps) {
            Some(query) => {
                let mut fields = vec!["sys_id", "description"];
                fields.extend(record.fields.iter().map(|field| field.name));
                let rows = servicenow.rows(record.table, &query, &fields, 10).await;
                rows.map_err(|error| failed(record.table, &error))?
            }
            None => Vec::new(),
        };
        steps.push(
            plan::step(record, &found).map_err(|problem| CliFailure::Failed(anyhow::anyhow!(problem)))?,
        );
    }
    Ok(steps)
}

/// Other active rules that send chat messages out. A second rule for Causeway sends everything twice; an old rule for
/// XO keeps sending to XO.
async fn others(servicenow: &ServiceNow, name: &str) -> Vec<String> {
    let fields = ["sys_id", "name", "script"];
    let rows = servicenow.rows("sys_script", "collection=live_message^active=true", &fields, 50).await;
    let sends = |row: &&TableRow| {
        row.get("name").is_some_and(|other| other != name)
            && row.get("script").is_some_and(|script| script.contains("RESTMessageV2"))
    };
    let told = |row: &TableRow| {
        let (name, id) =
            (row.get("name").map_or("", String::as_str), row.get("sys_id").map_or("", String::as_str));
        output::harmless(&format!(
            "the Business Rule \"{name}\" (sys_script {id}) on live_message also sends messages out: if it does the same \
             work, deactivate it"
        ))
    };
    // This warning is optional. If the user may not read scripts, looking up our own rule reports that.
    rows.unwrap_or_default().iter().filter(sends).map(told).collect()
}

async fn write(
    servicenow: &ServiceNow,
    wanted: &[WantedRecord],
    steps: &[InstallStep],
) -> Result<(), CliFailure> {
    let mut ids: Vec<String> = Vec::new();
    for (record, step) in wanted.iter().zip(steps) {
        let row = |only: Option<&[&'static str]>| -> TableRow {
            let fields =
                record.fields.iter().filter(|field| only.is_none_or(|only| only.contains(&field.name)));
            fields.map(|field| (field.name.to_owned(), field.value.clone())).collect()
        };
        let written = match step {
            InstallStep::Keep { sys_id } => {
                ids.push(sys_id.clone());
                continue;
            }
            InstallStep::Create => {
                let mut row = row(None);
                if let RecordOwner::By { field, owner } = record.owned {
                    let owner = ids.get(owner).context("an owner comes before what it owns")?;
                    row.insert(field.to_owned(), owner.clone());
                }
                servicenow.insert(record.table, &row).await
            }
            InstallStep::Change { sys_id, fields, .. } => {
                servicenow.update(record.table, sys_id, &row(Some(fields))).await
            }
        };
        let written = written.map_err(|error| failed(record.table, &error))?;
        let missing = plan::differing(record, &written);
        if !missing.is_empty() {
            return Err(CliFailure::Failed(anyhow::anyhow!(
                "{}: the instance silently ignored: {}\n  -> an access rule on the field forbids it: give the \
                 user the role {}, or run this once as an administrator with --as USER --password-file FILE",
                record.label(),
                missing.join(", "),
                super::roles(record.table)
            )));
        }
        ids.push(written.get("sys_id").cloned().context("a written record without sys_id")?);
    }
    Ok(())
}

/// Foreign text of several lines, without control characters.
fn printable(text: &str) -> String {
    text.lines().map(output::harmless).collect::<Vec<_>>().join("\n")
}
