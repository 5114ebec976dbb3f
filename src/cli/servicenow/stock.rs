//! `install` for the Virtual Agent API, whose callbacks leave through ServiceNow's own REST Message.
//!
//! Decision: this record is ServiceNow's, other integrations may use it, and an upgrade of the instance compares it
//! with its original. The command therefore only reads it and prints the manual steps.

use url::Url;

use super::super::{CliFailure, output};
use super::failed;
use super::records::RuleProof;
use crate::platform::{ServiceNow, TableRow};

const MESSAGE: &str = "VA Bot to Bot";
const METHOD: &str = "postMessage";

/// Prints the differences and the manual steps. Succeeds if nothing differs.
pub(super) async fn show(
    servicenow: &ServiceNow,
    endpoint: &Url,
    proof: &RuleProof,
) -> Result<(), CliFailure> {
    let table = "sys_rest_message";
    let fields = ["sys_id", "name", "rest_endpoint"];
    let found = servicenow.rows(table, &format!("name={MESSAGE}"), &fields, 1).await;
    let Some(message) = found.map_err(|error| failed(table, &error))?.into_iter().next() else {
        return Err(CliFailure::Failed(anyhow::anyhow!(
            "there is no REST Message \"{MESSAGE}\" that the user may see\n  -> install the Virtual Agent API from the \
             ServiceNow Store, or give the user the role {}",
            super::roles(table)
        )));
    };
    let table = "sys_rest_message_fn";
    let query = format!("rest_message={}^function_name={METHOD}", value(&message, "sys_id"));
    let found = servicenow.rows(table, &query, &fields, 1).await.map_err(|error| failed(table, &error))?;
    let method = found.into_iter().next().unwrap_or_default();
    let mut todo = 0;
    for (label, row) in [("REST Message", &message), ("HTTP Method", &method)] {
        let (name, now) =
            (if label == "REST Message" { MESSAGE } else { METHOD }, value(row, "rest_endpoint"));
        if now == endpoint.as_str() {
            output::line(format_args!("= {label} \"{name}\": rest_endpoint is as it should be"))?;
        } else {
            todo += 1;
            let now = output::harmless(now.split('?').next().unwrap_or_default());
            output::line(format_args!("~ {label} \"{name}\": rest_endpoint: \"{now}\" -> \"{endpoint}\""))?;
        }
    }
    if todo == 0 {
        return Ok(output::line("nothing to do: everything is as it should be")?);
    }
    let credential = match proof {
        RuleProof::Token(_) => {
            "\n  3. Under the method's HTTP Headers: x-causeway-token with ingress.servicenow.token."
        }
        RuleProof::Signature(_) => {
            "\n  3. This record cannot sign: set ingress.servicenow.token too, and add it under the method's HTTP \
             Headers as x-causeway-token."
        }
        RuleProof::Nothing => "",
    };
    output::line(format_args!(
        "\nThese records are ServiceNow's own, so nothing was written. By hand:\n  1. All > System Web Services > \
         Outbound > REST Message > {MESSAGE}: set Endpoint to\n     {endpoint}\n  2. The same in its HTTP Method \
         {METHOD}.{credential}\nThen run this again."
    ))?;
    Err(CliFailure::Told)
}

fn value<'a>(row: &'a TableRow, name: &str) -> &'a str {
    row.get(name).map_or("", String::as_str)
}
