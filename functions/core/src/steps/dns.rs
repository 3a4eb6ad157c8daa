//! VerifyDnsRecord: a tenant is alive only when the world can find it.

use async_trait::async_trait;
use serde_json::Value;

use crate::dns_check::DnsCheck;
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::journal;
use crate::step::Action;
use crate::tenant::Tenant;

/// The step whose journal entry says which Route 53 change to wait for.
const MADE_BY: &str = "create-dns-record";

/// Waits until every name server answers with exactly the tenant's records.
pub struct VerifyDnsRecord {
    check: DnsCheck,
}

impl VerifyDnsRecord {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(VerifyDnsRecord { check: DnsCheck::from_env(env)? })
    }
}

#[async_trait]
impl Action for VerifyDnsRecord {
    async fn act(&self, tenant: &Tenant, registry: &Database) -> Result<Value, StepError> {
        let made = journal::entry(&*registry.client().await?, tenant.id, MADE_BY).await?;
        let change = made.as_ref().and_then(|entry| entry.made.get("change_id")).and_then(Value::as_str);
        self.check.check(tenant, change).await
    }

    /// Asking again costs one round of UDP: what another execution saw is not believed.
    async fn holds(&self, _tenant: &Tenant) -> Result<bool, StepError> {
        Ok(false)
    }
}
