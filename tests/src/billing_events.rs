//! Billing's events, and the state that tenants end in: the one that billing is in, whatever came twice, late or out of order.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use tenantry_core::billing_event::Account;
use tenantry_core::environment::Environment;
use tenantry_core::error::StepError;
use tenantry_core::registry::{Selector, fence, suspensions};
use tenantry_core::resource::Resource;
use tenantry_core::resource::billing::Billing;
use tenantry_core::step::Step;
use tenantry_core::steps::follow_billing::FollowBilling;
use tenantry_core::tenant::{Plan, Reason, Status, Tenant};
use tenantry_local::stripe;
use tokio::time::sleep;
use uuid::Uuid;

use crate::billing::ask;
use crate::contract::repository;
use crate::suspension::{in_service, provisioning};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("each_of_stripes_events_is_followed_and_carries_nothing_personal", |world| Box::pin(each_type(world))),
    ("what_happens_at_stripe_is_followed_by_itself", |world| Box::pin(by_itself(world))),
    ("stripe_is_believed_and_not_the_event", |world| Box::pin(believed(world))),
    ("a_plans_grace_is_waited_for_and_a_sweep_ends_it", |world| Box::pin(grace(world))),
    ("an_event_that_was_lost_is_made_up_for_within_a_day", |world| Box::pin(lost(world))),
    ("a_payment_lifts_nothing_that_others_imposed", |world| Box::pin(lifts_its_own(world))),
    ("what_is_foreign_old_or_our_own_doing_is_ignored", |world| Box::pin(ignored(world))),
    ("only_an_owner_who_asks_for_it_is_offboarded", |world| Box::pin(leaving(world))),
    ("another_price_is_another_plan_and_the_period_is_the_cycle", |world| Box::pin(plan_and_period(world))),
    ("without_stripe_the_newest_event_is_the_state", |world| Box::pin(sequences(world))),
    ("without_stripe_a_tenant_that_came_back_is_not_sent_away_by_its_old_subscription", |world| {
        Box::pin(came_back(world))
    }),
    ("an_event_during_provisioning_counts_at_activation", |world| Box::pin(during_provisioning(world))),
    ("a_bad_event_is_refused_by_field", |world| Box::pin(refused(world))),
];

/// More than any wait here takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// A tenant with a subscription.
pub struct Subscriber {
    /// The tenant, in service, with nothing but its registry row.
    pub tenant: Tenant,
    /// What it is at billing.
    pub account: Account,
}

/// A subscriber of Stripe's.
pub async fn subscriber(world: &World, plan: Plan) -> Result<Subscriber> {
    let tenant = in_service(world).await?;
    let sql = "UPDATE tenants SET plan = $2::text::plan WHERE id = $1";
    world.registry().await?.execute(sql, &[&tenant.id.0, &plan.as_str()]).await?;
    subscribed(world, world.record(tenant.slug.as_str()).await?.tenant).await
}

async fn subscribed(world: &World, tenant: Tenant) -> Result<Subscriber> {
    let made = Billing::from_env(&world.env)?.ensure(&tenant).await?;
    let id = |key: &str| made[key].as_str().map(str::to_owned).with_context(|| format!("no {key}: {made}"));
    let account = Account { customer: id("customer")?, subscription: id("subscription")? };
    Ok(Subscriber { tenant, account })
}

/// Has a subscription become something at Stripe, and no event tell of it.
pub async fn becomes(world: &World, account: &Account, becomes: Value) -> Result<()> {
    stripe::play(world.export("STRIPE_API_URL")?, &account.subscription, &becomes, &[]).await
}

/// An event of Stripe's, as its rule hands it on.
pub fn happened(kind: &str, account: &Account) -> Value {
    json!({
        "event_id": format!("evt_{}", Uuid::new_v4().simple()),
        "type": kind,
        "created": 1_795_507_200,
        "customer": account.customer,
        "subscription": account.subscription,
    })
}

