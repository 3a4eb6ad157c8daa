//! Leaving up to the deletion's start, and coming back: who may leave, what is withdrawn and given back in every system, what the
//! hold decides however many race for it, and what the sweep takes up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use tenant_gate::Verdict;
use tenantry_core::error::StepError;
use tenantry_core::registry::fence;
use tenantry_core::registry::holds::{self, State};
use tenantry_core::registry::offboarding;
use tenantry_core::request::Leaving;
use tenantry_core::resource::{Freezable, Inspection, Resource, database::TenantDatabase};
use tenantry_core::step::Step;
use tenantry_core::steps::coming_back::CancelHold;
use tenantry_core::steps::deletion::begin::BeginDeletion;
use tenantry_core::steps::hold_sweep::SweepHolds;
use tenantry_core::tenant::{Plan, Status, Tenant, TenantId};
use tenantry_local::proxy::{self, System};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::billing::{active_subscriptions, mine};
use crate::calls::calls;
use crate::contract::permissions::allowed;
use crate::contract::{Contract, repository};
use crate::database::{in_context, log_in};
use crate::deletion::until_gone;
use crate::faults::{Injected, Target, marks};
use crate::gate::gate;
use crate::machine::sign_up;
use crate::namespace::{create, forbidden, inside, pod, restricted};
use crate::provisioning::{all_are, inspect_all};
use crate::registry::registered;
use crate::suspension::in_service;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("a_shared_tenant_is_frozen_everywhere_and_comes_back", |world| Box::pin(there_and_back(world, "starter"))),
    ("a_tenant_with_a_schema_is_frozen_everywhere_and_comes_back", |world| Box::pin(there_and_back(world, "growth"))),
    ("a_tenant_with_a_server_is_frozen_everywhere_and_comes_back", |world| {
        Box::pin(there_and_back(world, "enterprise"))
    }),
    ("what_began_before_the_freeze_is_waited_for", |world| Box::pin(older(world))),
    ("who_may_not_leave_is_told_why_and_what_to_do", |world| Box::pin(refused(world))),
    ("an_erasure_and_a_waived_export_start_the_deletion_at_once", |world| Box::pin(at_once(world))),
    ("an_erasure_does_not_wait_for_an_export_that_runs", |world| Box::pin(in_mid_export(world))),
    ("a_hold_is_waited_for_put_off_and_cancelled", |world| Box::pin(waited_for(world))),
    ("a_hold_that_ends_starts_the_deletion", |world| Box::pin(ends(world))),
    ("another_reason_keeps_a_tenant_suspended_that_came_back", |world| Box::pin(still_suspended(world))),
    ("a_thaw_that_fails_for_good_flags_the_tenant_and_goes_on_later", |world| Box::pin(flagged(world))),
    ("one_wins_however_many_race_for_a_hold", |world| Box::pin(races(world))),
    ("what_is_left_of_the_period_is_given_back_once", |world| Box::pin(given_back(world))),
];

/// What looks at everybody's holds.
pub const ALONE: &[(&str, Case)] = &[
    ("owners_are_reminded_once_a_week_and_once_a_day_before", |world| Box::pin(reminders(world))),
    ("the_sweep_takes_up_what_nobody_does_and_nothing_else", |world| Box::pin(swept(world))),
];

/// Longer than anything here takes: reaching it means that it does not happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts of who races for a hold.
const RACERS_PAUSE: Duration = Duration::from_millis(5);

/// An execution of a machine that Step Functions does not know: one that ended long ago.
fn dead(machine: &str) -> String {
    format!("arn:aws:states:us-east-1:000000000000:execution:{machine}:gone-{}", Uuid::new_v4())
}

pub async fn call(world: &World, step: &str, input: Value) -> Result<Value> {
    let answer = world.invoke(step, &input).await?;
    answer.map_err(|(name, text)| anyhow::anyhow!("{step}: {name}: {text}"))
}

async fn refusal(world: &World, step: &str, input: Value) -> Result<(String, String)> {
    world.invoke(step, &input).await?.err().with_context(|| format!("{step} accepted {input}"))
}

fn leaving(tenant: &Tenant, execution: &str) -> Value {
    json!({
        "request": {"tenant_id": tenant.id, "reason": "customer_request", "actor": "ops:test"}, "execution": execution,
    })
}

async fn provisioned(world: &World, plan: &str) -> Result<Tenant> {
    let slug = world.fresh_slug("leaving");
    world.provision(&sign_up(&slug, plan)).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let lift = json!({"slug": slug, "protected": false, "execution": "manual:test"});
    call(world, "set-deletion-protection", lift).await?;
    Ok(tenant)
}

/// Withdraws a tenant as offboard-tenant does, up to where its export would begin, by an execution that has died since.
pub async fn withdrawn(world: &World, tenant: &Tenant) -> Result<String> {
    let execution = dead("offboard-tenant");
    let begun = call(world, "begin-offboarding", leaving(tenant, &execution)).await?;
    ensure!(begun["decision"] == "export", "{begun}");
    for step in ["freeze-tenant", "cancel-subscription"] {
        call(world, step, json!({"tenant_id": tenant.id, "execution": execution})).await?;
    }
    Ok(execution)
}

