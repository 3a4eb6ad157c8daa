//! Another plan for a tenant in service: what follows it, what stays, who waits, and what a crash leaves to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_s3::types::{BucketLifecycleConfiguration, LifecycleRule};
use aws_sdk_sfn::types::ExecutionStatus;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::Api;
use serde_json::{Value, json};
use tenant_gate::Verdict as Decision;
use tenantry_core::registry::plans::{self, Begun, Wish};
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::{Isolation, Plan, Status, Tenant, TenantId};
use tenantry_local::proxy::{System, Verdict};
use tokio::time::sleep;
use uuid::Uuid;

use crate::compensation::{paid, unpaid};
use crate::faults::{Injected, Target, marks};
use crate::gate::gate;
use crate::machine::{Outcome, sign_up};
use crate::provisioning::all_are;
use crate::suspension::in_service;
use crate::tenant_config::{update, value};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("an_upgrade_is_followed_by_everything_but_the_isolation", |world| Box::pin(upgrade(world))),
    ("a_downgrade_that_does_not_fit_is_told_and_takes_nothing_away", |world| Box::pin(downgrade(world))),
    ("of_two_at_once_one_acts_and_another_plan_waits", |world| Box::pin(at_once(world))),
    ("a_tenant_that_is_not_in_service_keeps_its_plan", |world| Box::pin(not_in_service(world))),
    ("one_that_is_stopped_is_finished", |world| Box::pin(stopped(world))),
    ("one_that_vanished_is_finished_by_a_plan_change_alone", |world| Box::pin(vanished(world))),
    ("one_that_fails_for_good_flags_the_tenant_and_can_be_finished", |world| Box::pin(flagged(world))),
    ("one_that_dies_again_and_again_is_flagged", |world| Box::pin(dies_again(world))),
    ("a_change_of_mind_before_the_end_is_one_change", |world| Box::pin(change_of_mind(world))),
    ("a_request_is_refused_by_field", |world| Box::pin(refused(world))),
];

/// Longer than a takeover waits for a dead holder's functions (60 s) and the change takes.
const PATIENCE: Duration = Duration::from_secs(180);
/// The states of a change that ends well.
const STATES: [&str; 9] = [
    "BeginPlanChange",
    "ApplyNamespaceLimits",
    "ApplyBucketLifecycle",
    "ApplyPlanConfig",
    "ApplyBillingPrice",
    "ReportPlanFit",
    "ClosePlanChange",
    "PublishEvents",
    "PlanChanged",
];
const MACHINE: &str = "ChangePlanMachine";
const GIB: i64 = 1 << 30;

/// A tenant in service with all that it owns, and the request that it came from.
async fn provisioned(world: &World, stem: &str, plan: &str) -> Result<(Tenant, Value)> {
    let slug = world.fresh_slug(stem);
    let request = sign_up(&slug, plan);
    world.provision(&request).await?.succeeded()?;
    Ok((world.record(&slug).await?.tenant, request))
}

async fn change(world: &World, tenant: &Tenant, plan: &str) -> Result<Outcome> {
    world.run_machine(MACHINE, &json!({"tenant_id": tenant.id, "plan": plan})).await
}

/// The tenant has the plan, all of it, and nobody holds it or wants anything of it.
async fn settled(world: &World, tenant: &Tenant, plan: Plan) -> Result<Tenant> {
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.plan == plan && record.tenant.isolation == tenant.isolation, "{:?}", record.tenant);
    ensure!(record.execution.is_none() && record.needs_operator.is_none(), "{record:?}");
    ensure!(plans::open(&world.registry().await?, tenant.id).await?.is_none(), "the change is not closed");
    all_are(world, &record.tenant, &Inspection::Present).await?;
    Ok(record.tenant)
}

/// What was told of a tenant's changes, as it waits or has gone out.
async fn told(world: &World, tenant: TenantId) -> Result<Vec<Value>> {
    let sql = "SELECT detail FROM outbox WHERE tenant_id = $1 AND type = 'tenant.plan_changed' ORDER BY version";
    Ok(world.registry().await?.query(sql, &[&tenant.0]).await?.iter().map(|row| row.get(0)).collect())
}

/// What the namespace may hold, of one kind.
async fn hard(world: &World, tenant: &Tenant, what: &str) -> Result<String> {
    let quotas: Api<ResourceQuota> = Api::namespaced(world.cluster().await?, &tenant.namespace());
    let quota = quotas.get("plan").await?;
    let hard = quota.spec.and_then(|spec| spec.hard).unwrap_or_default();
    Ok(hard.get(what).with_context(|| format!("no {what}"))?.0.clone())
}

