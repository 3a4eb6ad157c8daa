//! The gate in front of an API Gateway REST API: the emulator asks the deployed authorizer, over HTTP as a client would.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tenant_gate::Verdict;
use tenantry_core::tenant::Tenant;
use tenantry_local::stack::BASE_DOMAIN;

use crate::forward_auth::Answer;
use crate::gate::{gate, grant};
use crate::suspension::{in_service, step};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("an_api_answers_402_and_403_and_serves_again_at_once", |world| Box::pin(behind_the_api(world))),
    ("what_an_authorizer_allows_says_whom", |world| Box::pin(context(world))),
    ("an_authorizer_counts_nothing_and_refuses_nobody_for_calls", |world| Box::pin(only_looks(world))),
];

/// Asks the API for a host. The emulator finds the API by the path, as it finds it by a domain name on AWS.
async fn ask(world: &World, host: &str) -> Result<Answer> {
    let url: url::Url = world.outputs.get("GatedApiUrl").context("no GatedApiUrl")?.parse()?;
    let api = url.host_str().and_then(|name| name.split('.').next()).context("no API in GatedApiUrl")?;
    let endpoint = world.export("AWS_ENDPOINT_URL")?;
    let request = reqwest::Client::new().get(format!("{endpoint}/_aws/execute-api/{api}{}/", url.path()));
    Answer::to(request.header("host", host)).await
}

async fn behind_the_api(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let host = &tenant.host(BASE_DOMAIN);
    let served = ask(world, host).await?;
    ensure!(served.status == 200, "{served:?}");
    for (reason, status, name) in [
        ("payment_failure", 402, "payment-required"),
        ("policy_violation", 403, "not-in-service"),
        ("offboarding", 403, "not-in-service"),
    ] {
        step(world, "suspend-tenant", &tenant, reason).await?;
        ask(world, host).await?.is_refusal(status, name)?;
        step(world, "reactivate-tenant", &tenant, reason).await?;
        let served = ask(world, host).await?;
        ensure!(served.status == 200, "reactivated, and refused: {served:?}");
    }
    for nobody in ["nobody-at-all.app.example.com", "app.example.com", "example.org"] {
        ask(world, nobody).await?.is_refusal(403, "not-in-service")?;
    }
    Ok(())
}

fn event(tenant: &Tenant) -> Value {
    json!({
        "type": "REQUEST",
        "methodArn": "arn:aws:execute-api:us-east-1:000000000000:0123456789/live/GET/orders",
        "headers": {"Accept": "*/*", "host": tenant.host(BASE_DOMAIN)},
    })
}

async fn context(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let allowed = world.invoke("authorize-request", &event(&tenant)).await?;
    let allowed = allowed.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let expected = json!({
        "principalId": tenant.id,
        "policyDocument": {
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Action": "execute-api:Invoke",
                "Resource": event(&tenant)["methodArn"],
            }],
        },
        "context": {"tenant_id": tenant.id, "tenant_slug": tenant.slug},
    });
    ensure!(allowed == expected, "{allowed}");
    step(world, "suspend-tenant", &tenant, "admin").await?;
    let denied = world.invoke("authorize-request", &event(&tenant)).await?;
    let denied = denied.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(denied["policyDocument"]["Statement"][0]["Effect"] == "Deny" && denied["context"] == json!({}), "{denied}");
    step(world, "suspend-tenant", &tenant, "payment_failure").await?;
    step(world, "reactivate-tenant", &tenant, "admin").await?;
    let due = world.invoke("authorize-request", &event(&tenant)).await?.err().context("allowed")?;
    // What API Gateway makes UNAUTHORIZED of: these very letters.
    ensure!(due.1 == "Unauthorized", "{due:?}");
    let no_event = world.invoke("authorize-request", &json!({"headers": {}})).await?.err().context("allowed")?;
    ensure!(no_event.0 == "InvalidRequest" && no_event.1.contains("methodArn must be there"), "{no_event:?}");
    Ok(())
}

async fn only_looks(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    grant(world, &tenant, 2).await?;
    let gate = gate(world)?;
    for left in [2, 1, 0] {
        for _ in 0..3 {
            let served = ask(world, &tenant.host(BASE_DOMAIN)).await?;
            ensure!(served.status == 200, "{left} calls are left: {served:?}");
        }
        let verdict = gate.decide(tenant.slug.as_str(), 0).await;
        let Verdict::Admitted(_, Some(budget)) = verdict else { anyhow::bail!("{verdict:?}") };
        ensure!(budget.remaining == left, "the authorizer counted: {budget:?}");
        gate.decide(tenant.slug.as_str(), 1).await;
    }
    Ok(())
}
