//! The faults of offboard-tenant: each leaves the tenant held, with its link and an execution that waits, or flagged, or in
//! service as it was. The machine, started again, and then the deletion at the hold's end, take it to its end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::{ExecutionStatus, HistoryEvent};
use serde_json::{Value, json};
use tenantry_core::registry::holds::{self, State};
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::{Isolation, Status, Tenant};
use tenantry_local::execution;
use tenantry_local::proxy::System;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::in_service::{of, publish};
use super::{
    Because, Fault, Line, RECOVERY, Site, cause, deleting, injected, only, released, request_of, site, told, when,
};
use crate::faults::marks;
use crate::machine::Outcome;
use crate::offboarding::{call, status_of, withdrawn};
use crate::provisioning::all_are;
use crate::world::World;

use System::{Aws, Dedicated, Postgres, Stripe};

pub(super) const MACHINE: &str = "offboard-tenant";
const OUTPUT: &str = "OffboardTenantMachine";
/// How long the hold of a tenant lasts whose execution is to come to its end, in seconds.
const SHORT: f64 = 1.0;
/// Tenants that leave at once: a function has ten instances, and a plan keeps one while it waits for transactions to end.
static TURNS: Semaphore = Semaphore::const_new(8);
const POLL: Duration = Duration::from_millis(300);

const fn leave(state: &'static str, system: System, function: &'static str, holds: &'static str) -> Site {
    of(MACHINE, only("shared", site(state, system, function, holds)))
}

/// The session in which a part reads the tenant's own tables.
const fn read(isolation: &'static str, system: System) -> Site {
    only(isolation, leave("ExportPart", system, "export-part", "SET search_path"))
}

/// Every state of the machine that calls a function, with the call that makes its effect.
pub(super) static SITES: &[Site] = &[
    leave("BeginOffboarding", Postgres, "begin-offboarding", "INSERT INTO holds"),
    leave("FreezeTenant", Postgres, "freeze-tenant", "UPDATE pool.tenants SET writable"),
    only("schema", leave("FreezeTenant", Aws, "freeze-tenant", "PUT /tenant-")),
    leave("PlanExport", Postgres, "plan-export", "INSERT INTO exports"),
    leave("ExportPart", Aws, "export-part", "/exports/"),
    read("schema", Postgres),
    read("database", Dedicated),
    leave("FinishExport", Aws, "finish-export", "manifest.json"),
    leave("CancelSubscription", Stripe, "cancel-subscription", "DELETE /v1/subscriptions/"),
    leave("PublishLink", Postgres, "publish-link", "SET state = 'held'"),
    leave("NotifyOwner", Aws, "notify-owner", "POST /v2/email/outbound-emails"),
    publish(MACHINE),
    leave("CloseOffboarding", Postgres, "close-offboarding", "SET execution = NULL"),
    leave("CheckHold", Postgres, "check-hold", "FROM holds WHERE tenant_id"),
    when(Because::Fails("PlanExport"), leave("FlagTenant", Postgres, "flag-tenant", "needs_operator = $5")),
];

/// Whether a case comes to an end soon: a part may take ten minutes, and what hangs in its session with a database takes them all.
pub(super) fn ends(site: &Site, fault: Fault) -> bool {
    site.state != "ExportPart" || site.target.system == Aws || fault != Fault::Hang
}

/// A tenant of an isolation in service, and what calls that concern it carry.
pub(super) async fn tenant(world: &World, isolation: &str) -> Result<(Tenant, Vec<Vec<u8>>)> {
    let request = request_of(world, isolation);
    world.provision(&request).await?.succeeded()?;
    let slug = request["slug"].as_str().context("a slug")?;
    let tenant = world.record(slug).await?.tenant;
    let sql = "SELECT customer, subscription FROM billing_accounts WHERE tenant_id = $1";
    let row = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?;
    let mut marked = marks(tenant.id, slug);
    marked.extend([row.get::<_, String>(0).into_bytes(), row.get::<_, String>(1).into_bytes()]);
    Ok((tenant, marked))
}

