//! The registry against real PostgreSQL: what its database refuses, whoever asks, and what registration, payment, fence,
//! journal and placement do.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tenantry_core::error::StepError;
use tenantry_core::registry::contacts::Contact;
use tenantry_core::registry::fence::{self, Actor, Failure, Grant};
use tenantry_core::registry::payments::{self, PaidFor};
use tenantry_core::registry::{Record, Selector, journal, placement, read, signup};
use tenantry_core::request::SignUp;
use tenantry_core::tenant::{Isolation, Plan, Status, TenantId};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::world::{Case, World};

/// Every test of this file.
pub const CASES: &[(&str, Case)] = &[
    ("only_the_products_transitions_are_accepted", |world| Box::pin(only_the_products_transitions_are_accepted(world))),
    ("a_tenant_begins_as_pending", |world| Box::pin(a_tenant_begins_as_pending(world))),
    ("what_never_changes_is_refused", |world| Box::pin(what_never_changes_is_refused(world))),
    ("tenants_and_audit_stay_for_ever", |world| Box::pin(tenants_and_audit_stay_for_ever(world))),
    ("every_change_of_status_is_audited", |world| Box::pin(every_change_of_status_is_audited(world))),
    ("registering_is_once_a_request", |world| Box::pin(registering_is_once_a_request(world))),
    ("a_request_delivered_at_once_registers_one", |world| Box::pin(a_request_delivered_at_once_registers_one(world))),
    ("a_payment_waits_for_its_request", |world| Box::pin(a_payment_waits_for_its_request(world))),
    ("one_execution_holds_the_fence", |world| Box::pin(one_execution_holds_the_fence(world))),
    ("the_fence_goes_to_one_of_many", |world| Box::pin(the_fence_goes_to_one_of_many(world))),
    ("the_journal_is_the_holders", |world| Box::pin(the_journal_is_the_holders(world))),
    ("placement_is_remembered_and_bounded", |world| Box::pin(placement_is_remembered_and_bounded(world))),
];

const TRANSITION: &str = "TN001";
const IMMUTABLE: &str = "TN002";
const REMOVAL: &str = "TN003";

/// The product's seven; everything else is refused.
const ALLOWED: &[(Status, Status)] = &[
    (Status::Pending, Status::Provisioning),
    (Status::Provisioning, Status::Active),
    (Status::Provisioning, Status::Pending),
    (Status::Active, Status::Suspended),
    (Status::Suspended, Status::Active),
    (Status::Suspended, Status::Deprovisioned),
    (Status::Pending, Status::Deprovisioned),
];

/// All 25 pairs: 7 moves, 5 times nothing at all, 13 refusals.
async fn only_the_products_transitions_are_accepted(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    for from in Status::ALL {
        for to in Status::ALL {
            let transaction = client.transaction().await?;
            let id = tenant_that_is(&transaction, *from, &world.fresh_slug("move")).await?;
            let moved = set_status(&transaction, id, *to).await;
            if from == to || ALLOWED.contains(&(*from, *to)) {
                moved.with_context(|| format!("{from} to {to} was refused"))?;
                let sql = "SELECT status::text, activated_at IS NOT NULL, suspended_at IS NOT NULL,
                                  deprovisioned_at IS NOT NULL FROM tenants WHERE id = $1";
                let row = transaction.query_one(sql, &[&id]).await?;
                ensure!(row.get::<_, String>(0) == to.as_str(), "{from} to {to} did nothing");
                ensure!(*to != Status::Active || row.get(1), "{from} to {to}: no activated_at");
                ensure!(row.get::<_, bool>(2) == (*to == Status::Suspended), "{from} to {to}: suspended_at");
                ensure!(row.get::<_, bool>(3) == (*to == Status::Deprovisioned), "{from} to {to}: deprovisioned_at");
            } else {
                refused(moved, TRANSITION, &format!("{from} to {to}"))?;
            }
        }
    }
    Ok(())
}

