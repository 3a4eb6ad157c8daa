//! An execution of a state machine: starting it, and telling what it does while it does it.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use aws_config::SdkConfig;
use aws_sdk_sfn::Client;
use aws_sdk_sfn::operation::describe_execution::DescribeExecutionOutput;
use aws_sdk_sfn::types::{ExecutionStatus, HistoryEvent};
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use crate::progress::{Progress, Task};

const POLL: Duration = Duration::from_millis(100);

/// How an execution ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its ARN.
    pub arn: String,
    /// What it ended in.
    pub status: ExecutionStatus,
    /// The error's name, where it failed.
    pub error: String,
    /// What the error says.
    pub cause: String,
    /// What it put out.
    pub output: Value,
    /// From start to end, in seconds.
    pub seconds: f64,
}

/// Starts an execution and returns its ARN. It is named for the tenant where the input names one.
///
/// # Errors
/// When Step Functions refuses it.
pub async fn start(aws: &SdkConfig, machine: &str, input: &Value) -> Result<String> {
    let about = ["slug", "tenant_id", "payment_id"].iter().find_map(|field| input[field].as_str()).unwrap_or("by-hand");
    let about: String = about.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(60).collect();
    let started = Client::new(aws)
        .start_execution()
        .state_machine_arn(machine)
        .name(format!("{about}-{}", &Uuid::new_v4().simple().to_string()[..8]))
        .input(input.to_string())
        .send()
        .await?;
    Ok(started.execution_arn().to_owned())
}

/// Follows an execution to its end, telling each state and each failed attempt.
///
/// # Errors
/// When Step Functions cannot be asked, or does not know the execution.
pub async fn follow(aws: &SdkConfig, arn: &str, progress: &Progress) -> Result<Outcome> {
    Following::begin(aws, arn, progress).end().await
}

/// An execution that is followed: what it does is told once.
pub struct Following {
    client: Client,
    arn: String,
    progress: Progress,
    /// How many events of its history were told.
    told: usize,
    /// The states that it is in, and since when.
    states: HashMap<String, (Task, f64)>,
}

impl Following {
    /// Begins to follow; nothing is asked yet.
    pub fn begin(aws: &SdkConfig, arn: &str, progress: &Progress) -> Self {
        let (client, progress) = (Client::new(aws), progress.clone());
        Following { client, arn: arn.to_owned(), progress, told: 0, states: HashMap::new() }
    }

    /// Tells what happened, until the execution is in a state that lasts. False when it ended without coming to it.
    ///
    /// # Errors
    /// When Step Functions cannot be asked, or does not know the execution.
    pub async fn until(&mut self, state: &str) -> Result<bool> {
        loop {
            let described = self.look().await?;
            if self.states.contains_key(state) {
                return Ok(true);
            }
            if *described.status() != ExecutionStatus::Running {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }

    /// Tells what happens until the execution has ended.
    ///
    /// # Errors
    /// When Step Functions cannot be asked, or does not know the execution.
    pub async fn end(mut self) -> Result<Outcome> {
        let described = loop {
            let described = self.look().await?;
            if *described.status() != ExecutionStatus::Running {
                break described;
            }
            sleep(POLL).await;
        };
        let (error, cause) = (described.error().unwrap_or_default(), described.cause().unwrap_or_default());
        for (_, (task, _)) in self.states.drain() {
            task.failed(error);
        }
        let ended = described.stop_date().unwrap_or(described.start_date()).as_secs_f64();
        Ok(Outcome {
            arn: self.arn,
            status: described.status().clone(),
            error: error.to_owned(),
            cause: cause.to_owned(),
            output: described.output().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
            seconds: ended - described.start_date().as_secs_f64(),
        })
    }

    /// Tells what happened since, and returns how the execution stood before that.
    async fn look(&mut self) -> Result<DescribeExecutionOutput> {
        // Asked before the history, so that the last reading of it is complete.
        let described = self.client.describe_execution().execution_arn(&self.arn).send().await?;
        let history = history(&self.client, &self.arn).await?;
        for event in &history[self.told.min(history.len())..] {
            tell(event, &mut self.states, &self.progress);
        }
        self.told = history.len();
        Ok(described)
    }
}

/// Everything that happened in an execution, in order.
///
/// # Errors
/// When Step Functions cannot be asked, or does not know the execution.
pub async fn history(client: &Client, arn: &str) -> Result<Vec<HistoryEvent>> {
    let pages = client.get_execution_history().execution_arn(arn).max_results(1000).into_paginator().items().send();
    pages.collect::<Result<Vec<_>, _>>().await.with_context(|| format!("reading the history of {arn}"))
}

fn tell(event: &HistoryEvent, states: &mut HashMap<String, (Task, f64)>, progress: &Progress) {
    if let Some(entered) = event.state_entered_event_details() {
        states.insert(entered.name().to_owned(), (progress.begin(entered.name()), event.timestamp().as_secs_f64()));
    }
    if let Some(exited) = event.state_exited_event_details()
        && let Some((task, since)) = states.remove(exited.name())
    {
        task.done_in(event.timestamp().as_secs_f64() - since);
    }
    let failed = event.task_failed_event_details().map(|details| (details.error(), details.cause()));
    let failed = failed
        .or_else(|| event.lambda_function_failed_event_details().map(|details| (details.error(), details.cause())));
    if let Some((error, cause)) = failed {
        progress.say(&format!("    {}: {}", error.unwrap_or("failed"), message(cause.unwrap_or_default())));
    }
}

/// What a function's failure says, out of the JSON that Lambda wraps it in.
pub fn message(cause: &str) -> String {
    let wrapped: Option<Value> = serde_json::from_str(cause).ok();
    let inner = wrapped.as_ref().and_then(|wrapped| wrapped["errorMessage"].as_str());
    inner.unwrap_or(cause).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_functions_message_is_taken_out_of_its_wrapping() {
        assert_eq!(message(r#"{"errorType":"Denied","errorMessage":"not permitted: x"}"#), "not permitted: x");
        assert_eq!(message("plain"), "plain");
    }
}