/// Where a tenant is on its way out: its hold's state while it is suspended, or else its status; and whether it is flagged.
pub(super) async fn whereabouts(world: &World, tenant: &Tenant) -> Result<String> {
    let record = world.record(tenant.slug.as_str()).await?;
    let hold = holds::latest(&world.registry().await?, tenant.id).await?;
    let word = match (record.tenant.status, hold) {
        (Status::Suspended, Some(hold)) => hold.state.as_str().to_owned(),
        (status, _) => status.to_string(),
    };
    Ok(if record.needs_operator.is_some() { format!("{word}, flagged") } else { word })
}

/// What the machine is started with: all of it the first time, and later who it is about.
async fn input(world: &World, site: &Site, tenant: &Tenant) -> Result<Value> {
    if tenant.isolation == Isolation::Database {
        let lift = json!({"slug": tenant.slug, "protected": false, "execution": "manual:matrix"});
        call(world, "set-deletion-protection", lift).await?;
    }
    if site.state != "CheckHold" {
        return Ok(json!({"tenant_id": tenant.id, "reason": "customer_request", "actor": "matrix"}));
    }
    let execution = withdrawn(world, tenant).await?;
    holds::publish(&world.registry().await?, tenant.id, &execution, SHORT).await?;
    Ok(json!({"tenant_id": tenant.id}))
}

pub(super) async fn one(world: &World, site: &Site, fault: Fault, line: &mut Line) -> Result<()> {
    let _turn = TURNS.acquire().await?;
    let (tenant, marked) = tenant(world, line.isolation).await?;
    line.tenant = Some(tenant.clone());
    let input = input(world, site, &tenant).await?;
    let cause = cause(world, site, &marked)?;
    let injected = injected(world, site, fault, marked);
    let arn = world.start_machine(OUTPUT, &input).await?;
    let outcome =
        if site.state == "CheckHold" { Some(world.finish(&arn).await?) } else { followed(world, &arn).await? };
    let met = injected.hits();
    drop((injected, cause));
    let told = outcome.as_ref().map_or_else(|| "it waits".to_owned(), told);
    ensure!(met > 0, "the fault was not met: {told}");
    let recovered = match &outcome {
        Some(ended) => released(world, tenant.slug.as_str(), ended).await?,
        None => false,
    };
    let failed = outcome.as_ref().is_some_and(|ended| ended.status == ExecutionStatus::Failed);
    if site.state == "CheckHold" && !failed {
        deleted(world, &tenant).await?;
    }
    line.outcome = whereabouts(world, &tenant).await?;

    let expected: &[&str] = match (site.state, fault) {
        _ if recovered => &["held"],
        // The daily sweep finds what nobody waits for, at the hold's end.
        ("CheckHold", Fault::BeforeEffect | Fault::AnswerLost) => &["held"],
        ("CheckHold", _) => &["deprovisioned"],
        ("BeginOffboarding", Fault::BeforeEffect) => &["active"],
        ("PublishEvents" | "CloseOffboarding", _) => &["held"],
        ("FlagTenant", _) => &["exporting, flagged"],
        ("NotifyOwner", Fault::BeforeEffect) => &["held, flagged"],
        ("PublishLink" | "NotifyOwner", Fault::AnswerLost) => &["held", "held, flagged"],
        (_, Fault::BeforeEffect) => &["exporting, flagged"],
        (_, Fault::AnswerLost) => &["held", "exporting, flagged"],
        _ => &["held"],
    };
    ensure!(expected.contains(&line.outcome.as_str()), "ends {}, not {expected:?}: {told}", line.outcome);
    ensure!(outcome.is_none() || failed || line.outcome == "deprovisioned", "it neither waits nor failed: {told}");
    if recovered {
        line.outcome += ", recovered by the rule";
    } else if failed && line.outcome == "held" {
        line.outcome += ", left to the sweep";
    }
    settled(world, site, &tenant, &input, line).await
}

