//! Seats: reserved and released by the product's services, never above the quota, whoever asks at once.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tenantry_core::step::Step;
use tenantry_core::steps::seats::ReserveSeat;
use tenantry_core::tenant::Tenant;
use uuid::Uuid;

use crate::suspension::in_service;
use crate::usage::{answered, events, overridden, types};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("sixty_four_clients_over_the_edge_are_given_exactly_the_quota", |world| Box::pin(edge(world))),
    ("a_user_has_one_seat_however_often_it_is_asked_for", |world| Box::pin(idempotent(world))),
    ("a_tenant_out_of_service_is_given_none_and_may_give_back", |world| Box::pin(out_of_service(world))),
    ("a_larger_quota_lifts_at_once_and_a_smaller_one_takes_nothing", |world| Box::pin(quota_changes(world))),
    ("a_request_for_an_address_is_refused_by_field", |world| Box::pin(refused(world))),
];

fn call(tenant: &Tenant, user: &str) -> Value {
    json!({"tenant_id": tenant.id, "user": user, "actor": "test"})
}

async fn reserve(world: &World, tenant: &Tenant, user: &str) -> Result<Value> {
    answered(world, "reserve-seat", &call(tenant, user)).await
}

async fn release(world: &World, tenant: &Tenant, user: &str) -> Result<Value> {
    answered(world, "release-seat", &call(tenant, user)).await
}

/// Clients with a connection each ask twice for users of their own. Two are told of: 80 %, and that it is full; once each.
async fn edge(world: &World) -> Result<()> {
    let tenant = &in_service(world).await?;
    overridden(world, tenant, "seats", 100).await?;
    let clients = (0..64).map(|_| async move {
        let client = ReserveSeat::from_env(&world.env)?;
        let mut granted = 0;
        for _ in 0..2 {
            let answer = client.run("reserve-seat", &call(tenant, &Uuid::new_v4().to_string())).await?;
            match answer["granted"].as_bool() {
                Some(true) => granted += 1,
                _ => ensure!(answer["reason"] == "quota-exceeded" && answer["used"] == 100, "{answer}"),
            }
        }
        Ok(granted)
    });
    let granted: i32 = try_join_all(clients).await?.into_iter().sum();
    ensure!(granted == 100, "{granted} of 100 seats were given");
    let sql = "SELECT count(*) FROM seats WHERE tenant_id = $1";
    let taken: i64 = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(taken == 100, "{taken} seats are taken");
    let told = events(world, tenant).await?;
    ensure!(types(&told) == ["tenant.quota_warning", "tenant.quota_exceeded"], "{told:?}");
    ensure!(told.iter().all(|(_, event)| event["resource"] == "seats" && event["quota"] == 100), "{told:?}");
    ensure!(told[0].1["used"] == 80 && told[1].1["used"] == 100, "{told:?}");
    Ok(())
}

async fn idempotent(world: &World) -> Result<()> {
    let tenant = &in_service(world).await?;
    overridden(world, tenant, "seats", 2).await?;
    // At once, and afterwards.
    let at_once = try_join_all((0..8).map(|_| reserve(world, tenant, "one"))).await?;
    ensure!(at_once.iter().all(|answer| answer["granted"] == true && answer["used"] == 1), "{at_once:?}");
    ensure!(reserve(world, tenant, "two").await?["used"] == 2);
    let full = reserve(world, tenant, "three").await?;
    ensure!(full["granted"] == false && full["status"] == 429 && full["quota"] == 2, "{full}");
    ensure!(full["detail"].as_str().is_some_and(|detail| detail.contains("release one")), "{full}");
    // Who has a seat keeps it though it is full.
    ensure!(reserve(world, tenant, "two").await?["granted"] == true);
    ensure!(release(world, tenant, "one").await? == json!({"released": true, "used": 1, "quota": 2}));
    ensure!(release(world, tenant, "one").await? == json!({"released": false, "used": 1, "quota": 2}));
    ensure!(reserve(world, tenant, "three").await?["granted"] == true, "a seat that was released is not free");
    Ok(())
}

async fn out_of_service(world: &World) -> Result<()> {
    let tenant = &in_service(world).await?;
    ensure!(reserve(world, tenant, "one").await?["granted"] == true);
    for (reason, name, status) in [("payment_failure", "payment-required", 402), ("policy_violation", "suspended", 403)]
    {
        let request = json!({"tenant_id": tenant.id, "reason": reason, "actor": "test"});
        answered(world, "suspend-tenant", &json!({"request": request, "execution": "manual:test"})).await?;
        let answer = reserve(world, tenant, "two").await?;
        ensure!(answer["granted"] == false && answer["reason"] == name && answer["status"] == status, "{answer}");
    }
    ensure!(release(world, tenant, "one").await?["released"] == true, "a suspended tenant cannot give a seat back");
    let mut registry = world.registry().await?;
    let pending = crate::registry::registered(world, &mut registry, tenant.plan, true).await?.tenant;
    let answer = reserve(world, &pending, "one").await?;
    ensure!(answer["reason"] == "not-in-service" && answer["status"] == 403, "{answer}");
    ensure!(events(world, tenant).await?.is_empty(), "a refusal that is not about the quota was told as one");
    Ok(())
}

async fn quota_changes(world: &World) -> Result<()> {
    let tenant = &in_service(world).await?;
    // The plan's own: starter has five.
    for user in ["1", "2", "3", "4", "5"] {
        ensure!(reserve(world, tenant, user).await?["granted"] == true, "seat {user}");
    }
    ensure!(reserve(world, tenant, "6").await?["granted"] == false, "a sixth seat of five");
    let upgrade = "UPDATE tenants SET plan = 'growth' WHERE id = $1";
    world.registry().await?.execute(upgrade, &[&tenant.id.0]).await?;
    ensure!(reserve(world, tenant, "6").await?["granted"] == true, "an upgrade lifts nothing");
    overridden(world, tenant, "seats", 3).await?;
    let over = reserve(world, tenant, "7").await?;
    ensure!(over["granted"] == false && over["used"] == 6 && over["quota"] == 3, "{over}");
    ensure!(reserve(world, tenant, "6").await?["granted"] == true, "a smaller quota took a seat");
    // One that has expired stands no more.
    let expire = "UPDATE quota_overrides SET expires_at = now() WHERE tenant_id = $1";
    world.registry().await?.execute(expire, &[&tenant.id.0]).await?;
    ensure!(reserve(world, tenant, "7").await? == json!({"granted": true, "used": 7, "quota": 50}));
    Ok(())
}

async fn refused(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let call = json!({"tenant_id": tenant.id, "user": "ada@acme.example", "actor": "Ada Lovelace", "note": 1});
    let Err((name, text)) = world.invoke("reserve-seat", &call).await? else { anyhow::bail!("accepted") };
    ensure!(name == "InvalidRequest" && !text.contains("acme.example"), "{name}: {text}");
    for rule in ["user must be 1 to 64", "actor must be 1 to 64", "note is not a field"] {
        ensure!(text.contains(rule), "{rule} is not among: {text}");
    }
    let nobody = json!({"tenant_id": Uuid::new_v4(), "user": "one", "actor": "test"});
    let Err((name, _)) = world.invoke("reserve-seat", &nobody).await? else { anyhow::bail!("accepted") };
    ensure!(name == "TenantNotFound", "{name}");
    Ok(())
}
