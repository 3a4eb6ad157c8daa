//! The demo's second part: a tenant that is suspended, refused, reactivated, and driven over its quota.

use anyhow::{Context, Result, ensure};
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use tenant_gate::{Gate, PostgresRegistry, RegistryError, Verdict};

use super::{follow, summary};
use crate::events::Subscription;
use crate::inventory::connect;
use crate::progress::Progress;
use crate::stack::{BASE_DOMAIN, Stack};

/// The calls that the demo leaves the tenant: its plan's own number would take long to use up.
const CALLS: i64 = 10;

/// Shows it.
pub(super) async fn show(stack: &Stack, slug: &str, progress: &Progress) -> Result<()> {
    let (aws, exports) = (stack.aws_config(), stack.exports());
    let export = |name: &str| exports.get(name).cloned().with_context(|| format!("no {name}"));
    let application = export("APP_DATABASE_URL")?;
    let registry = PostgresRegistry::new(move || log_in(application.clone()));
    let gate = Gate::builder(&export("REDIS_URL")?, BASE_DOMAIN).registry(registry).build()?;
    let host = format!("{slug}.{BASE_DOMAIN}");
    let mut events = Subscription::open(&aws, stack.output("EventBusName")?).await?;

    progress.say(&format!("\nThe gate of {host}, as a service of the product asks it"));
    expect(&gate, &host, 200, progress).await?;
    for (machine, reason, status) in
        [("SuspendTenantMachine", "payment_failure", 402), ("ReactivateTenantMachine", "payment_failure", 200)]
    {
        let request = json!({ "slug": slug, "reason": reason, "actor": "demo" });
        let called = request.to_string();
        let outcome = follow(&aws, stack.output(machine)?, &request, &called, progress).await?;
        progress.say(&summary(&outcome));
        ensure!(outcome.status == ExecutionStatus::Succeeded, "{}: {}", outcome.error, outcome.cause);
        progress.say("The next request");
        expect(&gate, &host, status, progress).await?;
    }

    let client = connect(&export("REGISTRY_DATABASE_URL")?).await?;
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

/// Connects as the product's own role.
pub(super) async fn log_in(url: String) -> Result<tokio_postgres::Client, RegistryError> {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Makes a call, tells what the gate answers, and fails when that is another status than expected.
async fn expect(gate: &Gate, host: &str, expected: u16, progress: &Progress) -> Result<()> {
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

async fn reconcile(aws: &aws_config::SdkConfig) -> Result<()> {
    invoke(aws, "reconcile-gate", &json!({})).await.map(drop)
}

/// Calls a function; its own error is ours.
pub(super) async fn invoke(aws: &aws_config::SdkConfig, function: &str, payload: &Value) -> Result<Value> {
    let client = aws_sdk_lambda::Client::new(aws);
    let answer = client.invoke().function_name(function).payload(Blob::new(payload.to_string())).send().await?;
    let body: Value = serde_json::from_slice(answer.payload().context("no payload")?.as_ref())?;
    ensure!(answer.function_error().is_none(), "{function}: {body}");
    Ok(body)
}
