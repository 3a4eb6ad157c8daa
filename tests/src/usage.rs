//! What tenants used is kept, and who comes near a quota is told: once, whoever notices.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tenant_gate::Verdict;
use tenantry_core::tenant::Tenant;

use crate::gate::{gate, grant};
use crate::suspension::in_service;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("eighty_percent_and_all_of_a_quota_are_told_exactly_once", |world| Box::pin(told_once(world))),
    ("what_is_kept_never_falls_and_can_be_read", |world| Box::pin(kept(world))),
    ("the_next_cycle_is_warned_of_again", |world| Box::pin(next_cycle(world))),
];

async fn reconcile(world: &World) -> Result<Value> {
    world.invoke("reconcile-gate", &json!({})).await?.map_err(|error| anyhow::anyhow!("{error:?}"))
}

async fn calls(world: &World, tenant: &Tenant, times: u32) -> Result<()> {
    let verdict = gate(world)?.decide(tenant.slug.as_str(), times).await;
    ensure!(matches!(verdict, Verdict::Admitted(..)), "{verdict:?}");
    Ok(())
}

/// The types of a tenant's quota events, in order.
async fn events(world: &World, tenant: &Tenant) -> Result<Vec<(String, Value)>> {
    let sql = "SELECT type, detail FROM outbox WHERE tenant_id = $1 AND type LIKE 'tenant.quota%' ORDER BY version";
    let rows = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn types(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

async fn told_once(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    grant(world, &tenant, 100).await?;
    calls(world, &tenant, 79).await?;
    reconcile(world).await?;
    ensure!(events(world, &tenant).await?.is_empty(), "79 % is no news");
    calls(world, &tenant, 1).await?;
    // Many notice at once.
    futures::future::try_join_all((0..8).map(|_| reconcile(world))).await?;
    let told = events(world, &tenant).await?;
    ensure!(types(&told) == ["tenant.quota_warning"], "{told:?}");
    let (used, quota) = (&told[0].1["used"], &told[0].1["quota"]);
    ensure!((used.as_i64(), quota.as_i64()) == (Some(80), Some(100)), "{told:?}");
    calls(world, &tenant, 20).await?;
    ensure!(matches!(gate(world)?.decide(tenant.slug.as_str(), 1).await, Verdict::Refused(..)), "call 101");
    futures::future::try_join_all((0..8).map(|_| reconcile(world))).await?;
    let told = events(world, &tenant).await?;
    ensure!(types(&told) == ["tenant.quota_warning", "tenant.quota_exceeded"], "{told:?}");
    let mails = world.emails().await?;
    let subject = |mail: &Value| mail["Subject"].as_str().unwrap_or_default().to_owned();
    let about: Vec<String> =
        mails.iter().map(subject).filter(|subject| subject.contains(tenant.slug.as_str())).collect();
    for word in ["80 %", "used up"] {
        ensure!(about.iter().any(|subject| subject.contains(word)), "no mail says {word}: {about:?}");
    }
    Ok(())
}

async fn kept(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    calls(world, &tenant, 7).await?;
    reconcile(world).await?;
    let sql = "SELECT api_calls, cycle_end > now() AND cycle_start <= now() FROM usage_cycles WHERE tenant_id = $1";
    let registry = world.registry().await?;
    let rows = registry.query(sql, &[&tenant.id.0]).await?;
    ensure!(rows.len() == 1 && rows[0].get::<_, i64>(0) == 7 && rows[0].get::<_, bool>(1), "{rows:?}");
    // Redis forgets: the next request finds what was kept, and counts on.
    let url = world.export("REDIS_URL")?;
    let mut redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let slug = tenant.slug.as_str();
    redis::AsyncCommands::del::<_, ()>(&mut redis, vec![format!("gate:{{{slug}}}"), format!("usage:{{{slug}}}")])
        .await?;
    calls(world, &tenant, 1).await?;
    reconcile(world).await?;
    let count: i64 = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(count == 8, "{count} calls are kept");
    Ok(())
}

async fn next_cycle(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    grant(world, &tenant, 10).await?;
    calls(world, &tenant, 9).await?;
    reconcile(world).await?;
    // The cycle ends: as if the subscription had begun a month earlier, less a day.
    let sql = "UPDATE tenants SET cycle_anchor = cycle_anchor - interval '1 day' WHERE id = $1";
    world.registry().await?.execute(sql, &[&tenant.id.0]).await?;
    reconcile(world).await?;
    calls(world, &tenant, 9).await?;
    reconcile(world).await?;
    let told = events(world, &tenant).await?;
    ensure!(types(&told) == ["tenant.quota_warning"; 2], "{told:?}");
    ensure!(told[0].1["cycle_start"] != told[1].1["cycle_start"], "{told:?}");
    Ok(())
}
