//! ReserveSeat and ReleaseSeat, which the product's services call when a tenant adds a user, or removes one.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::seats;
use crate::request::quotas::SeatCall;
use crate::step::{Step, log_tenant};
use crate::steps::quotas::answer;

/// Gives a user a seat, if there is one.
pub struct ReserveSeat {
    registry: Database,
}

/// Takes a user's seat back.
pub struct ReleaseSeat {
    registry: Database,
}

impl ReserveSeat {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ReserveSeat { registry: Database::registry(env)? })
    }
}

impl ReleaseSeat {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ReleaseSeat { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for ReserveSeat {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = SeatCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let (tenant, decision) = seats::reserve(&mut client, &call.tenant, &call.user, &call.actor).await?;
        log_tenant(&tenant);
        Ok(answer(&tenant, &decision))
    }
}

#[async_trait]
impl Step for ReleaseSeat {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = SeatCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let (tenant, released, balance) = seats::release(&mut client, &call.tenant, &call.user, &call.actor).await?;
        log_tenant(&tenant);
        Ok(json!({ "released": released, "used": balance.used, "quota": balance.quota }))
    }
}
