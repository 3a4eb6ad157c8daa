//! SuspendTenant and ReactivateTenant: a reason in the registry, and the gate told before the step is over. Nothing of the
//! tenant's is touched, and nothing is provisioned again.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::Projector;
use crate::postgres::Database;
use crate::registry::{fence, suspensions};
use crate::request::SuspensionCall;
use crate::step::{Step, log_tenant};

/// Takes a tenant out of service.
pub struct SuspendTenant {
    registry: Database,
    gate: Projector,
}

/// Lifts one reason, which brings the tenant back into service if it was the last.
pub struct ReactivateTenant {
    registry: Database,
    gate: Projector,
}

impl SuspendTenant {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(SuspendTenant { registry: Database::registry(env)?, gate: Projector::from_env(env)? })
    }
}

impl ReactivateTenant {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ReactivateTenant { registry: Database::registry(env)?, gate: Projector::from_env(env)? })
    }
}

#[async_trait]
impl Step for SuspendTenant {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = SuspensionCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let tenant = suspensions::suspend(&mut client, &call.tenant, call.reason, &call.actor).await?;
        log_tenant(&tenant);
        self.gate.project(&client, &tenant).await?;
        Ok(json!({ "tenant_id": tenant.id, "status": tenant.status }))
    }
}

#[async_trait]
impl Step for ReactivateTenant {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = SuspensionCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let (tenant, left) = suspensions::lift(&mut client, &call.tenant, call.reason, &call.actor).await?;
        log_tenant(&tenant);
        self.gate.project(&client, &tenant).await?;
        // One that gave back what a hold had withdrawn has held the tenant for it.
        let execution = call.execution.to_string();
        if fence::held_by(&*client, &execution).await? == Some(tenant.id) {
            fence::give_back(&*client, tenant.id, &execution).await?;
        }
        Ok(json!({ "tenant_id": tenant.id, "status": tenant.status, "still_suspended_for": left }))
    }
}
