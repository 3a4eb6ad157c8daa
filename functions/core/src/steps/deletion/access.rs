//! RetireAccess: no login of the tenant's works any more, and no session is left.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Removal;
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::Record;
use crate::registry::holds::Hold;
use crate::resource::database::TenantDatabase;
use crate::resource::identity::Identity;

/// Withdraws the tenant's ways in: its login role at PostgreSQL, and what gives its pods a role at AWS.
pub struct RetireAccess {
    database: TenantDatabase,
    identity: Identity,
}

impl RetireAccess {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(RetireAccess { database: TenantDatabase::from_env(env)?, identity: Identity::from_env(env)? })
    }
}

#[async_trait]
impl Removal for RetireAccess {
    async fn act(&self, record: &Record, _hold: &Hold, _registry: &Database) -> Result<Value, StepError> {
        let login = self.database.retire(&record.tenant).await?;
        self.identity.disassociate(&record.tenant).await?;
        Ok(json!({ "login_retired": login }))
    }
}
