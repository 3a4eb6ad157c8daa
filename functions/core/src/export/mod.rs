//! Exports: all that is a tenant's, divided into bounded parts, streamed into the exports bucket, checked, and handed over
//! behind a link.
//!
//! [`plan`] divides, [`parts`] says what a part is, [`make`] streams one, [`finish`] checks them all and writes the manifest.
//! [`tables`] and [`objects`] are what the two kinds of bulk have of their own, [`schema`] the DDL that goes with the tables.

mod archive;
pub mod finish;
pub mod link;
pub mod make;
mod objects;
pub mod parts;
pub mod plan;
mod schema;
mod tables;
mod upload;

use std::time::Duration;

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::exports::{self, Export};
use crate::registry::fence::Actor;
use crate::registry::{Record, holds};
use crate::resource::database::TenantDatabase;
use crate::resource::tenant_config::TenantConfig;
use crate::tenant::{Status, Tenant};

/// `Timeout` of ExportPart (`infra/template.yaml`; a contract test compares them). It is longer than that of the functions that
/// takeovers wait for: what a part's function writes counts only where it still may act, so none has to wait for its end.
pub const PART_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest one statement of a part may run.
const COPY_TIMEOUT: Duration = Duration::from_secs(570);
/// The longest one statement of a plan or a check may run.
const LOOK_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a call of PlanExport or FinishExport works before it lets the machine call again, which goes on from there.
const PATIENCE: Duration = Duration::from_secs(25);

/// What the steps of an export work with.
pub struct Exporter {
    registry: Database,
    database: TenantDatabase,
    config: Option<TenantConfig>,
    s3: aws_sdk_s3::Client,
    bucket: String,
}

impl Exporter {
    /// Reads REGISTRY_SECRET, EXPORTS_BUCKET, and, for the function that makes parts, CONFIG_TABLE.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Exporter {
            registry: Database::registry(env)?,
            database: TenantDatabase::from_env(env)?,
            config: env.optional("CONFIG_TABLE").map(|_| TenantConfig::from_env(env)).transpose()?,
            s3: crate::aws::s3(&env.aws),
            bucket: env.required("EXPORTS_BUCKET")?,
        })
    }

    /// The registry.
    pub fn registry(&self) -> &Database {
        &self.registry
    }

    /// The key of a file of an export.
    fn key(&self, tenant: &Tenant, export: &Export, name: &str) -> String {
        key(tenant, export, name)
    }
}

/// The key of a file of an export in the exports bucket.
pub(crate) fn key(tenant: &Tenant, export: &Export, name: &str) -> String {
    format!("{}{name}", prefix_of(&tenant.id.to_string(), &export.id.to_string()))
}

/// What all keys of an export begin with. It holds ids alone: the export outlives the tenant.
pub(crate) fn prefix_of(tenant: &str, export: &str) -> String {
    format!("{}{export}/", folder_of(tenant))
}

/// What all keys of a tenant's exports begin with.
pub(crate) fn folder_of(tenant: &str) -> String {
    format!("exports/{tenant}/")
}

/// The hold that an export is made for: the execution's own, in `exporting`. By hand there may be none.
///
/// # Errors
/// `Superseded` when the execution has no hold that is being exported; `Conflict` by hand, for a tenant that is in service.
pub async fn hold_of(registry: &Database, record: &Record, actor: &Actor) -> Result<Option<i64>, StepError> {
    let tenant = &record.tenant;
    let hold = holds::open_hold(&*registry.client().await?, tenant.id).await?;
    match (actor, hold) {
        (Actor::Execution(execution), Some(hold))
            if hold.state == holds::State::Exporting && hold.execution.as_deref() == Some(execution) =>
        {
            Ok(Some(hold.id))
        }
        (Actor::Execution(_), _) => Err(StepError::Superseded(format!(
            "tenant {} ({}) has no hold that this execution exports for",
            tenant.slug, tenant.id
        ))),
        (Actor::Manual(_), _) if tenant.status != Status::Suspended => Err(StepError::Conflict(format!(
            "tenant {} ({}) is {}: suspend it first, what is exported must not change meanwhile",
            tenant.slug, tenant.id, tenant.status
        ))),
        (Actor::Manual(_), hold) => Ok(hold.filter(|hold| hold.state == holds::State::Exporting).map(|hold| hold.id)),
    }
}

/// The export that is being made, or is finished.
///
/// # Errors
/// `Conflict` when none was planned.
async fn planned(registry: &Database, tenant: &Tenant, hold: Option<i64>) -> Result<Export, StepError> {
    let export = exports::current(&*registry.client().await?, tenant.id, hold).await?;
    export.ok_or_else(|| StepError::Conflict(format!("tenant {} ({}): no export was planned", tenant.slug, tenant.id)))
}