/// Starts offboard-tenant for a tenant whose link is published for so many seconds, and waits until it waits for the hold.
pub async fn held(world: &World, tenant: &Tenant, seconds: f64) -> Result<String> {
    let execution = withdrawn(world, tenant).await?;
    holds::publish(&world.registry().await?, tenant.id, &execution, seconds).await?;
    let waiting = world.start_machine("OffboardTenantMachine", &json!({"tenant_id": tenant.id})).await?;
    let begun = Instant::now();
    loop {
        let hold = holds::latest(&world.registry().await?, tenant.id).await?.context("no hold")?;
        let free = world.record(tenant.slug.as_str()).await?.execution.is_none();
        if hold.execution.as_ref() == Some(&waiting) && hold.notified && free {
            return Ok(waiting);
        }
        ensure!(begun.elapsed() < PATIENCE, "the hold is not waited for: {hold:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A request for erasure, as its machine is started with it.
pub fn erasing(tenant: &Tenant, ticket: &str) -> Value {
    json!({
        "tenant_id": tenant.id, "reason": "data_protection_law", "actor": "ops:test",
        "erasure": {"confirm_slug": tenant.slug, "ticket": ticket},
    })
}

pub fn returning(tenant: &Tenant) -> Value {
    json!({"tenant_id": tenant.id, "reason": "offboarding", "actor": "ops:test"})
}

async fn session(world: &World, tenant: &Tenant) -> Result<Client> {
    if tenant.plan == Plan::Starter { in_context(world, tenant).await } else { log_in(world, tenant).await }
}

async fn write(client: &Client) -> Result<u64, tokio_postgres::Error> {
    client
        .execute(
            "INSERT INTO roles SELECT (jsonb_populate_record(NULL::roles, to_jsonb(r) || $1)).* FROM roles r LIMIT 1",
            &[&json!({"name": format!("role-{}", Uuid::new_v4().simple())})],
        )
        .await
}

async fn bucket_policy(world: &World, tenant: &Tenant) -> Result<String> {
    let policy = world.s3().get_bucket_policy().bucket(tenant.bucket()).send().await?;
    Ok(policy.policy().unwrap_or_default().to_owned())
}

async fn queue_policy(world: &World, tenant: &Tenant) -> Result<String> {
    let sqs = aws_sdk_sqs::Client::new(&world.env.aws);
    let url = sqs.get_queue_url().queue_name(tenant.queue()).send().await?;
    let name = aws_sdk_sqs::types::QueueAttributeName::Policy;
    let asked = sqs.get_queue_attributes().set_queue_url(url.queue_url).attribute_names(name.clone()).send().await?;
    Ok(asked.attributes().and_then(|all| all.get(&name)).cloned().unwrap_or_default())
}

async fn there_and_back(world: &World, plan: &str) -> Result<()> {
    let mut events = world.subscribe().await?;
    let tenant = provisioned(world, plan).await?;
    let open = session(world, &tenant).await?;
    ensure!(write(&open).await? == 1);
    let cluster = world.cluster().await?;
    let pods: Api<Pod> = inside(&cluster, &tenant);
    create(&pods, &pod("before", &restricted(), "10m")).await?;

    let execution = withdrawn(world, &tenant).await?;
    let frozen = world.record(tenant.slug.as_str()).await?;
    ensure!(frozen.tenant.frozen && frozen.tenant.status == Status::Suspended, "{frozen:?}");
    ensure!(matches!(gate(world)?.decide(tenant.slug.as_str(), 1).await, Verdict::Refused(_)), "served");
    // In a session that was open, and in another.
    ensure!(write(&open).await.is_err(), "written in a session that was open");
    if let Ok(fresh) = session(world, &tenant).await {
        ensure!(tenant.plan == Plan::Starter, "its own role logs in");
        ensure!(write(&fresh).await.is_err(), "written in a new session");
    }
    // The emulator takes any policy and enforces none: what is asserted is what S3 and SQS are told.
    let policy: Value = serde_json::from_str(&bucket_policy(world, &tenant).await?)?;
    let denies = |action: &str| {
        let statements = policy["Statement"].as_array().into_iter().flatten();
        statements
            .filter(|one| one["Effect"] == "Deny" && one["Principal"] == "*" && one["Condition"].is_null())
            .any(|one| one["Action"].as_array().into_iter().flatten().any(|denied| denied == action))
    };
    ensure!(denies("s3:PutObject"), "a presigned upload would be taken: {policy}");
    ensure!(queue_policy(world, &tenant).await?.contains("sqs:SendMessage"), "the queue takes messages");
    ensure!(pods.list(&ListParams::default()).await?.items.is_empty(), "a pod runs");
    forbidden(&pods, &pod("during", &restricted(), "10m"), "exceeded quota: frozen").await?;
    let again = json!({"tenant_id": tenant.id, "execution": execution});
    call(world, "freeze-tenant", again).await?;
    let found = inspect_all(world, &frozen.tenant).await?;
    ensure!(found.iter().all(|(_, found)| *found == Inspection::Present), "frozen as it should be, and {found:?}");
    // Nobody lifts the reason alone.
    let (name, text) =
        refusal(world, "reactivate-tenant", json!({"request": returning(&tenant), "execution": "manual:test"})).await?;
    ensure!(name == "Conflict" && text.contains("reactivate-tenant machine"), "{name}: {text}");

    let back = world.run_machine("ReactivateTenantMachine", &returning(&tenant)).await?.succeeded()?;
    ensure!(back.states.last().is_some_and(|last| last == "Reactivated"), "{:?}", back.states);
    ensure!(back.times("VerifyTenant") == 1 && back.times("LiftOffboarding") == 1, "{:?}", back.states);
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(
        record.tenant.status == Status::Active && !record.tenant.frozen && record.execution.is_none(),
        "{record:?}"
    );
    all_are(world, &record.tenant, &Inspection::Present).await?;
    ensure!(write(&session(world, &tenant).await?).await? == 1);
    ensure!(!bucket_policy(world, &tenant).await?.contains("Frozen"));
    ensure!(!queue_policy(world, &tenant).await?.contains("Frozen"));
    create(&pods, &pod("after", &restricted(), "10m")).await?;
    let verdict = gate(world)?.decide(tenant.slug.as_str(), 1).await;
    ensure!(matches!(verdict, Verdict::Admitted(..)), "{verdict:?}");
    let live = active_subscriptions(world, &tenant).await?;
    ensure!(live == 1, "{live} subscriptions are active");
    let id = tenant.id.to_string();
    for name in ["tenant.offboarding_started", "tenant.reactivated"] {
        events.events_of(name, &id).await?;
        ensure!(events.settled(name, &id).await?.len() == 1, "{name} came more than once");
    }
    // Once more there is nothing to give back.
    let nothing = world.run_machine("ReactivateTenantMachine", &returning(&tenant)).await?.succeeded()?;
    ensure!(nothing.times("CancelHold") == 1 && nothing.times("ThawTenant") == 0, "{:?}", nothing.states);
    Ok(())
}

/// A transaction with an old snapshot sees the rows as writable for as long as it lasts.
async fn older(world: &World) -> Result<()> {
    let tenant = registered(world, &mut world.registry().await?, Plan::Starter, true).await?.tenant;
    let database = TenantDatabase::from_env(&world.env)?;
    database.ensure(&tenant).await?;
    let app = in_context(world, &tenant).await?;
    app.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM roles").await?;
    let frozen = Tenant { frozen: true, ..tenant.clone() };
    let freezing = database.settle(&frozen);
    tokio::pin!(freezing);
    ensure!(timeout(Duration::from_secs(2), &mut freezing).await.is_err(), "the older transaction was not waited for");
    // It may write still, which is why.
    ensure!(write(&app).await? == 1);
    app.batch_execute("COMMIT").await?;
    timeout(PATIENCE, freezing).await.context("the freeze never came to its end")??;
    ensure!(write(&app).await.is_err(), "written after the freeze");
    ensure!(database.inspect(&frozen).await? == Inspection::Present);
    database.settle(&tenant).await?;
    ensure!(write(&app).await? == 1);
    Ok(database.remove(&tenant).await?)
}

async fn refused(world: &World) -> Result<()> {
    let execution = dead("offboard-tenant");
    let mut registry = world.registry().await?;
    let set = json!({
        "request": {
            "slug": "Acme", "reason": "bored", "actor": "ada@acme.example", "note": "x",
            "erasure": {"confirm_slug": "acme", "ticket": "no such thing"}, "waive_export": {"by": "ada"},
        },
        "execution": execution,
    });
    let (name, text) = refusal(world, "begin-offboarding", set).await?;
    ensure!(name == "InvalidRequest" && !text.contains("acme.example"), "{name}: {text}");
    for rule in [
        "request.slug may hold only",
        "request.reason must be one of",
        "request.actor must be",
        "request.note is not a",
        "request.erasure.ticket must be",
    ] {
        ensure!(text.contains(rule), "{rule} is not in {text}");
    }

    let never = registered(world, &mut registry, Plan::Starter, false).await?.tenant;
    let (name, text) = refusal(world, "begin-offboarding", leaving(&never, &execution)).await?;
    ensure!(name == "Conflict" && text.contains("never in service") && text.contains("compensate"), "{name}: {text}");

    let busy = registered(world, &mut registry, Plan::Starter, true).await?.tenant;
    let sql = "UPDATE tenants SET status = 'provisioning', execution = $2, execution_since = now() WHERE id = $1";
    registry.execute(sql, &[&busy.id.0, &dead("provision-tenant")]).await?;
    let (name, text) = refusal(world, "begin-offboarding", leaving(&busy, &execution)).await?;
    ensure!(name == "NotReady" && text.contains("being provisioned"), "{name}: {text}");
    let paid = registered(world, &mut registry, Plan::Starter, true).await?.tenant;
    let sql = "UPDATE tenants SET retry_at = now() + interval '1 hour' WHERE id = $1";
    registry.execute(sql, &[&paid.id.0]).await?;
    let (name, text) = refusal(world, "begin-offboarding", leaving(&paid, &execution)).await?;
    ensure!(name == "NotReady" && text.contains("tried again"), "{name}: {text}");
    registry.execute("UPDATE tenants SET retry_at = NULL WHERE id = $1", &[&paid.id.0]).await?;

    let tenant = in_service(world).await?;
    let protect = |protected: bool| json!({"slug": tenant.slug, "protected": protected, "execution": "manual:ada"});
    ensure!(call(world, "set-deletion-protection", protect(true)).await?["changed"] == true);
    let (name, text) = refusal(world, "begin-offboarding", leaving(&tenant, &execution)).await?;
    ensure!(name == "Conflict" && text.contains("set-deletion-protection"), "{name}: {text}");
    ensure!(world.record(tenant.slug.as_str()).await?.tenant.status == Status::Active, "suspended all the same");
    call(world, "set-deletion-protection", protect(false)).await?;
    let sql =
        "SELECT count(*) FROM audit WHERE tenant_id = $1 AND action = 'deletion protection' AND actor = 'manual:ada'";
    ensure!(registry.query_one(sql, &[&tenant.id.0]).await?.get::<_, i64>(0) == 2, "not audited");

    let (name, text) = refusal(world, "begin-offboarding", leaving(&tenant, "manual:ada")).await?;
    ensure!(name == "InvalidRequest" && text.contains("offboard-tenant machine"), "{name}: {text}");
    let mut erasure = leaving(&tenant, &execution);
    erasure["request"]["erasure"] = json!({"confirm_slug": "another", "ticket": "T-1"});
    let (name, text) = refusal(world, "begin-offboarding", erasure).await?;
    ensure!(name == "InvalidRequest" && text.contains("request.erasure.confirm_slug"), "{name}: {text}");
    let (name, text) =
        refusal(world, "begin-offboarding", json!({"request": {"tenant_id": tenant.id}, "execution": execution}))
            .await?;
    ensure!(name == "InvalidRequest" && text.contains("request.reason is required"), "{name}: {text}");
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(
        record.execution.is_none() && record.tenant.status == Status::Active,
        "a refusal left something: {record:?}"
    );

    // Protected by its plan from the first day.
    let large = registered(world, &mut registry, Plan::Enterprise, true).await?.tenant;
    let sql = "SELECT deletion_protection FROM tenants WHERE id = $1";
    ensure!(registry.query_one(sql, &[&large.id.0]).await?.get::<_, bool>(0));
    registry
        .execute(
            "UPDATE tenants SET status = 'pending', execution = NULL, execution_since = NULL WHERE id = $1",
            &[&busy.id.0],
        )
        .await?;
    Ok(())
}

async fn at_once(world: &World) -> Result<()> {
    for (extra, value, kind) in [
        ("erasure", json!({"confirm_slug": "", "ticket": "DSR-17"}), "erasure"),
        ("waive_export", json!({"by": "ops:ada"}), "offboarding"),
    ] {
        let mut events = world.subscribe().await?;
        let tenant = in_service(world).await?;
        let mut request =
            json!({"slug": tenant.slug, "reason": "data_protection_law", "actor": "ops:test", extra: value});
        if extra == "erasure" {
            request[extra]["confirm_slug"] = json!(tenant.slug);
        }
        let outcome = world.run_machine("OffboardTenantMachine", &request).await?.succeeded()?;
        let states = ["BeginOffboarding", "DecideOnOffboarding", "DeleteTenant", "DeletionStarted"];
        ensure!(outcome.states == states, "{extra}: {:?}", outcome.states);
        let registry = world.registry().await?;
        let hold = holds::latest(&registry, tenant.id).await?.context("no hold")?;
        ensure!(hold.kind.as_str() == kind && hold.is_at_once() && hold.requested_by == "ops:test", "{hold:?}");
        ensure!(hold.state != State::Cancelled && hold.state != State::Held, "{hold:?}");
        let sql =
            "SELECT detail FROM audit WHERE tenant_id = $1 AND action = 'offboarding started' AND actor = 'ops:test'";
        let detail: Value = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
        let recorded = if extra == "erasure" { &detail["ticket"] } else { &detail["export_waived_by"] };
        ensure!(recorded.is_string() && detail["reason"] == "data_protection_law", "{detail}");
        let refused = matches!(gate(world)?.decide(tenant.slug.as_str(), 1).await, Verdict::Refused(_));
        ensure!(refused, "{extra}: it is served");
        // The outbox is swept on a schedule; here it is told to.
        call(world, "publish-events", json!({"tenant_id": tenant.id, "execution": "manual:test"})).await?;
        let told = events.events_of("tenant.offboarding_started", &tenant.id.to_string()).await?;
        ensure!(told[0]["detail"]["kind"] == kind && told[0]["detail"]["exported"] == false, "{told:?}");
        flag(world, &[tenant.id]).await?;
    }
    // While a hold runs its owner may ask for erasure: there is one hold, and it is the newer one.
    let tenant = in_service(world).await?;
    let execution = dead("offboard-tenant");
    call(world, "begin-offboarding", leaving(&tenant, &execution)).await?;
    let mut erasure = leaving(&tenant, &execution);
    erasure["request"]["erasure"] = json!({"confirm_slug": tenant.slug, "ticket": "DSR-18"});
    ensure!(call(world, "begin-offboarding", erasure).await?["decision"] == "erase");
    let sql = "SELECT kind || ' ' || state FROM holds WHERE tenant_id = $1 ORDER BY id";
    let rows = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    let kept: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(kept == ["offboarding cancelled", "erasure exporting"], "{kept:?}");
    flag(world, &[tenant.id]).await
}

/// The export's own execution is alive, and finds that the tenant is no longer its own.
async fn in_mid_export(world: &World) -> Result<()> {
    let slug = world.fresh_slug("mid-export");
    world.provision(&sign_up(&slug, "starter")).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let target = Target { system: System::Aws, function: "export-part", holds: "/exports/" };
    let hanging = world.faults.inject(target, marks(tenant.id, tenant.slug.as_str()), proxy::Verdict::Hang, 1_000_000);
    let request = json!({"tenant_id": tenant.id, "reason": "contract_ended", "actor": "ops:test"});
    let exporting = world.start_machine("OffboardTenantMachine", &request).await?;
    let begun = Instant::now();
    hanging.until_hit(begun + 2 * PATIENCE).await?;
    ensure!(status_of(world, &exporting).await? == ExecutionStatus::Running, "nobody exports any more");
    let erased = world.run_machine("OffboardTenantMachine", &erasing(&tenant, "DSR-21")).await?.succeeded()?;
    ensure!(erased.times("DeleteTenant") == 1, "{:?}", erased.states);
    let sql = "SELECT kind || ' ' || state FROM holds WHERE tenant_id = $1 ORDER BY id";
    let registry = world.registry().await?;
    let kept = registry.query(sql, &[&tenant.id.0]).await?;
    ensure!(kept.len() == 2 && kept[0].get::<_, &str>(0) == "offboarding cancelled", "{kept:?}");
    // What is being written is waited for, ten minutes long: they pass.
    let drained = "SELECT count(*) FROM step_journal WHERE tenant_id = $1 AND step = 'drain-bucket'";
    while registry.query_one(drained, &[&tenant.id.0]).await?.get::<_, i64>(0) == 0 {
        ensure!(begun.elapsed() < 4 * PATIENCE, "the bucket is not drained");
        sleep(Duration::from_millis(200)).await;
    }
    ensure!(world.record(tenant.slug.as_str()).await?.tenant.status == Status::Suspended, "it did not wait");
    let pass =
        "UPDATE holds SET ended_at = ended_at - interval '10 minutes' WHERE tenant_id = $1 AND state = 'cancelled'";
    registry.execute(pass, &[&tenant.id.0]).await?;
    until_gone(world, &tenant, begun + 4 * PATIENCE).await?;
    drop(hanging);
    let ended = world.finish(&exporting).await?;
    ensure!(ended.times("Superseded") == 1 && ended.times("FlagTenant") == 0, "{:?}", ended.states);
    Ok(())
}

/// Leaves tenants to nobody, so that no sweep of another case takes them up.
async fn flag(world: &World, tenants: &[TenantId]) -> Result<()> {
    let ids: Vec<Uuid> = tenants.iter().map(|id| id.0).collect();
    let sql = "UPDATE tenants SET needs_operator = 'left over by a test', execution = NULL, execution_since = NULL
               WHERE id = ANY($1)";
    world.registry().await?.execute(sql, &[&ids]).await?;
    Ok(())
}

pub async fn status_of(world: &World, execution: &str) -> Result<ExecutionStatus> {
    let machines = aws_sdk_sfn::Client::new(&world.env.aws);
    Ok(machines.describe_execution().execution_arn(execution).send().await?.status().clone())
}

async fn waited_for(world: &World) -> Result<()> {
    let tenant = provisioned(world, "starter").await?;
    let waiting = held(world, &tenant, 86_400.0).await?;
    let owner = format!("owner@{}.example", tenant.slug);
    let told = |mails: Vec<Value>| {
        mails
            .into_iter()
            .filter(|mail| {
                mail.to_string().contains(&owner)
                    && mail["Subject"].as_str().is_some_and(|text| text.contains("out of service"))
            })
            .count()
    };
    ensure!(told(world.emails().await?) == 1, "the owner was not told once");
    // A second execution has nothing to do while the first waits.
    let second = world.run_machine("OffboardTenantMachine", &json!({"tenant_id": tenant.id})).await?.succeeded()?;
    ensure!(second.states.last().is_some_and(|last| last == "NothingToDo"), "{:?}", second.states);
    ensure!(status_of(world, &waiting).await? == ExecutionStatus::Running);

    let check = json!({"tenant_id": tenant.id, "execution": waiting});
    let before = call(world, "check-hold", check.clone()).await?;
    ensure!(before["decision"] == "wait" && before["expires_at"].is_string(), "{before}");
    let extend = json!({"slug": tenant.slug, "seconds": 3600, "execution": "manual:ada"});
    let extended = call(world, "extend-hold", extend).await?;
    let after = call(world, "check-hold", check.clone()).await?;
    ensure!(after["expires_at"] == extended["expires_at"] && after["expires_at"] != before["expires_at"], "{after}");
    let earlier = json!({"slug": tenant.slug, "until": "2020-01-01T00:00:00Z", "execution": "manual:ada"});
    let (name, text) = refusal(world, "extend-hold", earlier).await?;
    ensure!(name == "Conflict" && text.contains("not brought forward"), "{name}: {text}");
    let other = json!({"tenant_id": tenant.id, "execution": dead("offboard-tenant")});
    ensure!(call(world, "check-hold", other).await?["decision"] == "cancelled", "another's hold is waited for");

    world.run_machine("ReactivateTenantMachine", &returning(&tenant)).await?.succeeded()?;
    ensure!(status_of(world, &waiting).await? == ExecutionStatus::Aborted, "it waits still");
    ensure!(call(world, "check-hold", check).await?["decision"] == "cancelled");
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Active && record.execution.is_none(), "{record:?}");
    all_are(world, &record.tenant, &Inspection::Present).await
}

async fn ends(world: &World) -> Result<()> {
    let tenant = provisioned(world, "starter").await?;
    let waiting = held(world, &tenant, 3.0).await?;
    let outcome = world.finish(&waiting).await?.succeeded()?;
    ensure!(outcome.states.last().is_some_and(|last| last == "DeletionStarted"), "{:?}", outcome.states);
    ensure!(outcome.times("CheckHold") >= 1 && outcome.times("FreezeTenant") == 0, "{:?}", outcome.states);
    let hold = holds::latest(&world.registry().await?, tenant.id).await?.context("no hold")?;
    ensure!(hold.state != State::Cancelled, "{hold:?}");
    flag(world, &[tenant.id]).await
}

async fn still_suspended(world: &World) -> Result<()> {
    let tenant = provisioned(world, "starter").await?;
    let owing = json!({"request": {"slug": tenant.slug, "reason": "payment_failure"}, "execution": "manual:test"});
    call(world, "suspend-tenant", owing).await?;
    withdrawn(world, &tenant).await?;
    world.run_machine("ReactivateTenantMachine", &returning(&tenant)).await?.succeeded()?;
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Suspended && record.execution.is_none(), "{record:?}");
    // Thawed all the same: a suspension touches nothing.
    all_are(world, &record.tenant, &Inspection::Present).await?;
    ensure!(write(&in_context(world, &tenant).await?).await? == 1);
    let paid = json!({"tenant_id": tenant.id, "reason": "payment_failure"});
    world.run_machine("ReactivateTenantMachine", &paid).await?.succeeded()?;
    ensure!(world.record(tenant.slug.as_str()).await?.tenant.status == Status::Active);
    Ok(())
}

async fn flagged(world: &World) -> Result<()> {
    let tenant = provisioned(world, "starter").await?;
    withdrawn(world, &tenant).await?;
    // As somebody who means well: the queue's tag is another's.
    let sqs = aws_sdk_sqs::Client::new(&world.env.aws);
    let url = sqs.get_queue_url().queue_name(tenant.queue()).send().await?.queue_url.unwrap_or_default();
    let tag = async |owner: String| sqs.tag_queue().queue_url(&url).tags("tenantry-tenant-id", owner).send().await;
    tag("another".to_owned()).await?;
    let outcome = world.run_machine("ReactivateTenantMachine", &returning(&tenant)).await?;
    ensure!(outcome.error == "ForeignResource" && outcome.times("FlagTenant") == 1, "{outcome:?}");
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Suspended && record.needs_operator.is_some(), "{record:?}");
    ensure!(record.execution.is_none(), "{record:?}");
    let (name, _) =
        refusal(world, "reactivate-tenant", json!({"request": returning(&tenant), "execution": "manual:test"})).await?;
    ensure!(name == "Conflict", "in service though it is half frozen: {name}");
    tag(tenant.id.to_string()).await?;
    world.run_machine("ReactivateTenantMachine", &returning(&tenant)).await?.succeeded()?;
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Active && record.needs_operator.is_none(), "{record:?}");
    all_are(world, &record.tenant, &Inspection::Present).await
}