/// Started again, without the fault, the machine holds the tenant; and at the hold's end the deletion does away with it.
async fn settled(world: &World, site: &Site, tenant: &Tenant, input: &Value, line: &mut Line) -> Result<()> {
    if line.outcome == "deprovisioned" {
        return deleting::gone(world, tenant).await;
    }
    if line.outcome.ends_with("flagged") || line.outcome == "active" {
        let input = if line.outcome == "active" { input.clone() } else { json!({"tenant_id": tenant.id}) };
        let arn = world.start_machine(OUTPUT, &input).await?;
        let outcome = followed(world, &arn).await?;
        ensure!(
            outcome.is_none(),
            "started again, it does not wait: {}",
            outcome.as_ref().map(told).unwrap_or_default()
        );
        let reached = whereabouts(world, tenant).await?;
        ensure!(reached == "held", "started again, it ends {reached}");
        line.outcome += ", then held";
    }
    if site.state != "CheckHold" {
        linked(world, tenant).await?;
    }
    if site.state == "FreezeTenant" {
        let frozen = world.record(tenant.slug.as_str()).await?.tenant;
        all_are(world, &frozen, &Inspection::Present).await?;
    }
    over(world, tenant).await?;
    deleting::delete(world, tenant).await?.succeeded()?;
    line.outcome += ", then deprovisioned";
    deleting::gone(world, tenant).await
}

/// The whole export is there, and its link works.
async fn linked(world: &World, tenant: &Tenant) -> Result<()> {
    let sql =
        "SELECT count(*) FILTER (WHERE e.state = 'finished' AND e.token_hash IS NOT NULL AND e.link_expires_at > now()
                                         AND h.state = 'held' AND h.expires_at > now() AND h.notified_at IS NOT NULL
                                         AND NOT EXISTS (SELECT FROM export_parts p
                                                         WHERE p.export_id = e.id AND p.done_at IS NULL)),
                      count(*)
               FROM exports e JOIN holds h ON h.id = e.hold_id WHERE e.tenant_id = $1";
    let row = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?;
    let (whole, all): (i64, i64) = (row.get(0), row.get(1));
    ensure!(whole == 1 && all == 1, "{whole} of {all} exports are whole, with a link of which the owner was told");
    Ok(())
}

/// Follows an execution until it waits for the hold's end, which is far away, or ends; `None` where it waits.
async fn followed(world: &World, arn: &str) -> Result<Option<Outcome>> {
    let machines = aws_sdk_sfn::Client::new(&world.env.aws);
    let begun = Instant::now();
    while status_of(world, arn).await? == ExecutionStatus::Running {
        let history = execution::history(&machines, arn).await?;
        let newest = history.iter().filter_map(HistoryEvent::state_entered_event_details).next_back();
        if newest.is_some_and(|entered| entered.name() == "WaitForHold") {
            return Ok(None);
        }
        ensure!(begun.elapsed() < RECOVERY, "{arn} neither waits nor ends");
        sleep(POLL).await;
    }
    world.finish(arn).await.map(Some)
}

/// As when a month has passed: the hold is over, and whoever waited for it waits no more.
async fn over(world: &World, tenant: &Tenant) -> Result<()> {
    let registry = world.registry().await?;
    let hold = holds::latest(&registry, tenant.id).await?.context("no hold")?;
    ensure!(hold.state == State::Held, "{hold:?}");
    let waiting = hold.execution.context("nobody has the hold")?;
    if status_of(world, &waiting).await? == ExecutionStatus::Running {
        aws_sdk_sfn::Client::new(&world.env.aws).stop_execution().execution_arn(&waiting).send().await?;
    }
    registry.execute("UPDATE holds SET expires_at = now() WHERE id = $1", &[&hold.id]).await?;
    Ok(())
}

/// Waits until the deletion that the hold's end started is over.
async fn deleted(world: &World, tenant: &Tenant) -> Result<()> {
    let begun = Instant::now();
    while world.record(tenant.slug.as_str()).await?.tenant.status != Status::Deprovisioned {
        ensure!(begun.elapsed() < RECOVERY, "the deletion does not end: {}", whereabouts(world, tenant).await?);
        sleep(POLL).await;
    }
    Ok(())
}
