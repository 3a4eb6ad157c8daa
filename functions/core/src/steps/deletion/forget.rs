//! ForgetUsage, ForgetBilling and EraseContacts: what was counted of the tenant, what it is at Stripe, and what the registry has of
//! its people.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Removal;
use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::Projector;
use crate::postgres::Database;
use crate::registry::holds::Hold;
use crate::registry::{Record, deletions, erasure};
use crate::resource::billing::Billing;
use crate::resource::wait::until_done;

/// Deletes the tenant's keys in Redis, with the usage that the registry kept of them.
pub struct ForgetUsage {
    redis: Projector,
}

/// Ends the subscription as CancelSubscription does, and deletes the customer at Stripe, and with it its personal data. One that
/// was adopted is not ours; only its subscription ends.
pub struct ForgetBilling {
    billing: Billing,
}

/// Deletes what is personal in the registry.
pub struct EraseContacts;

impl ForgetUsage {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ForgetUsage { redis: Projector::from_env(env)? })
    }
}

#[async_trait]
impl Removal for ForgetUsage {
    async fn act(&self, record: &Record, _hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let tenant = &record.tenant;
        let forgotten = AtomicUsize::new(0);
        // The sweep of the gate, where it is under way, keeps what it read before: in the registry what Redis had, and in Redis what
        // the registry had. A look that finds neither ends that.
        until_done("forgetting what a tenant used", || async {
            let rows = erasure::erase(&mut *registry.client().await?, tenant.id, erasure::USAGE).await?;
            let usage = self.redis.keys(&tenant.slug).await?.iter().any(|key| key.starts_with("usage:"));
            forgotten.fetch_add(self.redis.forget(&tenant.slug).await?, Ordering::Relaxed);
            Ok((rows > 0 || usage).then(|| "the gate's sweep wrote it anew".to_owned()))
        })
        .await?;
        Ok(json!({ "keys": forgotten.into_inner() }))
    }
}

impl ForgetBilling {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ForgetBilling { billing: Billing::from_env(env)? })
    }
}

#[async_trait]
impl Removal for ForgetBilling {
    async fn act(&self, record: &Record, _hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let billed = deletions::read(&*registry.client().await?, record.tenant.id).await?.billed;
        // Who is deleted at once was never offboarded: the rest of the period is still to be given back. Who was offboarded has that
        // refund, with its mark, and gets no other. Once its account is erased the tenant has nothing to cancel.
        let cancelled = self.billing.cancel(&record.tenant).await?;
        let customers = self.billing.erase(&record.tenant, &billed).await?;
        Ok(json!({ "customers": customers, "refunded": cancelled["refunded"] }))
    }
}

#[async_trait]
impl Removal for EraseContacts {
    async fn act(&self, record: &Record, _hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let tenant = record.tenant.id;
        let mut client = registry.client().await?;
        let rows = erasure::erase(&mut client, tenant, erasure::ERASED).await?;
        let traces = erasure::erase_traces(&client, tenant).await?;
        Ok(json!({ "rows": rows + traces }))
    }
}
