//! Who wins when many come at once, and what a crash leaves to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use futures::future::try_join_all;
use serde_json::json;
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::{Status, Tenant};
use tenantry_local::execution;
use tenantry_local::proxy::{System, Verdict};
use tokio::time::sleep;

use crate::compensation::{paid, unpaid};
use crate::deletion::until_gone;
use crate::faults::{Injected, Target, marks};
use crate::machine::{failed_attempts, sign_up};
use crate::offboarding::{erasing, status_of};
use crate::provisioning::all_are;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("a_request_delivered_a_hundred_times_makes_one_tenant", |world| Box::pin(hundred(world))),
    ("of_two_that_want_one_slug_one_wins_and_the_other_touches_nothing", |world| Box::pin(collision(world))),
    ("a_suspension_during_provisioning_is_applied_after_it", |world| Box::pin(suspended(world))),
    ("a_deletion_asked_for_during_provisioning_waits_for_its_end", |world| Box::pin(erased(world))),
    ("a_new_execution_goes_on_after_the_last_completed_step", |world| Box::pin(resumed(world))),
];

const PATIENCE: Duration = Duration::from_secs(180);

async fn hundred(world: &World) -> Result<()> {
    let mut subscription = world.subscribe().await?;
    let slug = world.fresh_slug("hundred");
    let request = sign_up(&slug, "starter");
    let started = try_join_all((0..100).map(|_| world.start(&request))).await?;
    let mut acted = 0;
    for arn in &started {
        let outcome = world.finish(arn).await?.succeeded()?;
        acted += usize::from(outcome.times("CreateDatabase") > 0);
    }
    ensure!(acted == 1, "{acted} of {} executions acted", started.len());
    let record = world.record(&slug).await?;
    ensure!(record.tenant.status == Status::Active && record.takeovers == 0 && record.execution.is_none());
    all_are(world, &record.tenant, &Inspection::Present).await?;
    let id = record.tenant.id.to_string();
    subscription.events_of("tenant.provisioned", &id).await?;
    ensure!(subscription.settled("tenant.provisioned", &id).await?.len() == 1);
    let welcomes =
        world.emails().await?.iter().filter(|mail| mail.to_string().contains(&format!("owner@{slug}."))).count();
    ensure!(welcomes == 1, "{welcomes} welcomes");
    Ok(())
}

async fn collision(world: &World) -> Result<()> {
    let slug = world.fresh_slug("collide");
    let requests: Vec<_> = (0..6).map(|_| sign_up(&slug, "growth")).collect();
    let outcomes = try_join_all(requests.iter().map(|request| world.provision(request))).await?;
    let won: Vec<usize> = (0..6).filter(|index| outcomes[*index].status == ExecutionStatus::Succeeded).collect();
    ensure!(won.len() == 1, "{} won", won.len());
    for (index, outcome) in outcomes.iter().enumerate().filter(|(index, _)| *index != won[0]) {
        let clear =
            outcome.error == "Conflict" && outcome.cause.contains(&format!("slug {slug} belongs to another tenant"));
        ensure!(clear, "{index}: {outcome:?}");
        let undos = outcome.states.iter().filter(|state| state.starts_with("Remove")).count();
        ensure!(undos == 0 && outcome.times("CreateDatabase") == 0, "a loser acted: {:?}", outcome.states);
    }
    let record = world.record(&slug).await?;
    ensure!(json!(record.request_id) == requests[won[0]]["request_id"]);
    all_are(world, &record.tenant, &Inspection::Present).await
}

fn making_the_namespace() -> Target {
    Target { system: System::Kubernetes, function: "", holds: "POST /api/v1/namespaces?" }
}

/// A tenant whose provisioning stands in mid-way, for as long as the call hangs, and its execution.
async fn in_mid_way(world: &World, stem: &str) -> Result<(Tenant, Injected, String)> {
    let (request, tenant) = unpaid(world, stem).await?;
    let hanging =
        world.faults.inject(making_the_namespace(), marks(tenant.id, tenant.slug.as_str()), Verdict::Hang, 1_000_000);
    let arn = world.start(&paid(&request)).await?;
    hanging.until_hit(Instant::now() + PATIENCE).await?;
    Ok((tenant, hanging, arn))
}

/// Lets a provisioning go on to its end, which nothing was done about in mid-way.
async fn goes_on(world: &World, tenant: &Tenant, hanging: Injected, execution: &str) -> Result<()> {
    let status = world.record(tenant.slug.as_str()).await?.tenant.status;
    ensure!(status == Status::Provisioning, "it was applied in mid-way: {status}");
    drop(hanging);
    let outcome = world.finish(execution).await?.succeeded()?;
    ensure!(outcome.times("CloseProvisioning") == 1, "{:?}", outcome.states);
    Ok(())
}