async fn rules(world: &World, tenant: &Tenant) -> Result<Vec<LifecycleRule>> {
    let get = world.s3().get_bucket_lifecycle_configuration().bucket(tenant.bucket());
    Ok(get.send().await?.rules.unwrap_or_default())
}

async fn rule_ids(world: &World, tenant: &Tenant) -> Result<Vec<String>> {
    let mut ids: Vec<String> = rules(world, tenant).await?.iter().filter_map(|rule| rule.id.clone()).collect();
    ids.sort();
    Ok(ids)
}

/// The one item of the tenant's subscription. The local Stripe makes another one whenever it is changed.
async fn subscribed(world: &World, tenant: &Tenant) -> Result<Value> {
    let sql = "SELECT subscription FROM billing_accounts WHERE tenant_id = $1";
    let id: String = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    Ok(world.stripe(&format!("/v1/subscriptions/{id}")).await?["items"]["data"][0].clone())
}

async fn limit(world: &World, tenant: &Tenant) -> Result<i64> {
    match gate(world)?.decide(tenant.slug.as_str(), 1).await {
        Decision::Admitted(_, Some(budget)) => Ok(budget.limit),
        verdict => anyhow::bail!("{verdict:?}"),
    }
}

async fn upgrade(world: &World) -> Result<()> {
    let (tenant, request) = provisioned(world, "upgrade", "starter").await?;
    let id = tenant.id.to_string();
    let mut events = world.subscribe().await?;
    // What the tenant and an operator changed themselves.
    let (off, german) = (AttributeValue::Bool(false), AttributeValue::S("de-DE".into()));
    update(world, &tenant, "flags", "SET #values.api_access = :value", Some(off.clone())).await?;
    update(world, &tenant, "settings", "SET #values.locale = :value", Some(german.clone())).await?;
    let mut own = rules(world, &tenant).await?;
    let mut archive = own[0].clone();
    archive.id = Some("archive-logs".into());
    own.push(archive);
    let own = BucketLifecycleConfiguration::builder().set_rules(Some(own)).build()?;
    let put = world.s3().put_bucket_lifecycle_configuration().bucket(tenant.bucket());
    put.lifecycle_configuration(own).send().await?;
    ensure!(limit(world, &tenant).await? == 100_000);

    let wish = json!({"slug": tenant.slug, "plan": "growth", "actor": "ops:test", "reason": "upgrade"});
    let outcome = world.run_machine(MACHINE, &wish).await?.succeeded()?;
    ensure!(outcome.states == STATES, "{:?}", outcome.states);
    let changed = settled(world, &tenant, Plan::Growth).await?;
    ensure!(changed.isolation == Isolation::Shared);
    ensure!(limit(world, &tenant).await? == 1_000_000, "the gate has the old limit");
    ensure!(hard(world, &tenant, "pods").await? == "50");
    let ids = ["archive-logs", "incomplete-uploads", "infrequent-access", "replaced-versions"];
    ensure!(rule_ids(world, &tenant).await? == ids, "{:?}", rule_ids(world, &tenant).await?);
    ensure!(value(world, &tenant, "flags", "sso").await? == AttributeValue::Bool(true));
    ensure!(value(world, &tenant, "limits", "burst").await? == AttributeValue::N("200".into()));
    ensure!(value(world, &tenant, "flags", "api_access").await? == off, "the tenant's own choice was overwritten");
    ensure!(value(world, &tenant, "settings", "locale").await? == german, "the tenant's own choice was overwritten");
    let item = subscribed(world, &tenant).await?;
    ensure!(item["plan"]["id"] == "growth", "{item}");

    events.events_of("tenant.plan_changed", &id).await?;
    let heard = events.settled("tenant.plan_changed", &id).await?;
    ensure!(heard.len() == 1, "{heard:?}");
    let detail = &heard[0]["detail"];
    let schema: Value = serde_json::from_str(include_str!("../../events/schemas/tenant.plan_changed.json"))?;
    let violations: Vec<String> =
        jsonschema::validator_for(&schema)?.iter_errors(detail).map(|error| error.to_string()).collect();
    ensure!(violations.is_empty(), "{detail}: {violations:?}");
    ensure!(detail["from"] == "starter" && detail["to"] == "growth" && detail["fits"] == true, "{detail}");
    let sql = "SELECT actor, detail FROM audit WHERE tenant_id = $1 AND action = 'plan change'";
    let row = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?;
    let (actor, detail): (&str, Value) = (row.get(0), row.get(1));
    let expected = json!({"from": "starter", "to": "growth", "reason": "upgrade"});
    ensure!(actor == "ops:test" && detail == expected, "{actor}: {detail}");

    // Again: looked at, and nothing written.
    let marked = marks(tenant.id, tenant.slug.as_str());
    let before = world.faults.calls_with(&marked).len();
    change(world, &tenant, "growth").await?.succeeded()?;
    let calls = world.faults.calls_with(&marked);
    let again = calls.iter().skip(before).filter(|call| call.system == System::Aws);
    let again: Vec<_> = again.filter(|call| call.function.starts_with("apply-")).collect();
    ensure!(again.len() >= 3, "nothing was looked at: {again:?}");
    for call in again {
        ensure!(call.reads(), "{} did more than look: {}", call.function, call.what);
    }
    ensure!(subscribed(world, &tenant).await? == item, "the subscription was changed again");
    settled(world, &tenant, Plan::Growth).await?;
    ensure!(told(world, tenant.id).await?.len() == 1, "it was told twice");
    // The sign-up that comes late once more asks for the plan that it asked for.
    let repeated = world.provision(&request).await?.succeeded()?;
    ensure!(repeated.states.last().is_some_and(|state| state == "NothingToDo"), "{:?}", repeated.states);
    Ok(())
}