/// A generator whose schedules a printed seed repeats (xorshift64).
struct Dice(u64);

impl Dice {
    fn millis(&mut self, below: u64) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_millis(self.0 % below)
    }
}

/// The executions that race, which Step Functions knows to run: the one that waited, the one that the sweep started, and a
/// reactivation. Each stands in its first step, for a tenant of its own.
struct Racers {
    waited: String,
    swept: String,
    returns: String,
    tenants: Vec<TenantId>,
    hanging: Vec<Injected>,
}

impl Racers {
    async fn start(world: &World) -> Result<Self> {
        let (mut hanging, mut tenants, mut started) = (Vec::new(), Vec::new(), Vec::new());
        for (machine, function) in [
            ("DeleteTenantMachine", "begin-deletion"),
            ("DeleteTenantMachine", "begin-deletion"),
            ("ReactivateTenantMachine", "cancel-hold"),
        ] {
            let tenant = in_service(world).await?;
            let comes_back = function == "cancel-hold";
            let input = if comes_back { returning(&tenant) } else { json!({"tenant_id": tenant.id}) };
            let target = Target { system: System::Postgres, function, holds: "FROM tenants" };
            let marked = marks(tenant.id, tenant.slug.as_str());
            hanging.push(world.faults.inject(target, marked, proxy::Verdict::Hang, 1_000_000));
            started.push(world.start_machine(machine, &input).await?);
            tenants.push(tenant.id);
        }
        let [waited, swept, returns] = started.try_into().map_err(|_| anyhow::anyhow!("three of them"))?;
        Ok(Racers { waited, swept, returns, tenants, hanging })
    }

