//! The faults of the states by which a tenant comes back while its hold lasts: it stays where it was, or is flagged, and never in
//! service though something is withdrawn from it still. The machine, started again, gives back the rest.

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::json;
use tenant_gate::Verdict as Answer;
use tenantry_core::registry::holds::{self, State};
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::Tenant;
use tenantry_local::proxy::System;

use super::in_service::{REACTIVATE, of};
use super::leaving::{tenant, whereabouts};
use super::{Because, Fault, Line, Site, only, run_with, site, told, when};
use crate::billing::active_subscriptions;
use crate::gate::gate;
use crate::machine::Outcome;
use crate::offboarding::{held, returning, status_of, withdrawn};
use crate::provisioning::all_are;
use crate::world::World;

use System::{Aws, Postgres, Stripe};

/// Longer than any case, in seconds.
const HOLD: f64 = 86_400.0;

const fn back(state: &'static str, system: System, function: &'static str, holds: &'static str) -> Site {
    of(REACTIVATE, only("shared", site(state, system, function, holds)))
}

/// Every state that only a tenant comes to that was leaving, and the one that ends it, with the call that makes its effect.
pub(super) static SITES: &[Site] = &[
    back("CancelHold", Postgres, "cancel-hold", "SET state = 'cancelled'"),
    back("StopWaiting", Aws, "stop-waiting", "AWSStepFunctions.StopExecution"),
    back("ThawTenant", Aws, "thaw-tenant", "PUT /tenant-"),
    back("ResumeSubscription", Stripe, "resume-subscription", "POST /v1/subscriptions"),
    back("VerifyTenant", Postgres, "verify-tenant", "SET thawed_at"),
    only("schema", back("ReactivateTenant", Postgres, "reactivate-tenant", "DELETE FROM suspensions")),
    when(Because::Fails("ThawTenant"), back("FlagTenant", Postgres, "flag-tenant", "needs_operator = $5")),
];

/// Whether a site of the machine is one of these.
pub(super) fn has(site: &Site) -> bool {
    SITES.iter().any(|one| one.state == site.state && one.isolation == site.isolation)
}

async fn run(world: &World, tenant: &Tenant) -> Result<Outcome> {
    world.run_machine("ReactivateTenantMachine", &returning(tenant)).await
}

/// Takes a tenant out of service. Where an execution is to be stopped, one waits; else it died, which is the same to the others.
/// Returns its ARN.
async fn withdrawn_by(world: &World, site: &Site, tenant: &Tenant) -> Result<String> {
    if site.state == "StopWaiting" {
        return held(world, tenant, HOLD).await;
    }
    let execution = withdrawn(world, tenant).await?;
    holds::publish(&world.registry().await?, tenant.id, &execution, HOLD).await?;
    let free = json!({"tenant_id": tenant.id, "execution": execution});
    crate::offboarding::call(world, "close-offboarding", free).await?;
    Ok(execution)
}

pub(super) async fn one(world: &World, site: &Site, fault: Fault, line: &mut Line) -> Result<()> {
    let (tenant, mut marked) = tenant(world, line.isolation).await?;
    line.tenant = Some(tenant.clone());
    let waiting = withdrawn_by(world, site, &tenant).await?;
    marked.push(waiting.clone().into_bytes());
    let (outcome, recovered) = run_with(world, site, fault, (&tenant, marked), run(world, &tenant)).await?;
    line.outcome = whereabouts(world, &tenant).await?;

    let expected: &[&str] = match (site.state, fault) {
        _ if recovered => &["active"],
        ("CancelHold", Fault::BeforeEffect) => &["held"],
        ("FlagTenant", _) | (_, Fault::BeforeEffect) => &["cancelled, flagged"],
        (_, Fault::AnswerLost) => &["active", "cancelled, flagged"],
        _ => &["active"],
    };
    ensure!(expected.contains(&line.outcome.as_str()), "ends {}, not {expected:?}: {}", line.outcome, told(&outcome));
    let succeeds = line.outcome == "active" && !recovered;
    let ends = if succeeds { ExecutionStatus::Succeeded } else { ExecutionStatus::Failed };
    ensure!(outcome.status == ends, "ends {}: {}", line.outcome, told(&outcome));
    if recovered {
        line.outcome += ", recovered by the rule";
    } else if !succeeds {
        let answer = gate(world)?.decide(tenant.slug.as_str(), 0).await;
        ensure!(matches!(answer, Answer::Refused(_)), "it is served though it is not back: {answer:?}");
        run(world, &tenant).await?.succeeded()?;
        line.outcome += ", then active";
    }
    returned(world, site, &tenant, &waiting).await
}

/// All that was withdrawn is given back, and nobody waits to take it again.
async fn returned(world: &World, site: &Site, tenant: &Tenant, waiting: &str) -> Result<()> {
    let reached = whereabouts(world, tenant).await?;
    ensure!(reached == "active", "it ends {reached}");
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.execution.is_none() && !record.tenant.frozen, "{record:?}");
    let hold = holds::latest(&world.registry().await?, tenant.id).await?.context("no hold")?;
    ensure!(hold.state == State::Cancelled && hold.thawed, "{hold:?}");
    if site.state == "StopWaiting" {
        let status = status_of(world, waiting).await?;
        ensure!(status == ExecutionStatus::Aborted, "the execution that waited is {status}");
    }
    all_are(world, &record.tenant, &Inspection::Present).await?;
    let live = active_subscriptions(world, tenant).await?;
    ensure!(live == 1, "{live} subscriptions are active");
    let answer = gate(world)?.decide(tenant.slug.as_str(), 0).await;
    ensure!(matches!(answer, Answer::Admitted(..)), "in service, and {answer:?}");
    Ok(())
}