async fn downgrade(world: &World) -> Result<()> {
    let (tenant, _) = provisioned(world, "downgrade", "growth").await?;
    // As an item that was seeded before it was written down what was.
    update(
        world,
        &tenant,
        "flags",
        "REMOVE seeded SET #values.custom_domain = :value",
        Some(AttributeValue::Bool(true)),
    )
    .await?;
    let registry = world.registry().await?;
    let sql = format!(
        "INSERT INTO {schema}.users (email, name, role) SELECT n || '@acme.example', 'User ' || n, 'member'
             FROM generate_series(1, 7) n;
         INSERT INTO {schema}.projects (name) VALUES ('large');
         INSERT INTO {schema}.files (project_id, object_key, name, bytes) SELECT id, 'film', 'film', {}
             FROM {schema}.projects",
        20 * GIB,
        schema = tenant.schema(),
    );
    registry.batch_execute(&sql).await?;
    let users = format!("SELECT count(*) FROM {}.users", tenant.schema());
    let seats: i64 = registry.query_one(&users, &[]).await?.get(0);

    change(world, &tenant, "starter").await?.succeeded()?;
    let changed = settled(world, &tenant, Plan::Starter).await?;
    ensure!(changed.isolation == Isolation::Schema);
    ensure!(hard(world, &tenant, "pods").await? == "10");
    ensure!(rule_ids(world, &tenant).await? == ["incomplete-uploads", "replaced-versions"]);
    ensure!(value(world, &tenant, "flags", "sso").await? == AttributeValue::Bool(false));
    ensure!(value(world, &tenant, "flags", "custom_domain").await? == AttributeValue::Bool(true), "its own choice");
    ensure!(subscribed(world, &tenant).await?["plan"]["id"] == "starter");
    ensure!(limit(world, &tenant).await? == 100_000);

    let told = told(world, tenant.id).await?;
    let misfits = json!([
        {"what": "seats", "used": seats, "allowed": 5},
        {"what": "storage_bytes", "used": 20 * GIB, "allowed": 10 * GIB},
        {"what": "flag", "name": "audit_log"},
        {"what": "flag", "name": "sso"},
    ]);
    ensure!(told.len() == 1 && told[0]["fits"] == false && told[0]["does_not_fit"] == misfits, "{told:?}");
    let sql = "SELECT detail FROM audit WHERE tenant_id = $1 AND action = 'plan fit'";
    let audited: Value = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(audited["does_not_fit"] == misfits, "{audited}");
    let kept: i64 = registry.query_one(&users, &[]).await?.get(0);
    ensure!(kept == seats, "{} users were deleted", seats - kept);
    let files: i64 = registry.query_one(&format!("SELECT count(*) FROM {}.files", tenant.schema()), &[]).await?.get(0);
    ensure!(files == 1, "a file was deleted");

    // By hand it answers, and tells nobody.
    let by_hand = json!({"slug": tenant.slug, "execution": "manual:test"});
    let answer = world.invoke("report-plan-fit", &by_hand).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(answer["fits"] == false && answer["does_not_fit"][0] == misfits[0], "{answer}");
    // Of seats, those that are taken are enforced, and may be more than its own tables have users.
    let sql =
        "INSERT INTO seats (tenant_id, user_id, actor) SELECT $1, 'user ' || n, 'test' FROM generate_series(1, 50) n";
    registry.execute(sql, &[&tenant.id.0]).await?;
    let answer = world.invoke("report-plan-fit", &by_hand).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(answer["does_not_fit"][0]["used"].as_i64().is_some_and(|used| used >= 50), "{answer}");
    let sql = "SELECT count(*) FROM audit WHERE tenant_id = $1 AND action = 'plan fit'";
    ensure!(registry.query_one(sql, &[&tenant.id.0]).await?.get::<_, i64>(0) == 1);
    Ok(())
}

