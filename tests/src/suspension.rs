//! Suspending and reactivating: reasons, status, events, and what the gate says at the next request.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tenant_gate::{Reason as Refused, Verdict};
use tenantry_core::gate::Projector;
use tenantry_core::registry::{Selector, fence, lifecycle, suspensions};
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::{Plan, Reason, Status, Tenant};
use tenantry_local::stack::BASE_DOMAIN;
use uuid::Uuid;

use crate::gate::gate;
use crate::provisioning::all_are;
use crate::registry::registered;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("the_next_request_is_refused_and_the_next_after_reactivation_is_served", |world| Box::pin(at_once(world))),
    ("a_payment_lifts_no_other_reason", |world| Box::pin(reasons(world))),
    ("one_that_is_recorded_during_provisioning_is_applied_at_activation", |world| Box::pin(recorded(world))),
    ("a_request_that_names_no_reason_or_nobody_is_refused_by_field", |world| Box::pin(refused(world))),
    ("a_tenant_that_is_gone_cannot_be_suspended", |world| Box::pin(gone(world))),
    ("the_gate_is_told_by_a_repeated_step_where_the_first_could_not", |world| Box::pin(told_again(world))),
];

/// A tenant under the fence of an execution that is nobody's, as in mid-provisioning.
pub async fn provisioning(world: &World) -> Result<(Tenant, String)> {
    let mut registry = world.registry().await?;
    let tenant = registered(world, &mut registry, Plan::Starter, true).await?.tenant;
    let execution = format!("arn:aws:states:us-east-1:000000000000:execution:provision-tenant:{}", Uuid::new_v4());
    let sql = "UPDATE tenants SET status = 'provisioning', execution = $2, execution_since = now() WHERE id = $1";
    registry.execute(sql, &[&tenant.id.0, &execution]).await?;
    Ok((tenant, execution))
}

/// A tenant in service that has nothing but its registry row.
pub async fn in_service(world: &World) -> Result<Tenant> {
    let (tenant, execution) = provisioning(world).await?;
    let mut registry = world.registry().await?;
    lifecycle::activate(&mut registry, tenant.id, &execution, BASE_DOMAIN).await?;
    fence::give_back(&registry, tenant.id, &execution).await?;
    // As ActivateTenant does: a reconciliation of another test may have told that it is being provisioned.
    Projector::from_env(&world.env)?.project(&registry, &tenant).await?;
    Ok(tenant)
}

/// Suspends a tenant in the registry alone: nobody has told the gate yet.
pub async fn suspend(world: &World, tenant: &Tenant) -> Result<()> {
    let by = &Selector::Id(tenant.id);
    suspensions::suspend(&mut world.registry().await?, by, Reason::Admin, "test").await?;
    Ok(())
}

fn request(tenant: &Tenant, reason: &str) -> Value {
    json!({"tenant_id": tenant.id, "reason": reason, "actor": "test"})
}

