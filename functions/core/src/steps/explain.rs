//! ExplainTenant: what an operator wants to know of a tenant, from every system at once, and what to do next.

use std::fmt::Write;

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::{self, Record, plans};
use crate::request::tenant_asked_about;
use crate::resource::{self, Inspection, Resource};
use crate::step::{Step, log_tenant};
use crate::tenant::Status;

/// Reads, and changes nothing.
pub struct ExplainTenant {
    registry: Database,
    resources: Vec<Box<dyn Resource>>,
}

/// What a look at a resource found: its kind, one word, and the details.
type Look = (&'static str, &'static str, Vec<String>);

impl ExplainTenant {
    /// Wires the step, with every resource that provisioning makes.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ExplainTenant { registry: Database::registry(env)?, resources: resource::all(env)? })
    }

    /// All systems at once. One that does not answer is part of the explanation, not the end of it.
    async fn looks(&self, record: &Record) -> Vec<Look> {
        let looks = self.resources.iter().map(|resource| async {
            let (word, details) = match resource.inspect(&record.tenant).await {
                Ok(Inspection::Absent) => ("absent", Vec::new()),
                Ok(Inspection::Present) => ("present", Vec::new()),
                Ok(Inspection::Drifted(drift)) => ("drifted", drift),
                Ok(Inspection::Foreign(found)) => ("foreign", vec![found]),
                Err(error) => ("unknown", vec![error.to_string()]),
            };
            (resource.kind(), word, details)
        });
        join_all(looks).await
    }

    /// What the registry has besides the record: the last failure with its time, since when it is held, and the journal.
    async fn history(&self, record: &Record) -> Result<(Value, Option<String>, Vec<Value>), StepError> {
        let client = self.registry.client().await?;
        // Times as RFC 3339 in UTC.
        let sql = "SELECT CASE WHEN failed_at IS NULL THEN 'null'::jsonb ELSE jsonb_build_object('step', failed_step,
                        'error', failed_error, 'message', failed_message, 'at', to_char(failed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                        'retries', retries, 'retry_at', to_char(retry_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')) END,
                        to_char(execution_since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
                   FROM tenants WHERE id = $1";
        let row = client.query_one(sql, &[&record.tenant.id.0]).await?;
        let journal =
            "SELECT jsonb_build_object('step', step, 'state', state, 'attempts', attempts, 'execution', execution,
                        'error', error) FROM step_journal WHERE tenant_id = $1 ORDER BY started_at, step";
        let entries = client.query(journal, &[&record.tenant.id.0]).await?;
        let entries = entries.iter().map(|entry| entry.try_get(0)).collect::<Result<_, _>>()?;
        Ok((row.try_get(0)?, row.try_get(1)?, entries))
    }
}

#[async_trait]
impl Step for ExplainTenant {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let tenant = tenant_asked_about(input)?;
        let record = registry::read(&*self.registry.client().await?, &tenant).await?;
        log_tenant(&record.tenant);
        let (looks, history) = futures::join!(self.looks(&record), self.history(&record));
        let (failure, held_since, journal) = history?;
        let change = plans::open(&*self.registry.client().await?, record.tenant.id).await?;
        let next = next(&record, &failure, &looks, change.is_some());
        let text = text(&record, &failure, held_since.as_deref(), &journal, &looks, &next);
        let resources = looks.iter().map(|(kind, word, details)| json!({"kind": kind, "is": word, "details": details}));
        let tenant = &record.tenant;
        Ok(json!({
            "tenant_id": tenant.id,
            "slug": tenant.slug,
            "plan": tenant.plan,
            "isolation": tenant.isolation,
            "region": tenant.region,
            "status": tenant.status,
            "paid": record.paid,
            "held_by": record.execution,
            "held_since": held_since,
            "takeovers": record.takeovers,
            "needs_operator": record.needs_operator,
            "last_failure": failure,
            "journal": journal,
            "resources": resources.collect::<Vec<_>>(),
            "next": next,
            "text": text,
        }))
    }
}

/// How a tenant on its way out is kept from it.
const BRING_BACK: &str = "until its deletion begins, reactivate-tenant with the reason offboarding brings it back";

