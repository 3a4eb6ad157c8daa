//! RecoverExecution: what happens to a tenant whose execution ended without giving it back.
//!
//! Fed by "Step Functions Execution Status Change": `States.ALL` catches neither `States.Runtime` nor a stop.

use async_trait::async_trait;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::fence::{self, Failure};
use crate::registry::{self, Selector};
use crate::step::{Step, log_tenant};
use crate::tenant::TenantId;

/// How often a tenant is resumed by itself before an operator has to look.
const MOST_TAKEOVERS: i32 = 3;

/// Starts what resumes, or what compensates; or flags the tenant.
pub struct RecoverExecution {
    registry: Database,
    machines: aws_sdk_sfn::Client,
    provision_machine: String,
}

impl RecoverExecution {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(RecoverExecution {
            registry: Database::registry(env)?,
            machines: aws_sdk_sfn::Client::new(&env.aws),
            provision_machine: env.required("PROVISION_MACHINE_ARN")?,
        })
    }

    /// Starts the machine, once for each execution that ended: the name is derived from that execution's ARN.
    async fn start(&self, ended: &str, tenant: TenantId, intent: &str) -> Result<(), StepError> {
        let name = format!("recover-{}", Uuid::new_v5(&Uuid::NAMESPACE_URL, ended.as_bytes()));
        let input = json!({ "tenant_id": tenant, "intent": intent }).to_string();
        let started = self
            .machines
            .start_execution()
            .state_machine_arn(&self.provision_machine)
            .name(&name)
            .input(input)
            .send()
            .await;
        match started {
            Ok(_) => Ok(()),
            Err(error) if crate::aws::code(&error) == Some("ExecutionAlreadyExists") => Ok(()),
            Err(error) => Err(crate::aws::classify(&format!("starting execution {name} for tenant {tenant}"), &error)),
        }
    }
}

#[async_trait]
impl Step for RecoverExecution {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let detail = |key: &str| input.pointer(&format!("/detail/{key}")).and_then(Value::as_str);
        let (Some(execution), Some(status)) = (detail("executionArn"), detail("status")) else {
            return Err(StepError::InvalidRequest(vec![Problem {
                field: "detail".into(),
                rule: "must be that of a Step Functions Execution Status Change".into(),
            }]));
        };
        let held = fence::held_by(&*self.registry.client().await?, execution).await?;
        let Some(tenant) = held else {
            return Ok(json!({ "action": "ignored", "why": "the execution holds no tenant" }));
        };
        let record = registry::read(&*self.registry.client().await?, &Selector::Id(tenant)).await?;
        log_tenant(&record.tenant);
        let action = if status == "ABORTED" {
            // Stopping an execution is how an operator cancels it.
            self.start(execution, tenant, "compensate").await?;
            "compensate"
        } else if record.takeovers < MOST_TAKEOVERS {
            self.start(execution, tenant, "provision").await?;
            "resume"
        } else {
            tracing::error!(needs_operator = true, "the tenant is flagged: it was resumed too often");
            let failure = Failure {
                error: status.to_owned(),
                message: format!("execution {execution} ended, the last of {MOST_TAKEOVERS} that resumed the tenant"),
            };
            fence::flag(&mut *self.registry.client().await?, tenant, execution, &failure).await?;
            "flag"
        };
        tracing::warn!(ended = execution, status, action, "an execution ended without giving its tenant back");
        Ok(json!({ "action": action, "tenant_id": tenant }))
    }
}
