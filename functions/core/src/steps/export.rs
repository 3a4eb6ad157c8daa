//! PlanExport, ExportPart and FinishExport: a suspended tenant's data on its way into the exports bucket.

use async_trait::async_trait;
use serde_json::Value;

use crate::environment::Environment;
use crate::error::StepError;
use crate::export::Exporter;
use crate::registry::fence::{self, Actor};
use crate::registry::{self, Record, Selector};
use crate::request::{PartCall, StepCall};
use crate::step::{Step, act_by_hand, log_tenant};
use crate::tenant::Status;

/// A step of an export. By hand it runs on a tenant that is suspended, whether or not it is leaving.
pub struct Export {
    exporter: Exporter,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Plan,
    Part,
    Finish,
}

impl Export {
    /// PlanExport: returns the numbers of the parts.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn plan(env: &Environment) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Export { exporter: Exporter::from_env(env)?, what: What::Plan }))
    }

    /// ExportPart: one part.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn part(env: &Environment) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Export { exporter: Exporter::from_env(env)?, what: What::Part }))
    }

    /// FinishExport: the check of all, and the manifest.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn finish(env: &Environment) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Export { exporter: Exporter::from_env(env)?, what: What::Finish }))
    }

    async fn act(&self, record: &Record, actor: &Actor, part: i32) -> Result<Value, StepError> {
        match self.what {
            What::Plan => Box::pin(self.exporter.plan(record, actor)).await,
            What::Part => Box::pin(self.exporter.make(record, actor, part)).await,
            What::Finish => Box::pin(self.exporter.finish(record, actor)).await,
        }
    }
}

#[async_trait]
impl Step for Export {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let (tenant, actor, part): (Selector, Actor, i32) = if self.what == What::Part {
            let call = PartCall::parse(input)?;
            (call.tenant, call.actor, call.part)
        } else {
            let call = StepCall::parse(input)?;
            (call.tenant, call.actor, 0)
        };
        let registry = self.exporter.registry();
        let record = registry::read(&*registry.client().await?, &tenant).await?;
        log_tenant(&record.tenant);
        fence::check(&record, &actor, &[Status::Suspended])?;
        let work = self.act(&record, &actor, part);
        match actor {
            Actor::Execution(_) => work.await,
            Actor::Manual(_) => act_by_hand(registry, &record, &actor, name, work).await,
        }
    }
}
