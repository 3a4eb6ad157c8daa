//! BeginDeletion: the point of no return. Of all executions that want to delete a tenant, one gets it.

use std::ops::ControlFlow::{Break, Continue};

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::fence::{self, Actor};
use crate::registry::holds::{self, State};
use crate::registry::{self, Record, Selector, deletions};
use crate::request::tenant_to_delete;
use crate::step::{Step, log_tenant};
use crate::steps::takeover::{Holders, take};
use crate::tenant::{Status, TenantId};

/// Takes the fence, and then the hold.
pub struct BeginDeletion {
    registry: Database,
    holders: Holders,
}

impl BeginDeletion {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(BeginDeletion { registry: Database::registry(env)?, holders: Holders::from_env(env) })
    }

    /// Takes the fence from nobody, or from an execution that has ended.
    async fn take_fence(&self, tenant: TenantId, execution: &str) -> Result<(), StepError> {
        take(tenant, || async {
            let statuses = &[Status::Suspended];
            let held = fence::hold(&mut *self.registry.client().await?, tenant, execution, statuses).await;
            let holder = match held {
                Ok(None) => return Ok(Break(())),
                Ok(Some(holder)) => holder,
                Err(error) => {
                    // Since it was looked at, another execution may have ended what this one would have begun.
                    let now = registry::read(&*self.registry.client().await?, &Selector::Id(tenant)).await?;
                    return Err(if now.tenant.status == Status::Deprovisioned { is_deleted(&now) } else { error });
                }
            };
            match self.holders.take_over(&self.registry, tenant, &holder, execution).await {
                Err(StepError::Superseded(text)) => Err(self.running(tenant, &holder, text).await?),
                taken => taken.map(Continue),
            }
        })
        .await
    }

    /// What it means that the holder runs: where it deletes the tenant, this execution has nothing to do; where it does anything
    /// else, such as end the offboarding that started this, it is waited for.
    async fn running(&self, tenant: TenantId, holder: &str, text: String) -> Result<StepError, StepError> {
        let hold = holds::open_hold(&*self.registry.client().await?, tenant).await?;
        let deletes =
            hold.is_some_and(|hold| hold.state == State::Deleting && hold.execution.as_deref() == Some(holder));
        Ok(if deletes { StepError::Superseded(text) } else { StepError::Transient(text) })
    }

    /// Takes the hold, under the fence: what another execution began is gone on with, because without the fence it cannot act.
    async fn take_hold(&self, tenant: TenantId, execution: &str) -> Result<(), StepError> {
        let client = self.registry.client().await?;
        if let Some(hold) = holds::open_hold(&*client, tenant).await?
            && let (State::Deleting, Some(other)) = (hold.state, hold.execution.as_deref())
            && other != execution
            && holds::hand_on(&*client, tenant, other, execution).await?
        {
            tracing::warn!(other, "goes on with a deletion that another execution began");
        }
        let hold = holds::begin_deletion(&client, tenant, execution).await?;
        deletions::begin(&client, &hold, execution).await
    }
}

fn is_deleted(record: &Record) -> StepError {
    StepError::Superseded(format!("tenant {} ({}) is deleted already", record.tenant.slug, record.tenant.id))
}

#[async_trait]
impl Step for BeginDeletion {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let (selector, actor) = tenant_to_delete(input)?;
        let record = registry::read(&*self.registry.client().await?, &selector).await?;
        log_tenant(&record.tenant);
        let id = record.tenant.id;
        let Actor::Execution(execution) = &actor else {
            return Err(StepError::InvalidRequest(vec![Problem {
                field: "execution".into(),
                rule: format!(
                    "must be an execution, because only one can hold tenant {}: start the delete-tenant machine with \
                     {{\"tenant_id\": \"{id}\"}}",
                    record.tenant.slug
                ),
            }]));
        };
        if record.tenant.status == Status::Deprovisioned {
            return Err(is_deleted(&record));
        }
        self.take_fence(id, execution).await?;
        if let Err(error) = self.take_hold(id, execution).await {
            // What may pass is tried again, under the fence; otherwise the tenant is as it was.
            if !error.is_transient() {
                fence::give_back(&*self.registry.client().await?, id, execution).await?;
            }
            return Err(error);
        }
        Ok(json!({ "tenant_id": id }))
    }
}