/// Makes the step that applies the namespace hang.
fn hang(world: &World, tenant: &Tenant) -> Injected {
    let target = Target { system: System::Kubernetes, function: "", holds: "POST /api/v1/namespaces?" };
    world.faults.inject(target, marks(tenant.id, tenant.slug.as_str()), Verdict::Hang, 1_000_000)
}

async fn at_once(world: &World) -> Result<()> {
    let (tenant, _) = provisioned(world, "atonce", "starter").await?;
    let hanging = hang(world, &tenant);
    let first = world.start_machine(MACHINE, &json!({"tenant_id": tenant.id, "plan": "growth"})).await?;
    hanging.until_hit(Instant::now() + PATIENCE).await?;
    ensure!(limit(world, &tenant).await? == 1_000_000, "the higher limit does not hold at once");
    let same = change(world, &tenant, "growth").await?.succeeded()?;
    ensure!(same.states == ["BeginPlanChange", "Superseded"], "{:?}", same.states);
    let provisioning = world.provision(&json!({"tenant_id": tenant.id})).await?.succeeded()?;
    ensure!(provisioning.states.last().is_some_and(|state| state == "Superseded"), "{:?}", provisioning.states);
    let by_hand = world.invoke("seed-config", &json!({"slug": tenant.slug, "execution": "manual:test"})).await?;
    ensure!(by_hand.is_err_and(|(name, _)| name == "Superseded"), "a person acted beside the change");
    // Another plan waits for its turn, and says so when it does not come.
    let other = change(world, &tenant, "enterprise").await?;
    ensure!(other.error == "Transient" && other.cause.contains("is changed when that one is done"), "{other:?}");
    ensure!(other.failed_attempts().len() > 3, "it did not wait: {:?}", other.failed_attempts());
    ensure!(world.record(tenant.slug.as_str()).await?.tenant.plan == Plan::Growth);
    drop(hanging);
    world.finish(&first).await?.succeeded()?;
    settled(world, &tenant, Plan::Growth).await?;
    change(world, &tenant, "enterprise").await?.succeeded()?;
    settled(world, &tenant, Plan::Enterprise).await?;
    let told = told(world, tenant.id).await?;
    let steps: Vec<_> = told.iter().map(|detail| (detail["from"].as_str(), detail["to"].as_str())).collect();
    ensure!(steps == [(Some("starter"), Some("growth")), (Some("growth"), Some("enterprise"))], "{steps:?}");
    let sql = "SELECT deletion_protection FROM tenants WHERE id = $1";
    let protected = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get::<_, bool>(0);
    ensure!(protected, "an enterprise tenant can be deleted by mistake");
    Ok(())
}

async fn not_in_service(world: &World) -> Result<()> {
    let (request, tenant) = unpaid(world, "early").await?;
    let outcome = change(world, &tenant, "enterprise").await?;
    ensure!(outcome.error == "Conflict" && outcome.cause.contains("not in service"), "{outcome:?}");
    let hanging = hang(world, &tenant);
    let first = world.start(&paid(&request)).await?;
    hanging.until_hit(Instant::now() + PATIENCE).await?;
    let outcome = change(world, &tenant, "enterprise").await?;
    ensure!(outcome.error == "Transient" && outcome.states == ["BeginPlanChange", "ChangeRefused"], "{outcome:?}");
    drop(hanging);
    world.finish(&first).await?.succeeded()?;
    settled(world, &tenant, Plan::Growth).await?;
    // One that is suspended has its plan changed as any other.
    let call = json!({"request": {"tenant_id": tenant.id, "reason": "admin"}, "execution": "manual:test"});
    world.invoke("suspend-tenant", &call).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    change(world, &tenant, "enterprise").await?.succeeded()?;
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.plan == Plan::Enterprise && record.tenant.status == Status::Suspended, "{record:?}");
    ensure!(record.tenant.isolation == Isolation::Schema, "{}", record.tenant.isolation);
    Ok(())
}

