//! BeginPlanChange and ClosePlanChange: a tenant in service gets another plan under the fence, and is given back when
//! everything of its own has followed. A change that stops in between is finished, never undone: the plan is what is paid for.

use std::ops::ControlFlow::{Break, Continue};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::provisioning::by_hand;
use super::takeover::{Holders, take};
use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::Projector;
use crate::postgres::Database;
use crate::registry;
use crate::registry::fence::Actor;
use crate::registry::plans::{self, Begun};
use crate::request::{PlanChangeCall, StepCall};
use crate::step::{Step, log_tenant};
use crate::tenant::{IN_SERVICE, Plan, Tenant};

/// The machine of these steps, as an operator starts it.
const MACHINE: &str = "change-plan";

/// Takes the fence of a tenant in service, gives it the plan, and tells the gate: a higher limit holds at once.
pub struct BeginPlanChange {
    registry: Database,
    holders: Holders,
    gate: Projector,
}

/// Finishes the change, and gives the fence back.
pub struct ClosePlanChange {
    registry: Database,
}

impl BeginPlanChange {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(BeginPlanChange {
            registry: Database::registry(env)?,
            holders: Holders::from_env(env),
            gate: Projector::from_env(env)?,
        })
    }

    /// Takes the tenant over from a change that died. One that runs is left to it where it brings what is wanted here too, and
    /// is waited for where it does not, so that no wish is lost; so is another workflow.
    async fn take_over(
        &self,
        tenant: &Tenant,
        holder: &str,
        execution: &str,
        brings_it: bool,
    ) -> Result<(), StepError> {
        match self.holders.take_over(&self.registry, tenant.id, holder, execution).await {
            Err(StepError::Superseded(why)) if !brings_it => Err(StepError::Transient(format!(
                "{why}; the plan of {} is changed when that one is done",
                tenant.slug
            ))),
            result => result,
        }
    }
}

#[async_trait]
impl Step for BeginPlanChange {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = PlanChangeCall::parse(input)?;
        let tenant = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&tenant.tenant);
        let wanted = |plan: Plan| call.wish.plan.is_none_or(|wanted| wanted == plan);
        let Actor::Execution(execution) = &call.by else {
            let settled = if wanted(tenant.tenant.plan) { IN_SERVICE } else { &[] };
            return by_hand(&tenant, settled, json!({ "step": name, "outcome": "nothing to do" }), MACHINE);
        };
        let tenant = tenant.tenant;
        let change = take(tenant.id, || async {
            let begun = plans::begin(&mut *self.registry.client().await?, tenant.id, execution, &call.wish).await?;
            match begun {
                Begun::Changing(change) => Ok(Break(change)),
                Begun::HeldBy(holder, plan) => {
                    self.take_over(&tenant, &holder, execution, wanted(plan)).await.map(Continue)
                }
            }
        });
        let change = change.await?;
        self.gate.project(&*self.registry.client().await?, &tenant).await?;
        tracing::info!(from = %change.from, to = %change.to, "the tenant has its plan");
        Ok(json!({ "tenant_id": tenant.id, "from": change.from, "to": change.to }))
    }
}

impl ClosePlanChange {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ClosePlanChange { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for ClosePlanChange {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let record = registry::read(&*client, &call.tenant).await?;
        log_tenant(&record.tenant);
        let Actor::Execution(execution) = &call.actor else {
            return by_hand(&record, IN_SERVICE, json!({ "step": name, "outcome": "nothing to do" }), MACHINE);
        };
        plans::close(&mut client, record.tenant.id, execution).await?;
        Ok(json!({ "step": name, "outcome": "done" }))
    }
}
