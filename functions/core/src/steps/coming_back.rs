//! CancelHold, StopWaiting and VerifyTenant: a tenant comes back while its hold lasts. The hold is cancelled first, which is the
//! decision; the tenant is in service last, when everything was seen to be as it should be.

use std::ops::ControlFlow::{Break, Continue};

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};

use super::takeover::{Holders, take};
use super::withdrawal::cancelled_hold;
use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::fence::{self, Actor};
use crate::registry::offboarding::{self, Return};
use crate::registry::{self, Record};
use crate::request::{StepCall, SuspensionCall};
use crate::resource::{self, Inspection, Resource};
use crate::step::{self, Step, log_tenant};
use crate::tenant::{IN_SERVICE, Reason, Tenant};

/// Not looked at: an invitation is no access that was withdrawn, and its link may have run out meanwhile.
const BESIDE_THE_POINT: &str = "invite";

/// Cancels the hold, and takes the tenant.
pub struct CancelHold {
    registry: Database,
    holders: Holders,
}

/// Stops the execution that waits for the hold's end, or exports still.
pub struct StopWaiting {
    registry: Database,
    holders: Holders,
}

/// Looks at everything that the tenant has.
pub struct VerifyTenant {
    registry: Database,
    resources: Vec<Box<dyn Resource>>,
}

impl CancelHold {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(CancelHold { registry: Database::registry(env)?, holders: Holders::from_env(env) })
    }
}

#[async_trait]
impl Step for CancelHold {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = SuspensionCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        let id = record.tenant.id;
        let Actor::Execution(execution) = &call.execution else { return Err(not_by_hand(&record, call.reason)) };
        let decision = take(id, || async {
            let mut client = self.registry.client().await?;
            let way = offboarding::come_back(&mut client, id, execution, &call.actor).await?;
            drop(client);
            match way {
                Return::Restore => Ok(Break("restore")),
                Return::Lift => Ok(Break("lift")),
                Return::HeldBy(holder) => {
                    self.holders.take_over_in_turn(&self.registry, id, &holder, execution).await.map(Continue)
                }
            }
        });
        Ok(json!({ "tenant_id": id, "decision": decision.await? }))
    }
}

fn not_by_hand(record: &Record, reason: Reason) -> StepError {
    StepError::InvalidRequest(vec![Problem {
        field: "execution".into(),
        rule: format!(
            "must be an execution, which alone can hold a tenant: start the reactivate-tenant machine with \
             {{\"tenant_id\": \"{}\", \"reason\": \"{reason}\"}} instead",
            record.tenant.id
        ),
    }])
}

impl StopWaiting {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(StopWaiting { registry: Database::registry(env)?, holders: Holders::from_env(env) })
    }
}

#[async_trait]
impl Step for StopWaiting {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        fence::check(&record, &call.actor, IN_SERVICE)?;
        let hold = cancelled_hold(&self.registry, &record.tenant).await?;
        if let Some(execution) = &hold.execution {
            self.holders.stop(execution, "the tenant comes back").await?;
            // While it exported, its functions may be closing what is about to be opened.
            if hold.expires_at.is_none() {
                self.holders.wait_for_end(record.tenant.id, execution).await?;
            }
        }
        Ok(json!({ "step": name, "outcome": "done" }))
    }
}

impl VerifyTenant {
    /// Wires the step, with every resource that provisioning makes.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(VerifyTenant { registry: Database::registry(env)?, resources: resource::all(env)? })
    }

    /// Looks, and records that all is there. What is not may be on its way: the machine asks again, and then an operator has to.
    async fn verify(&self, tenant: &Tenant) -> Result<Value, StepError> {
        cancelled_hold(&self.registry, tenant).await?;
        let resources = self.resources.iter().filter(|resource| resource.kind() != BESIDE_THE_POINT);
        let looks = join_all(resources.map(|resource| async {
            let found = resource.inspect(tenant).await;
            found.map_err(|error| error.during(&format!("looking at the {}", resource.kind()))).map(|found| match found
            {
                Inspection::Present => None,
                Inspection::Absent => Some(format!("its {} is missing", resource.kind())),
                Inspection::Drifted(drift) => Some(format!("its {}: {}", resource.kind(), drift.join(", "))),
                Inspection::Foreign(found) => Some(format!("its {} is another's: {found}", resource.kind())),
            })
        }));
        let looks: Result<Vec<_>, _> = looks.await.into_iter().collect();
        let wrong: Vec<String> = looks?.into_iter().flatten().collect();
        if wrong.is_empty() {
            offboarding::thawed(&mut *self.registry.client().await?, tenant.id).await?;
            return Ok(json!({ "verified": self.resources.len() }));
        }
        let (slug, id) = (&tenant.slug, tenant.id);
        Err(StepError::Transient(format!("tenant {slug} ({id}) is not back as it was: {}", wrong.join("; "))))
    }
}

#[async_trait]
impl Step for VerifyTenant {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        fence::check(&record, &call.actor, IN_SERVICE)?;
        let work = self.verify(&record.tenant);
        match &call.actor {
            Actor::Execution(_) => work.await,
            Actor::Manual(_) => step::act_by_hand(&self.registry, &record, &call.actor, name, work).await,
        }
    }
}