async fn a_tenant_begins_as_pending(world: &World) -> Result<()> {
    let client = world.registry().await?;
    for status in Status::ALL.iter().filter(|status| **status != Status::Pending) {
        let sql = "INSERT INTO tenants (slug, status) VALUES ($1, $2::text::tenant_status)";
        let inserted = client.execute(sql, &[&world.fresh_slug("first"), &status.as_str()]).await;
        refused(inserted, TRANSITION, &format!("beginning as {status}"))?;
    }
    Ok(())
}

async fn what_never_changes_is_refused(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let record = registered(world, &mut client, Plan::Starter, false).await?;
    for change in
        ["id = gen_random_uuid()", "request_id = gen_random_uuid()", "created_at = created_at - interval '1 day'"]
    {
        let sql = format!("UPDATE tenants SET {change} WHERE id = $1");
        refused(client.execute(&sql, &[&record.tenant.id.0]).await, IMMUTABLE, change)?;
    }
    Ok(())
}

async fn tenants_and_audit_stay_for_ever(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let id = registered(world, &mut client, Plan::Starter, false).await?.tenant.id;
    for table in ["tenants", "audit"] {
        let key = if table == "tenants" { "id" } else { "tenant_id" };
        let delete = format!("DELETE FROM {table} WHERE {key} = $1");
        refused(client.execute(&delete, &[&id.0]).await, REMOVAL, &delete)?;
        let truncate = format!("TRUNCATE {table} CASCADE");
        refused(client.execute(&truncate, &[]).await, REMOVAL, &truncate)?;
    }
    let update = "UPDATE audit SET actor = 'nobody' WHERE tenant_id = $1";
    refused(client.execute(update, &[&id.0]).await, REMOVAL, update)?;
    ensure!(read(&client, &Selector::Id(id)).await?.tenant.id == id);
    Ok(())
}

async fn every_change_of_status_is_audited(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let id = registered(world, &mut client, Plan::Starter, true).await?.tenant.id;
    let execution = execution("audited");
    fence::acquire(&mut client, id, &execution, false).await?;
    // One by hand, past our code: the trail has it as well, with the database's own name for who did it.
    client.execute("UPDATE tenants SET status = 'active' WHERE id = $1", &[&id.0]).await?;
    let sql = "SELECT actor, detail ->> 'from', detail ->> 'to' FROM audit
               WHERE tenant_id = $1 AND action = 'status' ORDER BY id";
    let rows = client.query(sql, &[&id.0]).await?;
    let trail: Vec<(String, Option<String>, Option<String>)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let some = |text: &str| Some(text.to_owned());
    ensure!(trail.len() == 3, "{trail:?}");
    ensure!(trail[0] == ("manual:test".into(), None, some("pending")), "{trail:?}");
    ensure!(trail[1] == (execution, some("pending"), some("provisioning")), "{trail:?}");
    ensure!(trail[2].0.starts_with("database:"), "{trail:?}");
    Ok(())
}

async fn registering_is_once_a_request(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let request = sign_up(world, Plan::Growth, false);
    let first = signup::register(&mut client, &request, "manual:test").await?;
    ensure!(first.tenant.status == Status::Pending && first.tenant.isolation == Isolation::Schema && !first.paid);
    let again = signup::register(&mut client, &request, "manual:test").await?;
    ensure!(again == first, "the same request changed something: {again:?}");

    for (field, other) in [
        ("slug", SignUp { slug: world.fresh_slug("other").parse()?, ..request.clone() }),
        ("plan", SignUp { plan: Plan::Starter, ..request.clone() }),
        ("owner.email", SignUp { owner: contact("eve@acme.example"), ..request.clone() }),
    ] {
        match signup::register(&mut client, &other, "manual:test").await {
            Err(StepError::Conflict(text)) if text.contains(field) && !text.contains("eve@") => {}
            outcome => bail!("another {field} under the same request id: {outcome:?}"),
        }
    }
    let same_slug = SignUp { request_id: Uuid::new_v4(), ..request };
    match signup::register(&mut client, &same_slug, "manual:test").await {
        Err(StepError::Conflict(text)) if text.contains("belongs to another tenant") => {}
        outcome => bail!("a taken slug: {outcome:?}"),
    }
    let sql = "SELECT count(*) FROM tenants WHERE request_id = $1";
    ensure!(client.query_one(sql, &[&same_slug.request_id]).await?.get::<_, i64>(0) == 0);
    Ok(())
}

