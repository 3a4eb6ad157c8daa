//! CloseDeletion: the tenant is deprovisioned, the hold is over, the world is told.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::Projector;
use crate::postgres::Database;
use crate::registry::fence::Actor;
use crate::registry::{self, deletions};
use crate::request::StepCall;
use crate::step::{self, Step, log_tenant};
use crate::tenant::TenantId;

/// Ends a deletion in the registry, and tells the gate, which refuses the tenant for ever.
pub struct CloseDeletion {
    registry: Database,
    gate: Projector,
}

impl CloseDeletion {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(CloseDeletion { registry: Database::registry(env)?, gate: Projector::from_env(env)? })
    }

    async fn close(&self, tenant: TenantId, actor: &Actor) -> Result<Value, StepError> {
        let mut client = self.registry.client().await?;
        let tenant = deletions::close(&mut client, tenant, actor).await?;
        // Also when it was closed before: this may be what that call did not come to.
        self.gate.project(&client, &tenant).await?;
        Ok(json!({ "tenant_id": tenant.id, "status": tenant.status }))
    }
}

#[async_trait]
impl Step for CloseDeletion {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        let work = self.close(record.tenant.id, &call.actor);
        if matches!(call.actor, Actor::Manual(_)) {
            return step::act_by_hand(&self.registry, &record, &call.actor, name, work).await;
        }
        work.await
    }
}
