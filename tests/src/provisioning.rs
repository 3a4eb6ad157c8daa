//! The whole machine: from a sign-up to a tenant alive, and what happens when something is in the way.

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use tenantry_core::registry::{self, Record, Selector};
use tenantry_core::resource::{self, Inspection};
use tenantry_core::tenant::{Status, Tenant};
use tenantry_local::execution;

use crate::machine::sign_up;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("a_starter_tenant_comes_alive", |world| Box::pin(comes_alive(world, "starter"))),
    ("a_growth_tenant_comes_alive", |world| Box::pin(comes_alive(world, "growth"))),
    ("an_enterprise_tenant_comes_alive", |world| Box::pin(comes_alive(world, "enterprise"))),
    ("the_event_validates_against_its_schema_and_the_welcome_goes_out_once", |world| Box::pin(announced(world))),
    ("an_unpaid_request_stops_as_pending_and_makes_nothing", |world| Box::pin(unpaid(world))),
    ("the_same_request_again_ends_quietly", |world| Box::pin(same_request(world))),
    ("the_same_request_id_with_another_body_is_an_error", |world| Box::pin(other_body(world))),
    ("a_slug_is_given_once", |world| Box::pin(taken_slug(world))),
    ("two_executions_at_once_make_one_tenant", |world| Box::pin(at_once(world))),
    ("a_foreign_bucket_is_not_adopted_and_the_next_run_goes_on", |world| Box::pin(foreign_bucket(world))),
    ("a_transient_error_is_retried_by_the_machine", |world| Box::pin(transient(world))),
    ("what_a_tenant_changed_survives_a_second_run_of_every_step", |world| Box::pin(steps_again(world))),
];

async fn comes_alive(world: &World, plan: &str) -> Result<()> {
    let slug = world.fresh_slug(plan);
    let outcome = world.provision(&sign_up(&slug, plan)).await?.succeeded()?;
    let steps = [
        "ValidateRequest",
        "RegisterTenant",
        "BeginProvisioning",
        "CreateDatabase",
        "CreateIdentity",
        "CreateBucket",
        "CreateQueue",
        "CreateNamespace",
        "CreateDnsRecord",
        "VerifyDnsRecord",
        "ConfigureBilling",
        "SeedConfig",
        "InviteAdmin",
        "ActivateTenant",
        "SendWelcomeEmail",
        "PublishEvents",
        "CloseProvisioning",
    ];
    let entered: Vec<&str> = outcome.states.iter().map(String::as_str).filter(|state| steps.contains(state)).collect();
    ensure!(entered == steps, "the steps went {entered:?}");

    let record = world.record(&slug).await?;
    ensure!(record.tenant.status == Status::Active, "{slug} is {}", record.tenant.status);
    ensure!(record.execution.is_none(), "the fence was not given back");
    ensure!(record.needs_operator.is_none(), "flagged: {:?}", record.needs_operator);
    all_are(world, &record.tenant, &Inspection::Present).await?;
    let registry = world.registry().await?;
    let row = registry
        .query_one(
            "SELECT activated_at IS NOT NULL, isolation::text, database_server FROM tenants WHERE slug = $1",
            &[&slug],
        )
        .await?;
    ensure!(row.get::<_, bool>(0), "activated_at is not set");
    let isolation = match plan {
        "starter" => "shared",
        "growth" => "schema",
        _ => "database",
    };
    ensure!(row.get::<_, &str>(1) == isolation);
    let placed = row.get::<_, Option<String>>(2).is_some();
    ensure!(placed == (isolation != "database"), "the registry does not remember where the data was placed");
    let undone: Vec<String> = registry
        .query(
            "SELECT step || ' is ' || state FROM step_journal WHERE tenant_id = $1 AND state <> 'done'",
            &[&record.tenant.id.0],
        )
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    ensure!(undone.is_empty(), "the journal says {undone:?}");
    let journaled: i64 = registry
        .query_one("SELECT count(*) FROM step_journal WHERE tenant_id = $1", &[&record.tenant.id.0])
        .await?
        .get(0);
    ensure!(journaled == 11, "{journaled} steps in the journal");
    Ok(())
}

async fn announced(world: &World) -> Result<()> {
    let mut subscription = world.subscribe().await?;
    let slug = world.fresh_slug("announced");
    let request = sign_up(&slug, "starter");
    world.provision(&request).await?.succeeded()?;
    let record = world.record(&slug).await?;
    let id = record.tenant.id.to_string();

    subscription.events_of("tenant.provisioned", &id).await?;
    let events = subscription.settled("tenant.provisioned", &id).await?;
    ensure!(events.len() == 1, "{} events: {events:?}", events.len());
    let schema: Value = serde_json::from_str(include_str!("../../events/schemas/tenant.provisioned.json"))?;
    let detail = &events[0]["detail"];
    let validator = jsonschema::validator_for(&schema)?;
    let violations: Vec<String> = validator.iter_errors(detail).map(|error| error.to_string()).collect();
    ensure!(violations.is_empty(), "{detail}: {violations:?}");
    let mut changed = detail.clone();
    changed["owner"] = json!("ada@example.com");
    ensure!(!validator.is_valid(&changed), "the schema lets personal data pass");

    let email = request["owner"]["email"].as_str().unwrap_or_default();
    let welcomes = world.emails().await?.iter().filter(|mail| mail.to_string().contains(email)).count();
    ensure!(welcomes == 1, "{welcomes} welcome emails");
    Ok(())
}

