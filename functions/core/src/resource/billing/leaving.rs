//! A subscription that ends before its period does, and begins again when the tenant comes back.
//!
//! Stripe's `prorate` credits the customer, which is of no use to one that leaves: what is left of each paid invoice's period is
//! refunded to where it came from. The customer stays, for the hold's time, with the way of paying that it has.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::proration::{Period, due};
use super::{Billing, is_over, key, text};
use crate::error::StepError;
use crate::registry::billing::{self, Account};
use crate::registry::billing_state;
use crate::stripe::Stripe;
use crate::tenant::Tenant;

/// What marks a refund of ours, so that a repeated call finds it.
const MARK: &str = "tenantry-refund";
/// Its value.
const OFFBOARDING: &str = "offboarding";

impl Billing {
    /// Cancels the tenant's subscription at once, voids what is open, and gives back what is left of what was paid. The moment
    /// that it counts from is kept before Stripe is told, so that a repeated call computes the same, and who hears of the
    /// cancellation from Stripe knows that it was ours. Again changes nothing.
    ///
    /// # Errors
    /// As Stripe answers.
    pub async fn cancel(&self, tenant: &Tenant) -> Result<Value, StepError> {
        let Some(stripe) = &self.stripe else { return Ok(json!({ "billing": "off" })) };
        billing::mark_cancelled(&*self.registry.client().await?, tenant.id).await?;
        let account = self.account(tenant).await?;
        let Some(since) = account.cancelled_by_us_at.map(OffsetDateTime::unix_timestamp) else {
            return Ok(json!({ "cancelled": [], "refunded": 0 }));
        };
        let (mut cancelled, mut refunded) = (Vec::new(), 0);
        for customer in self.customers(stripe, tenant, &account).await? {
            for subscription in self.subscriptions(stripe, tenant, &customer).await? {
                let id = text(&subscription, "id")?;
                if !is_over(&subscription) {
                    stripe.delete(&format!("/v1/subscriptions/{id}")).await?;
                } else if subscription["ended_at"].as_i64().is_none_or(|ended| ended < since) {
                    continue; // it was over before
                }
                refunded += self.give_back_rest(stripe, tenant, &account, &subscription, since).await?;
                cancelled.push(id);
            }
        }
        Ok(json!({ "cancelled": cancelled, "refunded": refunded }))
    }

    /// Whether nothing is subscribed any more.
    ///
    /// # Errors
    /// As Stripe answers.
    pub async fn is_cancelled(&self, tenant: &Tenant) -> Result<bool, StepError> {
        let Some(stripe) = &self.stripe else { return Ok(true) };
        let account = self.account(tenant).await?;
        Ok(account.cancelled_by_us_at.is_some() && self.live(stripe, tenant, &account).await?.is_empty())
    }

    /// Subscribes a tenant that came back, with the customer that it has; where Stripe is not asked, the next event names its new
    /// subscription. Again changes nothing.
    ///
    /// # Errors
    /// `Conflict` when the first payment does not go through; otherwise as Stripe answers.
    pub async fn resume(&self, tenant: &Tenant) -> Result<Value, StepError> {
        if self.stripe.is_none() {
            billing_state::forget_over(&*self.registry.client().await?, tenant.id).await?;
            return Ok(json!({ "billing": "off" }));
        }
        let made = crate::resource::Resource::ensure(self, tenant).await?;
        billing::unmark_cancelled(&*self.registry.client().await?, tenant.id).await?;
        Ok(made)
    }

    /// Refunds, of every paid invoice of a subscription, what is left of the period that it pays for. An upgrade in mid-period
    /// has an invoice of its own, for the rest of that period: together they come to what the larger plan's rest is worth.
    async fn give_back_rest(
        &self,
        stripe: &Stripe,
        tenant: &Tenant,
        account: &Account,
        subscription: &Value,
        since: i64,
    ) -> Result<i64, StepError> {
        let id = text(subscription, "id")?;
        let mut refunded = 0;
        for invoice in stripe.list("/v1/invoices", &[("subscription", &id)]).await? {
            self.void_open(stripe, tenant, account, &invoice).await?;
            let Some((charge, paid)) = super::paid(&invoice) else { continue };
            let Some(period) = period(&invoice, subscription) else { continue };
            let refunds = stripe.list("/v1/refunds", &[("charge", charge)]).await?;
            if refunds.iter().any(|one| one["metadata"][MARK] == OFFBOARDING) {
                continue;
            }
            let amount = due(paid, super::given_back(&refunds), period, since);
            if amount > 0 {
                let mark = format!("metadata[{MARK}]");
                let (amount_text, id) = (amount.to_string(), tenant.id.to_string());
                let form = [
                    ("charge", charge),
                    ("amount", amount_text.as_str()),
                    ("metadata[tenantry-tenant-id]", id.as_str()),
                    (mark.as_str(), OFFBOARDING),
                ];
                let key = key(tenant, &format!("prorated refund {charge}"), account);
                stripe.post("/v1/refunds", &form, &key).await?;
            }
            refunded += amount;
        }
        Ok(refunded)
    }
}

/// The period that an invoice pays for: that of its line that reaches furthest, or else the subscription's own.
fn period(invoice: &Value, subscription: &Value) -> Option<Period> {
    let read = |start: &Value, end: &Value| Some(Period { start: start.as_i64()?, end: end.as_i64()? });
    let lines = invoice["lines"]["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lines = lines.iter().filter_map(|line| read(&line["period"]["start"], &line["period"]["end"]));
    lines
        .max_by_key(|period| period.end)
        .or_else(|| read(&subscription["current_period_start"], &subscription["current_period_end"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invoice_pays_for_what_its_lines_say() {
        let subscription = json!({"current_period_start": 10, "current_period_end": 20});
        let line = |start: i64, end: i64| json!({"period": {"start": start, "end": end}});
        let invoice = json!({"lines": {"data": [line(10, 12), line(12, 20)]}});
        assert_eq!(period(&invoice, &subscription), Some(Period { start: 12, end: 20 }));
        assert_eq!(period(&json!({}), &subscription), Some(Period { start: 10, end: 20 }));
        assert_eq!(period(&json!({}), &json!({})), None);
    }
}
