//! A tenant at Stripe: billed once, adopted customers kept, and what an undo charged given back.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tenantry_core::error::StepError;
use tenantry_core::resource::billing::Billing;
use tenantry_core::resource::{self, Inspection, Resource};
use tenantry_core::tenant::{Plan, Status, Tenant};
use tenantry_local::proxy::{System, Verdict};

use crate::faults::{Target, marks};
use crate::machine::sign_up;
use crate::provisioning::all_are;
use crate::registry::registered;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("a_tenant_is_billed_once_and_an_undo_gives_back_what_was_charged", |world| Box::pin(charged(world))),
    ("what_an_unanswered_call_made_is_found_again", |world| Box::pin(unanswered(world))),
    ("an_adopted_customer_is_kept", |world| Box::pin(adopted(world))),
    ("what_an_undo_could_not_give_back_is_left_over", |world| Box::pin(not_given_back(world))),
    ("a_request_names_its_customer", |world| Box::pin(named(world))),
    ("a_setting_turns_billing_off", |world| Box::pin(off(world))),
    ("a_key_gives_one_answer_and_refuses_another_request", |world| Box::pin(idempotent(world))),
];

async fn tenant(world: &World) -> Result<Tenant> {
    Ok(registered(world, &mut world.registry().await?, Plan::Growth, true).await?.tenant)
}

async fn account(world: &World, tenant: &Tenant, set: &str) -> Result<()> {
    let sql = format!("UPDATE billing_accounts SET {set} WHERE tenant_id = $1");
    ensure!(world.registry().await?.execute(&sql, &[&tenant.id.0]).await? == 1);
    Ok(())
}

/// A tenant's objects of a kind at Stripe.
pub async fn mine(world: &World, kind: &str, tenant: &Tenant) -> Result<Vec<Value>> {
    let mut all = world.stripe(&format!("/v1/{kind}?limit=100000")).await?;
    let mut all = all["data"].as_array_mut().map(std::mem::take).context("no list")?;
    all.retain(|one| one["metadata"]["tenantry-tenant-id"] == tenant.id.to_string());
    Ok(all)
}

/// How many subscriptions of a tenant's customer are active. Asked for by customer: the fake takes seconds to write out all that
/// hundreds of tenants have, and answers nobody else meanwhile.
pub async fn active_subscriptions(world: &World, tenant: &Tenant) -> Result<usize> {
    let sql = "SELECT customer FROM billing_accounts WHERE tenant_id = $1";
    let customer: Option<String> = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    let customer = customer.context("no customer")?;
    let listed = world.stripe(&format!("/v1/subscriptions?customer={customer}&status=active&limit=100")).await?;
    Ok(listed["data"].as_array().context("no list")?.len())
}

async fn charged(world: &World) -> Result<()> {
    let tenant = tenant(world).await?;
    account(world, &tenant, "payment_method = 'pm_card_visa'").await?;
    let billing = Billing::from_env(&world.env)?;
    ensure!(billing.inspect(&tenant).await? == Inspection::Absent);
    let made = billing.ensure(&tenant).await?;
    ensure!(billing.ensure(&tenant).await? == made && billing.inspect(&tenant).await? == Inspection::Present);
    let subscriptions = mine(world, "subscriptions", &tenant).await?;
    ensure!(mine(world, "customers", &tenant).await?.len() == 1 && subscriptions.len() == 1, "{subscriptions:?}");
    ensure!(subscriptions[0]["status"] == "active" && subscriptions[0]["items"]["data"][0]["plan"]["id"] == "growth");

    let paid =
        world.stripe(&format!("/v1/invoices?subscription={}", made["subscription"].as_str().unwrap_or("?"))).await?;
    let amount = paid["data"][0]["amount_paid"].as_i64().context("nothing was paid")?;
    ensure!(amount == 19_900, "{amount} was charged");
    billing.remove(&tenant).await?;
    billing.remove(&tenant).await?;
    ensure!(billing.inspect(&tenant).await? == Inspection::Absent);
    let refunds = mine(world, "refunds", &tenant).await?;
    let given: i64 = refunds.iter().filter_map(|one| one["amount"].as_i64()).sum();
    ensure!(refunds.len() == 1 && given == amount, "{refunds:?}");
    ensure!(mine(world, "customers", &tenant).await?.is_empty(), "the customer is left");
    Ok(())
}