async fn a_request_delivered_at_once_registers_one(world: &World) -> Result<()> {
    let request = sign_up(world, Plan::Starter, true);
    let deliveries = (0..8).map(|_| async {
        let mut client = world.registry().await?;
        Ok::<_, anyhow::Error>(signup::register(&mut client, &request, "manual:test").await?)
    });
    let registered = futures::future::try_join_all(deliveries).await?;
    ensure!(registered.iter().all(|record| record.tenant.id == registered[0].tenant.id), "several tenants");
    Ok(())
}

async fn a_payment_waits_for_its_request(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let request = sign_up(world, Plan::Starter, false);
    let paid_for = PaidFor::Request(request.request_id);
    ensure!(payments::confirm(&mut client, "pay-1", paid_for).await?.is_none(), "a payment found a tenant");
    ensure!(payments::confirm(&mut client, "pay-1", paid_for).await?.is_none());
    ensure!(signup::register(&mut client, &request, "manual:test").await?.paid, "the payment was lost");

    let unpaid = registered(world, &mut client, Plan::Starter, false).await?;
    match fence::acquire(&mut client, unpaid.tenant.id, &execution("unpaid"), false).await {
        Err(StepError::Conflict(text)) if text.contains("not paid") => {}
        outcome => bail!("an unpaid tenant was provisioned: {outcome:?}"),
    }
    let paid = payments::confirm(&mut client, "pay-2", PaidFor::Tenant(unpaid.tenant.id)).await?;
    ensure!(paid.is_some_and(|record| record.paid && record.tenant.id == unpaid.tenant.id));
    match payments::confirm(&mut client, "pay-3", PaidFor::Tenant(TenantId(Uuid::new_v4()))).await {
        Err(StepError::TenantNotFound(_)) => Ok(()),
        outcome => bail!("a payment for nobody: {outcome:?}"),
    }
}

async fn one_execution_holds_the_fence(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let id = registered(world, &mut client, Plan::Starter, true).await?.tenant.id;
    let (ours, theirs) = (execution("ours"), execution("theirs"));
    ensure!(fence::acquire(&mut client, id, &ours, false).await? == Grant::Provision);
    ensure!(fence::acquire(&mut client, id, &ours, false).await? == Grant::Provision, "a retry lost its fence");
    ensure!(fence::acquire(&mut client, id, &theirs, false).await? == Grant::HeldBy(ours.clone()));
    ensure!(fence::held_by(&client, &ours).await? == Some(id));
    let failure = Failure { error: "Denied".into(), message: "no".into() };
    superseded(fence::release(&mut client, id, &theirs, &failure, &[], &[]).await)?;
    superseded(fence::give_back(&client, id, &theirs).await)?;
    superseded(fence::flag(&mut client, id, &theirs, &failure).await)?;
    let held = read(&client, &Selector::Id(id)).await?;
    superseded(fence::check(&held, &Actor::Execution(theirs.clone()), &[Status::Provisioning]))?;
    superseded(fence::check(&held, &Actor::Manual("manual:test".into()), &[]))?;

    ensure!(!fence::take_over(&client, id, &theirs, &theirs).await?, "taken from one who does not hold it");
    ensure!(fence::take_over(&client, id, &ours, &theirs).await?);
    superseded(fence::release(&mut client, id, &ours, &failure, &[], &[]).await)?;
    fence::release(&mut client, id, &theirs, &failure, &[], &[]).await?;
    fence::release(&mut client, id, &theirs, &failure, &[], &[]).await.context("releasing again")?;
    let released = read(&client, &Selector::Id(id)).await?;
    ensure!(released.tenant.status == Status::Pending && released.execution.is_none(), "{released:?}");
    let sql = "SELECT failed_error, failed_message FROM tenants WHERE id = $1";
    let row = client.query_one(sql, &[&id.0]).await?;
    ensure!((row.get::<_, &str>(0), row.get::<_, &str>(1)) == ("Denied", "no"));

    ensure!(fence::acquire(&mut client, id, &ours, false).await? == Grant::Provision);
    fence::flag(&mut client, id, &ours, &failure).await?;
    match fence::acquire(&mut client, id, &ours, false).await {
        Err(StepError::NeedsOperator(_)) => Ok(()),
        outcome => bail!("a flagged tenant was provisioned: {outcome:?}"),
    }
}

