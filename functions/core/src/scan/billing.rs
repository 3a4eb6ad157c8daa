//! Stripe: the customer and the subscription, by the ids that the registry had.

use async_trait::async_trait;

use super::{Finding, Kept, Store, Subject};
use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::billing::is_over;
use crate::stripe::Stripe;

/// The stack's Stripe account.
pub(super) struct Customers {
    stripe: Stripe,
}

impl Customers {
    /// `None` where this stack bills nobody.
    pub(super) fn from_env(env: &Environment) -> Result<Option<Self>, StepError> {
        Ok(Stripe::from_env(env)?.map(|stripe| Customers { stripe }))
    }
}

#[async_trait]
impl Store for Customers {
    fn name(&self) -> &'static str {
        "billing"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let billed = &subject.billed;
        let (mut customers, mut kept) = (0, Vec::new());
        if let Some(id) = &billed.customer {
            let found = self.stripe.get(&format!("/v1/customers/{id}"), &[]).await?;
            let there = found.is_some_and(|customer| customer["deleted"] != true);
            if there && billed.adopted {
                kept.push(Kept {
                    what: "a customer at Stripe".into(),
                    why: "it was there before the tenant, which only adopted it".into(),
                    until: None,
                });
            } else {
                customers += i64::from(there);
            }
        }
        let mut subscriptions = 0;
        if let Some(id) = &billed.subscription {
            let found = self.stripe.get(&format!("/v1/subscriptions/{id}"), &[]).await?;
            subscriptions += i64::from(found.is_some_and(|subscription| !is_over(&subscription)));
        }
        Ok(Finding { kept, ..Finding::of([("customers", customers), ("live subscriptions", subscriptions)]) })
    }
}