    async fn stop(self, world: &World) -> Result<()> {
        let machines = aws_sdk_sfn::Client::new(&world.env.aws);
        for execution in [&self.waited, &self.swept, &self.returns] {
            ensure!(
                status_of(world, execution).await? == ExecutionStatus::Running,
                "{execution} ended before the race"
            );
            machines.stop_execution().execution_arn(execution).send().await?;
        }
        drop(self.hanging);
        flag(world, &self.tenants).await
    }
}

/// A deletion that is asked for until the hold is nobody's to delete.
async fn deletes(world: &World, tenant: TenantId, execution: &str, after: Duration) -> Result<bool> {
    let (registry, begin) = (world.registry().await?, BeginDeletion::from_env(&world.env)?);
    let input = json!({"request": {"tenant_id": tenant}, "execution": execution});
    sleep(after).await;
    loop {
        match begin.run("begin-deletion", &input).await {
            Ok(_) => return Ok(true),
            Err(StepError::Superseded(_) | StepError::Transient(_)) => {}
            Err(error) => return Err(error.into()),
        }
        // Too early is not too late: as the waiting execution, which is told to wait on.
        let held = holds::open_hold(&registry, tenant).await?.is_some_and(|hold| hold.state == State::Held);
        if !held {
            return Ok(false);
        }
        sleep(RACERS_PAUSE).await;
    }
}

