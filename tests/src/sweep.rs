//! What the sweep for the stuck finds: ended executions that hold a tenant, attempts that are due, sign-ups never paid for; and
//! what is refused before anything is made.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tenantry_core::error::StepError;
use tenantry_core::registry::fence::{self, Failure};
use tenantry_core::registry::{retries, signup};
use tenantry_core::request::SignUp;
use tenantry_core::resource::Inspection;
use tenantry_core::step::Step;
use tenantry_core::steps::signup::ValidateRequest;
use tenantry_core::tenant::{Plan, Status, TenantId};
use tokio::time::sleep;
use uuid::Uuid;

use crate::machine::sign_up;
use crate::provisioning::all_are;
use crate::registry::registered;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("a_tenant_whose_execution_vanished_is_resumed", |world| Box::pin(vanished(world))),
    ("who_is_held_for_long_keeps_nobody_from_being_looked_at", |world| Box::pin(pages(world))),
    ("what_may_pass_is_tried_again_three_times_with_growing_pauses", |world| Box::pin(pauses(world))),
    ("an_attempt_that_is_due_is_made", |world| Box::pin(due(world))),
    ("a_sign_up_that_is_never_paid_for_expires_and_its_slug_is_free", |world| Box::pin(expired(world))),
    ("the_slug_of_a_tenant_that_was_in_service_is_never_given_again", |world| Box::pin(slug_kept(world))),
    ("more_isolation_is_given_where_the_plan_allows_it", |world| Box::pin(isolation(world))),
    ("a_full_cell_refuses_before_anything_is_made", |world| Box::pin(full(world))),
];

/// What changes the servers for everyone.
pub const ALONE: &[(&str, Case)] =
    &[("a_full_server_refuses_before_anything_is_made", |world| Box::pin(full_server(world)))];

const PATIENCE: Duration = Duration::from_secs(120);

async fn sweep(world: &World) -> Result<Value> {
    world.invoke("sweep-tenants", &json!({})).await?.map_err(|(name, text)| anyhow::anyhow!("{name}: {text}"))
}

async fn until(world: &World, slug: &str, status: Status) -> Result<()> {
    let begun = Instant::now();
    loop {
        let record = world.record(slug).await?;
        if record.tenant.status == status && record.execution.is_none() {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "{slug} is still {}", record.tenant.status);
        sleep(Duration::from_millis(200)).await;
    }
}

async fn vanished(world: &World) -> Result<()> {
    let tenant = registered(world, &mut world.registry().await?, Plan::Starter, true).await?.tenant;
    let gone = format!("arn:aws:states:us-east-1:000000000000:execution:provision-tenant:gone-{}", Uuid::new_v4());
    let sql =
        "UPDATE tenants SET status = 'provisioning', execution = $2, execution_since = now() - interval '10 minutes'
               WHERE id = $1";
    world.registry().await?.execute(sql, &[&tenant.id.0, &gone]).await?;
    sweep(world).await?;
    sweep(world).await?;
    until(world, tenant.slug.as_str(), Status::Active).await?;
    let record = world.record(tenant.slug.as_str()).await?;
    all_are(world, &record.tenant, &Inspection::Present).await?;
    let sql = "SELECT count(*) FROM audit WHERE tenant_id = $1 AND action = 'takeover'";
    let takeovers: i64 = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(takeovers == 1, "{takeovers} takeovers");
    Ok(())
}

/// More tenants than are read at once, all held since the same moment; nobody else sees them.
async fn pages(world: &World) -> Result<()> {
    let mut registry = world.registry().await?;
    let transaction = registry.transaction().await?;
    let sql = "INSERT INTO tenants (slug, execution, execution_since)
               SELECT $1 || '-' || n, 'nobody', now() - interval '1 day' FROM generate_series(1, 120) n RETURNING id";
    let rows = transaction.query(sql, &[&world.fresh_slug("page")]).await?;
    let mut missing: BTreeSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let mut last = None;
    loop {
        let page = retries::held(&transaction, 60.0, last.as_ref()).await?;
        for held in page.iter().filter(|held| held.execution == "nobody") {
            ensure!(missing.remove(&held.tenant.0), "{} is read twice", held.tenant);
        }
        last = page.into_iter().next_back();
        if last.is_none() {
            break;
        }
    }
    ensure!(missing.is_empty(), "{} of 120 are never looked at", missing.len());
    Ok(transaction.rollback().await?)
}

