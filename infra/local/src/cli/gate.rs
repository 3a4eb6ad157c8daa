//! The demo's second part: a tenant that is suspended because a payment failed, refused, back once it is paid, and driven over
//! its quota.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_config::SdkConfig;
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use tenant_gate::{Gate, PostgresRegistry, RegistryError, Verdict};
use tokio::time::sleep;

use super::summary;
use crate::events::Subscription;
use crate::inventory::connect;
use crate::progress::Progress;
use crate::stack::{BASE_DOMAIN, Stack};
use crate::{execution, stripe};

/// The calls that the demo leaves the tenant: its plan's own number would take long to use up.
const CALLS: i64 = 10;
/// How long an event, or another machine, may take to start one.
const DELIVERY: Duration = Duration::from_secs(30);

/// Shows it.
pub(super) async fn show(stack: &Stack, slug: &str, progress: &Progress) -> Result<()> {
    let (aws, exports) = (stack.aws_config(), stack.exports());
    let export = |name: &str| exports.get(name).cloned().with_context(|| format!("no {name}"));
    let gate = gate_of(&exports)?;
    let host = format!("{slug}.{BASE_DOMAIN}");
    let mut events = Subscription::open(&aws, stack.output("EventBusName")?).await?;

    progress.say(&format!("\nThe gate of {host}, as a service of the product asks it"));
    expect(&gate, &host, 200, progress).await?;
    let client = connect(&export("REGISTRY_DATABASE_URL")?).await?;
    let of = "SELECT subscription FROM billing_accounts JOIN tenants ON id = tenant_id WHERE slug = $1";
    let subscription: String = client.query_one(of, &[&slug]).await?.get(0);
    for (becomes, event, status) in [("past_due", "invoice.payment_failed", 402), ("active", "invoice.paid", 200)] {
        progress.say(&format!("\nAt Stripe, {slug}'s subscription is {becomes}: {event} is on its way"));
        stripe::play(&export("STRIPE_API_URL")?, &subscription, &json!({ "status": becomes }), &[event]).await?;
        let is_meant = |input: &Value| input["type"] == event && input["subscription"] == subscription.as_str();
        let arn = started(&aws, stack.output("FollowBillingMachine")?, is_meant).await?;
        progress.say(&format!("  {arn}"));
        let outcome = execution::follow(&aws, &arn, progress).await?;
        progress.say(&summary(&outcome));
        ensure!(outcome.status == ExecutionStatus::Succeeded, "{}: {}", outcome.error, outcome.cause);
        progress.say("The next request");
        expect(&gate, &host, status, progress).await?;
    }

    let grant = "INSERT INTO quota_overrides
                 SELECT id, 'api_calls', $2, now() + interval '1 hour', 'demo' FROM tenants WHERE slug = $1 RETURNING tenant_id::text";
    let id: String = client.query_one(grant, &[&slug, &CALLS]).await?.get(0);
    reconcile(&aws).await?;
    progress.say(&format!("\n{slug} is left {CALLS} API calls of this billing cycle"));
    // Two were made above; the eleventh is one too many.
    for call in 3..=CALLS + 1 {
        expect(&gate, &host, if call <= CALLS { 200 } else { 429 }, progress).await?;
        for (used, event) in [(8, "tenant.quota_warning"), (CALLS, "tenant.quota_exceeded")] {
            if call == used {
                // A schedule does this every minute.
                reconcile(&aws).await?;
                invoke(&aws, "publish-events", &json!({})).await?;
                let heard = events.events_of(event, &id).await?;
                let detail = &heard.first().with_context(|| format!("no {event} was heard"))?["detail"];
                progress.say(&format!("  {:<14} {event}: {} of {}", "EventBridge", detail["used"], detail["quota"]));
            }
        }
    }
    Ok(())
}

/// The gate as a service of the product has it.
pub(super) fn gate_of(exports: &HashMap<String, String>) -> Result<Gate> {
    let export = |name: &str| exports.get(name).cloned().with_context(|| format!("no {name}"));
    let application = export("APP_DATABASE_URL")?;
    let registry = PostgresRegistry::new(move || log_in(application.clone()));
    Ok(Gate::builder(&export("REDIS_URL")?, BASE_DOMAIN).registry(registry).build()?)
}

/// Waits until a machine has an execution whose input is the one that is meant, and returns its ARN.
pub(super) async fn started(aws: &SdkConfig, machine: &str, is_meant: impl Fn(&Value) -> bool) -> Result<String> {
    let client = aws_sdk_sfn::Client::new(aws);
    let begun = Instant::now();
    while begun.elapsed() < DELIVERY {
        for execution in client.list_executions().state_machine_arn(machine).send().await?.executions() {
            let arn = execution.execution_arn();
            let described = client.describe_execution().execution_arn(arn).send().await?;
            let input: Value = serde_json::from_str(described.input().unwrap_or_default())?;
            if is_meant(&input) {
                return Ok(arn.to_owned());
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
    bail!("{machine} was not started within {DELIVERY:?}")
}

/// Connects as the product's own role.
pub(super) async fn log_in(url: String) -> Result<tokio_postgres::Client, RegistryError> {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Makes a call, tells what the gate answers, and fails when that is another status than expected.
pub(super) async fn expect(gate: &Gate, host: &str, expected: u16, progress: &Progress) -> Result<()> {
    let (status, said) = match gate.decide_host(host, 1).await {
        Verdict::Admitted(_, budget) => (
            200,
            budget.map_or_else(String::new, |budget| {
                format!("served; {} of {} calls left", budget.remaining, budget.limit)
            }),
        ),
        Verdict::Refused(refusal) => {
            let again = refusal.retry_after().map_or_else(String::new, |seconds| format!("; Retry-After: {seconds}"));
            (refusal.reason.status().as_u16(), format!("{}{again}", refusal.problem()))
        }
    };
    progress.say(&format!("  {:<14} {said}", format!("HTTP {status}")));
    progress.tell(&json!({ "host": host, "status": status }));
    ensure!(status == expected, "{host} was answered with {status}, not {expected}");
    Ok(())
}

async fn reconcile(aws: &SdkConfig) -> Result<()> {
    invoke(aws, "reconcile-gate", &json!({})).await.map(drop)
}

/// Calls a function; its own error is ours.
pub(super) async fn invoke(aws: &SdkConfig, function: &str, payload: &Value) -> Result<Value> {
    let client = aws_sdk_lambda::Client::new(aws);
    let answer = client.invoke().function_name(function).payload(Blob::new(payload.to_string())).send().await?;
    let body: Value = serde_json::from_slice(answer.payload().context("no payload")?.as_ref())?;
    ensure!(answer.function_error().is_none(), "{function}: {body}");
    Ok(body)
}
