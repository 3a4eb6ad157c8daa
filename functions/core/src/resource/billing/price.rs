//! The price of a tenant's subscription, as it follows a change of plan that did not come from billing.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Billing, is_over, key, price_of, text};
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::billing::Account;
use crate::registry::plans;
use crate::step::Action;
use crate::stripe::Stripe;
use crate::tenant::Tenant;

/// The subscription's price; nothing where this stack bills nobody.
pub struct BillingPrice(Billing);

impl BillingPrice {
    /// Reads what [`Billing::from_env`] reads. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(BillingPrice(Billing::from_env(env)?))
    }
}

/// The subscription that the registry remembers, unless it is over.
async fn subscription(stripe: &Stripe, account: &Account) -> Result<Option<Value>, StepError> {
    let Some(id) = &account.subscription else { return Ok(None) };
    Ok(stripe.get(&format!("/v1/subscriptions/{id}"), &[]).await?.filter(|found| !is_over(found)))
}

#[async_trait]
impl Action for BillingPrice {
    /// What is left of the period at the old price is credited, and charged at the new one, with the next invoice.
    async fn act(&self, tenant: &Tenant, database: &Database) -> Result<Value, StepError> {
        let Some(stripe) = &self.0.stripe else { return Ok(json!({ "billing": "off" })) };
        let account = self.0.account(tenant).await?;
        let Some(subscription) = subscription(stripe, &account).await? else {
            // A cancelled one is billing's to look after: changing a plan begins none.
            tracing::warn!("the tenant has no subscription whose price could follow its plan");
            return Ok(json!({ "subscription": null }));
        };
        let id = text(&subscription, "id")?;
        if price_of(&subscription) != account.price {
            let item = text(&subscription["items"]["data"][0], "id")?;
            let form = [
                ("items[0][id]", item.as_str()),
                ("items[0][price]", account.price.as_str()),
                ("proration_behavior", "create_prorations"),
            ];
            // A tenant may come back to a price within the 24 hours that Stripe remembers keys for.
            let change = plans::newest(&*database.client().await?, tenant.id).await?;
            let key = key(tenant, &format!("price of change {change}"), &account);
            stripe.post(&format!("/v1/subscriptions/{id}"), &form, &key).await?;
        }
        Ok(json!({ "subscription": id, "price": account.price }))
    }

    async fn holds(&self, tenant: &Tenant) -> Result<bool, StepError> {
        let Some(stripe) = &self.0.stripe else { return Ok(true) };
        let account = self.0.account(tenant).await?;
        let subscription = subscription(stripe, &account).await?;
        Ok(subscription.is_none_or(|subscription| price_of(&subscription) == account.price))
    }
}
