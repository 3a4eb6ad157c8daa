//! The tenant at Stripe: a customer, and a subscription to its plan's price. Both carry the tenant's id as metadata, so that
//! what an unanswered call made is found again by listing.

mod leaving;
pub mod price;
mod proration;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::billing::{self, Account};
use crate::registry::deletions::Billed;
use crate::registry::{billing_state, contacts};
use crate::resource::{Inspection, Resource};
use crate::stripe::{Stripe, marked};
use crate::subscription::period_start;
use crate::tenant::{OWNER_TAG, Status, Tenant};

/// How long an owner has to pay an invoice that is sent, in days.
const DAYS_UNTIL_DUE: &str = "30";
/// A subscription in one of these is over.
const OVER: &[&str] = &["canceled", "incomplete_expired"];

/// The customer and the subscription; nothing where this stack bills nobody.
pub struct Billing {
    stripe: Option<Stripe>,
    registry: Database,
}

impl Billing {
    /// Reads REGISTRY_SECRET, STRIPE_SECRET (empty: nobody is billed) and STRIPE_API_URL. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Billing { stripe: Stripe::from_env(env)?, registry: Database::registry(env)? })
    }

    /// Whether this stack bills anybody.
    pub fn is_on(&self) -> bool {
        self.stripe.is_some()
    }

    async fn account(&self, tenant: &Tenant) -> Result<Account, StepError> {
        billing::account(&*self.registry.client().await?, tenant.id).await
    }

    /// The tenant's customers: the adopted one, or those that carry its id (more than one only if somebody copied it).
    async fn customers(&self, stripe: &Stripe, tenant: &Tenant, account: &Account) -> Result<Vec<String>, StepError> {
        let mut found = Vec::new();
        if let Some(id) = &account.customer
            && let Some(customer) = stripe.get(&format!("/v1/customers/{id}"), &[]).await?
        {
            let ours = account.adopted || marked(&customer, OWNER_TAG, &tenant.id.to_string());
            if ours && customer["deleted"] != true {
                found.push(id.clone());
            }
        }
        if account.adopted {
            return Ok(found);
        }
        // One that was made by a call whose answer was lost: lists by address are up to date, searches by metadata are not.
        let owner = contacts::owner(&*self.registry.client().await?, tenant.id).await?;
        let Some(owner) = owner else { return Ok(found) };
        for customer in stripe.list("/v1/customers", &[("email", &owner.email)]).await? {
            let id = customer["id"].as_str().unwrap_or_default();
            if marked(&customer, OWNER_TAG, &tenant.id.to_string()) && !found.iter().any(|known| known == id) {
                found.push(id.to_owned());
            }
        }
        Ok(found)
    }

    /// The customer's subscriptions that are this tenant's, those that are over included.
    async fn subscriptions(&self, stripe: &Stripe, tenant: &Tenant, customer: &str) -> Result<Vec<Value>, StepError> {
        let mut all = stripe.list("/v1/subscriptions", &[("customer", customer), ("status", "all")]).await?;
        all.retain(|subscription| marked(subscription, OWNER_TAG, &tenant.id.to_string()));
        Ok(all)
    }

    /// Ends what is left of the tenant's subscriptions and deletes its customers, and with them what Stripe keeps of its people. Gives
    /// nothing back: [`Billing::cancel`] has. An adopted customer stays. Returns how many were deleted; again finds none.
    ///
    /// # Errors
    /// As Stripe answers.
    pub async fn erase(&self, tenant: &Tenant, billed: &Billed) -> Result<usize, StepError> {
        let Some(stripe) = &self.stripe else { return Ok(0) };
        let mut account = self.account(tenant).await?;
        // The registry forgets them before all is done; the deletion does not.
        account.customer = account.customer.or_else(|| billed.customer.clone());
        account.adopted |= billed.adopted;
        let mut deleted = 0;
        for customer in self.customers(stripe, tenant, &account).await? {
            for subscription in self.subscriptions(stripe, tenant, &customer).await? {
                if !is_over(&subscription) {
                    stripe.delete(&format!("/v1/subscriptions/{}", text(&subscription, "id")?)).await?;
                }
            }
            if !account.adopted {
                stripe.delete(&format!("/v1/customers/{customer}")).await?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    async fn ensure_customer(&self, stripe: &Stripe, tenant: &Tenant, account: &Account) -> Result<String, StepError> {
        if let Some(customer) = self.customers(stripe, tenant, account).await?.into_iter().next() {
            return Ok(customer);
        }
        if let (true, Some(customer)) = (account.adopted, &account.customer) {
            return Err(StepError::InvalidRequest(vec![Problem {
                field: "billing.customer".into(),
                rule: format!("must be a customer of this billing account; Stripe knows no {customer}"),
            }]));
        }
        let owner = contacts::owner(&*self.registry.client().await?, tenant.id).await?;
        let owner = owner.ok_or_else(|| StepError::Unexpected(format!("tenant {} has no owner to bill", tenant.id)))?;
        let id = tenant.id.to_string();
        let mut form = vec![
            ("name", owner.name.as_str()),
            ("email", owner.email.as_str()),
            ("description", tenant.slug.as_str()),
            ("metadata[tenantry-tenant-id]", id.as_str()),
        ];
        if let Some(method) = &account.payment_method {
            form.push(("payment_method", method));
            form.push(("invoice_settings[default_payment_method]", method));
        }
        let made = stripe.post("/v1/customers", &form, &key(tenant, "customer", account)).await?;
        text(&made, "id")
    }

    async fn ensure_subscription(
        &self,
        stripe: &Stripe,
        tenant: &Tenant,
        account: &Account,
        customer: &str,
    ) -> Result<Value, StepError> {
        let live = self.subscriptions(stripe, tenant, customer).await?.into_iter().find(|one| !is_over(one));
        if let Some(live) = live {
            return Ok(live);
        }
        let id = tenant.id.to_string();
        let mut form = vec![
            ("customer", customer),
            ("items[0][price]", account.price.as_str()),
            ("metadata[tenantry-tenant-id]", id.as_str()),
        ];
        if account.payment_method.is_none() && !account.adopted {
            form.extend([("collection_method", "send_invoice"), ("days_until_due", DAYS_UNTIL_DUE)]);
        }
        stripe.post("/v1/subscriptions", &form, &key(tenant, "subscription", account)).await
    }

    /// The subscriptions that are not over, of all of the tenant's customers.
    async fn live(&self, stripe: &Stripe, tenant: &Tenant, account: &Account) -> Result<Vec<Value>, StepError> {
        let mut live = Vec::new();
        for customer in self.customers(stripe, tenant, account).await? {
            let mut found = self.subscriptions(stripe, tenant, &customer).await?;
            found.retain(|subscription| !is_over(subscription));
            live.extend(found);
        }
        Ok(live)
    }

    /// Ends what an invoice asks for.
    async fn void_open(
        &self,
        stripe: &Stripe,
        tenant: &Tenant,
        account: &Account,
        invoice: &Value,
    ) -> Result<(), StepError> {
        if invoice["status"] == "open" {
            let id = text(invoice, "id")?;
            let key = key(tenant, &format!("void {id}"), account);
            stripe.post(&format!("/v1/invoices/{id}/void"), &[], &key).await?;
        }
        Ok(())
    }

    /// Ends what a subscription's invoices ask for, and gives back what they charged, less what was given back before.
    async fn refund(
        &self,
        stripe: &Stripe,
        tenant: &Tenant,
        account: &Account,
        subscription: &str,
    ) -> Result<(), StepError> {
        for invoice in stripe.list("/v1/invoices", &[("subscription", subscription)]).await? {
            self.void_open(stripe, tenant, account, &invoice).await?;
            let Some((charge, amount)) = paid(&invoice) else { continue };
            let refunds = stripe.list("/v1/refunds", &[("charge", charge)]).await?;
            let left = amount - given_back(&refunds);
            if left > 0 {
                let form = [
                    ("charge", charge),
                    ("amount", &left.to_string()),
                    ("metadata[tenantry-tenant-id]", &tenant.id.to_string()),
                ];
                stripe.post("/v1/refunds", &form, &key(tenant, &format!("refund {charge}"), account)).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Resource for Billing {
    fn kind(&self) -> &'static str {
        "billing"
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        let Some(stripe) = &self.stripe else { return Ok(json!({ "billing": "off" })) };
        let account = self.account(tenant).await?;
        let customer = self.ensure_customer(stripe, tenant, &account).await?;
        billing::remember(&*self.registry.client().await?, tenant.id, &customer, account.subscription.as_deref())
            .await?;
        let subscription = self.ensure_subscription(stripe, tenant, &account, &customer).await?;
        let id = text(&subscription, "id")?;
        let client = self.registry.client().await?;
        billing::remember(&*client, tenant.id, &customer, Some(&id)).await?;
        // Before the tenant is in service: moved later, the cycle would begin anew with nothing counted.
        if let Some(start) = period_start(&subscription) {
            billing_state::anchor(&*client, tenant.id, start).await?;
        }
        drop(client);
        if subscription["status"] == "incomplete" {
            return Err(StepError::Conflict(format!(
                "the first payment of tenant {} ({}) did not go through: Stripe's subscription {id} says why; start again \
                 with another payment method",
                tenant.slug, tenant.id
            )));
        }
        Ok(json!({ "customer": customer, "adopted": account.adopted, "subscription": id }))
    }

    /// Cancels at once and gives back all that was charged: this undoes an onboarding. The customer goes too, unless it was
    /// adopted.
    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let Some(stripe) = &self.stripe else { return Ok(()) };
        let account = self.account(tenant).await?;
        billing::cancelling(&*self.registry.client().await?, tenant.id).await?;
        for customer in self.customers(stripe, tenant, &account).await? {
            for subscription in self.subscriptions(stripe, tenant, &customer).await? {
                let id = text(&subscription, "id")?;
                if !is_over(&subscription) {
                    if account.subscription.is_none() {
                        // Its making was never answered. Until it is forgotten, what it charged is not given back.
                        billing::remember(&*self.registry.client().await?, tenant.id, &customer, Some(&id)).await?;
                        billing::cancelling(&*self.registry.client().await?, tenant.id).await?;
                    }
                    stripe.delete(&format!("/v1/subscriptions/{id}")).await?;
                }
                self.refund(stripe, tenant, &account, &id).await?;
            }
            if !account.adopted {
                stripe.delete(&format!("/v1/customers/{customer}")).await?;
            }
        }
        billing::forget(&*self.registry.client().await?, tenant.id).await
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        let Some(stripe) = &self.stripe else { return Ok(Inspection::Absent) };
        let account = self.account(tenant).await?;
        let customers = self.customers(stripe, tenant, &account).await?;
        let live = self.live(stripe, tenant, &account).await?;
        // An adopted customer stays, and is not the tenant's: its subscription is, until it is forgotten.
        let left = account.cancelled_by_us_at.is_some() && account.subscription.is_some();
        if live.is_empty() && (customers.is_empty() || account.adopted && account.subscription.is_none()) {
            return Ok(Inspection::Absent);
        }
        let mut drift = Vec::new();
        if left {
            // It left: the customer stays as long as the hold does, and nothing is charged.
            drift.extend(live.iter().map(|_| "a subscription is not cancelled".to_owned()));
            return Ok(if drift.is_empty() { Inspection::Present } else { Inspection::Drifted(drift) });
        }
        if customers.len() > 1 {
            drift.push(format!("{} customers carry the tenant's id", customers.len()));
        }
        let undone = matches!(tenant.status, Status::Pending | Status::Provisioning);
        match (live.as_slice(), &account.subscription) {
            // It is forgotten when the last refund is made.
            ([], Some(over)) if undone => {
                drift.push(format!("subscription {over} is over, and what it charged is not given back yet"));
            }
            ([], _) => drift.push("no subscription".to_owned()),
            ([one], _) => {
                let price = price_of(one);
                if price != account.price {
                    drift.push(format!("subscription is to price {price}, not {}", account.price));
                }
                if account.subscription.as_deref() != one["id"].as_str() {
                    drift.push("the registry remembers another subscription".to_owned());
                }
            }
            (more, _) => drift.push(format!("{} subscriptions are not cancelled", more.len())),
        }
        Ok(if drift.is_empty() { Inspection::Present } else { Inspection::Drifted(drift) })
    }
}

/// The price that a subscription is to. Subscriptions of ours have one item.
fn price_of(subscription: &Value) -> &str {
    let item = &subscription["items"]["data"][0];
    item["price"]["id"].as_str().or_else(|| item["plan"]["id"].as_str()).unwrap_or_default()
}

/// The charge that paid an invoice, and how much it was.
fn paid(invoice: &Value) -> Option<(&str, i64)> {
    let charge = invoice["charge"].as_str().or_else(|| invoice["charge"]["id"].as_str())?;
    (invoice["status"] == "paid").then(|| (charge, invoice["amount_paid"].as_i64().unwrap_or_default()))
}

/// What was given back of a charge.
fn given_back(refunds: &[Value]) -> i64 {
    let stands = |one: &&Value| one["status"] != "failed" && one["status"] != "canceled";
    refunds.iter().filter(stands).filter_map(|one| one["amount"].as_i64()).sum()
}

/// Whether a subscription has ended for good.
pub(crate) fn is_over(subscription: &Value) -> bool {
    subscription["status"].as_str().is_some_and(|status| OVER.contains(&status))
}

/// Stripe answers a repeated key as it answered the first: tenant, operation and attempt.
fn key(tenant: &Tenant, operation: &str, account: &Account) -> String {
    format!("{} {operation} {}", tenant.id, account.attempt)
}

fn text(object: &Value, key: &str) -> Result<String, StepError> {
    let text = object[key].as_str().map(str::to_owned);
    text.ok_or_else(|| StepError::Unexpected(format!("Stripe answered with an object without {key}")))
}