/// An event of our own form.
pub fn changed(account: &Account, sequence: i64, status: &str) -> Value {
    json!({
        "event_id": format!("bill-{}", Uuid::new_v4()),
        "sequence": sequence,
        "customer": account.customer,
        "subscription": account.subscription,
        "status": status,
    })
}

/// Runs the step by itself.
pub async fn follow(env: &Environment, request: &Value) -> Result<Value, StepError> {
    let call = json!({"request": request, "execution": "manual:test"});
    FollowBilling::from_env(env)?.run("follow-billing", &call).await
}

/// Status and reasons, as the registry has them.
pub async fn standing(world: &World, tenant: &Tenant) -> Result<(Status, Vec<String>)> {
    let record = world.record(tenant.slug.as_str()).await?;
    let sql = "SELECT reason FROM suspensions WHERE tenant_id = $1 ORDER BY reason";
    let rows = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    Ok((record.tenant.status, rows.iter().map(|row| row.get(0)).collect()))
}

async fn until(world: &World, tenant: &Tenant, status: Status) -> Result<()> {
    let begun = Instant::now();
    loop {
        let now = standing(world, tenant).await?;
        if now.0 == status {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "{} is not {status}, but {now:?}", tenant.slug);
        sleep(Duration::from_millis(100)).await;
    }
}