/// Seconds until the next attempt, as released after a failure.
async fn released(world: &World, tenant: TenantId, error: &str, left: &[&str]) -> Result<Option<f64>> {
    let mut client = world.registry().await?;
    let execution = format!("arn:aws:states:us-east-1:000000000000:execution:provision-tenant:{}", Uuid::new_v4());
    let sql = "UPDATE tenants SET status = 'provisioning', execution = $2, execution_since = now() WHERE id = $1";
    client.execute(sql, &[&tenant.0, &execution]).await?;
    let failure = Failure { error: error.into(), message: "test".into() };
    fence::release(&mut client, tenant, &execution, &failure, left, &[300.0, 1800.0, 7200.0]).await?;
    let sql = "SELECT extract(epoch FROM retry_at - now())::float8 FROM tenants WHERE id = $1";
    Ok(client.query_one(sql, &[&tenant.0]).await?.get(0))
}

async fn pauses(world: &World) -> Result<()> {
    // Not paid for: the sweeps of other tests leave it alone.
    let tenant = registered(world, &mut world.registry().await?, Plan::Starter, false).await?.tenant.id;
    let registry = world.registry().await?;
    for (retries, pause) in [(0, Some(300.0)), (1, Some(1800.0)), (2, Some(7200.0)), (3, None)] {
        registry.execute("UPDATE tenants SET retries = $2 WHERE id = $1", &[&tenant.0, &retries]).await?;
        for passing in ["Transient", "NotReady", "States.Timeout", "Sandbox.Timedout"] {
            let until = released(world, tenant, passing, &[]).await?;
            let close = match (until, pause) {
                (Some(until), Some(pause)) => (pause - 30.0..=pause).contains(&until),
                (None, None) => true,
                _ => false,
            };
            ensure!(close, "after {retries} retries and {passing}: {until:?}, not {pause:?}");
        }
    }
    registry.execute("UPDATE tenants SET retries = 0 WHERE id = $1", &[&tenant.0]).await?;
    for lasting in ["ForeignResource", "Denied", "Compensated", "NeedsOperator"] {
        ensure!(released(world, tenant, lasting, &[]).await?.is_none(), "{lasting} does not pass by itself");
    }
    ensure!(released(world, tenant, "Transient", &["bucket"]).await?.is_none(), "what is flagged is an operator's");
    Ok(())
}

async fn due(world: &World) -> Result<()> {
    let tenant = registered(world, &mut world.registry().await?, Plan::Growth, true).await?.tenant;
    let registry = world.registry().await?;
    let sql = "UPDATE tenants SET failed_at = now(), failed_error = 'Transient', retries = 1, retry_at = now() + $2::text::interval
               WHERE id = $1";
    registry.execute(sql, &[&tenant.id.0, &"1 hour"]).await?;
    sweep(world).await?;
    ensure!(world.record(tenant.slug.as_str()).await?.tenant.status == Status::Pending, "begun an hour early");
    registry.execute(sql, &[&tenant.id.0, &"0 seconds"]).await?;
    tokio::try_join!(sweep(world), sweep(world))?;
    until(world, tenant.slug.as_str(), Status::Active).await?;
    let sql = "SELECT retries, retry_at IS NULL, (SELECT sum(attempts) FROM step_journal WHERE tenant_id = t.id
               AND step = 'create-bucket') FROM tenants t WHERE id = $1";
    let row = registry.query_one(sql, &[&tenant.id.0]).await?;
    ensure!(row.get::<_, i32>(0) == 0 && row.get::<_, bool>(1) && row.get::<_, i64>(2) == 1, "{row:?}");

    // One that was paid for, and whose event was lost.
    let tenant = registered(world, &mut world.registry().await?, Plan::Starter, true).await?.tenant;
    registry.execute("UPDATE tenants SET paid_at = now() - interval '1 hour' WHERE id = $1", &[&tenant.id.0]).await?;
    sweep(world).await?;
    until(world, tenant.slug.as_str(), Status::Active).await
}