async fn unanswered(world: &World) -> Result<()> {
    let tenant = tenant(world).await?;
    let billing = Billing::from_env(&world.env)?;
    let made = billing.ensure(&tenant).await?;
    // As after two lost answers, and longer ago than Stripe remembers keys.
    account(world, &tenant, "customer = NULL, subscription = NULL").await?;
    let sql = "UPDATE tenants SET attempt = attempt + 1 WHERE id = $1";
    world.registry().await?.execute(sql, &[&tenant.id.0]).await?;
    ensure!(matches!(billing.inspect(&tenant).await?, Inspection::Drifted(_)), "it is not found");
    ensure!(billing.ensure(&tenant).await? == made, "another was made");
    account(world, &tenant, "customer = NULL, subscription = NULL").await?;
    billing.remove(&tenant).await?;
    ensure!(mine(world, "customers", &tenant).await?.is_empty(), "the undo did not find it");
    Ok(())
}

/// Makes a customer, with a card, that the tenant is to adopt. Returns its id.
async fn adopt(world: &World, tenant: &Tenant) -> Result<String> {
    let card = "pm_card_visa";
    let form =
        [("email", "theirs@example.com"), ("payment_method", card), ("invoice_settings[default_payment_method]", card)];
    let theirs = ask(world, "/v1/customers", &form, None).await?.1;
    let id = theirs["id"].as_str().context("no customer")?;
    account(world, tenant, &format!("customer = '{id}', adopted = true")).await?;
    Ok(id.to_owned())
}

async fn adopted(world: &World) -> Result<()> {
    let tenant = tenant(world).await?;
    let id = adopt(world, &tenant).await?;
    let billing = Billing::from_env(&world.env)?;
    let made = billing.ensure(&tenant).await?;
    ensure!(
        made["customer"] == id.as_str()
            && made["adopted"] == true
            && billing.inspect(&tenant).await? == Inspection::Present
    );
    billing.remove(&tenant).await?;
    ensure!(billing.inspect(&tenant).await? == Inspection::Absent);
    let kept = world.stripe(&format!("/v1/customers/{id}")).await?;
    ensure!(kept["id"] == id.as_str(), "the adopted customer is gone");
    ensure!(billing.ensure(&tenant).await?["customer"] == id.as_str(), "it is not billed again");
    billing.remove(&tenant).await?;

    account(world, &tenant, "customer = 'cus_nobody'").await?;
    match billing.ensure(&tenant).await {
        Err(StepError::InvalidRequest(problems)) if problems[0].field == "billing.customer" => Ok(()),
        outcome => anyhow::bail!("{outcome:?}"),
    }
}

/// Refunds are refused for good, for a subscription that the registry knows, and one whose making was never answered.
async fn not_given_back(world: &World) -> Result<()> {
    let billing = Billing::from_env(&world.env)?;
    for answered in [true, false] {
        let tenant = tenant(world).await?;
        adopt(world, &tenant).await?;
        billing.ensure(&tenant).await?;
        if !answered {
            account(world, &tenant, "subscription = NULL").await?;
        }
        let undo = json!({"tenant_id": tenant.id, "execution": "manual:test"});
        let refunds = Target { system: System::Stripe, function: "cancel-billing", holds: "POST /v1/refunds" };
        let refused = world.faults.inject(refunds, marks(tenant.id, tenant.slug.as_str()), Verdict::Refuse, 1_000_000);
        let failed = world.invoke("cancel-billing", &undo).await?;
        ensure!(failed.is_err() && refused.hits() > 0, "{failed:?}");
        drop(refused);
        match billing.inspect(&tenant).await? {
            Inspection::Drifted(drift) if drift[0].contains("not given back") => {}
            found => anyhow::bail!("the charge is kept, and it is {found:?}"),
        }
        let undone = world.invoke("cancel-billing", &undo).await?;
        ensure!(undone.is_ok() && billing.inspect(&tenant).await? == Inspection::Absent, "{undone:?}");
        let refunds = mine(world, "refunds", &tenant).await?;
        let given: i64 = refunds.iter().filter_map(|one| one["amount"].as_i64()).sum();
        ensure!(given == 19_900, "{refunds:?}");
    }
    Ok(())
}