/// A return, which waits for its turn as its machine does.
async fn returns(world: &World, tenant: &Tenant, execution: &str, after: Duration) -> Result<bool> {
    let cancel = CancelHold::from_env(&world.env)?;
    let input = json!({"request": returning(tenant), "execution": execution});
    sleep(after).await;
    loop {
        match cancel.run("cancel-hold", &input).await {
            Ok(begun) if begun["decision"] == "restore" => return Ok(true),
            Err(StepError::Conflict(_)) => return Ok(false),
            Err(StepError::Transient(_)) => sleep(RACERS_PAUSE).await,
            outcome => anyhow::bail!("{outcome:?}"),
        }
    }
}

#[allow(clippy::print_stdout)] // the seed repeats the schedules
async fn races(world: &World) -> Result<()> {
    const SCHEDULES: u64 = 200;
    let seed = Uuid::new_v4().as_u64_pair().0 | 1;
    println!("hold races: seed {seed}");
    let mut dice = Dice(seed);
    let racers = Racers::start(world).await?;
    let (mut cancelled, mut deleting, mut tenants) = (0, 0, Vec::new());
    for _ in 0..SCHEDULES / 8 {
        let schedules: Vec<[Duration; 4]> =
            (0..8).map(|_| [dice.millis(60), dice.millis(60), dice.millis(60), dice.millis(90)]).collect();
        let raced = try_join_all(schedules.iter().map(|schedule| Box::pin(race(world, &racers, schedule)))).await;
        for (tenant, state) in raced.with_context(|| format!("seed {seed}"))? {
            cancelled += usize::from(state == State::Cancelled);
            deleting += usize::from(state == State::Deleting);
            tenants.push(tenant);
        }
    }
    flag(world, &tenants).await?;
    racers.stop(world).await?;
    println!("hold races: {cancelled} cancelled, {deleting} deleted");
    ensure!(cancelled + deleting == tenants.len() && tenants.len() == 200, "seed {seed}: {cancelled} and {deleting}");
    ensure!(cancelled > 0 && deleting > 0, "seed {seed}: all went one way, which proves little");
    Ok(())
}

