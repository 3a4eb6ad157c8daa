//! ActivateTenant, the pivot after which nothing is undone, and ConfirmActivation, which tells on which side of it a
//! failed ActivateTenant ended.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::provisioning::{MACHINE, by_hand};
use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::Projector;
use crate::postgres::Database;
use crate::registry::fence::{Actor, check};
use crate::registry::{self, lifecycle};
use crate::request::StepCall;
use crate::step::{Step, log_tenant};
use crate::tenant::{IN_SERVICE, Status};

/// Brings the tenant into service.
pub struct ActivateTenant {
    registry: Database,
    gate: Projector,
    base_domain: String,
}

/// Answers whether the tenant is in service under our fence.
pub struct ConfirmActivation {
    registry: Database,
}

impl ActivateTenant {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ActivateTenant {
            registry: Database::registry(env)?,
            gate: Projector::from_env(env)?,
            base_domain: env.required("BASE_DOMAIN")?,
        })
    }
}

impl ConfirmActivation {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ConfirmActivation { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for ActivateTenant {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let record = registry::read(&*client, &call.tenant).await?;
        log_tenant(&record.tenant);
        let Actor::Execution(execution) = &call.actor else {
            return by_hand(&record, IN_SERVICE, json!({ "status": record.tenant.status }), MACHINE);
        };
        let status = lifecycle::activate(&mut client, record.tenant.id, execution, &self.base_domain).await?;
        // A gate that was asked for the host too early remembers it. Where Redis is down, the gate asks the registry, and
        // ReconcileGate repairs: the tenant need not wait for that.
        if let Err(error) = self.gate.project(&client, &record.tenant).await {
            tracing::warn!(error = error.name(), %error, "the gate could not be told yet");
        }
        Ok(json!({ "status": status }))
    }
}

#[async_trait]
impl Step for ConfirmActivation {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        check(&record, &call.actor, &[Status::Provisioning, Status::Active, Status::Suspended])?;
        Ok(json!({ "active": IN_SERVICE.contains(&record.tenant.status) }))
    }
}