async fn the_fence_goes_to_one_of_many(world: &World) -> Result<()> {
    let id = registered(world, &mut world.registry().await?, Plan::Starter, true).await?.tenant.id;
    let attempts = (0..10).map(|n| async move {
        let mut client = world.registry().await?;
        Ok::<_, anyhow::Error>(fence::acquire(&mut client, id, &execution(&format!("race-{n}")), false).await?)
    });
    let grants = futures::future::try_join_all(attempts).await?;
    let granted = grants.iter().filter(|grant| **grant == Grant::Provision).count();
    ensure!(granted == 1, "{granted} executions hold the tenant");
    Ok(())
}

async fn the_journal_is_the_holders(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let id = registered(world, &mut client, Plan::Starter, true).await?.tenant.id;
    let (ours, theirs) = (execution("ours"), execution("theirs"));
    let (actor, other) = (Actor::Execution(ours.clone()), Actor::Execution(theirs.clone()));
    fence::acquire(&mut client, id, &ours, false).await?;
    let record = read(&client, &Selector::Id(id)).await?;
    let allowed = &[Status::Provisioning];
    let made = json!({"bucket": "b"});

    superseded(journal::begin(&client, &record, "create-bucket", &other, allowed).await)?;
    ensure!(journal::entry(&client, id, "create-bucket").await?.is_none());
    journal::begin(&client, &record, "create-bucket", &actor, allowed).await?;
    ensure!(journal::unfinished(&client, id).await?.as_deref() == Some("create-bucket"));
    journal::failed(&client, &record, "create-bucket", &actor, &StepError::Transient("later".into())).await?;
    journal::begin(&client, &record, "create-bucket", &actor, allowed).await?;
    journal::done(&client, &record, "create-bucket", &actor, &made).await?;
    let entry = journal::entry(&client, id, "create-bucket").await?.context("no entry")?;
    ensure!(entry.done && entry.execution == ours && entry.made == made, "{entry:?}");
    ensure!(journal::unfinished(&client, id).await?.is_none());
    let sql = "SELECT attempts FROM step_journal WHERE tenant_id = $1 AND step = 'create-bucket'";
    ensure!(client.query_one(sql, &[&id.0]).await?.get::<_, i32>(0) == 2);

    // Taken over while a step acts: what it writes afterwards is refused.
    journal::begin(&client, &record, "create-queue", &actor, allowed).await?;
    ensure!(fence::take_over(&client, id, &ours, &theirs).await?);
    superseded(journal::done(&client, &record, "create-queue", &actor, &made).await)?;
    superseded(journal::begin(&client, &record, "seed-config", &actor, allowed).await)
}

