//! The EKS Pod Identity association: pods of the tenant's service account get the tenant's role.

use std::collections::HashMap;

use aws_sdk_eks::Client;
use aws_sdk_eks::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_eks::types::PodIdentityAssociation;

use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::wait::until_done;
use crate::tenant::{OWNER_TAG, Tenant};

/// What errors call it.
pub(super) const KIND: &str = "pod identity association";

/// The association of the tenant's service account. EKS allows one for each, and 5,000 a cluster.
pub(super) struct Association {
    eks: Client,
    cluster: String,
    /// Whether the cluster may be unknown to EKS: then pods have no AWS identity.
    elsewhere: bool,
}

/// What there is for the service account.
pub(super) enum Look {
    /// The cluster is not EKS's, so there is nothing to make.
    NotEks,
    Absent,
    Foreign {
        id: String,
        found: String,
    },
    Ours(Found),
}

/// What matters of the association.
pub(super) struct Found {
    id: String,
    role: String,
    /// Session tags carry the names that the role's trust policy compares.
    session_tags: bool,
}

impl Association {
    /// As [`super::Identity::from_env`].
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Association {
            eks: Client::new(&env.aws),
            cluster: env.required("EKS_CLUSTER")?,
            elsewhere: env.optional("KUBECONFIG").is_some(),
        })
    }

    /// Reads the association.
    pub(super) async fn look(&self, tenant: &Tenant) -> Result<Look, StepError> {
        let doing = format!("reading the {KIND} of {}", self.pods(tenant));
        let listed = match self.list(tenant).await {
            Err(error) if code(&error) == Some("ResourceNotFoundException") => {
                if self.elsewhere {
                    return Ok(Look::NotEks);
                }
                let text = format!("EKS_CLUSTER: EKS knows no cluster {}, and KUBECONFIG names none", self.cluster);
                return Err(StepError::Misconfigured(text));
            }
            listed => listed.map_err(|error| classify(&doing, &error))?,
        };
        let Some(id) = listed else { return Ok(Look::Absent) };
        let describe = self.eks.describe_pod_identity_association().cluster_name(&self.cluster).association_id(&id);
        let found = match describe.send().await {
            Err(error) if code(&error) == Some("ResourceNotFoundException") => return Ok(Look::Absent),
            found => found.map_err(|error| classify(&doing, &error))?.association,
        };
        Ok(found.map_or(Look::Absent, |found| judge(tenant, id, found)))
    }

    /// Creates the association, or mends the one that [`Self::look`] found, and returns its id.
    pub(super) async fn ensure(&self, tenant: &Tenant, arn: &str, found: Look) -> Result<Option<String>, StepError> {
        let doing = format!("writing the {KIND} of {}", self.pods(tenant));
        match found {
            Look::NotEks => Ok(None),
            Look::Foreign { id, found } => Err(StepError::Foreign { kind: KIND, name: id, found }),
            Look::Ours(found) if found.difference(arn).is_none() => Ok(Some(found.id)),
            Look::Ours(found) => {
                let update = self.eks.update_pod_identity_association().cluster_name(&self.cluster);
                let update = update.association_id(&found.id).role_arn(arn).disable_session_tags(false);
                update.send().await.map_err(|error| settle(&doing, &error))?;
                Ok(Some(found.id))
            }
            Look::Absent => {
                let create = self.eks.create_pod_identity_association().cluster_name(&self.cluster);
                let create = create.namespace(tenant.namespace()).service_account(tenant.service_account());
                let create = create.role_arn(arn).tags(OWNER_TAG, tenant.id.to_string());
                let created = create.send().await.map_err(|error| settle(&doing, &error))?;
                Ok(created.association.and_then(|association| association.association_id))
            }
        }
    }

    /// Removes the association if it is ours, and waits until it is gone.
    pub(super) async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let Look::Ours(found) = self.look(tenant).await? else {
            return Ok(());
        };
        let doing = &format!("deleting the {KIND} of {}", self.pods(tenant));
        let delete = self.eks.delete_pod_identity_association().cluster_name(&self.cluster).association_id(found.id);
        match delete.send().await {
            Err(error) if code(&error) == Some("ResourceNotFoundException") => {}
            deleted => drop(deleted.map_err(|error| classify(doing, &error))?),
        }
        until_done(doing, || async move {
            let listed = self.list(tenant).await.map_err(|error| classify(doing, &error))?;
            Ok(listed.map(|_| "it is still there".to_owned()))
        })
        .await
    }

    async fn list(
        &self,
        tenant: &Tenant,
    ) -> Result<Option<String>, SdkError<impl ProvideErrorMetadata + std::error::Error + 'static + use<>>> {
        let list = self.eks.list_pod_identity_associations().cluster_name(&self.cluster);
        let list = list.namespace(tenant.namespace()).service_account(tenant.service_account());
        let listed = list.send().await?;
        Ok(listed.associations().first().and_then(|first| first.association_id()).map(str::to_owned))
    }

    fn pods(&self, tenant: &Tenant) -> String {
        format!("{}/{} in cluster {}", tenant.namespace(), tenant.service_account(), self.cluster)
    }
}

impl Look {
    /// How it differs from what `ensure` would make.
    pub(super) fn difference(&self, arn: &str) -> Option<String> {
        match self {
            Look::NotEks => None,
            Look::Absent => Some(format!("{KIND}: missing")),
            Look::Foreign { id, found } => Some(format!("{KIND}: {id} is not this tenant's: {found}")),
            Look::Ours(found) => found.difference(arn),
        }
    }
}

impl Found {
    fn difference(&self, arn: &str) -> Option<String> {
        if self.role != arn {
            return Some(format!("{KIND}: gives role {}", self.role));
        }
        (!self.session_tags).then(|| format!("{KIND}: session tags are off"))
    }
}

fn judge(tenant: &Tenant, id: String, found: PodIdentityAssociation) -> Look {
    let tags: HashMap<_, _> = found.tags.unwrap_or_default();
    match tags.get(OWNER_TAG) {
        Some(owner) if *owner == tenant.id.to_string() => Look::Ours(Found {
            id,
            role: found.role_arn.unwrap_or_default(),
            session_tags: !found.disable_session_tags.unwrap_or_default(),
        }),
        Some(owner) => Look::Foreign { id, found: format!("its tag {OWNER_TAG} is {owner}") },
        None => Look::Foreign { id, found: format!("it has no tag {OWNER_TAG}") },
    }
}

/// A role that IAM has just created is not seen by EKS for some seconds.
fn settle<E>(doing: &str, error: &SdkError<E>) -> StepError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let of_the_role = code(error) == Some("InvalidParameterException")
        && error.as_service_error().and_then(ProvideErrorMetadata::message).is_some_and(|text| text.contains("ole"));
    match classify(doing, error) {
        StepError::Unexpected(text) if of_the_role => StepError::Transient(text),
        other => other,
    }
}
