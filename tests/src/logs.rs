//! What functions write: one JSON object a line that names tenant, step, execution and request, and no personal data.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::HistoryEvent;
use serde_json::Value;
use tokio::time::sleep;

use crate::machine::sign_up;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("every_line_is_json_and_names_tenant_step_execution_and_request", |world| Box::pin(lines_are_named(world))),
    ("personal_data_is_neither_in_the_logs_nor_in_state_after_registration", |world| Box::pin(personal_data(world))),
];

const STEPS: &[&str] = &[
    "register-tenant",
    "begin-provisioning",
    "create-database",
    "create-identity",
    "create-bucket",
    "create-namespace",
    "create-dns-record",
    "verify-dns-record",
    "seed-config",
    "activate-tenant",
    "send-welcome-email",
    "publish-events",
    "close-provisioning",
];
const PATIENCE: Duration = Duration::from_secs(30);

async fn lines_are_named(world: &World) -> Result<()> {
    let slug = world.fresh_slug("logged");
    let outcome = world.provision(&sign_up(&slug, "starter")).await?.succeeded()?;
    let id = world.record(&slug).await?.tenant.id.to_string();
    let begun = Instant::now();
    loop {
        let mut seen = BTreeSet::new();
        for line in ours(world).await? {
            let line: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            for key in ["step", "request_id", "timestamp", "level", "message"] {
                ensure!(!text(key).is_empty(), "a line without {key}: {line}");
            }
            if text("execution") == outcome.arn && text("tenant") == id {
                seen.insert(text("step"));
            }
        }
        // What precedes registration knows no tenant's id, only the slug it asks for.
        let silent: Vec<_> = STEPS.iter().filter(|step| !seen.contains(**step)).collect();
        if silent.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "{silent:?} wrote no line with tenant {id} and {}", outcome.arn);
        sleep(Duration::from_millis(200)).await;
    }
}

async fn personal_data(world: &World) -> Result<()> {
    let slug = world.fresh_slug("private");
    let mut request = sign_up(&slug, "starter");
    let (name, email) = ("Xenia Quillfeather", "xenia.quillfeather@private.example");
    request["owner"]["name"] = name.into();
    request["owner"]["email"] = email.into();
    let outcome = world.provision(&request).await?.succeeded()?;
    let registered = outcome
        .history
        .iter()
        .position(|event| event.state_exited_event_details().is_some_and(|details| details.name() == "RegisterTenant"))
        .context("RegisterTenant has no end in the history")?;
    let (before, after) = outcome.history.split_at(registered);
    ensure!(kept(before).contains(email), "the check would not see an address");
    let after = kept(after);
    ensure!(!after.contains(email) && !after.contains("Quillfeather"), "state carries personal data on");
    let lines = ours(world).await?;
    for step in ["validate-request", "register-tenant", "begin-provisioning", "send-welcome-email"] {
        ensure!(lines.iter().any(|line| line.contains(&format!("\"step\":\"{step}\""))), "{step} wrote nothing");
    }
    let told = lines.iter().find(|line| line.contains(email) || line.contains("Quillfeather"));
    ensure!(told.is_none(), "personal data was logged: {told:?}");
    Ok(())
}

/// What Step Functions keeps of these events: every input, output and reason. (Their `Debug` form leaves those out.)
fn kept(events: &[HistoryEvent]) -> String {
    let texts = events.iter().flat_map(|event| {
        [
            event.execution_started_event_details().and_then(|details| details.input()),
            event.execution_succeeded_event_details().and_then(|details| details.output()),
            event.execution_failed_event_details().and_then(|details| details.cause()),
            event.state_entered_event_details().and_then(|details| details.input()),
            event.state_exited_event_details().and_then(|details| details.output()),
            event.task_scheduled_event_details().map(|details| details.parameters()),
            event.task_succeeded_event_details().and_then(|details| details.output()),
            event.task_failed_event_details().and_then(|details| details.cause()),
            event.lambda_function_scheduled_event_details().and_then(|details| details.input()),
            event.lambda_function_succeeded_event_details().and_then(|details| details.output()),
            event.lambda_function_failed_event_details().and_then(|details| details.cause()),
        ]
    });
    texts.flatten().collect::<Vec<_>>().join("\n")
}

/// Events that one call gives at most (CloudWatch Logs' quota).
const PAGE: i32 = 10_000;

/// The lines that functions wrote themselves, without the platform's own START, END and REPORT.
pub async fn ours(world: &World) -> Result<Vec<String>> {
    let client = aws_sdk_cloudwatchlogs::Client::new(&world.env.aws);
    let group = world.outputs.get("FunctionLogGroup").context("the template has no output FunctionLogGroup")?;
    let (mut lines, mut since) = (Vec::new(), 0);
    loop {
        // The emulator gives the first events and no way to the next: they are asked for from the last one's time on.
        let page = client.filter_log_events().log_group_name(group).start_time(since).limit(PAGE).send().await?;
        let last = page.events().last().and_then(|event| event.timestamp()).unwrap_or_default();
        let whole = page.events().len() < usize::try_from(PAGE)?;
        ensure!(whole || last > since, "more than {PAGE} events in one millisecond");
        // Those of the last millisecond come again, with the others of it.
        let here = page.events().iter().filter(|event| whole || event.timestamp().unwrap_or_default() < last);
        for message in here.filter_map(|event| event.message()) {
            lines.extend(message.lines().filter(|line| !platform(line)).map(str::to_owned));
        }
        if whole {
            return Ok(lines);
        }
        since = last;
    }
}

fn platform(line: &str) -> bool {
    let line = line.trim();
    line.is_empty()
        || ["START ", "END ", "REPORT ", "INIT_START ", "RequestId:"].iter().any(|mark| line.starts_with(mark))
}
