//! ValidateRequest, RegisterTenant and ConfirmPayment: from a sign-up to a tenant that may be provisioned.
//!
//! Nothing here is ever undone, and a refused request has made nothing.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::capacity::Capacity;
use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::{Record, payments, placement, signup};
use crate::request::{Payment, SignUp};
use crate::resource::dns::Zone;
use crate::step::{Step, log_tenant};
use crate::tenant::{Region, Status};

/// Refuses what cannot become a tenant, naming every problem; makes nothing.
pub struct ValidateRequest {
    registry: Database,
    zone: Zone,
    capacity: Capacity,
    region: Region,
}

/// Registers the tenant, once however often the request is delivered.
pub struct RegisterTenant {
    registry: Database,
    region: Region,
}

/// Applies billing's confirmation, or keeps it for a request that has not arrived.
pub struct ConfirmPayment {
    registry: Database,
}

impl ValidateRequest {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ValidateRequest {
            registry: Database::registry(env)?,
            zone: Zone::from_env(env)?,
            capacity: Capacity::from_env(env)?,
            region: served_region(env)?,
        })
    }
}

impl RegisterTenant {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(RegisterTenant { registry: Database::registry(env)?, region: served_region(env)? })
    }
}

impl ConfirmPayment {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ConfirmPayment { registry: Database::registry(env)? })
    }
}

/// A stack is a cell: it serves the region it runs in.
fn served_region(env: &Environment) -> Result<Region, StepError> {
    let region = env.required("AWS_REGION")?;
    region.parse().map_err(|rule| StepError::Misconfigured(format!("AWS_REGION {rule}")))
}

#[async_trait]
impl Step for ValidateRequest {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let request = SignUp::parse(request_of(input), &self.region)?;
        let client = self.registry.client().await?;
        if signup::is_registered(&client, &request).await? {
            // Delivered once more: what was made for it is not in its way.
            return Ok(json!({ "valid": true }));
        }
        let isolation = placement::isolation_of(&client, &request).await?;
        futures::try_join!(self.capacity.refuse_full(&client, isolation), self.zone.refuse_taken(&request.slug))?;
        Ok(json!({ "valid": true }))
    }
}

#[async_trait]
impl Step for RegisterTenant {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let request = SignUp::parse(request_of(input), &self.region)?;
        let actor = input.get("execution").and_then(Value::as_str).unwrap_or("register-tenant");
        let record = signup::register(&mut *self.registry.client().await?, &request, actor).await?;
        decide(&record)
    }
}

#[async_trait]
impl Step for ConfirmPayment {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let payment = Payment::parse(input.get("payment").unwrap_or(input))?;
        let mut client = self.registry.client().await?;
        match payments::confirm(&mut client, &payment.payment_id, payment.paid_for).await? {
            Some(record) => decide(&record),
            None => Ok(json!({ "decision": "keep_payment" })),
        }
    }
}

/// The machine passes `{"request": …, "execution": …}`; by hand the request itself is enough.
fn request_of(input: &Value) -> &Value {
    input.get("request").unwrap_or(input)
}

/// What the machine does next with a registered tenant. Whether an execution that holds it still lives is not decided
/// here but by BeginProvisioning.
fn decide(record: &Record) -> Result<Value, StepError> {
    let tenant = &record.tenant;
    log_tenant(tenant);
    let decision = match (tenant.status, record.execution.is_some()) {
        (Status::Pending, _) if !record.paid => "await_payment",
        (Status::Pending | Status::Provisioning, _) | (Status::Active | Status::Suspended, true) => "provision",
        (Status::Active | Status::Suspended, false) => "nothing_to_do",
        (Status::Deprovisioned, _) => {
            return Err(StepError::InvalidRequest(vec![Problem {
                field: "request_id".into(),
                rule: format!("belongs to tenant {}, which is deprovisioned: send a new one", tenant.id),
            }]));
        }
    };
    Ok(json!({ "tenant_id": tenant.id, "decision": decision }))
}