/// What to do next, in one sentence. `changes_plan` says whether a plan change is not finished.
fn next(record: &Record, failure: &Value, looks: &[Look], changes_plan: bool) -> String {
    let (tenant, id) = (&record.tenant, record.tenant.id);
    let again = format!("start provision-tenant with {{\"tenant_id\": \"{id}\"}}");
    if let (Some(execution), true) = (&record.execution, changes_plan) {
        return format!("wait for {execution}, which changes the plan; stopped, it is finished by another");
    }
    if let (Some(execution), true) = (&record.execution, tenant.frozen) {
        return format!("wait for {execution}, which takes it out of service for good; {BRING_BACK}");
    }
    if let Some(execution) = &record.execution {
        return format!("wait for {execution}; stopping it cancels the attempt, and what it made is undone");
    }
    if record.needs_operator.is_some() && tenant.status == Status::Pending {
        return format!(
            "remove what was in the way of the undos (the journal's undo_failed entries say what), then start \
             provision-tenant with {{\"tenant_id\": \"{id}\", \"intent\": \"compensate\"}}"
        );
    }
    let wrong: Vec<&str> = looks.iter().filter(|(_, word, _)| *word != "present").map(|(kind, ..)| *kind).collect();
    match tenant.status {
        Status::Deprovisioned => "nothing: it is gone, and the row stays".to_owned(),
        Status::Pending if !record.paid => "wait for billing's payment.confirmed, which starts provisioning".to_owned(),
        Status::Pending if failure["retry_at"].is_string() => format!(
            "wait for the sweep, which tries again at {}, or {again}",
            failure["retry_at"].as_str().unwrap_or_default()
        ),
        Status::Pending if failure.is_object() => format!("remove the cause of the last failure, then {again}"),
        Status::Pending | Status::Provisioning => again,
        Status::Active | Status::Suspended if record.needs_operator.is_some() && changes_plan => format!(
            "put right what needs_operator names, then start change-plan with {{\"tenant_id\": \"{id}\"}}, which finishes \
             the change and clears the flag"
        ),
        Status::Active | Status::Suspended if record.needs_operator.is_some() => {
            "put right what needs_operator names, run that step by hand, then clear needs_operator in the registry"
                .to_owned()
        }
        Status::Suspended if tenant.frozen && wrong.is_empty() => {
            format!("nothing: it is frozen as it should be until its hold ends; {BRING_BACK}")
        }
        Status::Active | Status::Suspended if wrong.is_empty() => "nothing: all is as it should be".to_owned(),
        Status::Active | Status::Suspended => format!(
            "run the step of each of these by hand, which mends what is the tenant's ({}); what is foreign has to be \
             removed or renamed first",
            wrong.join(", ")
        ),
    }
}

/// The same as lines that a person reads.
fn text(
    record: &Record,
    failure: &Value,
    held_since: Option<&str>,
    journal: &[Value],
    looks: &[Look],
    next: &str,
) -> String {
    let tenant = &record.tenant;
    let mut lines = format!(
        "{} ({}) is {}: {} plan, isolation {}, {}, {}\n",
        tenant.slug,
        tenant.id,
        tenant.status,
        tenant.plan,
        tenant.isolation,
        tenant.region,
        if record.paid { "paid" } else { "not paid yet" },
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{text}");
    };
    if let Some(execution) = &record.execution {
        line(format_args!("held by {execution} since {}", held_since.unwrap_or("?")));
    }
    if let Some(reason) = &record.needs_operator {
        line(format_args!("needs an operator: {reason}"));
    }
    let of = |value: &Value, key: &str| value[key].as_str().unwrap_or("-").to_owned();
    if failure.is_object() {
        let (step, error, at) = (of(failure, "step"), of(failure, "error"), of(failure, "at"));
        line(format_args!("last failure: {error} in {step} at {at}: {}", of(failure, "message")));
    }
    for (kind, word, details) in looks {
        let details = if details.is_empty() { String::new() } else { format!(": {}", details.join("; ")) };
        line(format_args!("  {kind:<14} {word}{details}"));
    }
    for entry in journal {
        let error = entry["error"].as_str().map(|error| format!(": {error}")).unwrap_or_default();
        let (step, state) = (of(entry, "step"), of(entry, "state"));
        line(format_args!("  {step:<20} {state} (attempt {}){error}", entry["attempts"]));
    }
    line(format_args!("next: {next}"));
    lines
}
