//! What a failed attempt leaves behind: nothing, or a flag for an operator that says what.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_route53::types::{ChangeAction, RrType};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::{Status, Tenant};
use tenantry_local::proxy::{System, Verdict};
use tenantry_local::stack::BASE_DOMAIN;
use tokio::time::sleep;

use crate::dns::{change, record};
use crate::faults::{Target, marks};
use crate::machine::sign_up;
use crate::provisioning::{all_are, inspect_all};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("a_failure_is_undone_in_reverse_order_and_leaves_nothing", |world| Box::pin(undone(world))),
    ("an_undo_that_fails_for_good_is_told_and_compensate_clears_it", |world| Box::pin(undo_fails(world))),
    ("what_nobody_could_look_at_is_told_with_the_first_error", |world| Box::pin(unseen(world))),
    ("stopping_an_execution_cancels_it", |world| Box::pin(stopped(world))),
    ("an_undo_by_hand_never_touches_a_tenant_in_service", |world| Box::pin(by_hand(world))),
];

/// Longer than a takeover waits for a dead holder's functions (60 s) and the undos take.
const PATIENCE: Duration = Duration::from_secs(180);

async fn undone(world: &World) -> Result<()> {
    let mut subscription = world.subscribe().await?;
    let (request, tenant) = unpaid(world, "undone").await?;
    let foreign = record(&tenant.host(BASE_DOMAIN), RrType::A, 300, "192.0.2.9")?;
    change(world, ChangeAction::Create, foreign.clone()).await?;
    let outcome = world.provision(&paid(&request)).await?;
    ensure!(outcome.status == ExecutionStatus::Failed && outcome.error == "ForeignResource", "{outcome:?}");
    let undos: Vec<&str> =
        outcome.states.iter().map(String::as_str).filter(|state| state.starts_with("Remove")).collect();
    let expected =
        ["RemoveDnsRecord", "RemoveNamespace", "RemoveQueue", "RemoveBucket", "RemoveIdentity", "RemoveDatabase"];
    ensure!(undos == expected, "the undos went {undos:?}");
    for (kind, found) in inspect_all(world, &tenant).await? {
        match found {
            Inspection::Foreign(_) if kind == "DNS record" => {}
            Inspection::Absent => {}
            found => anyhow::bail!("{kind} is {found:?}"),
        }
    }
    // DELETE needs the exact values: it succeeds only when nobody changed them.
    change(world, ChangeAction::Delete, foreign).await.context("the foreign record was touched")?;
    traceless(world, &tenant).await?;
    let row = failure(world, &tenant).await?;
    ensure!(row == (Some("create-dns-record".into()), Some("ForeignResource".into()), None), "{row:?}");

    let id = tenant.id.to_string();
    subscription.events_of("tenant.provisioning_failed", &id).await?;
    let events = subscription.settled("tenant.provisioning_failed", &id).await?;
    ensure!(events.len() == 1, "{} events: {events:?}", events.len());
    let schema: Value = serde_json::from_str(include_str!("../../events/schemas/tenant.provisioning_failed.json"))?;
    let violations: Vec<String> =
        jsonschema::validator_for(&schema)?.iter_errors(&events[0]["detail"]).map(|error| error.to_string()).collect();
    ensure!(violations.is_empty(), "{}: {violations:?}", events[0]["detail"]);
    ensure!(events[0]["detail"]["clean"] == true && events[0]["detail"]["failed_step"] == "create-dns-record");

    world.provision(&json!({"tenant_id": tenant.id})).await?.succeeded()?;
    alive(world, &tenant).await
}