/// The shipped sample of an event, about an account: the entry, and the event's id.
fn sample(kind: &str, account: &Account) -> Result<(Value, String)> {
    let name = kind.trim_start_matches("billing.").replace(['.', '_'], "-");
    let path = repository().join(format!("events/billing/{name}.json"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let text = text.replace("cus_acme", &account.customer).replace("sub_acme", &account.subscription);
    let mut entry: Value = serde_json::from_str::<Value>(&text)?[0].take();
    let mut detail: Value = serde_json::from_str(entry["Detail"].as_str().context("no detail")?)?;
    let id = format!("evt_{}", Uuid::new_v4().simple());
    let key = if detail["event_id"].is_string() { "event_id" } else { "id" };
    detail[key] = json!(id);
    entry["Detail"] = json!(detail.to_string());
    Ok((entry, id))
}

/// Puts the sample of an event on its bus. Returns the event's id.
pub async fn put_sample(world: &World, kind: &str, account: &Account) -> Result<String> {
    let (entry, id) = sample(kind, account)?;
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let detail = serde_json::from_str(&text("Detail"))?;
    world.put_event_on(&text("EventBusName"), &text("Source"), &text("DetailType"), &detail).await?;
    Ok(id)
}

impl World {
    /// Waits until the events have started executions of follow-billing, and these have ended. Returns each one's end: status,
    /// input, and output or error.
    pub async fn followed(&self, events: &BTreeSet<String>) -> Result<Vec<(ExecutionStatus, String, String)>> {
        let client = aws_sdk_sfn::Client::new(&self.env.aws);
        let machine = self.outputs.get("FollowBillingMachine").context("no output FollowBillingMachine")?;
        let (begun, mut others, mut ended) = (Instant::now(), BTreeSet::new(), Vec::new());
        while ended.len() < events.len() {
            ensure!(begun.elapsed() < PATIENCE, "{} of {} events were followed", ended.len(), events.len());
            let mut pages = client.list_executions().state_machine_arn(machine).into_paginator().items().send();
            while let Some(execution) = pages.next().await {
                let arn = execution?.execution_arn().to_owned();
                if others.contains(&arn) {
                    continue;
                }
                let described = client.describe_execution().execution_arn(&arn).send().await?;
                let input = described.input().unwrap_or_default().to_owned();
                let id = serde_json::from_str::<Value>(&input)?["event_id"].as_str().unwrap_or_default().to_owned();
                let ours = events.contains(&id);
                if !ours || *described.status() != ExecutionStatus::Running {
                    others.insert(arn);
                }
                if ours && *described.status() != ExecutionStatus::Running {
                    let said = described.output().or(described.cause()).unwrap_or_default();
                    ended.push((described.status().clone(), input, said.to_owned()));
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(ended)
    }
}

async fn each_type(world: &World) -> Result<()> {
    let Subscriber { tenant, account } = subscriber(world, Plan::Starter).await?;
    let lapsed = json!({"status": "canceled", "cancellation_details": {"reason": "payment_failed"}});
    for (what, kind, status) in [
        (json!({"status": "past_due"}), "invoice.payment_failed", Status::Suspended),
        (json!({"status": "active"}), "invoice.paid", Status::Active),
        (json!({"status": "unpaid"}), "customer.subscription.updated", Status::Suspended),
        (json!({"status": "active"}), "customer.subscription.updated", Status::Active),
        (json!({"status": "past_due"}), "billing.subscription_changed", Status::Suspended),
        (json!({"status": "trialing"}), "invoice.paid", Status::Active),
        (lapsed, "customer.subscription.deleted", Status::Suspended),
    ] {
        becomes(world, &account, what).await?;
        let id = put_sample(world, kind, &account).await?;
        let ended = world.followed(&BTreeSet::from([id])).await?;
        let (ended, input, said) = ended.first().context("no execution")?;
        ensure!(*ended == ExecutionStatus::Succeeded, "{kind}: {said}");
        ensure!(standing(world, &tenant).await?.0 == status, "{kind}: {:?}", standing(world, &tenant).await?);
        for personal in ["@", "Lovelace", "goodbye"] {
            ensure!(!input.contains(personal), "{kind}: {personal} is kept: {input}");
        }
    }
    ensure!(standing(world, &tenant).await?.1 == ["payment_failure"]);
    let sql = "SELECT actor FROM suspensions WHERE tenant_id = $1";
    let actor: String = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(actor == "billing", "{actor}");
    Ok(())
}

/// The local stack's own Stripe tells of it, as Stripe would.
async fn by_itself(world: &World) -> Result<()> {
    let mut events = world.subscribe().await?;
    let Subscriber { tenant, account } = subscriber(world, Plan::Starter).await?;
    let url = world.export("STRIPE_API_URL")?;
    for (what, event, status, told) in [
        ("past_due", "invoice.payment_failed", Status::Suspended, "tenant.suspended"),
        ("active", "invoice.paid", Status::Active, "tenant.reactivated"),
    ] {
        stripe::play(url, &account.subscription, &json!({"status": what}), &[event]).await?;
        until(world, &tenant, status).await?;
        events.events_of(told, &tenant.id.to_string()).await?;
    }
    Ok(())
}

async fn believed(world: &World) -> Result<()> {
    let Subscriber { tenant, account } = subscriber(world, Plan::Starter).await?;
    for kind in ["invoice.payment_failed", "customer.subscription.deleted"] {
        let answer = follow(&world.env, &happened(kind, &account)).await?;
        ensure!(answer["decision"] == "none" && answer["status"] == "active", "{kind}: {answer}");
    }
    // An event in our own form says that it is past due, and Stripe that it is not.
    let answer = follow(&world.env, &changed(&account, 1, "past_due")).await?;
    ensure!(answer["status"] == "active", "{answer}");
    becomes(world, &account, json!({"status": "past_due"})).await?;
    for request in [json!({"tenant_id": tenant.id}), happened("invoice.paid", &account)] {
        let answer = follow(&world.env, &request).await?;
        ensure!(answer["status"] == "suspended" && answer["tenant_id"] == json!(tenant.id), "{answer}");
    }
    Ok(())
}

async fn sweep(world: &World) -> Result<()> {
    world.invoke("sweep-tenants", &json!({})).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok(())
}

async fn grace(world: &World) -> Result<()> {
    let registry = world.registry().await?;
    let Subscriber { tenant, account } = subscriber(world, Plan::Growth).await?;
    becomes(world, &account, json!({"status": "past_due"})).await?;
    let late = happened("invoice.payment_failed", &account);
    let since = async || -> Result<Option<f64>> {
        let sql =
            "SELECT extract(epoch FROM now() - past_due_since)::float8 FROM billing_accounts WHERE tenant_id = $1";
        Ok(registry.query_one(sql, &[&tenant.id.0]).await?.get(0))
    };
    let answer = follow(&world.env, &late).await?;
    ensure!(answer["status"] == "active" && since().await?.is_some(), "{answer}: the grace is three days");
    // Another event does not make it later, and a payment ends it.
    let two_days = "UPDATE billing_accounts SET past_due_since = now() - interval '2 days' WHERE tenant_id = $1";
    registry.execute(two_days, &[&tenant.id.0]).await?;
    follow(&world.env, &late).await?;
    ensure!(since().await?.is_some_and(|seconds| seconds > 172_000.0), "the grace began anew");
    sweep(world).await?;
    ensure!(standing(world, &tenant).await?.0 == Status::Active, "suspended a day early");
    becomes(world, &account, json!({"status": "active"})).await?;
    follow(&world.env, &happened("invoice.paid", &account)).await?;
    ensure!(since().await?.is_none(), "paid, and still counted");

    becomes(world, &account, json!({"status": "past_due"})).await?;
    follow(&world.env, &late).await?;
    let over = "UPDATE billing_accounts SET past_due_since = now() - interval '73 hours' WHERE tenant_id = $1";
    registry.execute(over, &[&tenant.id.0]).await?;
    tokio::try_join!(sweep(world), sweep(world))?;
    until(world, &tenant, Status::Suspended).await?;
    let sql = "SELECT count(*) FROM audit WHERE tenant_id = $1 AND action = 'suspended'";
    let times: i64 = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(times == 1, "suspended {times} times");
    Ok(())
}

async fn lost(world: &World) -> Result<()> {
    let Subscriber { tenant, account } = subscriber(world, Plan::Starter).await?;
    becomes(world, &account, json!({"status": "past_due"})).await?;
    let looked = "UPDATE billing_accounts SET looked_at = now() - $2::text::interval WHERE tenant_id = $1";
    let registry = world.registry().await?;
    registry.execute(looked, &[&tenant.id.0, &"23 hours"]).await?;
    sweep(world).await?;
    ensure!(standing(world, &tenant).await?.0 == Status::Active, "looked at within a day");
    registry.execute(looked, &[&tenant.id.0, &"25 hours"]).await?;
    sweep(world).await?;
    until(world, &tenant, Status::Suspended).await
}

async fn lifts_its_own(world: &World) -> Result<()> {
    let Subscriber { tenant, account } = subscriber(world, Plan::Starter).await?;
    becomes(world, &account, json!({"status": "past_due"})).await?;
    follow(&world.env, &happened("invoice.payment_failed", &account)).await?;
    let imposed = [Reason::Admin, Reason::Offboarding, Reason::PolicyViolation];
    for reason in imposed {
        let by = &Selector::Id(tenant.id);
        suspensions::suspend(&mut world.registry().await?, by, reason, "test").await?;
    }
    becomes(world, &account, json!({"status": "active"})).await?;
    let answer = follow(&world.env, &happened("invoice.paid", &account)).await?;
    ensure!(answer["status"] == "suspended", "{answer}");
    let left = standing(world, &tenant).await?.1;
    ensure!(left == imposed.map(|reason| reason.as_str()), "{left:?}");
    Ok(())
}

async fn ignored(world: &World) -> Result<()> {
    let Subscriber { tenant, account } = subscriber(world, Plan::Starter).await?;
    becomes(world, &account, json!({"status": "past_due"})).await?;
    let foreign = Account { customer: "cus_foreign".into(), ..account.clone() };
    let old = Account { subscription: "sub_of_last_year".into(), ..account.clone() };
    for other in [foreign, old] {
        for request in [happened("invoice.payment_failed", &other), changed(&other, 1, "past_due")] {
            let answer = follow(&world.env, &request).await?;
            ensure!(answer["decision"] == "ignored" && answer["tenant_id"].is_null(), "{answer}");
        }
        let request = happened("customer.subscription.deleted", &other);
        let outcome = world.run_machine("FollowBillingMachine", &request).await?.succeeded()?;
        ensure!(outcome.states == ["FollowBilling", "DecideOnBilling", "NothingToFollow"], "{:?}", outcome.states);
    }
    // A cancellation of ours, which is marked before Stripe is told.
    let mark = "UPDATE billing_accounts SET cancelled_by_us = subscription WHERE tenant_id = $1";
    world.registry().await?.execute(mark, &[&tenant.id.0]).await?;
    becomes(world, &account, json!({"status": "canceled", "cancellation_details": {"reason": "payment_failed"}}))
        .await?;
    for request in [happened("customer.subscription.deleted", &account), json!({"slug": tenant.slug})] {
        let answer = follow(&world.env, &request).await?;
        ensure!(answer["decision"] == "ignored" && answer["tenant_id"] == json!(tenant.id), "{answer}");
    }
    ensure!(standing(world, &tenant).await? == (Status::Active, vec![]), "it was followed");
    // The undo of an onboarding, with the event that it causes itself.
    Billing::from_env(&world.env)?.remove(&tenant).await?;
    let answer = follow(&world.env, &happened("customer.subscription.deleted", &account)).await?;
    ensure!(answer["decision"] == "ignored" && standing(world, &tenant).await?.0 == Status::Active, "{answer}");
    Ok(())
}

async fn leaving(world: &World) -> Result<()> {
    for (reason, decision, status) in [
        (json!("cancellation_requested"), "offboard", "active"),
        (json!("payment_failed"), "none", "suspended"),
        (json!("payment_disputed"), "none", "suspended"),
        (Value::Null, "none", "suspended"),
    ] {
        let Subscriber { account, .. } = subscriber(world, Plan::Enterprise).await?;
        let gone = json!({"status": "canceled", "cancellation_details": {"reason": reason}});
        becomes(world, &account, gone).await?;
        // Whichever event comes, and however often.
        for kind in ["customer.subscription.deleted", "invoice.payment_failed"] {
            let answer = follow(&world.env, &happened(kind, &account)).await?;
            ensure!(answer["decision"] == decision && answer["status"] == status, "{reason}: {answer}");
        }
    }
    Ok(())
}

async fn plan_and_period(world: &World) -> Result<()> {
    let Subscriber { tenant, account } = subscriber(world, Plan::Starter).await?;
    let look = json!({"tenant_id": tenant.id});
    let registry = world.registry().await?;
    let cycle = async || -> Result<(i64, i64)> {
        let sql = "SELECT extract(epoch FROM cycle_anchor)::bigint, gate_version FROM tenants WHERE id = $1";
        let row = registry.query_one(sql, &[&tenant.id.0]).await?;
        Ok((row.get(0), row.get(1)))
    };
    let id = &account.subscription;
    let subscription = world.stripe(&format!("/v1/subscriptions/{id}")).await?;
    let begun = cycle().await?;
    ensure!(Some(begun.0) == subscription["current_period_start"].as_i64(), "{begun:?}: {subscription}");
    follow(&world.env, &look).await?;
    ensure!(cycle().await? == begun, "the same period is a new version");
    // 31 January 2026, 09:30:15 UTC; 28 February and 31 March begin periods of the same cycle.
    let january = 1_769_851_815;
    for (start, anchor) in [
        (january, january),
        (january + 28 * 86_400, january),
        (january + 59 * 86_400, january),
        (january + 1, january + 1),
    ] {
        becomes(world, &account, json!({"start_date": start})).await?;
        follow(&world.env, &look).await?;
        ensure!(cycle().await?.0 == anchor, "{start}: {:?}, not {anchor}", cycle().await?);
    }

    let item = subscription["items"]["data"][0]["id"].as_str().context("no item")?;
    let growth = [("items[0][id]", item), ("items[0][plan]", "growth")];
    let (status, answer) = ask(world, &format!("/v1/subscriptions/{id}"), &growth, None).await?;
    ensure!(status == 200, "{answer}");
    for _ in 0..2 {
        let answer = follow(&world.env, &happened("customer.subscription.updated", &account)).await?;
        ensure!(answer["decision"] == "change_plan" && answer["plan"] == "growth", "{answer}");
    }
    let outcome = world.run_machine("FollowBillingMachine", &look).await?.succeeded()?;
    ensure!(outcome.times("DecideOnBilling") == 1, "{:?}", outcome.states);
    Ok(())
}

/// A tenant that billing knows by a customer alone, where Stripe is not asked.
pub async fn without_stripe(world: &World) -> Result<Subscriber> {
    let tenant = in_service(world).await?;
    let unique = Uuid::new_v4().simple();
    let account = Account { customer: format!("cus_{unique}"), subscription: format!("sub_{unique}") };
    let sql = "INSERT INTO billing_accounts (tenant_id, customer, adopted) VALUES ($1, $2, true)
               ON CONFLICT (tenant_id) DO UPDATE SET customer = excluded.customer, adopted = true";
    world.registry().await?.execute(sql, &[&tenant.id.0, &account.customer]).await?;
    Ok(Subscriber { tenant, account })
}

async fn sequences(world: &World) -> Result<()> {
    let env = world.env.clone().with("STRIPE_SECRET", "");
    let Subscriber { tenant, account } = without_stripe(world).await?;
    let answer = follow(&env, &json!({"tenant_id": tenant.id})).await?;
    ensure!(answer["decision"] == "ignored", "nothing was said yet: {answer}");
    for (sequence, status, then) in [
        (5, "past_due", "suspended"),
        (4, "active", "suspended"),
        (5, "active", "suspended"),
        (7, "active", "active"),
        (6, "unpaid", "active"),
        (8, "unpaid", "suspended"),
    ] {
        let answer = follow(&env, &changed(&account, sequence, status)).await?;
        ensure!(answer["status"] == then && answer["decision"] == "none", "{sequence} {status}: {answer}");
    }
    // The first event has made the subscription the tenant's; another one of the customer's is not.
    let other = Account { subscription: "sub_other".into(), ..account.clone() };
    ensure!(follow(&env, &changed(&other, 99, "active")).await?["decision"] == "ignored");

    let mut event = changed(&account, 9, "active");
    event["plan"] = json!("growth");
    event["period_start"] = json!("2026-03-05T10:00:00Z");
    for request in [event, json!({"slug": tenant.slug}), changed(&account, 3, "past_due")] {
        let answer = follow(&env, &request).await?;
        ensure!(answer["decision"] == "change_plan" && answer["plan"] == "growth", "decided once: {answer}");
        ensure!(answer["status"] == "active", "{answer}");
    }
    let sql = "SELECT cycle_anchor = '2026-03-05T10:00:00Z' FROM tenants WHERE id = $1";
    let moved: bool = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(moved, "the period is not the cycle");
    // A price that is no plan's is named, and hides nothing else of what the event says.
    let mut event = changed(&account, 10, "past_due");
    event["price"] = json!("price_nobody");
    match follow(&env, &event).await {
        Err(StepError::Conflict(text)) if text.contains("price_nobody") && text.contains("billing_price") => {}
        outcome => anyhow::bail!("{outcome:?}"),
    }
    ensure!(standing(world, &tenant).await?.0 == Status::Suspended, "the unknown price hid the failed payment");
    let mut event = changed(&account, 11, "canceled");
    event["cancellation_reason"] = json!("cancellation_requested");
    ensure!(follow(&env, &event).await?["decision"] == "offboard");
    match follow(&env, &happened("invoice.paid", &account)).await {
        Err(StepError::Misconfigured(text)) if text.contains("STRIPE_SECRET") => Ok(()),
        outcome => anyhow::bail!("{outcome:?}"),
    }
}

async fn came_back(world: &World) -> Result<()> {
    let env = world.env.clone().with("STRIPE_SECRET", "");
    let billing = Billing::from_env(&env)?;
    let Subscriber { tenant, account } = without_stripe(world).await?;
    let look = json!({"tenant_id": tenant.id});
    // One that billing has said nothing bad of stays the tenant's.
    follow(&env, &changed(&account, 1, "active")).await?;
    billing.resume(&tenant).await?;
    ensure!(follow(&env, &look).await?["decision"] == "none");
    let mut left = changed(&account, 2, "canceled");
    left["cancellation_reason"] = json!("cancellation_requested");
    ensure!(follow(&env, &left).await?["decision"] == "offboard");
    for _ in 0..2 {
        billing.resume(&tenant).await?;
    }
    for old in [&look, &left] {
        let answer = follow(&env, old).await?;
        ensure!(answer["decision"] == "ignored", "{old}: {answer}");
    }
    let next = Account { subscription: format!("{}_next", account.subscription), ..account };
    for request in [changed(&next, 1, "active"), look, left] {
        let answer = follow(&env, &request).await?;
        ensure!(answer["decision"] != "offboard", "{request}: {answer}");
    }
    let answer = follow(&env, &changed(&next, 2, "unpaid")).await?;
    ensure!(answer["status"] == "suspended", "its new subscription is not followed: {answer}");
    Ok(())
}

async fn during_provisioning(world: &World) -> Result<()> {
    let (tenant, execution) = provisioning(world).await?;
    let Subscriber { tenant, account } = subscribed(world, tenant).await?;
    let failed = happened("invoice.payment_failed", &account);
    for (what, reasons) in [("past_due", &["payment_failure"][..]), ("active", &[]), ("past_due", &["payment_failure"])]
    {
        becomes(world, &account, json!({"status": what})).await?;
        let answer = follow(&world.env, &failed).await?;
        ensure!(answer["status"] == "provisioning", "{answer}");
        ensure!(standing(world, &tenant).await?.1 == reasons, "{what}: {:?}", standing(world, &tenant).await?);
    }
    let activate = json!({"tenant_id": tenant.id, "execution": execution});
    let activated = world.invoke("activate-tenant", &activate).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(activated["status"] == "suspended", "{activated}");
    let registry = world.registry().await?;
    fence::give_back(&registry, tenant.id, &execution).await?;

    // One that is undone instead takes what was not paid of it along.
    let (tenant, _) = provisioning(world).await?;
    let Subscriber { tenant, account } = subscribed(world, tenant).await?;
    becomes(world, &account, json!({"status": "past_due"})).await?;
    follow(&world.env, &happened("invoice.payment_failed", &account)).await?;
    ensure!(standing(world, &tenant).await?.1 == ["payment_failure"]);
    Billing::from_env(&world.env)?.remove(&tenant).await?;
    ensure!(standing(world, &tenant).await?.1.is_empty(), "the next attempt would come into service suspended");
    let sql =
        "UPDATE tenants SET status = 'pending', execution = NULL, execution_since = NULL, paid_at = NULL WHERE id = $1";
    registry.execute(sql, &[&tenant.id.0]).await?;
    Ok(())
}

async fn refused(world: &World) -> Result<()> {
    let id = format!("bill-{}", Uuid::new_v4());
    let event = json!({
        "event_id": id, "sequence": "1", "customer": "ada@acme.example", "subscription": "sub_1", "status": "late",
        "owner": "ada@acme.example",
    });
    world.put_event("billing", "billing.subscription_changed", &event).await?;
    let ended = world.followed(&BTreeSet::from([id])).await?;
    let (status, _, said) = ended.first().context("no execution")?;
    ensure!(*status == ExecutionStatus::Failed, "{status}: {said}");
    for rule in
        ["request.sequence must be", "request.customer must be", "request.status must be", "request.owner is not a"]
    {
        ensure!(said.contains(rule), "{rule} is not among {said}");
    }
    ensure!(!said.contains("ada@"), "an address is repeated: {said}");
    let mut event = happened("charge.refunded", &Account { customer: "cus_1".into(), subscription: "sub_1".into() });
    event["created"] = json!("today");
    match follow(&world.env, &event).await {
        Err(StepError::InvalidRequest(problems)) => {
            let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
            ensure!(fields == ["request.type", "request.created"], "{problems:?}");
            Ok(())
        }
        outcome => anyhow::bail!("{outcome:?}"),
    }
}
