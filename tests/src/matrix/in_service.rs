//! The faults of the machines that act on a tenant in service: each leaves the tenant where it was or where it was to go, never in
//! between, and the machine, started again, brings it there.

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use tenant_gate::Verdict as Answer;
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::{Plan, Status, Tenant};
use tenantry_local::proxy::System;

use super::{Because, Fault, Line, Site, only, run_with, site, told, when};
use crate::billing_events::{becomes, subscriber};
use crate::faults::marks;
use crate::gate::gate;
use crate::machine::sign_up;
use crate::provisioning::all_are;
use crate::suspension::in_service;
use crate::world::World;

use System::{Aws, Kubernetes, Postgres, Stripe};

const SUSPEND: &str = "suspend-tenant";
pub(super) const REACTIVATE: &str = "reactivate-tenant";
const FOLLOW: &str = "follow-billing";
const CHANGE: &str = "change-plan";

pub(super) const fn of(machine: &'static str, site: Site) -> Site {
    Site { machine, ..site }
}

pub(super) const fn publish(machine: &'static str) -> Site {
    of(machine, only("shared", site("PublishEvents", Aws, "publish-events", "AWSEvents.PutEvents")))
}

const fn change(state: &'static str, system: System, function: &'static str, holds: &'static str) -> Site {
    of(CHANGE, only("shared", site(state, system, function, holds)))
}

/// Every state of these machines, with the call that makes its effect.
pub(super) static SITES: &[Site] = &[
    of(SUSPEND, only("shared", site("SuspendTenant", Postgres, "suspend-tenant", "INSERT INTO suspensions"))),
    publish(SUSPEND),
    of(REACTIVATE, only("shared", site("ReactivateTenant", Postgres, "reactivate-tenant", "DELETE FROM suspensions"))),
    publish(REACTIVATE),
    of(FOLLOW, only("shared", site("FollowBilling", Stripe, "follow-billing", "GET /v1/subscriptions/"))),
    publish(FOLLOW),
    change("BeginPlanChange", Postgres, "begin-plan-change", "INSERT INTO plan_changes"),
    change("ApplyNamespaceLimits", Kubernetes, "", "/resourcequotas/plan"),
    change("ApplyBucketLifecycle", Aws, "apply-bucket-lifecycle", "<LifecycleConfiguration"),
    change("ApplyPlanConfig", Aws, "apply-plan-config", "DynamoDB_20120810.UpdateItem"),
    change("ApplyBillingPrice", Stripe, "apply-billing-price", "POST /v1/subscription"),
    change("ReportPlanFit", Postgres, "report-plan-fit", "SET version = version + 1"),
    change("ClosePlanChange", Postgres, "close-plan-change", "UPDATE plan_changes c SET closed_at"),
    publish(CHANGE),
    when(Because::Fails("ApplyNamespaceLimits"), change("FlagTenant", Postgres, "flag-tenant", "needs_operator = $5")),
];

/// A tenant before its machine runs.
struct Prepared {
    tenant: Tenant,
    /// What the machine is started with.
    input: Value,
    /// What calls that concern the tenant carry.
    marks: Vec<Vec<u8>>,
    /// The template's output that names the machine.
    machine: &'static str,
    /// Where the tenant is, and where the machine is to bring it.
    before: &'static str,
    after: &'static str,
}

async fn prepared(world: &World, site: &Site) -> Result<Prepared> {
    let suspended = json!({"reason": "policy_violation", "actor": "matrix"});
    let input = |tenant: &Tenant, mut more: Value| {
        more["tenant_id"] = json!(tenant.id);
        more
    };
    Ok(match site.machine {
        SUSPEND => {
            let tenant = in_service(world).await?;
            let (input, marks) = (input(&tenant, suspended), marks(tenant.id, tenant.slug.as_str()));
            Prepared { tenant, input, marks, machine: "SuspendTenantMachine", before: "active", after: "suspended" }
        }
        REACTIVATE => {
            let tenant = in_service(world).await?;
            let input = input(&tenant, suspended);
            world.run_machine("SuspendTenantMachine", &input).await?.succeeded()?;
            let marks = marks(tenant.id, tenant.slug.as_str());
            Prepared { tenant, input, marks, machine: "ReactivateTenantMachine", before: "suspended", after: "active" }
        }
        FOLLOW => {
            let owing = subscriber(world, Plan::Starter).await?;
            becomes(world, &owing.account, json!({"status": "past_due"})).await?;
            let tenant = owing.tenant;
            let mut marks = marks(tenant.id, tenant.slug.as_str());
            marks.push(owing.account.subscription.into_bytes());
            let input = input(&tenant, json!({}));
            Prepared { tenant, input, marks, machine: "FollowBillingMachine", before: "active", after: "suspended" }
        }
        _ => {
            let slug = world.fresh_slug("mx-plan");
            world.provision(&sign_up(&slug, "starter")).await?.succeeded()?;
            let tenant = world.record(&slug).await?.tenant;
            let sql = "SELECT subscription FROM billing_accounts WHERE tenant_id = $1";
            let subscription: Option<String> = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
            let mut marks = marks(tenant.id, &slug);
            marks.push(subscription.context("no subscription")?.into_bytes());
            let input = input(&tenant, json!({"plan": "growth", "actor": "matrix"}));
            Prepared { tenant, input, marks, machine: "ChangePlanMachine", before: "starter", after: "growth" }
        }
    })
}