async fn undo_fails(world: &World) -> Result<()> {
    let (request, tenant) = unpaid(world, "stuck").await?;
    let registry = world.registry().await?;
    let by_hand = json!({"slug": tenant.slug, "execution": "manual:test"});
    let made = world.invoke("create-database", &by_hand).await?;
    ensure!(made.is_ok(), "{made:?}");
    // PostgreSQL drops no role that owns something, and this is outside the tenant's schema.
    let hold = format!("held_{}", tenant.schema());
    let sql = format!("CREATE TABLE public.{hold} (); ALTER TABLE public.{hold} OWNER TO {}", tenant.database_role());
    registry.batch_execute(&sql).await?;
    world.s3().create_bucket().bucket(tenant.bucket()).send().await?;

    let outcome = world.provision(&paid(&request)).await?;
    ensure!(outcome.error == "ForeignResource", "the execution fails with the original error: {outcome:?}");
    ensure!(outcome.times("RemoveIdentity") == 1 && outcome.times("RemoveDatabase") == 1, "{:?}", outcome.states);
    let (step, error, flag) = failure(world, &tenant).await?;
    ensure!(
        step.as_deref() == Some("create-bucket") && error.as_deref() == Some("ForeignResource"),
        "{step:?} {error:?}"
    );
    let flag = flag.context("nobody is told")?;
    ensure!(flag.contains("could not remove: database"), "{flag}");
    let sql =
        "SELECT error FROM step_journal WHERE tenant_id = $1 AND step = 'create-database' AND state = 'undo_failed'";
    let recorded: String = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(recorded.contains("dropping role"), "{recorded}");
    alarming(world, &tenant).await?;
    for (kind, found) in inspect_all(world, &tenant).await? {
        let left = kind == "database" || kind == "bucket";
        ensure!(left || found == Inspection::Absent, "{kind} is {found:?}: the others must still be undone");
    }

    world.s3().delete_bucket().bucket(tenant.bucket()).send().await?;
    let refused = world.provision(&json!({"tenant_id": tenant.id})).await?;
    ensure!(refused.error == "NeedsOperator" && refused.times("CreateDatabase") == 0, "{refused:?}");
    registry.batch_execute(&format!("DROP TABLE public.{hold}")).await?;
    let compensated = world.provision(&json!({"tenant_id": tenant.id, "intent": "compensate"})).await?;
    ensure!(compensated.error == "Compensated", "{compensated:?}");
    ensure!(failure(world, &tenant).await?.2.is_none(), "the flag is still there");
    traceless(world, &tenant).await?;
    world.provision(&json!({"tenant_id": tenant.id})).await?.succeeded()?;
    alive(world, &tenant).await
}

/// Kubernetes is down from CreateNamespace on, and still when ReleaseTenant looks.
async fn unseen(world: &World) -> Result<()> {
    let (request, tenant) = unpaid(world, "unseen").await?;
    let registry = world.registry().await?;
    let cluster = Target { system: System::Kubernetes, function: "", holds: "/namespaces" };
    let down = world.faults.inject(cluster, marks(tenant.id, tenant.slug.as_str()), Verdict::Refuse, 1_000_000);
    let outcome = world.provision(&paid(&request)).await?;
    ensure!(down.hits() > 0 && outcome.status == ExecutionStatus::Failed, "{outcome:?}");
    ensure!(outcome.states.ends_with(&["FlagTenant".into(), "OperatorNeeded".into()]), "{:?}", outcome.states);
    let sql = "SELECT failed_message FROM tenants WHERE id = $1";
    let message: String = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    for said in [&message, &outcome.cause] {
        ensure!(!said.contains("looking whether"), "it is not the first error: {said}");
    }
    let (step, error, flag) = failure(world, &tenant).await?;
    ensure!(
        step.as_deref() == Some("create-namespace") && error.as_ref() == Some(&outcome.error),
        "{step:?} {error:?}"
    );
    let flag = flag.context("nobody is told")?;
    ensure!(flag.contains("looking whether the namespace is gone") && flag.contains(&message), "{flag}");
    let sql = "SELECT detail FROM outbox WHERE tenant_id = $1 AND type = 'tenant.provisioning_failed'";
    let told: Value = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(told["clean"] == false && told["failed_step"] == "create-namespace", "{told}");
    ensure!(told["error"] == outcome.error.as_str(), "{told}");

    drop(down);
    let compensated = world.provision(&json!({"tenant_id": tenant.id, "intent": "compensate"})).await?;
    ensure!(compensated.error == "Compensated", "{compensated:?}");
    ensure!(failure(world, &tenant).await?.2.is_none(), "the flag is still there");
    traceless(world, &tenant).await
}