async fn placement_is_remembered_and_bounded(world: &World) -> Result<()> {
    let mut client = world.registry().await?;
    let name = world.fresh_slug("full-server");
    // Another name of a server that answers: a scan looks into each.
    let sql = "INSERT INTO database_servers (name, isolation, secret, capacity)
               SELECT $1, 'database', secret, 2 FROM database_servers WHERE name = 'registry-schema'";
    client.execute(sql, &[&name]).await?;
    let mut tenants = Vec::new();
    for _ in 0..5 {
        tenants.push(registered(world, &mut client, Plan::Enterprise, true).await?.tenant);
    }
    let placements = tenants.iter().map(|tenant| async move {
        let mut client = world.registry().await?;
        Ok::<_, anyhow::Error>(placement::place(&mut client, tenant).await)
    });
    let placed = futures::future::try_join_all(placements).await?;
    let (held, refused): (Vec<_>, Vec<_>) =
        placed.iter().zip(&tenants).partition(|(placed, _)| placed.as_ref().is_ok_and(|server| server.name == name));
    ensure!(held.len() == 2, "a server for 2 was given {}: {placed:?}", held.len());
    for (outcome, _) in refused {
        let Err(StepError::NeedsOperator(text)) = outcome else { bail!("beyond the capacity: {outcome:?}") };
        ensure!(text.contains("isolation 'database'"), "{text}");
    }
    client.execute("UPDATE database_servers SET state = 'draining' WHERE name = $1", &[&name]).await?;
    let (server, tenant) = (held[0].0.clone()?, held[0].1);
    ensure!(placement::place(&mut client, tenant).await? == server, "a placed tenant was moved");
    ensure!(placement::placed(&client, tenant).await? == Some(server));
    Ok(())
}

/// A tenant brought to a status on the product's own ways.
async fn tenant_that_is(transaction: &Transaction<'_>, status: Status, slug: &str) -> Result<Uuid> {
    let way: &[Status] = match status {
        Status::Pending => &[],
        Status::Provisioning => &[Status::Provisioning],
        Status::Active => &[Status::Provisioning, Status::Active],
        Status::Suspended => &[Status::Provisioning, Status::Active, Status::Suspended],
        Status::Deprovisioned => &[Status::Deprovisioned],
    };
    let id = transaction.query_one("INSERT INTO tenants (slug) VALUES ($1) RETURNING id", &[&slug]).await?.get(0);
    for step in way {
        set_status(transaction, id, *step).await?;
    }
    Ok(id)
}

async fn set_status(transaction: &Transaction<'_>, id: Uuid, to: Status) -> Result<u64, tokio_postgres::Error> {
    let sql = "UPDATE tenants SET status = $2::text::tenant_status WHERE id = $1";
    transaction.execute(sql, &[&id, &to.as_str()]).await
}

fn refused<T>(outcome: Result<T, tokio_postgres::Error>, code: &str, what: &str) -> Result<()> {
    match outcome {
        Ok(_) => bail!("{what} was accepted"),
        Err(error) if error.code().is_some_and(|found| found.code() == code) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{what}: refused, but not as {code}")),
    }
}

fn superseded<T: std::fmt::Debug>(outcome: Result<T, StepError>) -> Result<()> {
    match outcome {
        Err(StepError::Superseded(_)) => Ok(()),
        outcome => bail!("not superseded: {outcome:?}"),
    }
}

fn execution(name: &str) -> String {
    format!("arn:aws:states:us-east-1:000000000000:execution:provision-tenant:{name}-{}", Uuid::new_v4())
}

fn contact(email: &str) -> Contact {
    Contact { name: "Ada Lovelace".into(), email: email.into() }
}

/// A sign-up that no other test sends.
pub fn sign_up(world: &World, plan: Plan, paid: bool) -> SignUp {
    SignUp {
        request_id: Uuid::new_v4(),
        slug: world.fresh_slug(plan.as_str()).parse().expect("a slug"),
        plan,
        region: "us-east-1".parse().expect("a region"),
        isolation: None,
        customer: None,
        payment_method: None,
        owner: contact("ada@acme.example"),
        paid,
    }
}

/// A registered tenant that no other test knows.
pub async fn registered(world: &World, client: &mut Client, plan: Plan, paid: bool) -> Result<Record> {
    Ok(signup::register(client, &sign_up(world, plan, paid), "manual:test").await?)
}
