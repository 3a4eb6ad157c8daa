//! BeginProvisioning, CloseProvisioning and FlagTenant: the fence's way through an execution.

use std::ops::ControlFlow::{Break, Continue};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::takeover::{Holders, take};
use crate::capacity::Capacity;
use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::fence::{self, Actor, Failure, Grant};
use crate::registry::{self, Record};
use crate::request::StepCall;
use crate::step::{Step, log_tenant};
use crate::tenant::Status;

/// The machine of these steps, as an operator starts it.
pub(super) const MACHINE: &str = "provision-tenant";

/// Takes the fence: from nobody, or from an execution that has ended.
pub struct BeginProvisioning {
    registry: Database,
    holders: Holders,
    capacity: Capacity,
}

/// What a step of this file needs beyond its own logic.
pub struct Settle {
    registry: Database,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    Close,
    Flag,
}

impl BeginProvisioning {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(BeginProvisioning {
            registry: Database::registry(env)?,
            holders: Holders::from_env(env),
            capacity: Capacity::from_env(env)?,
        })
    }
}

#[async_trait]
impl Step for BeginProvisioning {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        let id = record.tenant.id;
        let Actor::Execution(execution) = &call.actor else {
            return by_hand(
                &record,
                &[Status::Active, Status::Suspended],
                json!({"decision": "nothing_to_do"}),
                MACHINE,
            );
        };
        if record.tenant.status == Status::Pending && !call.compensate {
            // Before the fence: a refused tenant has made nothing, and stays as it is.
            self.capacity.refuse_full(&*self.registry.client().await?, record.tenant.isolation).await?;
        }
        let decision = take(id, || async {
            let granted = fence::acquire(&mut *self.registry.client().await?, id, execution, call.compensate).await?;
            Ok(Break(match granted {
                Grant::Provision => "provision",
                Grant::Compensate => "compensate",
                Grant::Finish => "finish",
                Grant::NothingToDo => "nothing_to_do",
                Grant::HeldBy(holder) => {
                    return self.holders.take_over(&self.registry, id, &holder, execution).await.map(Continue);
                }
            }))
        });
        Ok(json!({ "tenant_id": id, "decision": decision.await? }))
    }
}

impl Settle {
    /// CloseProvisioning: all is done, the fence is given back.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn close(env: &Environment) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Settle { registry: Database::registry(env)?, how: How::Close }))
    }

    /// FlagTenant: an operator has to look. The tenant stays in service, or is given back where ReleaseTenant could not look.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn flag(env: &Environment) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Settle { registry: Database::registry(env)?, how: How::Flag }))
    }
}

#[async_trait]
impl Step for Settle {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let record = registry::read(&*client, &call.tenant).await?;
        log_tenant(&record.tenant);
        let id = record.tenant.id;
        let Actor::Execution(execution) = &call.actor else {
            let settled = &[Status::Active, Status::Suspended];
            return by_hand(&record, settled, json!({ "step": name, "outcome": "nothing to do" }), MACHINE);
        };
        let failure = call.failure.unwrap_or_else(Failure::compensated);
        match (self.how, call.unseen) {
            (How::Close, _) => fence::give_back(&*client, id, execution).await?,
            (How::Flag, unseen) => {
                tracing::error!(needs_operator = true, error = failure.error, "the tenant is flagged");
                match unseen {
                    Some(unseen) => fence::release_unseen(&mut client, id, execution, &failure, &unseen).await?,
                    None => fence::flag(&mut client, id, execution, &failure).await?,
                }
            }
        }
        Ok(json!({ "step": name, "outcome": "done" }))
    }
}

/// A person can hold no fence, so by hand these steps do nothing on a tenant that is where they would bring it, and are
/// refused on any other. `machine` is whose executions do it.
pub(super) fn by_hand(record: &Record, settled: &[Status], nothing: Value, machine: &str) -> Result<Value, StepError> {
    if record.execution.is_none() && settled.contains(&record.tenant.status) {
        return Ok(nothing);
    }
    Err(StepError::InvalidRequest(vec![Problem {
        field: "execution".into(),
        rule: format!(
            "must be the execution that holds tenant {}: it is {}, and only an execution can hold it. Start the \
             {machine} machine with {{\"tenant_id\": \"{}\"}} instead",
            record.tenant.slug, record.tenant.status, record.tenant.id
        ),
    }]))
}