async fn expired(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let (old, young) = (
        registered(world, &mut client, Plan::Starter, false).await?.tenant,
        registered(world, &mut client, Plan::Starter, false).await?.tenant,
    );
    // The registry never changes when a tenant was made; an administrator without triggers may.
    let sql = format!(
        "SET session_replication_role = replica;
         UPDATE tenants SET created_at = now() - interval '15 days' WHERE id = '{}';
         SET session_replication_role = DEFAULT",
        old.id
    );
    client.batch_execute(&sql).await?;
    sweep(world).await?;
    let row = client
        .query_one(
            "SELECT (SELECT status::text FROM tenants WHERE id = $1), (SELECT count(*) FROM contacts WHERE tenant_id = $1),
                    (SELECT status::text FROM tenants WHERE id = $2),
                    (SELECT actor FROM audit WHERE tenant_id = $1 ORDER BY id DESC LIMIT 1)",
            &[&old.id.0, &young.id.0],
        )
        .await?;
    ensure!(row.get::<_, &str>(0) == "deprovisioned" && row.get::<_, i64>(1) == 0, "{row:?}");
    ensure!(row.get::<_, &str>(2) == "pending", "a young sign-up expired");
    ensure!(row.get::<_, &str>(3) == "sweep-tenants");
    // The slug is given to whoever comes next.
    world.provision(&sign_up(old.slug.as_str(), "starter")).await?.succeeded()?;
    let record = world.record(old.slug.as_str()).await?;
    ensure!(record.tenant.id != old.id && record.tenant.status == Status::Active);
    Ok(())
}

async fn slug_kept(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let tenant = registered(world, &mut client, Plan::Starter, true).await?.tenant;
    for status in ["provisioning", "active", "suspended", "deprovisioned"] {
        let sql = "UPDATE tenants SET status = $2::text::tenant_status WHERE id = $1";
        client.execute(sql, &[&tenant.id.0, &status]).await?;
    }
    let outcome = world.provision(&sign_up(tenant.slug.as_str(), "starter")).await?;
    ensure!(outcome.error == "Conflict" && outcome.cause.contains("belongs to another tenant"), "{outcome:?}");
    let request = SignUp { slug: tenant.slug, ..crate::registry::sign_up(world, Plan::Starter, true) };
    ensure!(matches!(signup::register(&mut client, &request, "test").await, Err(StepError::Conflict(_))));
    Ok(())
}

async fn isolation(world: &World) -> Result<()> {
    let slug = world.fresh_slug("separate");
    let mut request = sign_up(&slug, "starter");
    request["isolation"] = json!("schema");
    world.provision(&request).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    ensure!(tenant.isolation.as_str() == "schema" && tenant.plan == Plan::Starter);
    all_are(world, &tenant, &Inspection::Present).await?;
    request["isolation"] = json!("shared");
    let outcome = world.provision(&request).await?;
    ensure!(outcome.error == "Conflict" && outcome.cause.contains("another isolation"), "{outcome:?}");
    Ok(())
}

async fn full_server(world: &World) -> Result<()> {
    let registry = world.registry().await?;
    let slug = world.fresh_slug("full");
    let kept: i32 =
        registry.query_one("SELECT capacity FROM database_servers WHERE name = 'registry-schema'", &[]).await?.get(0);
    let mut seen = Vec::new();
    for set in ["capacity = 0", "state = 'draining'"] {
        registry.execute(&format!("UPDATE database_servers SET {set} WHERE isolation = 'schema'"), &[]).await?;
        let step = ValidateRequest::from_env(&world.env)?;
        seen.push(step.run("validate-request", &sign_up(&slug, "growth")).await);
    }
    let whole = "UPDATE database_servers SET capacity = $1, state = 'open' WHERE name = 'registry-schema'";
    registry.execute(whole, &[&kept]).await?;
    match &seen[..] {
        [Err(StepError::NeedsOperator(full)), Err(StepError::InvalidRequest(closed))]
            if full.contains("has room") && closed[0].field == "plan" => {}
        outcomes => anyhow::bail!("{outcomes:?}"),
    }
    ensure!(world.record(&slug).await.is_err(), "it was registered");
    ValidateRequest::from_env(&world.env)?.run("validate-request", &sign_up(&slug, "growth")).await?;
    Ok(())
}

async fn full(world: &World) -> Result<()> {
    let slug = world.fresh_slug("full");
    for (quota, plan, what) in [
        ("BUCKET_QUOTA", "starter", "S3 buckets"),
        ("NAMESPACE_QUOTA", "growth", "Kubernetes namespaces"),
        ("RECORD_QUOTA", "starter", "DNS records"),
        ("INSTANCE_QUOTA", "enterprise", "RDS instances"),
    ] {
        let step = ValidateRequest::from_env(&world.env.clone().with(quota, "0"))?;
        match step.run("validate-request", &sign_up(&slug, plan)).await {
            Err(StepError::NeedsOperator(text)) if text.contains(what) && text.contains("nothing was made") => {}
            outcome => anyhow::bail!("{quota}: {outcome:?}"),
        }
    }
    let step = ValidateRequest::from_env(&world.env.clone().with("INSTANCE_QUOTA", "0"))?;
    step.run("validate-request", &sign_up(&slug, "starter")).await?;
    ensure!(world.record(&slug).await.is_err(), "it was registered");
    Ok(())
}
