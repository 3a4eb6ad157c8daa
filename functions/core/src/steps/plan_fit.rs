//! ReportPlanFit: what of a tenant's use does not fit its plan. It is told, and nothing is taken away: what to do about it is
//! between the tenant and the product.

use async_trait::async_trait;
use serde::Serialize;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::fence::{Actor, check};
use crate::registry::plans::{self, Limits};
use crate::registry::{self, seats, storage};
use crate::request::StepCall;
use crate::resource::database::{TenantDatabase, Use};
use crate::step::{Step, log_tenant};
use crate::tenant::{IN_SERVICE, Isolation, Tenant};

/// Compares, and tells once a change. Run by hand it only answers.
pub struct ReportPlanFit {
    registry: Database,
    databases: TenantDatabase,
}

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Misfit {
    /// More users, or more seats taken, than seats.
    Seats { used: i64, allowed: i64 },
    /// More bytes than the plan has, in the product's files or in the bucket.
    StorageBytes { used: i64, allowed: i64 },
    /// More calls in this billing cycle than the plan has: the gate refuses the next.
    ApiCalls { used: i64, allowed: i64 },
    /// More isolation than the plan offers. It stays.
    Isolation { used: Isolation, allowed: Isolation },
    /// A feature that the plan before had.
    Flag { name: String },
}

impl ReportPlanFit {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ReportPlanFit { registry: Database::registry(env)?, databases: TenantDatabase::from_env(env)? })
    }

    async fn misfits(&self, tenant: &Tenant) -> Result<Vec<Misfit>, StepError> {
        let product = self.databases.usage(tenant).await?;
        let client = self.registry.client().await?;
        // The ledgers are what is enforced; the product's own tables may know more, or less.
        let used = Use {
            users: product.users.max(seats::taken(&*client, tenant.id).await?),
            bytes: product.bytes.max(storage::stored(&*client, tenant.id).await?),
        };
        let limits = plans::limits(&*client, tenant.id).await?;
        Ok(misfits(tenant.isolation, used, limits))
    }
}

#[async_trait]
impl Step for ReportPlanFit {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        check(&record, &call.actor, IN_SERVICE)?;
        let does_not_fit: Vec<Value> = self.misfits(&record.tenant).await?.iter().map(|misfit| json!(misfit)).collect();
        if let Actor::Execution(execution) = &call.actor {
            let mut client = self.registry.client().await?;
            plans::report(&mut client, record.tenant.id, execution, &does_not_fit).await?;
        }
        Ok(json!({ "step": name, "fits": does_not_fit.is_empty(), "does_not_fit": does_not_fit }))
    }
}

fn misfits(isolation: Isolation, used: Use, limits: Limits) -> Vec<Misfit> {
    let mut misfits = Vec::new();
    if used.users > limits.seats {
        misfits.push(Misfit::Seats { used: used.users, allowed: limits.seats });
    }
    if used.bytes > limits.storage_bytes {
        misfits.push(Misfit::StorageBytes { used: used.bytes, allowed: limits.storage_bytes });
    }
    if limits.api_calls_used > limits.api_calls {
        misfits.push(Misfit::ApiCalls { used: limits.api_calls_used, allowed: limits.api_calls });
    }
    if isolation > limits.isolation {
        misfits.push(Misfit::Isolation { used: isolation, allowed: limits.isolation });
    }
    misfits.extend(limits.flags_lost.into_iter().map(|name| Misfit::Flag { name }));
    misfits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            seats: 5,
            storage_bytes: 100,
            api_calls: 1000,
            api_calls_used: 1000,
            isolation: Isolation::Schema,
            flags_lost: Vec::new(),
        }
    }

    #[test]
    fn what_is_just_used_up_fits() {
        assert!(misfits(Isolation::Schema, Use { users: 5, bytes: 100 }, limits()).is_empty());
    }

    #[test]
    fn everything_that_is_too_much_is_named() {
        let limits = Limits { api_calls_used: 1001, flags_lost: vec!["sso".into()], ..limits() };
        let found = misfits(Isolation::Database, Use { users: 6, bytes: 101 }, limits);
        assert_eq!(
            json!(found),
            json!([
                {"what": "seats", "used": 6, "allowed": 5},
                {"what": "storage_bytes", "used": 101, "allowed": 100},
                {"what": "api_calls", "used": 1001, "allowed": 1000},
                {"what": "isolation", "used": "database", "allowed": "schema"},
                {"what": "flag", "name": "sso"},
            ])
        );
    }
}
