//! What functions write: one JSON object a line that names tenant, step, execution and request, and no personal data.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::sleep;

use crate::machine::sign_up;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("every_line_is_json_and_names_tenant_step_execution_and_request", |world| Box::pin(lines_are_named(world))),
    ("personal_data_is_neither_in_the_logs_nor_in_state_after_registration", |world| Box::pin(personal_data(world))),
];

const STEPS: &[&str] = &["create-bucket", "create-namespace", "activate-tenant", "send-welcome-email"];
const PATIENCE: Duration = Duration::from_secs(30);

async fn lines_are_named(world: &World) -> Result<()> {
    let slug = world.fresh_slug("logged");
    let outcome = world.provision(&sign_up(&slug, "starter")).await?.succeeded()?;
    let id = world.record(&slug).await?.tenant.id.to_string();
    let begun = Instant::now();
    loop {
        let mut seen = BTreeSet::new();
        for step in STEPS {
            for line in ours(world, step).await? {
                let line: Value = serde_json::from_str(&line).with_context(|| format!("{step} wrote {line}"))?;
                if line["execution"] != outcome.arn.as_str() {
                    continue;
                }
                ensure!(line["step"] == *step, "{step} wrote {line}");
                ensure!(line["tenant"] == id.as_str(), "{step} wrote {line}");
                ensure!(line["request_id"].as_str().is_some_and(|request| !request.is_empty()), "{step} wrote {line}");
                ensure!(line["timestamp"].is_string() && line["level"].is_string(), "{step} wrote {line}");
                seen.insert(*step);
            }
        }
        if seen.len() == STEPS.len() {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "only {seen:?} wrote about {}", outcome.arn);
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
        .position(|event| {
            event.state_exited_event_details().is_some_and(|details| details.name() == "RegisterTenant")
        })
        .context("RegisterTenant has no end in the history")?;
    let (before, after) = outcome.history.split_at(registered);
    ensure!(format!("{before:?}").contains(email), "the check would not see an address");
    let after = format!("{after:?}");
    ensure!(!after.contains(email) && !after.contains("Quillfeather"), "state carries personal data on");
    for step in ["validate-request", "register-tenant", "begin-provisioning", "send-welcome-email"] {
        let lines = ours(world, step).await?.join("\n");
        ensure!(!lines.is_empty(), "{step} wrote nothing");
        ensure!(!lines.contains(email) && !lines.contains("Quillfeather"), "{step} logged personal data");
    }
    Ok(())
}

/// The lines a step's function wrote itself, without the platform's own START, END and REPORT.
async fn ours(world: &World, step: &str) -> Result<Vec<String>> {
    let client = aws_sdk_cloudwatchlogs::Client::new(&world.env.aws);
    let group = format!("/aws/lambda/{}", world.function(step).await?);
    let mut pages = client.filter_log_events().log_group_name(group).into_paginator().send();
    let mut lines = Vec::new();
    while let Some(page) = pages.next().await {
        for message in page?.events().iter().filter_map(|event| event.message()) {
            lines.extend(message.lines().filter(|line| !platform(line)).map(str::to_owned));
        }
    }
    Ok(lines)
}

fn platform(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || ["START ", "END ", "REPORT ", "INIT_START ", "RequestId:"].iter().any(|mark| line.starts_with(mark))
}
