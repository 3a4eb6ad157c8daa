//! What tenants used is kept, and who comes near a quota is told: once, whoever notices.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tenant_gate::Verdict;
use tenantry_core::tenant::{Plan, Tenant};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::gate::{gate, grant};
use crate::registry::registered;
use crate::suspension::in_service;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("eighty_percent_and_all_of_a_quota_are_told_exactly_once", |world| Box::pin(told_once(world))),
    ("what_is_kept_never_falls_and_can_be_read", |world| Box::pin(kept(world))),
    ("the_next_cycle_is_warned_of_again", |world| Box::pin(next_cycle(world))),
    ("a_cycle_that_is_over_is_not_told_by_the_quota_of_now", |world| Box::pin(smaller_quota(world))),
    ("what_is_held_is_carried_over_into_the_next_cycle", |world| Box::pin(carried_over(world))),
    ("an_override_is_set_and_removed_without_sql", |world| Box::pin(overrides(world))),
    ("usage_of_a_tenant_that_was_never_in_service_cannot_be_read", |world| Box::pin(no_cycles(world))),
];

/// What a function answers.
pub async fn answered(world: &World, step: &str, call: &Value) -> Result<Value> {
    world.invoke(step, call).await?.map_err(|error| anyhow::anyhow!("{step}: {error:?}"))
}

/// Gives a tenant another quota until in an hour, as an operator would.
pub async fn overridden(world: &World, tenant: &Tenant, resource: &str, amount: i64) -> Result<()> {
    let until = (OffsetDateTime::now_utc() + Duration::hours(1)).format(&Rfc3339)?;
    let call = json!({
        "tenant_id": tenant.id, "resource": resource, "amount": amount, "expires_at": until, "actor": "test",
    });
    answered(world, "set-quota-override", &call).await?;
    Ok(())
}

async fn read(world: &World, tenant: &Tenant) -> Result<Value> {
    answered(world, "read-usage", &json!({"tenant_id": tenant.id})).await
}

async fn reconcile(world: &World) -> Result<Value> {
    answered(world, "reconcile-gate", &json!({})).await
}

async fn calls(world: &World, tenant: &Tenant, times: u32) -> Result<()> {
    let verdict = gate(world)?.decide(tenant.slug.as_str(), times).await;
    ensure!(matches!(verdict, Verdict::Admitted(..)), "{verdict:?}");
    Ok(())
}