/// The whole machine, for a customer that exists, one that does not, and a card that is declined.
async fn named(world: &World) -> Result<()> {
    let card = "pm_card_visa";
    let form =
        [("email", "named@example.com"), ("payment_method", card), ("invoice_settings[default_payment_method]", card)];
    let theirs = ask(world, "/v1/customers", &form, None).await?.1;
    let provision = async |billing: Value| {
        let slug = world.fresh_slug("billed");
        let mut request = sign_up(&slug, "starter");
        request["billing"] = billing;
        let outcome = world.provision(&request).await?;
        anyhow::Ok((outcome, world.record(&slug).await?))
    };
    let (outcome, record) = provision(json!({"customer": theirs["id"]})).await?;
    outcome.succeeded()?;
    let subscriptions = mine(world, "subscriptions", &record.tenant).await?;
    ensure!(subscriptions.len() == 1 && subscriptions[0]["customer"] == theirs["id"], "{subscriptions:?}");

    for (billing, error) in [
        (json!({"customer": "cus_nobody"}), "InvalidRequest"),
        (json!({"payment_method": "pm_card_visa_chargeDeclined"}), "Conflict"),
    ] {
        let (outcome, record) = provision(billing.clone()).await?;
        ensure!(outcome.error == error && outcome.times("CancelBilling") == 1, "{billing}: {outcome:?}");
        ensure!(record.tenant.status == Status::Pending && record.needs_operator.is_none(), "{billing}: {record:?}");
        all_are(world, &record.tenant, &Inspection::Absent).await?;
        ensure!(mine(world, "customers", &record.tenant).await?.is_empty(), "{billing}: the customer is left");
    }
    Ok(())
}

async fn off(world: &World) -> Result<()> {
    let tenant = tenant(world).await?;
    let env = world.env.clone().with("STRIPE_SECRET", "");
    ensure!(Billing::from_env(&env)?.ensure(&tenant).await? == json!({"billing": "off"}));
    ensure!(mine(world, "customers", &tenant).await?.is_empty());
    ensure!(resource::all(&env)?.len() + 1 == resource::all(&world.env)?.len(), "it is still looked for");
    Ok(())
}

/// The local stack's own: what stands in front of localstripe keeps keys as Stripe documents them.
async fn idempotent(world: &World) -> Result<()> {
    let form = [("email", "once@example.com")];
    let many = (0..20).map(|_| ask(world, "/v1/customers", &form, Some("key one")));
    let answers = futures::future::try_join_all(many).await?;
    let made: std::collections::BTreeSet<String> =
        answers.iter().filter(|(status, _)| *status == 200).map(|(_, body)| body["id"].to_string()).collect();
    ensure!(made.len() == 1, "{answers:?}");
    ensure!(answers.iter().all(|(status, _)| *status == 200 || *status == 409), "{answers:?}");
    let (status, body) = ask(world, "/v1/customers", &[("email", "twice@example.com")], Some("key one")).await?;
    ensure!(status == 400 && body["error"]["type"] == "idempotency_error", "{status} {body}");
    let refused = ask(world, "/v1/customers", &[("nothing", "x")], Some("key two")).await?;
    ensure!(
        refused == ask(world, "/v1/customers", &[("nothing", "x")], Some("key two")).await?,
        "failures are kept too"
    );
    Ok(())
}

/// Posts a form to Stripe. Returns status and answer.
pub async fn ask(world: &World, path: &str, form: &[(&str, &str)], key: Option<&str>) -> Result<(u16, Value)> {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let mut request = reqwest::Client::new()
        .post(format!("{}{path}", world.export("STRIPE_API_URL")?))
        .bearer_auth(world.export("STRIPE_API_KEY")?)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}