async fn unpaid(world: &World) -> Result<()> {
    let slug = world.fresh_slug("unpaid");
    let mut request = sign_up(&slug, "growth");
    request["paid"] = json!(false);
    let outcome = world.provision(&request).await?.succeeded()?;
    ensure!(outcome.times("BeginProvisioning") == 0, "went on to {:?}", outcome.states);
    let record = world.record(&slug).await?;
    ensure!(record.tenant.status == Status::Pending && !record.paid && record.execution.is_none());
    all_are(world, &record.tenant, &Inspection::Absent).await
}

async fn same_request(world: &World) -> Result<()> {
    let slug = world.fresh_slug("again");
    let request = sign_up(&slug, "starter");
    world.provision(&request).await?.succeeded()?;
    let before = journal(world, &slug).await?;
    let outcome = world.provision(&request).await?.succeeded()?;
    ensure!(outcome.times("CreateDatabase") == 0, "went through {:?}", outcome.states);
    ensure!(journal(world, &slug).await? == before, "the journal changed");
    Ok(())
}

async fn other_body(world: &World) -> Result<()> {
    let slug = world.fresh_slug("body");
    let mut request = sign_up(&slug, "starter");
    world.provision(&request).await?.succeeded()?;
    request["plan"] = json!("growth");
    let outcome = world.provision(&request).await?;
    ensure!(outcome.status == ExecutionStatus::Failed && outcome.error == "Conflict", "{outcome:?}");
    ensure!(outcome.cause.contains("with another plan"), "{}", outcome.cause);
    let record = world.record(&slug).await?;
    ensure!(record.tenant.status == Status::Active && record.tenant.plan.as_str() == "starter");
    Ok(())
}

async fn taken_slug(world: &World) -> Result<()> {
    let slug = world.fresh_slug("taken");
    world.provision(&sign_up(&slug, "starter")).await?.succeeded()?;
    let outcome = world.provision(&sign_up(&slug, "starter")).await?;
    ensure!(outcome.status == ExecutionStatus::Failed && outcome.error == "Conflict", "{outcome:?}");
    ensure!(outcome.cause.contains(&format!("slug {slug} belongs to another tenant")), "{}", outcome.cause);
    ensure!(outcome.times("RegisterTenant") == 0, "went on to {:?}", outcome.states);
    Ok(())
}

async fn at_once(world: &World) -> Result<()> {
    let mut subscription = world.subscribe().await?;
    let slug = world.fresh_slug("race");
    let request = sign_up(&slug, "starter");
    let (one, two, three) =
        tokio::try_join!(world.provision(&request), world.provision(&request), world.provision(&request))?;
    let mut built = 0;
    for outcome in [one, two, three] {
        built += outcome.succeeded()?.times("CreateBucket");
    }
    ensure!(built == 1, "{built} executions built the tenant");
    let record = world.record(&slug).await?;
    ensure!(record.tenant.status == Status::Active && record.takeovers == 0);
    let id = record.tenant.id.to_string();
    subscription.events_of("tenant.provisioned", &id).await?;
    let events = subscription.settled("tenant.provisioned", &id).await?;
    ensure!(events.len() == 1, "{} events", events.len());
    Ok(())
}

async fn foreign_bucket(world: &World) -> Result<()> {
    let slug = world.fresh_slug("foreign");
    let mut request = sign_up(&slug, "starter");
    request["paid"] = json!(false);
    world.provision(&request).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let s3 = world.s3();
    s3.create_bucket().bucket(tenant.bucket()).send().await?;

    request["paid"] = json!(true);
    let outcome = world.provision(&request).await?;
    ensure!(outcome.status == ExecutionStatus::Failed && outcome.error == "ForeignResource", "{outcome:?}");
    ensure!(outcome.cause.contains(&tenant.bucket()), "the error must name the bucket: {}", outcome.cause);
    ensure!(outcome.failed_attempts() == ["ForeignResource"], "retried: {:?}", outcome.failed_attempts());
    ensure!(outcome.times("ReleaseTenant") == 1 && outcome.times("CreateNamespace") == 0, "{:?}", outcome.states);
    let row = world
        .registry()
        .await?
        .query_one("SELECT status::text, execution, failed_step, failed_error, failed_message, failed_at IS NOT NULL FROM tenants WHERE slug = $1", &[&slug])
        .await?;
    ensure!(row.get::<_, &str>(0) == "pending" && row.get::<_, Option<&str>>(1).is_none());
    ensure!(row.get::<_, Option<&str>>(2) == Some("create-bucket"), "failed step: {:?}", row.get::<_, Option<&str>>(2));
    ensure!(row.get::<_, Option<&str>>(3) == Some("ForeignResource"));
    ensure!(row.get::<_, Option<&str>>(4).is_some_and(|message| message.contains(&tenant.bucket())));
    ensure!(row.get::<_, bool>(5), "failed_at is not set");
    s3.head_bucket().bucket(tenant.bucket()).send().await.context("the foreign bucket must be left alone")?;

    s3.delete_bucket().bucket(tenant.bucket()).send().await?;
    world.provision(&json!({"tenant_id": tenant.id})).await?.succeeded()?;
    let record = world.record(&slug).await?;
    ensure!(record.tenant.status == Status::Active);
    all_are(world, &record.tenant, &Inspection::Present).await
}