/// Where the tenant is: for a change of plan its plan, else its status; and whether it is flagged.
async fn whereabouts(world: &World, site: &Site, tenant: &Tenant) -> Result<String> {
    let record = world.record(tenant.slug.as_str()).await?;
    let word = if site.machine == CHANGE { record.tenant.plan.to_string() } else { record.tenant.status.to_string() };
    Ok(if record.needs_operator.is_some() { format!("{word}, flagged") } else { word })
}

pub(super) async fn one(world: &World, site: &Site, fault: Fault, line: &mut Line) -> Result<()> {
    let Prepared { tenant, input, marks, machine, before, after } = prepared(world, site).await?;
    line.tenant = Some(tenant.clone());
    let run = world.run_machine(machine, &input);
    let (outcome, recovered) = run_with(world, site, fault, (&tenant, marks), run).await?;
    line.outcome = whereabouts(world, site, &tenant).await?;

    let flagged = format!("{after}, flagged");
    let first = ["SuspendTenant", "ReactivateTenant", "FollowBilling", "BeginPlanChange"].contains(&site.state);
    let expected: &[&str] = match (site.state, fault) {
        _ if recovered => &[after],
        ("FlagTenant", _) => &[&flagged],
        ("PublishEvents", _) => &[after],
        (_, Fault::BeforeEffect) if first => &[before],
        (_, Fault::AnswerLost) if first => &[before, after],
        (_, Fault::BeforeEffect) => &[&flagged],
        (_, Fault::AnswerLost) => &[after, &flagged],
        _ => &[after],
    };
    ensure!(expected.contains(&line.outcome.as_str()), "ends {}, not {expected:?}: {}", line.outcome, told(&outcome));
    // What took effect and was never answered may have failed all the same, and is seen to have.
    let succeeds = line.outcome == after && !recovered && !(first && fault == Fault::AnswerLost);
    ensure!(!succeeds || outcome.status == ExecutionStatus::Succeeded, "{}", told(&outcome));
    ensure!(line.outcome != before || outcome.status == ExecutionStatus::Failed, "{}", told(&outcome));
    if recovered {
        line.outcome += ", recovered by the rule";
    }
    // It may have stopped between the registry and the gate, which `reconcile-gate` tells otherwise.
    let stopped = !recovered && outcome.status == ExecutionStatus::Failed;
    settled(world, site, &tenant, (machine, &input, stopped), after, line).await
}

/// Started again, without the fault, the machine brings the tenant where it was to go; the gate says what the registry has; and
/// what the tenant owns is as it should be.
async fn settled(
    world: &World,
    site: &Site,
    tenant: &Tenant,
    (machine, input, stopped): (&str, &Value, bool),
    after: &str,
    line: &mut Line,
) -> Result<()> {
    if line.outcome != after || stopped {
        world.run_machine(machine, input).await?.succeeded()?;
        line.outcome += &format!(", then {after}");
    }
    let reached = whereabouts(world, site, tenant).await?;
    ensure!(reached == after, "started again, it ends {reached}, not {after}");
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.execution.is_none(), "the tenant is still held by {:?}", record.execution);
    let served = matches!(gate(world)?.decide(tenant.slug.as_str(), 0).await, Answer::Admitted(..));
    ensure!(
        served == (record.tenant.status == Status::Active),
        "the gate serves: {served}; status {}",
        record.tenant.status
    );
    let sql = "SELECT (t.status = 'suspended') = EXISTS (SELECT FROM suspensions s WHERE s.tenant_id = t.id)
               FROM tenants t WHERE t.id = $1";
    let agree: bool = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(agree, "status and suspensions differ");
    if site.machine == CHANGE {
        all_are(world, &record.tenant, &Inspection::Present).await?;
    }
    Ok(())
}
