//! The role itself: its trust, its boundary and its one policy.

use aws_sdk_iam::Client;
use aws_sdk_iam::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_iam::types::Tag;

use super::policy;
use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::Inspection;
use crate::resource::policy_document::{partition, percent_decoded, same_policy};
use crate::resource::wait::until_done;
use crate::tenant::{OWNER_TAG, Tenant};

/// The inline policy's name.
const POLICY: &str = "tenant";

/// The role `tenant-{id}`, bounded by the stack's permissions boundary.
///
/// A role is seen everywhere only seconds after it was created; nothing here waits for that, because nothing that is made
/// beside it names it as a principal.
pub(super) struct Role {
    iam: Client,
    boundary: String,
    place: policy::Place,
}

/// What there is under the role's name.
enum Look {
    Absent,
    Foreign(String),
    Ours(Found),
}

/// The role as IAM has it.
struct Found {
    arn: String,
    trust: String,
    boundary: Option<String>,
    policy: Option<String>,
    /// Names of inline policies that are not ours to have.
    other_policies: Vec<String>,
    /// ARNs of managed policies; the role should have none.
    attached: Vec<String>,
}

/// What differs, and is mended by one call.
enum Drift {
    Trust,
    Boundary(Option<String>),
    Policy,
    OtherPolicy(String),
    Attached(String),
}

