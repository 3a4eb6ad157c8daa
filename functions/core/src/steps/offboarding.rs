//! BeginOffboarding and CheckHold: who leaves, and whether the time has come. What an operator may do about a hold is beside
//! them: ExtendHold and SetDeletionProtection.

use std::ops::ControlFlow::{Break, Continue};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::takeover::{Holders, take};
use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::gate::Projector;
use crate::postgres::Database;
use crate::registry::fence::Actor;
use crate::registry::holds::{self, Hold, Kind, State};
use crate::registry::offboarding::{self, Departure};
use crate::registry::{self, Record};
use crate::request::{HoldExtension, Leaving, ProtectionCall, StepCall};
use crate::step::{Step, log_tenant};

/// Suspends a tenant that leaves, and opens its hold.
pub struct BeginOffboarding {
    registry: Database,
    gate: Projector,
    holders: Holders,
}

/// Tells what a hold is now.
pub struct CheckHold {
    registry: Database,
}

/// Puts a hold's end off.
pub struct ExtendHold {
    registry: Database,
}

/// Protects a tenant from deletion, or lifts that.
pub struct SetDeletionProtection {
    registry: Database,
}

impl BeginOffboarding {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(BeginOffboarding {
            registry: Database::registry(env)?,
            gate: Projector::from_env(env)?,
            holders: Holders::from_env(env),
        })
    }

    async fn begin(&self, record: &Record, execution: &str, leaving: &Leaving) -> Result<Departure, StepError> {
        let id = record.tenant.id;
        take(id, || async {
            let mut client = self.registry.client().await?;
            let departure = offboarding::begin(&mut client, id, execution, leaving).await?;
            drop(client);
            let Departure::HeldBy(holder) = departure else { return Ok(Break(departure)) };
            self.holders.take_over_in_turn(&self.registry, id, &holder, execution).await.map(Continue)
        })
        .await
    }

    /// Whether another execution waits for this hold's end, or deletes the tenant: then this one has nothing to do. Of one that has
    /// ended, functions may run still: who takes the fence from it waits for their end.
    async fn is_anothers(&self, hold: &Hold, execution: &str, leaving: &Leaving) -> Result<bool, StepError> {
        let Some(other) = hold.execution.as_deref().filter(|other| *other != execution) else { return Ok(false) };
        match hold.state {
            State::Held if !leaving.is_at_once() => self.holders.runs(other).await,
            State::Deleting => self.holders.runs(other).await,
            _ => Ok(false),
        }
    }
}

#[async_trait]
impl Step for BeginOffboarding {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let leaving = Leaving::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &leaving.tenant).await?;
        log_tenant(&record.tenant);
        let tenant = &record.tenant;
        let Actor::Execution(execution) = &leaving.execution else {
            return Err(StepError::InvalidRequest(vec![Problem {
                field: "execution".into(),
                rule: format!(
                    "must be an execution, which alone can hold a tenant: start the offboard-tenant machine with \
                     {{\"tenant_id\": \"{}\", \"reason\": …}} instead",
                    tenant.id
                ),
            }]));
        };
        let answer = |decision: &str, expires_at: Option<String>| {
            Ok(json!({ "tenant_id": tenant.id, "decision": decision, "expires_at": expires_at }))
        };
        let open = holds::open_hold(&*self.registry.client().await?, tenant.id).await?;
        if let Some(hold) = &open
            && leaving.erasure.is_some()
            && (hold.state, hold.kind) == (State::Deleting, Kind::Offboarding)
        {
            return Err(StepError::Conflict(format!(
                "tenant {} ({id}) is being deleted already, though not as an erasure: what was exported stays until it expires. \
                 Call revoke-link for it, and delete exports/{id}/ in the bucket of exports",
                tenant.slug,
                id = tenant.id
            )));
        }
        if let Some(hold) = &open
            && self.is_anothers(hold, execution, &leaving).await?
        {
            return answer("nothing", None);
        }
        let departure = self.begin(&record, execution, &leaving).await?;
        self.gate.project(&*self.registry.client().await?, tenant).await?;
        match departure {
            Departure::Export => answer("export", None),
            // Where the deletion died, it is started again: it takes the hold over by itself.
            Departure::Erase | Departure::Deleting => answer("erase", None),
            Departure::AwaitHold(end) => answer("await_hold", Some(end)),
            Departure::HeldBy(holder) => Err(StepError::Transient(format!("tenant {} is held by {holder}", tenant.id))),
        }
    }
}

impl CheckHold {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(CheckHold { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for CheckHold {
    /// Only looks: the fence is nobody's while a hold is waited for, and whether the tenant is deleted is decided by the deletion.
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let client = self.registry.client().await?;
        let tenant = registry::read(&*client, &call.tenant).await?.tenant;
        log_tenant(&tenant);
        let hold = holds::open_hold(&*client, tenant.id).await?;
        let waiting = match &call.actor {
            Actor::Execution(execution) => hold.filter(|hold| hold.execution.as_ref() == Some(execution)),
            Actor::Manual(_) => hold,
        };
        let (decision, expires_at) = match waiting {
            Some(Hold { state: State::Held, expired: true, expires_at, .. }) => ("delete", expires_at),
            Some(Hold { state: State::Held, expires_at, .. }) => ("wait", expires_at),
            _ => ("cancelled", None),
        };
        Ok(json!({ "tenant_id": tenant.id, "decision": decision, "expires_at": expires_at }))
    }
}

impl ExtendHold {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ExtendHold { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for ExtendHold {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = HoldExtension::parse(input)?;
        let mut client = self.registry.client().await?;
        let tenant = registry::read(&*client, &call.tenant).await?.tenant;
        log_tenant(&tenant);
        let hold = holds::extend(&mut client, tenant.id, call.until, &call.actor.to_string()).await?;
        Ok(json!({ "tenant_id": tenant.id, "expires_at": hold.expires_at }))
    }
}

impl SetDeletionProtection {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(SetDeletionProtection { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for SetDeletionProtection {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = ProtectionCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let tenant = registry::read(&*client, &call.tenant).await?.tenant;
        log_tenant(&tenant);
        let actor = call.actor.to_string();
        let changed = offboarding::protect(&mut client, tenant.id, call.protected, &actor).await?;
        Ok(json!({ "tenant_id": tenant.id, "protected": call.protected, "changed": changed }))
    }
}
