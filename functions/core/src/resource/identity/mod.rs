//! Who a tenant's pods are to AWS: an IAM role, and the association that gives it to them.

mod association;
mod policy;
mod role;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::{Inspection, Resource};
use crate::tenant::Tenant;

/// The role `tenant-{id}`, and the EKS Pod Identity association of the tenant's service account with it.
pub struct Identity {
    role: role::Role,
    association: association::Association,
}

impl Identity {
    /// Reads ACCOUNT_ID, EKS_CLUSTER, CONFIG_TABLE, TENANT_BOUNDARY_ARN, and KUBECONFIG, which says that the cluster need
    /// not be EKS's. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when one of the first four is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Identity { role: role::Role::from_env(env)?, association: association::Association::from_env(env)? })
    }
}

impl Identity {
    /// Takes the role away from the tenant's pods; the role itself stays. Again is a no-op.
    ///
    /// # Errors
    /// `Transient` when the association is not gone yet.
    pub async fn disassociate(&self, tenant: &Tenant) -> Result<(), StepError> {
        self.association.remove(tenant).await
    }
}

#[async_trait]
impl Resource for Identity {
    fn kind(&self) -> &'static str {
        "role"
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        // Looked at first: where the service account is another's, nothing is made.
        let found = self.association.look(tenant).await?;
        if let association::Look::Foreign { id, found } = found {
            return Err(StepError::Foreign { kind: association::KIND, name: id, found });
        }
        let arn = self.role.ensure(tenant).await?;
        let association = self.association.ensure(tenant, &arn, found).await?;
        Ok(json!({ "role": tenant.role(), "arn": arn, "association": association }))
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        self.association.remove(tenant).await?;
        self.role.remove(tenant).await
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        let (role, association) = futures::try_join!(self.role.inspect(tenant), self.association.look(tenant))?;
        Ok(together(role, &association, &self.role.arn(tenant)))
    }
}

/// One answer for the two. Another's association beside a role that is ours is a difference, not foreign: the role has to
/// be found by whoever looks for what is left of the tenant.
fn together(role: Inspection, association: &association::Look, arn: &str) -> Inspection {
    let other = association.difference(arn);
    match (role, association) {
        (Inspection::Foreign(found), _) => Inspection::Foreign(found),
        (Inspection::Absent, association::Look::Absent | association::Look::NotEks) => Inspection::Absent,
        (Inspection::Absent, association::Look::Foreign { id, found }) => {
            Inspection::Foreign(format!("{} {id}: {found}", association::KIND))
        }
        (Inspection::Absent, association::Look::Ours(_)) => {
            Inspection::Drifted(std::iter::once("role: missing".to_owned()).chain(other).collect())
        }
        (Inspection::Present, _) => match other {
            None => Inspection::Present,
            Some(other) => Inspection::Drifted(vec![other]),
        },
        (Inspection::Drifted(drift), _) => Inspection::Drifted(drift.into_iter().chain(other).collect()),
    }
}