async fn stopped(world: &World) -> Result<()> {
    let (request, tenant) = unpaid(world, "stopped").await?;
    // CreateDatabase waits for the server's grants, which somebody else is changing.
    let busy = world.registry().await?;
    busy.execute("SELECT pg_advisory_lock(hashtextextended('tenantry grants', 0))", &[]).await?;
    let arn = world.start(&paid(&request)).await?;
    let begun = Instant::now();
    while !begins(world, &tenant).await? {
        ensure!(begun.elapsed() < PATIENCE, "CreateDatabase did not begin");
        sleep(Duration::from_millis(100)).await;
    }
    aws_sdk_sfn::Client::new(&world.env.aws).stop_execution().execution_arn(&arn).send().await?;
    busy.execute("SELECT pg_advisory_unlock_all()", &[]).await?;
    ensure!(world.finish(&arn).await?.status == ExecutionStatus::Aborted);
    let begun = Instant::now();
    loop {
        let record = world.record(tenant.slug.as_str()).await?;
        if record.tenant.status == Status::Pending && record.execution.is_none() {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "{} is still {}", tenant.slug, record.tenant.status);
        sleep(Duration::from_millis(500)).await;
    }
    ensure!(failure(world, &tenant).await?.2.is_none(), "cancelling is no reason to flag");
    traceless(world, &tenant).await
}

async fn by_hand(world: &World) -> Result<()> {
    let slug = world.fresh_slug("service");
    world.provision(&sign_up(&slug, "growth")).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let call = json!({"slug": slug, "execution": "manual:test"});
    for undo in [
        "revoke-invite",
        "remove-config",
        "cancel-billing",
        "remove-dns-record",
        "remove-namespace",
        "remove-queue",
        "remove-bucket",
        "remove-identity",
        "remove-database",
    ] {
        match world.invoke(undo, &call).await? {
            Err((name, text)) if name == "InvalidRequest" && text.contains("is active") => {}
            answer => anyhow::bail!("{undo} on a tenant in service: {answer:?}"),
        }
    }
    alive(world, &tenant).await
}

/// A tenant that is registered and waits for its payment, and the request that registered it.
pub async fn unpaid(world: &World, stem: &str) -> Result<(Value, Tenant)> {
    let slug = world.fresh_slug(stem);
    let mut request = sign_up(&slug, "growth");
    request["paid"] = json!(false);
    world.provision(&request).await?.succeeded()?;
    Ok((request, world.record(&slug).await?.tenant))
}

pub fn paid(request: &Value) -> Value {
    let mut request = request.clone();
    request["paid"] = json!(true);
    request
}

async fn alive(world: &World, tenant: &Tenant) -> Result<()> {
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Active && record.needs_operator.is_none(), "{}", record.tenant.status);
    all_are(world, &record.tenant, &Inspection::Present).await
}

/// No system has anything that carries the tenant's id or slug, by listings that do not go through our code. The registry,
/// which remembers, and rows of shared tables, which have no names, are left to `inspect`.
async fn traceless(world: &World, tenant: &Tenant) -> Result<()> {
    let marks = [tenant.id.to_string(), tenant.slug.to_string(), tenant.schema()];
    for (system, names) in world.snapshot().await? {
        let left: Vec<_> = names.iter().filter(|name| marks.iter().any(|mark| name.contains(mark.as_str()))).collect();
        ensure!(left.is_empty(), "{system}: {left:?}");
    }
    all_are(world, tenant, &Inspection::Absent).await
}

/// The registry's last failure: step, error, and why an operator is needed.
async fn failure(world: &World, tenant: &Tenant) -> Result<(Option<String>, Option<String>, Option<String>)> {
    let sql = "SELECT failed_step, failed_error, needs_operator FROM tenants
               WHERE id = $1 AND status = 'pending' AND execution IS NULL";
    let row = world.registry().await?.query_opt(sql, &[&tenant.id.0]).await?.context("it was not given back")?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

/// A function logged what the alarm's metric counts.
async fn alarming(world: &World, tenant: &Tenant) -> Result<()> {
    let begun = Instant::now();
    let id = tenant.id.to_string();
    loop {
        for line in crate::logs::ours(world).await? {
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            if line["needs_operator"] == true && line["tenant"] == id.as_str() {
                return Ok(());
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "no line says that {id} needs an operator");
        sleep(Duration::from_millis(200)).await;
    }
}

async fn begins(world: &World, tenant: &Tenant) -> Result<bool> {
    let sql = "SELECT 1 FROM step_journal WHERE tenant_id = $1 AND step = 'create-database' AND state = 'doing'";
    Ok(world.registry().await?.query_opt(sql, &[&tenant.id.0]).await?.is_some())
}
