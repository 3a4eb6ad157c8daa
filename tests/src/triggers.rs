//! EventBridge in: billing's payments and the product's sign-ups start the machine.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tenantry_core::tenant::Status;
use tokio::time::sleep;
use uuid::Uuid;

use crate::machine::sign_up;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("tenant_requested_starts_a_new_tenant", |world| Box::pin(requested(world))),
    ("payment_confirmed_starts_a_pending_tenant", |world| Box::pin(paid_later(world))),
    ("a_payment_that_comes_before_its_request_is_kept_and_applied", |world| Box::pin(paid_before(world))),
    ("the_same_payment_twice_makes_one_tenant", |world| Box::pin(paid_twice(world))),
];

const PATIENCE: Duration = Duration::from_secs(120);

async fn requested(world: &World) -> Result<()> {
    let slug = world.fresh_slug("requested");
    world.put_event("product", "tenant.requested", &sign_up(&slug, "starter")).await?;
    becomes_active(world, &slug).await
}

async fn paid_later(world: &World) -> Result<()> {
    let (slug, request) = unpaid(world, "later");
    world.put_event("product", "tenant.requested", &request).await?;
    let begun = Instant::now();
    while world.record(&slug).await.is_err() {
        ensure!(begun.elapsed() < PATIENCE, "{slug} was not registered");
        sleep(Duration::from_millis(200)).await;
    }
    ensure!(world.record(&slug).await?.tenant.status == Status::Pending);
    world.put_event("billing", "payment.confirmed", &payment(&request)).await?;
    becomes_active(world, &slug).await
}

async fn paid_before(world: &World) -> Result<()> {
    let (slug, request) = unpaid(world, "before");
    world.put_event("billing", "payment.confirmed", &payment(&request)).await?;
    let id: Uuid = request["request_id"].as_str().unwrap_or_default().parse()?;
    let registry = world.registry().await?;
    let begun = Instant::now();
    while registry.query_opt("SELECT 1 FROM payments WHERE request_id = $1", &[&id]).await?.is_none() {
        ensure!(begun.elapsed() < PATIENCE, "the payment was not kept");
        sleep(Duration::from_millis(200)).await;
    }
    world.provision(&request).await?.succeeded()?;
    becomes_active(world, &slug).await
}

async fn paid_twice(world: &World) -> Result<()> {
    let (slug, request) = unpaid(world, "twice");
    world.provision(&request).await?.succeeded()?;
    let mut subscription = world.subscribe().await?;
    world.put_event("billing", "payment.confirmed", &payment(&request)).await?;
    world.put_event("billing", "payment.confirmed", &payment(&request)).await?;
    becomes_active(world, &slug).await?;
    let id = world.record(&slug).await?.tenant.id.to_string();
    subscription.events_of("tenant.provisioned", &id).await?;
    let events = subscription.settled("tenant.provisioned", &id).await?;
    ensure!(events.len() == 1, "{} events", events.len());
    Ok(())
}

fn unpaid(world: &World, stem: &str) -> (String, Value) {
    let slug = world.fresh_slug(stem);
    let mut request = sign_up(&slug, "starter");
    request["paid"] = json!(false);
    (slug, request)
}

fn payment(request: &Value) -> Value {
    json!({"payment_id": format!("pay-{}", Uuid::new_v4()), "request_id": request["request_id"]})
}

async fn becomes_active(world: &World, slug: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let found = world.record(slug).await;
        if let Ok(record) = &found
            && record.tenant.status == Status::Active
            && record.execution.is_none()
        {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("{slug} did not become active: {:?}", found.map(|record| record.tenant.status));
        }
        sleep(Duration::from_millis(200)).await;
    }
}