impl Role {
    /// As [`super::Identity::from_env`].
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Role {
            iam: Client::new(&env.aws),
            boundary: env.required("TENANT_BOUNDARY_ARN")?,
            place: policy::Place {
                account: env.required("ACCOUNT_ID")?,
                cluster: env.required("EKS_CLUSTER")?,
                config_table: env.required("CONFIG_TABLE")?,
            },
        })
    }

    /// The role and all its policies, in one round trip.
    async fn look(&self, tenant: &Tenant) -> Result<Look, StepError> {
        let (iam, name) = (&self.iam, &tenant.role());
        let (role, policy, names, attached) = futures::join!(
            Box::pin(iam.get_role().role_name(name).send()),
            Box::pin(iam.get_role_policy().role_name(name).policy_name(POLICY).send()),
            Box::pin(
                iam.list_role_policies().role_name(name).into_paginator().items().send().collect::<Result<Vec<_>, _>>()
            ),
            Box::pin(
                iam.list_attached_role_policies()
                    .role_name(name)
                    .into_paginator()
                    .items()
                    .send()
                    .collect::<Result<Vec<_>, _>>()
            ),
        );
        let Some(role) = known(&format!("reading role {name}"), role)?.and_then(|output| output.role) else {
            return Ok(Look::Absent);
        };
        let tag = role.tags().iter().find(|tag| tag.key == OWNER_TAG).map(|tag| tag.value.as_str());
        if tag != Some(tenant.id.to_string().as_str()) {
            return Ok(Look::Foreign(match tag {
                Some(other) => format!("its tag {OWNER_TAG} is {other}"),
                None => format!("it has no tag {OWNER_TAG}"),
            }));
        }
        let doing = format!("reading the policies of role {name}");
        let mut other_policies = known(&doing, names)?.unwrap_or_default();
        other_policies.retain(|policy| policy != POLICY);
        Ok(Look::Ours(Found {
            arn: role.arn,
            trust: percent_decoded(role.assume_role_policy_document.as_deref().unwrap_or_default()),
            boundary: role.permissions_boundary.and_then(|boundary| boundary.permissions_boundary_arn),
            policy: known(&doing, policy)?.map(|output| percent_decoded(&output.policy_document)),
            other_policies,
            attached: known(&doing, attached)?
                .unwrap_or_default()
                .into_iter()
                .filter_map(|policy| policy.policy_arn)
                .collect(),
        }))
    }

    /// Creates the role, still without rights, and says whether it is new; `false` when somebody was faster.
    async fn create(&self, tenant: &Tenant) -> Result<bool, StepError> {
        let name = tenant.role();
        let tag = Tag::builder().key(OWNER_TAG).value(tenant.id.to_string()).build();
        let tag = tag.map_err(|error| StepError::Unexpected(format!("composing the tag of role {name}: {error}")))?;
        let create = self
            .iam
            .create_role()
            .role_name(&name)
            .description("What this tenant's pods may do. Made by Tenantry, which overwrites changes.")
            .assume_role_policy_document(policy::trust(tenant, &self.place).to_string())
            .permissions_boundary(&self.boundary)
            .tags(tag);
        match create.send().await {
            Ok(_) => Ok(true),
            Err(error) if code(&error) == Some("EntityAlreadyExists") => Ok(false),
            Err(error) => Err(classify(&format!("creating role {name}"), &error)),
        }
    }

    /// The ARN that the role has or will have.
    pub(super) fn arn(&self, tenant: &Tenant) -> String {
        format!("arn:{}:iam::{}:role/{}", partition(&tenant.region), self.place.account, tenant.role())
    }

    fn drift(&self, tenant: &Tenant, found: &Found) -> Vec<Drift> {
        let mut drift = Vec::new();
        if !same_policy(&found.trust, &policy::trust(tenant, &self.place)) {
            drift.push(Drift::Trust);
        }
        if found.boundary.as_ref() != Some(&self.boundary) {
            drift.push(Drift::Boundary(found.boundary.clone()));
        }
        let permissions = policy::permissions(tenant, &self.place);
        if !found.policy.as_deref().is_some_and(|kept| same_policy(kept, &permissions)) {
            drift.push(Drift::Policy);
        }
        drift.extend(found.other_policies.iter().cloned().map(Drift::OtherPolicy));
        drift.extend(found.attached.iter().cloned().map(Drift::Attached));
        drift
    }

    async fn mend(&self, tenant: &Tenant, drift: &Drift) -> Result<(), StepError> {
        let (iam, role) = (&self.iam, tenant.role());
        let doing = format!("mending role {role} ({drift})");
        match drift {
            Drift::Trust => {
                let document = policy::trust(tenant, &self.place).to_string();
                let update = iam.update_assume_role_policy().role_name(role).policy_document(document);
                update.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
            Drift::Boundary(_) => {
                let put = iam.put_role_permissions_boundary().role_name(role).permissions_boundary(&self.boundary);
                put.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
            Drift::Policy => {
                let document = policy::permissions(tenant, &self.place).to_string();
                let put = iam.put_role_policy().role_name(role).policy_name(POLICY).policy_document(document);
                put.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
            Drift::OtherPolicy(name) => self.delete_policy(&role, name).await,
            Drift::Attached(arn) => self.detach(&role, arn).await,
        }
    }

    async fn delete_policy(&self, role: &str, name: &str) -> Result<(), StepError> {
        let gone = self.iam.delete_role_policy().role_name(role).policy_name(name).send().await;
        known(&format!("deleting policy {name} of role {role}"), gone).map(drop)
    }

    async fn detach(&self, role: &str, arn: &str) -> Result<(), StepError> {
        let gone = self.iam.detach_role_policy().role_name(role).policy_arn(arn).send().await;
        known(&format!("detaching {arn} from role {role}"), gone).map(drop)
    }

    /// Creates or mends the role and returns its ARN.
    pub(super) async fn ensure(&self, tenant: &Tenant) -> Result<String, StepError> {
        let name = tenant.role();
        let mut look = self.look(tenant).await?;
        if matches!(look, Look::Absent) {
            if self.create(tenant).await? {
                // Not read back: for some seconds, IAM may answer that it does not know the role.
                self.mend(tenant, &Drift::Policy).await?;
                return Ok(self.arn(tenant));
            }
            look = self.look(tenant).await?;
        }
        match look {
            Look::Absent => Err(StepError::Transient(format!("role {name} exists but is not seen yet"))),
            Look::Foreign(found) => Err(StepError::Foreign { kind: "role", name, found }),
            Look::Ours(found) => {
                for drift in self.drift(tenant, &found) {
                    self.mend(tenant, &drift).await?;
                }
                Ok(found.arn)
            }
        }
    }

    /// Removes the role with its policies, and waits until it is gone.
    pub(super) async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let Look::Ours(found) = self.look(tenant).await? else {
            return Ok(());
        };
        let name = &tenant.role();
        for policy in found.other_policies.iter().map(String::as_str).chain(found.policy.is_some().then_some(POLICY)) {
            self.delete_policy(name, policy).await?;
        }
        for arn in &found.attached {
            self.detach(name, arn).await?;
        }
        let doing = &format!("deleting role {name}");
        match self.iam.delete_role().role_name(name).send().await {
            Err(error) if code(&error) == Some("DeleteConflict") => {
                return Err(StepError::Transient(format!("{doing}: it got another policy meanwhile")));
            }
            answer => known(doing, answer)?,
        };
        until_done(doing, || async move {
            let role = known(doing, self.iam.get_role().role_name(name).send().await)?;
            Ok(role.map(|_| "it is still there".to_owned()))
        })
        .await
    }

    pub(super) async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        Ok(match self.look(tenant).await? {
            Look::Absent => Inspection::Absent,
            Look::Foreign(found) => Inspection::Foreign(found),
            Look::Ours(found) => match self.drift(tenant, &found) {
                drift if drift.is_empty() => Inspection::Present,
                drift => Inspection::Drifted(drift.iter().map(Drift::to_string).collect()),
            },
        })
    }
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Drift::Trust => f.write_str("trust policy: not ours"),
            Drift::Boundary(None) => f.write_str("permissions boundary: not set"),
            Drift::Boundary(Some(other)) => write!(f, "permissions boundary: {other}"),
            Drift::Policy => write!(f, "inline policy {POLICY}: missing or not ours"),
            Drift::OtherPolicy(name) => write!(f, "inline policy {name}: should not be there"),
            Drift::Attached(arn) => write!(f, "attached policy {arn}: should not be there"),
        }
    }
}

/// `None` where IAM knows no such role or policy.
fn known<T, E>(doing: &str, result: Result<T, SdkError<E>>) -> Result<Option<T>, StepError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match result {
        Ok(output) => Ok(Some(output)),
        Err(error) if code(&error) == Some("NoSuchEntity") => Ok(None),
        Err(error) => Err(classify(doing, &error)),
    }
}

/// A role's existence spreads slower than the answer that it was created; so does the boundary's.
fn settle<E>(doing: &str, error: &SdkError<E>) -> StepError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match code(error) {
        Some("NoSuchEntity") => StepError::Transient(format!("{doing}: it is not seen yet, or was just deleted")),
        _ => classify(doing, error),
    }
}
