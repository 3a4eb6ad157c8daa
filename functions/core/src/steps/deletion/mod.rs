//! The steps of delete-tenant that are not the undo of one of provisioning's. Beyond the point of no return nothing is undone: each
//! step can be run again until it succeeds, by the machine, by the next execution, or by hand.

pub mod access;
pub mod begin;
pub mod cache;
pub mod certificate;
pub mod close;
pub mod downstream;
pub mod drain;
pub mod forget;
pub mod scan;

use async_trait::async_trait;
use serde_json::Value;

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::fence::Actor;
use crate::registry::holds::Hold;
use crate::registry::{self, Record, deletions};
use crate::request::StepCall;
use crate::step::{self, Step, log_tenant};
use crate::tenant::Status;

/// What one step of a deletion does.
#[async_trait]
pub trait Removal: Send + Sync {
    /// Does it; again changes nothing more. Returns what the journal keeps: counts, no names of the tenant's own, no personal
    /// data.
    ///
    /// # Errors
    /// As the removal documents.
    async fn act(&self, record: &Record, hold: &Hold, registry: &Database) -> Result<Value, StepError>;
}

/// A step of a deletion: acts while its actor deletes the tenant, and keeps the journal. What was done before is done again: only
/// the store itself knows whether something came in between.
pub struct Deleting {
    registry: Database,
    removal: Box<dyn Removal>,
}

impl Deleting {
    /// Wires a step.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn by(env: &Environment, removal: Box<dyn Removal>) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Deleting { registry: Database::registry(env)?, removal }))
    }

    async fn act(&self, name: &str, record: &Record, hold: &Hold, actor: &Actor) -> Result<Value, StepError> {
        let work = self.removal.act(record, hold, &self.registry);
        let mut made = step::journaled(&self.registry, name, record, actor, &[Status::Suspended], work).await?;
        made["tenant_id"] = record.tenant.id.to_string().into();
        Ok(made)
    }
}

#[async_trait]
impl Step for Deleting {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        let hold = deletions::under_way(&*self.registry.client().await?, &record, &call.actor).await?;
        let work = Box::pin(self.act(name, &record, &hold, &call.actor));
        if matches!(call.actor, Actor::Manual(_)) {
            return step::act_by_hand(&self.registry, &record, &call.actor, name, work).await;
        }
        work.await
    }
}
