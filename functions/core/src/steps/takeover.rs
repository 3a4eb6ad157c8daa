//! Taking a tenant over from an execution that ended without giving it back: an execution of the same workflow, which goes on
//! where that one stopped.

use std::ops::ControlFlow;
use std::time::Duration;

use aws_sdk_sfn::types::ExecutionStatus;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::fence;
use crate::tenant::TenantId;

/// The `Timeout` of every function that acts on a tenant (`infra/template.yaml`; a contract test compares them). An
/// execution that ended longer ago has no function running any more.
pub const FUNCTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a step itself waits for a dead holder's functions to end, before the machine's retries do.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_secs(2);

/// Who holds tenants, as Step Functions knows them.
pub(super) struct Holders {
    executions: aws_sdk_sfn::Client,
}

/// Takes a tenant: `attempt` has it (`Break`), or gets whoever holds it out of the way (`Continue`) and is asked again. Twice at
/// most: what was taken over is ours, or another's that is alive.
///
/// # Errors
/// As `attempt`; `Transient` when others are faster every time.
pub(super) async fn take<T, F>(tenant: TenantId, attempt: impl Fn() -> F) -> Result<T, StepError>
where
    F: Future<Output = Result<ControlFlow<T>, StepError>>,
{
    for _ in 0..3 {
        if let ControlFlow::Break(taken) = attempt().await? {
            return Ok(taken);
        }
    }
    Err(StepError::Transient(format!("tenant {tenant} keeps changing hands")))
}

/// The machine's name, in its own ARN and in those of its executions alike.
pub(super) fn machine(arn: &str) -> Option<&str> {
    // arn:aws:states:us-east-1:123456789012:stateMachine:provision-tenant, …:execution:provision-tenant:name
    arn.split(':').nth(6)
}

impl Holders {
    /// Makes no network call.
    pub(super) fn from_env(env: &Environment) -> Self {
        Holders { executions: aws_sdk_sfn::Client::new(&env.aws) }
    }

    /// Takes the fence over once its holder has been dead for longer than any function can run.
    ///
    /// # Errors
    /// `Superseded` when the holder runs, or is another workflow's, which alone can finish what it began; `Transient` when its
    /// functions may still run.
    pub(super) async fn take_over(
        &self,
        registry: &Database,
        tenant: TenantId,
        holder: &str,
        execution: &str,
    ) -> Result<(), StepError> {
        if machine(holder) != machine(execution) {
            return Err(StepError::Superseded(format!("tenant {tenant} is held by {holder}, of another workflow")));
        }
        self.wait_for_end(tenant, holder).await?;
        if fence::take_over(&*registry.client().await?, tenant, holder, execution).await? {
            tracing::warn!(holder, "took the tenant over from an execution that ended without giving it back");
        }
        Ok(())
    }

    /// As [`Holders::take_over`], where another machine's work ends, and then this begins: only a second execution of the same
    /// machine has nothing to do.
    ///
    /// # Errors
    /// `Superseded` while another execution of the same machine runs; `Transient` while one of another machine does, or its
    /// functions may.
    pub(super) async fn take_over_in_turn(
        &self,
        registry: &Database,
        tenant: TenantId,
        holder: &str,
        execution: &str,
    ) -> Result<(), StepError> {
        match self.take_over(registry, tenant, holder, execution).await {
            Err(StepError::Superseded(text)) if machine(holder) != machine(execution) => {
                Err(StepError::Transient(text))
            }
            taken => taken,
        }
    }

    /// Whether an execution runs.
    ///
    /// # Errors
    /// When Step Functions cannot be asked.
    pub(super) async fn runs(&self, execution: &str) -> Result<bool, StepError> {
        Ok(self.ended_since(execution).await?.is_none())
    }

    /// Whether an execution runs, or its functions may.
    ///
    /// # Errors
    /// When Step Functions cannot be asked.
    pub(super) async fn may_act(&self, execution: &str) -> Result<bool, StepError> {
        Ok(self.ended_since(execution).await?.is_none_or(|since| since < FUNCTION_TIMEOUT))
    }

    /// Stops an execution; one that has ended, or is not known, is left as it is.
    ///
    /// # Errors
    /// When Step Functions cannot be asked.
    pub(super) async fn stop(&self, execution: &str, why: &str) -> Result<(), StepError> {
        if self.ended_since(execution).await?.is_some() {
            return Ok(());
        }
        let stop = self.executions.stop_execution().execution_arn(execution).error("Cancelled").cause(why);
        match stop.send().await {
            Ok(_) => Ok(()),
            // It ended by itself meanwhile, which AWS answers with a code that it uses for much else.
            Err(error) => match self.ended_since(execution).await? {
                Some(_) => Ok(()),
                None => Err(crate::aws::classify(&format!("stopping execution {execution}"), &error)),
            },
        }
    }

    /// Waits until a holder has been dead for longer than any function can run.
    ///
    /// # Errors
    /// As [`Holders::take_over`].
    pub(super) async fn wait_for_end(&self, tenant: TenantId, holder: &str) -> Result<(), StepError> {
        let waiting_since = Instant::now();
        loop {
            let wait = match self.ended_since(holder).await? {
                None => {
                    return Err(StepError::Superseded(format!(
                        "tenant {tenant} is held by {holder}, which is running"
                    )));
                }
                Some(since) => FUNCTION_TIMEOUT.saturating_sub(since),
            };
            if wait.is_zero() {
                return Ok(());
            }
            if waiting_since.elapsed() > PATIENCE {
                return Err(StepError::Transient(format!(
                    "tenant {tenant} is held by {holder}, which has ended; its functions may run for {} s more",
                    wait.as_secs()
                )));
            }
            sleep(wait.min(POLL)).await;
        }
    }

    /// How long ago an execution ended; `None` while it runs. One that Step Functions does not know ended long ago.
    async fn ended_since(&self, execution: &str) -> Result<Option<Duration>, StepError> {
        let described = match self.executions.describe_execution().execution_arn(execution).send().await {
            Ok(described) => described,
            Err(error) if crate::aws::code(&error) == Some("ExecutionDoesNotExist") => return Ok(Some(Duration::MAX)),
            Err(error) => return Err(crate::aws::classify(&format!("asking for execution {execution}"), &error)),
        };
        if matches!(described.status(), ExecutionStatus::Running | ExecutionStatus::PendingRedrive) {
            return Ok(None);
        }
        let ended = described.stop_date().map_or(0.0, aws_smithy_types::DateTime::as_secs_f64);
        #[allow(clippy::cast_precision_loss)] // seconds since 1970 are exact in an f64 for a few million years
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos() as f64 / 1e9;
        Ok(Some(Duration::try_from_secs_f64(now - ended).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_its_executions() {
        let machine_arn = "arn:aws:states:us-east-1:000000000000:stateMachine:prod-change-plan";
        let execution = "arn:aws:states:us-east-1:000000000000:execution:prod-change-plan:1f2e";
        assert_eq!(machine(machine_arn), Some("prod-change-plan"));
        assert_eq!(machine(execution), machine(machine_arn));
        assert_eq!(machine("manual:ada"), None);
    }
}