/// One schedule: the deletions that the execution which waited and the sweep start, and a reactivation, each after its own pause, for
/// a hold that ends meanwhile. Their first steps run as they are.
async fn race(world: &World, racers: &Racers, schedule: &[Duration; 4]) -> Result<(TenantId, State)> {
    let [waits, sweeps, comes_back, lasts] = *schedule;
    let tenant = in_service(world).await?;
    let mut registry = world.registry().await?;
    let execution = dead("offboard-tenant");
    let leaving = Leaving::parse(&leaving(&tenant, &execution))?;
    offboarding::begin(&mut registry, tenant.id, &execution, &leaving).await?;
    holds::publish(&registry, tenant.id, &execution, lasts.as_secs_f64()).await?;
    fence::give_back(&registry, tenant.id, &execution).await?;
    let (first, second, back) = futures::try_join!(
        deletes(world, tenant.id, &racers.waited, waits),
        deletes(world, tenant.id, &racers.swept, sweeps),
        returns(world, &tenant, &racers.returns, comes_back)
    )?;
    let won = [first, second, back].iter().filter(|won| **won).count();
    ensure!(won == 1, "{won} won ({first}, {second}, {back}) in {schedule:?}");
    let hold = holds::latest(&registry, tenant.id).await?.context("no hold")?;
    let expected = if back { State::Cancelled } else { State::Deleting };
    ensure!(hold.state == expected, "{hold:?} in {schedule:?}");
    let winner = if back {
        &racers.returns
    } else if first {
        &racers.waited
    } else {
        &racers.swept
    };
    let holder = world.record(tenant.slug.as_str()).await?.execution;
    ensure!(holder.as_ref() == Some(winner), "{winner} won, and {holder:?} has the tenant, in {schedule:?}");
    Ok((tenant.id, hold.state))
}