async fn until_given_back(world: &World, tenant: &Tenant) -> Result<()> {
    let begun = Instant::now();
    while world.record(tenant.slug.as_str()).await?.execution.is_some() {
        ensure!(begun.elapsed() < PATIENCE, "nothing gave {} back", tenant.slug);
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn takeovers(world: &World, tenant: &Tenant) -> Result<i64> {
    let sql = "SELECT count(*) FROM audit WHERE tenant_id = $1 AND action = 'takeover'";
    Ok(world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0))
}

async fn stopped(world: &World) -> Result<()> {
    let (tenant, _) = provisioned(world, "halted", "starter").await?;
    let hanging = hang(world, &tenant);
    let arn = world.start_machine(MACHINE, &json!({"tenant_id": tenant.id, "plan": "growth"})).await?;
    hanging.until_hit(Instant::now() + PATIENCE).await?;
    aws_sdk_sfn::Client::new(&world.env.aws).stop_execution().execution_arn(&arn).send().await?;
    drop(hanging);
    ensure!(world.finish(&arn).await?.status == ExecutionStatus::Aborted);
    until_given_back(world, &tenant).await?;
    settled(world, &tenant, Plan::Growth).await?;
    ensure!(told(world, tenant.id).await?.len() == 1 && takeovers(world, &tenant).await? == 1);
    Ok(())
}

/// Begins a change as an execution that nobody knows, and that died right after.
async fn begun_by_nobody(world: &World, tenant: &Tenant, plan: Plan) -> Result<String> {
    let gone = format!("arn:aws:states:us-east-1:000000000000:execution:change-plan:gone-{}", Uuid::new_v4());
    let wish = Wish { plan: Some(plan), actor: "test".into(), reason: None };
    let mut registry = world.registry().await?;
    let begun = plans::begin(&mut registry, tenant.id, &gone, &wish).await?;
    ensure!(matches!(begun, Begun::Changing(_)), "{begun:?}");
    Ok(gone)
}

async fn vanished(world: &World) -> Result<()> {
    let (tenant, _) = provisioned(world, "vanished", "growth").await?;
    let gone = begun_by_nobody(world, &tenant, Plan::Starter).await?;
    // Provisioning has no business with it: a payment that comes twice ends quietly, and takes nothing over.
    let provisioning = world.provision(&json!({"tenant_id": tenant.id})).await?.succeeded()?;
    ensure!(provisioning.states.last().is_some_and(|state| state == "Superseded"), "{:?}", provisioning.states);
    ensure!(world.record(tenant.slug.as_str()).await?.execution == Some(gone));
    let long_ago = "UPDATE tenants SET execution_since = now() - interval '10 minutes' WHERE id = $1";
    world.registry().await?.execute(long_ago, &[&tenant.id.0]).await?;
    world.invoke("sweep-tenants", &json!({})).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    until_given_back(world, &tenant).await?;
    settled(world, &tenant, Plan::Starter).await?;
    let told = told(world, tenant.id).await?;
    ensure!(told.len() == 1 && told[0]["from"] == "growth" && takeovers(world, &tenant).await? == 1, "{told:?}");
    Ok(())
}

async fn flagged(world: &World) -> Result<()> {
    let (tenant, _) = provisioned(world, "flagged", "starter").await?;
    world.s3().delete_bucket().bucket(tenant.bucket()).send().await?;
    let outcome = change(world, &tenant, "growth").await?;
    ensure!(outcome.error == "Unexpected" && outcome.cause.contains("create-bucket by hand"), "{outcome:?}");
    ensure!(outcome.states.ends_with(&["FlagTenant".into(), "OperatorNeeded".into()]), "{:?}", outcome.states);
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Active && record.tenant.plan == Plan::Growth, "{record:?}");
    ensure!(record.execution.is_none() && record.needs_operator.is_some_and(|why| why.contains(&tenant.bucket())));
    let sql = "SELECT failed_step FROM tenants WHERE id = $1";
    let step: String = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(step == "apply-bucket-lifecycle", "{step}");
    ensure!(told(world, tenant.id).await?.is_empty(), "told, and not finished");
    let asked = world.invoke("explain-tenant", &json!({"slug": tenant.slug})).await?;
    let next = asked.map_err(|error| anyhow::anyhow!("{error:?}"))?["next"].clone();
    ensure!(next.as_str().is_some_and(|next| next.contains("start change-plan")), "{next}");

    let by_hand = json!({"slug": tenant.slug, "execution": "manual:test"});
    world.invoke("create-bucket", &by_hand).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    world.run_machine(MACHINE, &json!({"tenant_id": tenant.id})).await?.succeeded()?;
    settled(world, &tenant, Plan::Growth).await?;
    let told = told(world, tenant.id).await?;
    ensure!(told.len() == 1 && told[0]["from"] == "starter" && told[0]["to"] == "growth", "{told:?}");
    Ok(())
}