async fn transient(world: &World) -> Result<()> {
    let slug = world.fresh_slug("retried");
    let mut request = sign_up(&slug, "starter");
    request["paid"] = json!(false);
    world.provision(&request).await?.succeeded()?;
    let id = world.record(&slug).await?.tenant.id;
    // As a person who runs a step by hand holds the tenant: BeginProvisioning is told to come again.
    let hand = world.registry().await?;
    hand.execute("SELECT pg_advisory_lock(hashtextextended('tenant ' || $1::text, 0))", &[&id.to_string()]).await?;
    request["paid"] = json!(true);
    let arn = world.start(&request).await?;
    let machines = aws_sdk_sfn::Client::new(&world.env.aws);
    let begun = std::time::Instant::now();
    while execution::history(&machines, &arn).await?.iter().all(|event| !event.r#type().as_str().ends_with("Failed")) {
        ensure!(begun.elapsed() < std::time::Duration::from_secs(60), "nothing was told to come again");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    hand.execute("SELECT pg_advisory_unlock_all()", &[]).await?;
    let outcome = world.finish(&arn).await?.succeeded()?;
    let failed = outcome.failed_attempts();
    ensure!(!failed.is_empty() && failed.iter().all(|error| *error == "Transient"), "failed attempts: {failed:?}");
    ensure!(world.record(&slug).await?.tenant.status == Status::Active);
    Ok(())
}

/// Every step of a finished tenant again, by hand, twice: nothing changes, and what the tenant changed stays.
async fn steps_again(world: &World) -> Result<()> {
    let slug = world.fresh_slug("byhand");
    world.provision(&sign_up(&slug, "growth")).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let call = json!({"slug": slug, "execution": "manual:ada"});
    for step in [
        "begin-provisioning",
        "create-database",
        "create-identity",
        "create-bucket",
        "create-queue",
        "create-namespace",
        "create-dns-record",
        "verify-dns-record",
        "configure-billing",
        "seed-config",
        "invite-admin",
        "activate-tenant",
        "publish-events",
        "close-provisioning",
    ] {
        let first =
            world.invoke(step, &call).await?.map_err(|(name, text)| anyhow::anyhow!("{step}: {name}: {text}"))?;
        let second =
            world.invoke(step, &call).await?.map_err(|(name, text)| anyhow::anyhow!("{step}: {name}: {text}"))?;
        ensure!(first == second, "{step} answered {first}, then {second}");
    }
    all_are(world, &tenant, &Inspection::Present).await?;
    let audited: i64 = world
        .registry()
        .await?
        .query_one("SELECT count(*) FROM audit WHERE tenant_id = $1 AND actor = 'manual:ada'", &[&tenant.id.0])
        .await?
        .get(0);
    ensure!(audited >= 20, "{audited} entries of what was done by hand");
    let refused = world.invoke("create-bucket", &json!({"slug": slug, "execution": "arn:aws:states:us-east-1:000000000000:execution:provision-tenant:late"})).await?;
    let Err((name, _)) = refused else { anyhow::bail!("an execution without the fence acted: {refused:?}") };
    ensure!(name == "Superseded", "refused with {name}");
    Ok(())
}

/// What each of the tenant's resources is found to be, in the real systems.
pub async fn inspect_all(world: &World, tenant: &Tenant) -> Result<Vec<(&'static str, Inspection)>> {
    let mut found = Vec::new();
    for resource in resource::all(&world.env)? {
        found.push((resource.kind(), resource.inspect(tenant).await?));
    }
    Ok(found)
}

/// Every one of the tenant's resources is found to be so.
pub async fn all_are(world: &World, tenant: &Tenant, wanted: &Inspection) -> Result<()> {
    for (kind, found) in inspect_all(world, tenant).await? {
        ensure!(found == *wanted, "{kind} of {} is {found:?}, not {wanted:?}", tenant.slug);
    }
    Ok(())
}

async fn journal(world: &World, slug: &str) -> Result<Vec<(String, i32)>> {
    let sql =
        "SELECT step, attempts FROM step_journal JOIN tenants t ON t.id = tenant_id WHERE slug = $1 ORDER BY step";
    let rows = world.registry().await?.query(sql, &[&slug]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

impl World {
    /// A tenant's row, as the functions read it.
    pub async fn record(&self, slug: &str) -> Result<Record> {
        Ok(registry::read(&self.registry().await?, &Selector::Slug(slug.to_owned())).await?)
    }

    /// S3 as path-style clients reach the emulator.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        tenantry_local::emulator::s3(&self.env.aws)
    }
}