async fn given_back(world: &World) -> Result<()> {
    let slug = world.fresh_slug("refund");
    let mut request = sign_up(&slug, "starter");
    request["billing"] = json!({"payment_method": "pm_card_visa"});
    world.provision(&request).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let execution = withdrawn(world, &tenant).await?;
    let again = json!({"tenant_id": tenant.id, "execution": "manual:test"});
    let sql = "UPDATE tenants SET execution = NULL, execution_since = NULL WHERE id = $1 AND execution = $2";
    world.registry().await?.execute(sql, &[&tenant.id.0, &execution]).await?;
    call(world, "cancel-subscription", again.clone()).await?;
    call(world, "cancel-subscription", again).await?;
    let refunds = mine(world, "refunds", &tenant).await?;
    // Of 29.00 paid a moment ago for a month, all but moments are left.
    let amount = refunds.first().and_then(|one| one["amount"].as_i64()).unwrap_or_default();
    ensure!(refunds.len() == 1 && (2890..=2900).contains(&amount), "{refunds:?}");
    let subscriptions = mine(world, "subscriptions", &tenant).await?;
    ensure!(subscriptions.iter().all(|one| one["status"] == "canceled"), "{subscriptions:?}");
    let customers = mine(world, "customers", &tenant).await?;
    ensure!(customers.len() == 1, "the customer is needed to come back: {customers:?}");
    let sql = "SELECT cancelled_by_us_at IS NOT NULL FROM billing_accounts WHERE tenant_id = $1";
    ensure!(world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get::<_, bool>(0));
    // Back, and away once more: another subscription, another refund.
    world.run_machine("ReactivateTenantMachine", &returning(&tenant)).await?.succeeded()?;
    ensure!(!world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get::<_, bool>(0));
    withdrawn(world, &tenant).await?;
    let refunds = mine(world, "refunds", &tenant).await?;
    ensure!(refunds.len() == 2, "{refunds:?}");
    flag(world, &[tenant.id]).await
}