/// The statuses that a tenant had.
async fn moves(world: &World, tenant: &Tenant) -> Result<String> {
    let sql =
        "SELECT string_agg(detail ->> 'to', ' ' ORDER BY id) FROM audit WHERE tenant_id = $1 AND action = 'status'";
    Ok(world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0))
}

/// The request waits, however long the provisioning takes; then the tenant is deleted by it, and nothing was interleaved.
async fn erased(world: &World) -> Result<()> {
    let (tenant, hanging, arn) = in_mid_way(world, "erased").await?;
    let leaving = world.start_machine("OffboardTenantMachine", &erasing(&tenant, "DSR-20")).await?;
    let machines = aws_sdk_sfn::Client::new(&world.env.aws);
    let begun = Instant::now();
    while failed_attempts(&execution::history(&machines, &leaving).await?) != ["NotReady"; 3] {
        ensure!(begun.elapsed() < PATIENCE, "it does not wait: {:?}", status_of(world, &leaving).await?);
        sleep(Duration::from_millis(100)).await;
    }
    goes_on(world, &tenant, hanging, &arn).await?;
    world.finish(&leaving).await?.succeeded()?;
    until_gone(world, &tenant, begun + PATIENCE).await?;
    let moves = moves(world, &tenant).await?;
    ensure!(moves == "pending provisioning active suspended deprovisioned", "{moves}");
    Ok(())
}

async fn suspended(world: &World) -> Result<()> {
    let (tenant, hanging, arn) = in_mid_way(world, "suspended").await?;
    let registry = world.registry().await?;
    let sql = "INSERT INTO suspensions (tenant_id, reason, actor) VALUES ($1, 'policy_violation', 'manual:test')";
    registry.execute(sql, &[&tenant.id.0]).await?;
    goes_on(world, &tenant, hanging, &arn).await?;
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Suspended && record.execution.is_none(), "{}", record.tenant.status);
    let moves = moves(world, &tenant).await?;
    ensure!(moves == "pending provisioning active suspended", "{moves}");
    Ok(())
}

/// The execution vanishes while a step hangs; a new one takes over. Completed steps are hits in the journal, looked at and
/// not done again; the old execution's Lambda, when it wakes up, changes nothing.
async fn resumed(world: &World) -> Result<()> {
    let (request, tenant) = unpaid(world, "resumed").await?;
    let marked = marks(tenant.id, tenant.slug.as_str());
    let hanging = world.faults.inject(making_the_namespace(), marked.clone(), Verdict::Hang, 1);
    world.start(&paid(&request)).await?;
    hanging.until_hit(Instant::now() + PATIENCE).await?;
    let registry = world.registry().await?;
    let gone = "arn:aws:states:us-east-1:000000000000:execution:provision-tenant:vanished";
    let gone = format!("{gone}-{}", tenant.slug);
    let sql = "WITH held AS (SELECT execution AS was FROM tenants WHERE id = $1),
                    journal AS (UPDATE step_journal SET execution = $2 FROM held WHERE tenant_id = $1 AND execution = was)
               UPDATE tenants SET execution = $2 WHERE id = $1";
    registry.execute(sql, &[&tenant.id.0, &gone]).await?;
    let before = world.faults.calls_with(&marked).len();
    let outcome = world.provision(&json!({"tenant_id": tenant.id})).await?.succeeded()?;
    ensure!(outcome.times("CreateDatabase") == 1 && outcome.times("CreateNamespace") == 1, "{:?}", outcome.states);
    let completed = ["create-database", "create-identity", "create-bucket", "create-queue"];
    let calls = world.faults.calls_with(&marked);
    for call in calls.iter().skip(before).filter(|call| completed.contains(&call.function.as_str())) {
        ensure!(call.reads(), "{} did more than look: {}", call.function, call.what);
    }
    ensure!(calls.len() > before + completed.len(), "nothing was seen");
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Active && record.takeovers == 1);
    all_are(world, &record.tenant, &Inspection::Present).await?;
    let sql = "SELECT step FROM step_journal WHERE tenant_id = $1 AND attempts > 1 ORDER BY step";
    let again: Vec<String> = registry.query(sql, &[&tenant.id.0]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(again == ["create-namespace"], "done again: {again:?}");
    drop(hanging);
    let sql = "SELECT execution FROM step_journal WHERE tenant_id = $1 AND step = 'create-bucket'";
    let done_by: String = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(done_by == gone, "the journal's entry was replaced by {done_by}");
    world.faults.calls_with(&marked).first().context("nothing was seen").map(drop)
}
