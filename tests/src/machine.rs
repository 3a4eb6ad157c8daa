//! Driving the state machine and single functions as any AWS client would.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sfn::types::{ExecutionStatus, HistoryEvent, HistoryEventType};
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::world::World;

/// Longer than any execution of these tests takes on two busy cores: reaching it means a hang.
const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);

/// How an execution ended.
#[derive(Debug)]
pub struct Outcome {
    /// The execution's ARN.
    pub arn: String,
    /// `SUCCEEDED`, `FAILED`, …
    pub status: ExecutionStatus,
    /// The error's name, if it failed.
    pub error: String,
    /// What the error says.
    pub cause: String,
    /// The names of the states entered, in order.
    pub states: Vec<String>,
    /// Everything that happened.
    pub history: Vec<HistoryEvent>,
}

impl Outcome {
    /// Fails the test with the execution's own reason unless it succeeded.
    pub fn succeeded(self) -> Result<Self> {
        ensure!(
            self.status == ExecutionStatus::Succeeded,
            "{} is {}: {}: {} (states: {:?})",
            self.arn,
            self.status,
            self.error,
            self.cause,
            self.states
        );
        Ok(self)
    }

    /// How often a state was entered.
    pub fn times(&self, state: &str) -> usize {
        self.states.iter().filter(|entered| *entered == state).count()
    }

    /// The error names of the task attempts that failed, in order.
    pub fn failed_attempts(&self) -> Vec<&str> {
        failed_attempts(&self.history)
    }
}

/// The error names of the task attempts that failed so far, in order.
pub fn failed_attempts(history: &[HistoryEvent]) -> Vec<&str> {
    let failed = history.iter().filter_map(|event| {
        let lambda = event.lambda_function_failed_event_details().and_then(|details| details.error());
        lambda.or_else(|| event.task_failed_event_details().and_then(|details| details.error()))
    });
    failed.collect()
}

/// A sign-up that is paid for.
pub fn sign_up(slug: &str, plan: &str) -> Value {
    json!({
        "request_id": Uuid::new_v4(),
        "slug": slug,
        "plan": plan,
        "owner": {"name": format!("Owner of {slug}"), "email": format!("owner@{slug}.example")},
        "paid": true,
    })
}

impl World {
    /// Starts provision-tenant and returns the execution's ARN.
    pub async fn start(&self, input: &Value) -> Result<String> {
        self.start_machine("ProvisionTenantMachine", input).await
    }

    /// Starts the machine that an output of the template names, and waits for its end.
    pub async fn run_machine(&self, output: &str, input: &Value) -> Result<Outcome> {
        let arn = self.start_machine(output, input).await?;
        self.finish(&arn).await
    }

    /// Starts the machine that an output of the template names, and returns the execution's ARN.
    pub async fn start_machine(&self, output: &str, input: &Value) -> Result<String> {
        let started = self
            .machines()
            .start_execution()
            .state_machine_arn(self.outputs.get(output).with_context(|| format!("no output {output}"))?)
            .name(format!("test-{}", Uuid::new_v4()))
            .input(input.to_string())
            .send()
            .await?;
        Ok(started.execution_arn().to_owned())
    }

    /// Waits for an execution to end.
    pub async fn finish(&self, arn: &str) -> Result<Outcome> {
        let begun = Instant::now();
        let ended = loop {
            let described = self.machines().describe_execution().execution_arn(arn).send().await?;
            if *described.status() != ExecutionStatus::Running {
                break described;
            }
            if begun.elapsed() > PATIENCE {
                bail!("{arn} still runs after {PATIENCE:?}");
            }
            sleep(POLL).await;
        };
        let mut history = Vec::new();
        let mut token = None;
        loop {
            let page = self
                .machines()
                .get_execution_history()
                .execution_arn(arn)
                .max_results(1000)
                .set_next_token(token)
                .send()
                .await?;
            history.extend(page.events().iter().cloned());
            token = page.next_token().map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        let states = history
            .iter()
            .filter_map(|event| event.state_entered_event_details())
            .map(|details| details.name().to_owned())
            .collect();
        let failed = history.iter().rev().find(|event| *event.r#type() == HistoryEventType::ExecutionFailed);
        let details = failed.and_then(HistoryEvent::execution_failed_event_details);
        let text = |own: Option<&str>, other: Option<&str>| own.or(other).unwrap_or_default().to_owned();
        Ok(Outcome {
            arn: arn.to_owned(),
            status: ended.status().clone(),
            error: text(ended.error(), details.and_then(|details| details.error())),
            cause: text(ended.cause(), details.and_then(|details| details.cause())),
            states,
            history,
        })
    }

    /// Starts provision-tenant and waits for its end.
    pub async fn provision(&self, input: &Value) -> Result<Outcome> {
        let arn = self.start(input).await?;
        self.finish(&arn).await
    }

    /// Invokes one function. The inner error is the function's own: its name and its message.
    pub async fn invoke(&self, step: &str, payload: &Value) -> Result<Result<Value, (String, String)>> {
        let answer = self
            .functions()
            .invoke()
            .function_name(self.function(step).await?)
            .payload(aws_sdk_lambda::primitives::Blob::new(payload.to_string()))
            .send()
            .await?;
        let body: Value = serde_json::from_slice(answer.payload().context("no payload")?.as_ref())?;
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(match answer.function_error() {
            None => Ok(body),
            Some(_) => Err((text("errorType"), text("errorMessage"))),
        })
    }

    /// The deployed name of a step's function: the step's own, after the stack's prefix where there is one.
    pub async fn function(&self, step: &str) -> Result<String> {
        let mut pages = self.functions().list_functions().into_paginator().send();
        while let Some(page) = pages.next().await {
            for function in page?.functions() {
                let name = function.function_name().unwrap_or_default();
                if name == step || name.ends_with(&format!("-{step}")) {
                    return Ok(name.to_owned());
                }
            }
        }
        bail!("no function of the stack is named for step {step}")
    }

    fn machines(&self) -> aws_sdk_sfn::Client {
        aws_sdk_sfn::Client::new(&self.env.aws)
    }

    fn functions(&self) -> aws_sdk_lambda::Client {
        tenantry_local::functions::client(&self.env.aws)
    }
}