async fn reminders(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let mut registry = world.registry().await?;
    let execution = dead("offboard-tenant");
    let request = Leaving::parse(&leaving(&tenant, &execution))?;
    offboarding::begin(&mut registry, tenant.id, &execution, &request).await?;
    let hold = holds::publish(&registry, tenant.id, &execution, 2_592_000.0).await?;
    let subject = format!("{} is deleted on", tenant.slug);
    let mailed = async || {
        let mails = world.emails().await?;
        anyhow::Ok(
            mails.iter().filter(|mail| mail["Subject"].as_str().is_some_and(|text| text.contains(&subject))).count(),
        )
    };
    let sweep = || call(world, "sweep-holds", json!({}));
    // As the days go by: the sweep of the next day would leave less than a week, or than a day.
    for (left, expected) in [("8 days 1 hour", 0), ("7 days 23 hours", 1), ("2 days 1 hour", 1), ("1 day 23 hours", 2)]
    {
        let sql = format!(
            "UPDATE holds SET expires_at = now() + interval '{left}', published_at = now() - interval '20 days' WHERE id = $1"
        );
        registry.execute(&sql, &[&hold.id]).await?;
        // Two at once, and once more.
        futures::try_join!(sweep(), sweep())?;
        sweep().await?;
        let count = mailed().await?;
        ensure!(count == expected, "{count} reminders with {left} left, not {expected}");
    }
    // Put off, the owner is told of the new date in its time.
    let extend = json!({"slug": tenant.slug, "seconds": 1_728_000, "execution": "manual:ada"});
    call(world, "extend-hold", extend).await?;
    sweep().await?;
    ensure!(mailed().await? == 2);
    let sql = "UPDATE holds SET expires_at = now() + interval '6 days' WHERE id = $1";
    registry.execute(sql, &[&hold.id]).await?;
    sweep().await?;
    ensure!(mailed().await? == 3);
    // A hold that is shorter than a week has no week to be reminded of.
    let sql = "UPDATE holds SET expires_at = now() + interval '3 days', published_at = now(), week_reminded_at = NULL WHERE id = $1";
    registry.execute(sql, &[&hold.id]).await?;
    sweep().await?;
    ensure!(mailed().await? == 3);
    flag(world, &[tenant.id]).await
}

/// The executions that a sweep started for a tenant, by their machine.
async fn taken_up(world: &World, tenant: &Tenant) -> Result<Vec<String>> {
    let machines = aws_sdk_sfn::Client::new(&world.env.aws);
    let mut found = Vec::new();
    for output in ["OffboardTenantMachine", "DeleteTenantMachine", "ReactivateTenantMachine"] {
        let arn = world.outputs.get(output).context("no output")?;
        let listed = machines.list_executions().state_machine_arn(arn).into_paginator().items().send();
        for execution in listed.collect::<Result<Vec<_>, _>>().await? {
            if execution.name().starts_with(&format!("sweep-{}-", tenant.id)) {
                found.push(output.trim_end_matches("TenantMachine").to_owned());
            }
        }
    }
    Ok(found)
}

async fn swept(world: &World) -> Result<()> {
    let mut registry = world.registry().await?;
    let mut in_state = async |seconds: Option<f64>, cancelled: bool| {
        let tenant = in_service(world).await?;
        let execution = dead("offboard-tenant");
        let request = Leaving::parse(&leaving(&tenant, &execution))?;
        offboarding::begin(&mut registry, tenant.id, &execution, &request).await?;
        if let Some(seconds) = seconds {
            holds::publish(&registry, tenant.id, &execution, seconds).await?;
        }
        if cancelled {
            offboarding::come_back(&mut registry, tenant.id, &dead("reactivate-tenant"), "test").await?;
        }
        anyhow::Ok(tenant)
    };
    let exporting = in_state(None, false).await?;
    let waiting = in_state(Some(86_400.0), false).await?;
    let expired = in_state(Some(-1.0), false).await?;
    let returning = in_state(Some(86_400.0), true).await?;
    let flagged = in_state(Some(-1.0), false).await?;
    flag(world, &[flagged.id]).await?;
    // One whose execution lives is left to it; one that lives and is an hour late is not.
    let alive = provisioned(world, "starter").await?;
    let living = held(world, &alive, 86_400.0).await?;
    let late = "UPDATE holds SET published_at = now() - interval '2 days', expires_at = now() - $2::text::interval WHERE tenant_id = $1";
    world.registry().await?.execute(late, &[&alive.id.0, &"1 minute"]).await?;

    // Here, to see what is called: no more than the function's role allows.
    let step = SweepHolds::from_env(&world.env)?;
    let called = Box::pin(calls(async { Ok(step.run("sweep-holds", &json!({})).await?) })).await?;
    let allowed = allowed(&Contract::read(&repository())?, "SweepHoldsFunction");
    ensure!(called.is_subset(&allowed), "{called:?} is more than {allowed:?}");
    call(world, "sweep-holds", json!({})).await?;
    for (tenant, expected) in [
        (&exporting, vec!["Offboard"]),
        (&waiting, vec![]),
        (&expired, vec!["Delete"]),
        (&returning, vec!["Reactivate"]),
        (&flagged, vec![]),
    ] {
        let found = taken_up(world, tenant).await?;
        ensure!(found == expected, "{}: {found:?}, not {expected:?}", tenant.slug);
    }
    if status_of(world, &living).await? == ExecutionStatus::Running {
        ensure!(taken_up(world, &alive).await?.is_empty(), "taken from an execution that lives");
        world.registry().await?.execute(late, &[&alive.id.0, &"2 hours"]).await?;
        call(world, "sweep-holds", json!({})).await?;
        ensure!(taken_up(world, &alive).await? == ["Delete"]);
        let stop = aws_sdk_sfn::Client::new(&world.env.aws).stop_execution().execution_arn(&living).send().await;
        drop(stop);
    }
    let ids = [&exporting, &waiting, &expired, &returning, &alive].map(|tenant| tenant.id);
    // What was started for them ends in what it finds: they have nothing but their rows.
    flag(world, &ids).await
}