async fn dies_again(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let gone = begun_by_nobody(world, &tenant, Plan::Growth).await?;
    world.registry().await?.execute("UPDATE tenants SET takeovers = 3 WHERE id = $1", &[&tenant.id.0]).await?;
    let ended = json!({"detail": {"executionArn": gone, "status": "ABORTED"}});
    let answer = world.invoke("recover-execution", &ended).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(answer["action"] == "flag", "{answer}");
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Active && record.execution.is_none(), "{record:?}");
    ensure!(record.needs_operator.is_some() && record.tenant.plan == Plan::Growth, "{record:?}");
    Ok(())
}

async fn change_of_mind(world: &World) -> Result<()> {
    let (tenant, _) = provisioned(world, "mind", "starter").await?;
    let gone = begun_by_nobody(world, &tenant, Plan::Growth).await?;
    let (mut registry, mind) = (world.registry().await?, |plan| Wish { plan, actor: "test".into(), reason: None });
    let known = plans::open(&registry, tenant.id).await?.context("no change")?;
    // The same once more, and whatever is under way: the same change.
    for wish in [mind(Some(Plan::Growth)), mind(None)] {
        ensure!(plans::begin(&mut registry, tenant.id, &gone, &wish).await? == Begun::Changing(known));
    }
    change(world, &tenant, "enterprise").await?.succeeded()?;
    settled(world, &tenant, Plan::Enterprise).await?;
    let told = told(world, tenant.id).await?;
    ensure!(told.len() == 1 && told[0]["from"] == "starter" && told[0]["to"] == "enterprise", "{told:?}");
    // Back before anybody was told: nothing to tell.
    begun_by_nobody(world, &tenant, Plan::Growth).await?;
    change(world, &tenant, "enterprise").await?.succeeded()?;
    settled(world, &tenant, Plan::Enterprise).await?;
    ensure!(crate::plan_change::told(world, tenant.id).await?.len() == 1, "a change that never was is told");
    Ok(())
}

async fn refused(world: &World) -> Result<()> {
    let wish = json!({"slug": "Acme", "plan": "platinum", "actor": "ada@acme.example", "note": "x"});
    let outcome = world.run_machine(MACHINE, &wish).await?;
    ensure!(outcome.error == "InvalidRequest" && outcome.states == ["BeginPlanChange", "ChangeRefused"], "{outcome:?}");
    for rule in
        ["request.slug may hold only", "request.plan must be one of", "request.actor must be", "request.note is not a"]
    {
        ensure!(outcome.cause.contains(rule), "{rule} is not among {}", outcome.cause);
    }
    ensure!(!outcome.cause.contains("acme.example"), "an address is repeated: {}", outcome.cause);
    let nobody = world.run_machine(MACHINE, &json!({"tenant_id": Uuid::new_v4(), "plan": "growth"})).await?;
    ensure!(nobody.error == "TenantNotFound", "{nobody:?}");
    // By hand nobody holds a tenant.
    let tenant = in_service(world).await?;
    let by_hand = json!({"request": {"tenant_id": tenant.id, "plan": "growth"}, "execution": "manual:test"});
    let error = world.invoke("begin-plan-change", &by_hand).await?.err().context("accepted")?;
    ensure!(error.0 == "InvalidRequest" && error.1.contains("change-plan machine"), "{error:?}");
    Ok(())
}