/// A tenant's quota events, in order.
pub async fn events(world: &World, tenant: &Tenant) -> Result<Vec<(String, Value)>> {
    let sql = "SELECT type, detail FROM outbox WHERE tenant_id = $1 AND type LIKE 'tenant.quota%' ORDER BY version";
    let rows = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Their types.
pub fn types(events: &[(String, Value)]) -> Vec<&str> {
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

/// Of the cycle before, 95 calls were counted, and since it ended the quota is 100.
async fn smaller_quota(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    grant(world, &tenant, 100).await?;
    calls(world, &tenant, 1).await?;
    let registry = world.registry().await?;
    let sql = "SELECT boundaries[1] FROM gate.tenants WHERE id = $1";
    let before: i64 = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    let mut redis = redis::Client::open(world.export("REDIS_URL")?)?.get_multiplexed_async_connection().await?;
    let (usage, cycle) = (format!("usage:{{{}}}", tenant.slug), format!("calls:{before}"));
    redis::AsyncCommands::hset::<_, _, _, ()>(&mut redis, usage, cycle, 95).await?;
    reconcile(world).await?;
    ensure!(events(world, &tenant).await?.is_empty(), "{:?}", events(world, &tenant).await?);
    // They are kept all the same, to be billed.
    let sql = "SELECT max(api_calls) FROM usage_cycles WHERE tenant_id = $1 AND cycle_end <= now()";
    let kept: Option<i64> = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(kept == Some(95), "{kept:?}");
    Ok(())
}

async fn seat(world: &World, tenant: &Tenant, step: &str, user: &str) -> Result<()> {
    answered(world, step, &json!({"tenant_id": tenant.id, "user": user, "actor": "test"})).await?;
    Ok(())
}

/// Three seats are taken in one cycle, and two given back in the next: each has the most that was taken in it.
async fn carried_over(world: &World) -> Result<()> {
    let tenant = &in_service(world).await?;
    for user in ["one", "two", "three"] {
        seat(world, tenant, "reserve-seat", user).await?;
    }
    calls(world, tenant, 2).await?;
    reconcile(world).await?;
    let before = read(world, tenant).await?;
    let seats = &before["resources"]["seats"];
    ensure!(seats["used"] == 3 && seats["most"] == 3 && seats["quota"] == 5 && before["current"] == true, "{before}");
    ensure!(before["resources"]["api_calls"]["used"] == 2 && before["calls_counted_at"].is_string(), "{before}");
    // The cycle ends: as if the subscription had begun a month earlier, less a day.
    let sql = "UPDATE tenants SET cycle_anchor = cycle_anchor - interval '1 day' WHERE id = $1";
    world.registry().await?.execute(sql, &[&tenant.id.0]).await?;
    ensure!(read(world, tenant).await?["resources"]["seats"]["most"] == 3, "what is held now is not of this cycle");
    reconcile(world).await?;
    for user in ["one", "two"] {
        seat(world, tenant, "release-seat", user).await?;
    }
    let now = read(world, tenant).await?;
    let seats = &now["resources"]["seats"];
    ensure!(seats["used"] == 1 && seats["most"] == 3, "{now}");
    ensure!(now["resources"]["api_calls"]["used"] == 0 && now["cycle_start"] != before["cycle_start"], "{now}");
    // Of a cycle long before, nothing is known that was held, and no call.
    let long_ago =
        answered(world, "read-usage", &json!({"tenant_id": tenant.id, "cycle": "2020-02-29T12:00:00Z"})).await?;
    ensure!(long_ago["current"] == false && long_ago["resources"]["seats"]["most"].is_null(), "{long_ago}");
    ensure!(long_ago["resources"]["api_calls"]["used"] == 0, "{long_ago}");
    Ok(())
}

async fn overrides(world: &World) -> Result<()> {
    let tenant = &in_service(world).await?;
    overridden(world, tenant, "api_calls", 3).await?;
    // The gate knows at once.
    calls(world, tenant, 3).await?;
    ensure!(matches!(gate(world)?.decide(tenant.slug.as_str(), 1).await, Verdict::Refused(..)), "call 4 of 3");
    let usage = read(world, tenant).await?;
    let line = &usage["resources"]["api_calls"];
    ensure!(line["quota"] == 3 && line["plan_quota"] == 100_000 && line["override"]["amount"] == 3, "{usage}");
    let remove = json!({"tenant_id": tenant.id, "resource": "api_calls", "remove": true, "actor": "test"});
    let answer = answered(world, "set-quota-override", &remove).await?;
    ensure!(answer["quota"] == 100_000, "{answer}");
    answered(world, "set-quota-override", &remove).await?;
    calls(world, tenant, 1).await?;
    // Of seats and storage, a smaller quota is told at once.
    seat(world, tenant, "reserve-seat", "one").await?;
    ensure!(about_seats(world, tenant).await?.is_empty());
    overridden(world, tenant, "seats", 1).await?;
    let told = about_seats(world, tenant).await?;
    ensure!(types(&told) == ["tenant.quota_warning", "tenant.quota_exceeded"], "{told:?}");
    let sql = "SELECT action, detail->>'resource', actor FROM audit WHERE tenant_id = $1 AND action LIKE 'quota%' ORDER BY id";
    let rows = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    let audited: Vec<(&str, &str, &str)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let expected = [
        ("quota override set", "api_calls", "test"),
        ("quota override removed", "api_calls", "test"),
        ("quota override set", "seats", "test"),
    ];
    ensure!(audited == expected, "{audited:?}");
    Ok(())
}

/// A tenant's events about seats. Of its calls, whoever reconciles meanwhile may have told: three of three were used.
async fn about_seats(world: &World, tenant: &Tenant) -> Result<Vec<(String, Value)>> {
    let mut told = events(world, tenant).await?;
    told.retain(|(_, detail)| detail["resource"] == "seats");
    Ok(told)
}

async fn no_cycles(world: &World) -> Result<()> {
    let tenant = registered(world, &mut world.registry().await?, Plan::Starter, false).await?.tenant;
    let error = world.invoke("read-usage", &json!({"tenant_id": tenant.id})).await?.err();
    ensure!(
        error.as_ref().is_some_and(|(name, text)| name == "Conflict" && text.contains("never in service")),
        "{error:?}"
    );
    Ok(())
}