async fn at_once(world: &World) -> Result<()> {
    let slug = world.fresh_slug("suspended");
    let mut events = world.subscribe().await?;
    world.provision(&crate::machine::sign_up(&slug, "starter")).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let gate = gate(world)?;
    ensure!(matches!(gate.decide(&slug, 1).await, Verdict::Admitted(..)), "in service, and refused");
    let suspended =
        world.run_machine("SuspendTenantMachine", &request(&tenant, "payment_failure")).await?.succeeded()?;
    ensure!(suspended.states == ["SuspendTenant", "PublishEvents", "Suspended"], "{:?}", suspended.states);
    refused_with(world, &tenant, Refused::PaymentRequired).await?;
    let sql = "SELECT reason, actor, since IS NOT NULL FROM suspensions WHERE tenant_id = $1";
    let row = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?;
    let row: (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
    ensure!(row == ("payment_failure", "test", true), "{row:?}");
    // Again changes nothing.
    world.run_machine("SuspendTenantMachine", &request(&tenant, "payment_failure")).await?.succeeded()?;
    let untouched = all_are(world, &tenant, &Inspection::Present).await;
    ensure!(untouched.is_ok(), "a suspension touched what the tenant has: {untouched:?}");
    world.run_machine("ReactivateTenantMachine", &request(&tenant, "payment_failure")).await?.succeeded()?;
    ensure!(matches!(gate.decide(&slug, 1).await, Verdict::Admitted(..)), "reactivated, and refused");
    let row = world.registry().await?;
    let sql = "SELECT status::text, suspended_at IS NULL FROM tenants WHERE id = $1";
    let row = row.query_one(sql, &[&tenant.id.0]).await?;
    ensure!((row.get::<_, &str>(0), row.get::<_, bool>(1)) == ("active", true));
    let id = tenant.id.to_string();
    for (name, expected) in [("tenant.suspended", 1), ("tenant.reactivated", 1)] {
        events.events_of(name, &id).await?;
        let heard = events.settled(name, &id).await?;
        ensure!(heard.len() == expected, "{name}: {heard:?}");
    }
    Ok(())
}

async fn refused_with(world: &World, tenant: &Tenant, reason: Refused) -> Result<()> {
    let verdict = gate(world)?.decide(tenant.slug.as_str(), 1).await;
    let Verdict::Refused(refusal) = &verdict else { anyhow::bail!("admitted: {verdict:?}") };
    ensure!(refusal.reason == reason, "{verdict:?}");
    Ok(())
}

/// Suspends or reactivates by the step that does it, which also tells the gate.
pub async fn step(world: &World, name: &str, tenant: &Tenant, reason: &str) -> Result<Value> {
    let call = json!({"request": request(tenant, reason), "execution": "manual:test"});
    world.invoke(name, &call).await?.map_err(|error| anyhow::anyhow!("{error:?}"))
}

async fn reasons(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    step(world, "suspend-tenant", &tenant, "payment_failure").await?;
    refused_with(world, &tenant, Refused::PaymentRequired).await?;
    step(world, "suspend-tenant", &tenant, "policy_violation").await?;
    refused_with(world, &tenant, Refused::Suspended).await?;
    let lifted = step(world, "reactivate-tenant", &tenant, "payment_failure").await?;
    ensure!(
        lifted["status"] == "suspended" && lifted["still_suspended_for"] == json!(["policy_violation"]),
        "{lifted}"
    );
    refused_with(world, &tenant, Refused::Suspended).await?;
    let lifted = step(world, "reactivate-tenant", &tenant, "policy_violation").await?;
    ensure!(lifted["status"] == "active", "{lifted}");
    let verdict = gate(world)?.decide(tenant.slug.as_str(), 1).await;
    ensure!(matches!(verdict, Verdict::Admitted(..)), "{verdict:?}");
    Ok(())
}

async fn recorded(world: &World) -> Result<()> {
    let (tenant, execution) = provisioning(world).await?;
    let answer = step(world, "suspend-tenant", &tenant, "policy_violation").await?;
    ensure!(answer["status"] == "provisioning", "{answer}");
    // The gate is asked too early, and remembers.
    refused_with(world, &tenant, Refused::NotInService).await?;
    let activate = json!({"tenant_id": tenant.id, "execution": execution});
    let activated = world.invoke("activate-tenant", &activate).await?;
    let activated = activated.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(activated["status"] == "suspended", "{activated}");
    refused_with(world, &tenant, Refused::Suspended).await?;
    let sql = "SELECT type FROM outbox WHERE tenant_id = $1 ORDER BY version";
    let rows = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    let types: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(types == ["tenant.provisioned", "tenant.suspended"], "{types:?}");
    Ok(())
}

async fn refused(world: &World) -> Result<()> {
    let call = json!({
        "request": {"slug": "Acme", "reason": "late", "actor": "ada@acme.example", "note": "x"},
        "execution": "manual:test",
    });
    let error = world.invoke("suspend-tenant", &call).await?.err().context("accepted")?;
    ensure!(error.0 == "InvalidRequest", "{error:?}");
    for rule in [
        "request.slug may hold only",
        "request.reason must be one of",
        "request.actor must be",
        "request.note is not a",
    ] {
        ensure!(error.1.contains(rule), "{rule} is not among {error:?}");
    }
    ensure!(!error.1.contains("acme.example"), "an address is repeated: {error:?}");
    let nobody = json!({"request": {"tenant_id": Uuid::new_v4(), "reason": "admin"}, "execution": "manual:test"});
    let error = world.invoke("reactivate-tenant", &nobody).await?.err().context("accepted")?;
    ensure!(error.0 == "TenantNotFound", "{error:?}");
    Ok(())
}

async fn gone(world: &World) -> Result<()> {
    let mut registry = world.registry().await?;
    let tenant = registered(world, &mut registry, Plan::Starter, false).await?.tenant;
    registry.execute("UPDATE tenants SET status = 'deprovisioned' WHERE id = $1", &[&tenant.id.0]).await?;
    let ended = world.run_machine("SuspendTenantMachine", &request(&tenant, "admin")).await?;
    ensure!(ended.error == "Conflict" && ended.cause.contains(tenant.slug.as_str()), "{ended:?}");
    ensure!(world.record(tenant.slug.as_str()).await?.tenant.status == Status::Deprovisioned);
    Ok(())
}

/// As a step that was killed between the registry and the gate, and is tried again by the machine.
async fn told_again(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let gate = gate(world)?;
    ensure!(matches!(gate.decide(tenant.slug.as_str(), 1).await, Verdict::Admitted(..)), "in service, and refused");
    suspend(world, &tenant).await?;
    step(world, "suspend-tenant", &tenant, "admin").await?;
    refused_with(world, &tenant, Refused::Suspended).await
}
