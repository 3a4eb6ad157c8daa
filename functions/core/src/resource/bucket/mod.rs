//! The tenant's S3 bucket: private, versioned, encrypted, and open to the tenant's role and the stack's own roles only.

mod empty;
mod lifecycle;
mod notifications;
pub mod objects;
pub mod plan;
mod policy;

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_bucket_tagging::{GetBucketTaggingError, GetBucketTaggingOutput};
use aws_sdk_s3::types::{
    BucketLifecycleConfiguration, BucketLocationConstraint, BucketVersioningStatus, CreateBucketConfiguration,
    LifecycleRule, NotificationConfiguration, ObjectOwnership, OwnershipControls, OwnershipControlsRule,
    PublicAccessBlockConfiguration, ServerSideEncryption, ServerSideEncryptionByDefault,
    ServerSideEncryptionConfiguration, ServerSideEncryptionRule, Tag, VersioningConfiguration,
};
pub use empty::Emptied;
pub(crate) use empty::{decoded, empty_for};
use serde_json::{Value, json};

use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::policy_document::{partition, same_policy};
use crate::resource::wait::until_done;
use crate::resource::{Freezable, Inspection, Resource, missing};
use crate::tenant::{OWNER_TAG, Tenant};

/// How long one call drains a bucket. With the longest single operation this stays below the functions' `Timeout`.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// The bucket `tenant-{id}-{region}`.
///
/// Encryption is SSE-S3 (AES-256): it keeps no key whose loss, price or request quota would be one more thing per tenant,
/// and who may read is decided by the bucket policy, not by a key policy beside it.
pub struct Bucket {
    s3: Client,
    account: String,
    stack_roles: Vec<String>,
}

/// What there is under the bucket's name.
enum Look {
    Absent,
    Foreign(String),
    Ours(Box<Settings<Option<String>>>),
}

/// Whom the tags of a bucket name.
enum Whose {
    /// There is no bucket.
    Nobodys,
    /// Not the tenant's; what says so.
    Anothers(String),
    Tenants,
}

/// What we set on a bucket. `None` or empty where nothing is set; the policy is kept as text and wanted as a document.
struct Settings<P> {
    public_access: Option<PublicAccessBlockConfiguration>,
    ownership: Option<ObjectOwnership>,
    encryption: Option<ServerSideEncryption>,
    versioning: Option<BucketVersioningStatus>,
    lifecycle: Vec<LifecycleRule>,
    notifications: Option<NotificationConfiguration>,
    policy: P,
}

/// A setting, to be written again when it differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    PublicAccess,
    Ownership,
    Encryption,
    Versioning,
    Lifecycle,
    Notifications,
    Policy,
}

impl Bucket {
    /// Reads ACCOUNT_ID and STACK_ROLE_ARNS. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when one of them is missing: without the stack's own roles the bucket policy would lock out the
    /// function that writes it.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        env.required("STACK_ROLE_ARNS")?;
        Ok(Bucket {
            s3: crate::aws::s3(&env.aws),
            account: env.required("ACCOUNT_ID")?,
            stack_roles: env.list("STACK_ROLE_ARNS"),
        })
    }

    /// Everything there is to know, in one round trip: all questions are asked at once, and the tags decide whether the
    /// other answers mean anything.
    async fn look(&self, tenant: &Tenant) -> Result<Look, StepError> {
        let (s3, name) = (&self.s3, &tenant.bucket());
        let (tags, public_access, ownership, encryption, versioning, lifecycle, notifications, policy) = futures::join!(
            // A bucket of another account, tagged to look like ours, is refused here.
            Box::pin(s3.get_bucket_tagging().bucket(name).expected_bucket_owner(&self.account).send()),
            Box::pin(s3.get_public_access_block().bucket(name).send()),
            Box::pin(s3.get_bucket_ownership_controls().bucket(name).send()),
            Box::pin(s3.get_bucket_encryption().bucket(name).send()),
            Box::pin(s3.get_bucket_versioning().bucket(name).send()),
            Box::pin(s3.get_bucket_lifecycle_configuration().bucket(name).send()),
            Box::pin(s3.get_bucket_notification_configuration().bucket(name).send()),
            Box::pin(s3.get_bucket_policy().bucket(name).send()),
        );
        Ok(match whose(tenant, tags)? {
            Whose::Nobodys => Look::Absent,
            Whose::Anothers(found) => Look::Foreign(found),
            Whose::Tenants => Look::Ours(Box::new(Settings {
                public_access: set(name, public_access, "NoSuchPublicAccessBlockConfiguration")?
                    .and_then(|output| output.public_access_block_configuration),
                ownership: set(name, ownership, "OwnershipControlsNotFoundError")?
                    .and_then(|output| output.ownership_controls)
                    .and_then(|controls| controls.rules.into_iter().next())
                    .map(|rule| rule.object_ownership),
                encryption: set(name, encryption, "ServerSideEncryptionConfigurationNotFoundError")?
                    .and_then(|output| output.server_side_encryption_configuration)
                    .and_then(|configuration| configuration.rules.into_iter().next())
                    .and_then(|rule| rule.apply_server_side_encryption_by_default)
                    .map(|default| default.sse_algorithm),
                versioning: set(name, versioning, "")?.and_then(|output| output.status),
                lifecycle: set(name, lifecycle, "NoSuchLifecycleConfiguration")?
                    .and_then(|output| output.rules)
                    .unwrap_or_default(),
                notifications: set(name, notifications, "")?.map(notifications::found),
                policy: set(name, policy, "NoSuchBucketPolicy")?.and_then(|output| output.policy),
            })),
        })
    }

    /// Deletes what the bucket holds, for good, as much as half a minute allows; the next call goes on. A bucket that is not there,
    /// or is another's, is empty.
    ///
    /// # Errors
    /// `Transient` when S3 asks to try again.
    pub async fn drain(&self, tenant: &Tenant) -> Result<Emptied, StepError> {
        match self.look(tenant).await? {
            Look::Ours(_) => {
                let name = tenant.bucket();
                // Nobody counts what a tenant that is deleted still holds, and each object would be an event.
                let silent = NotificationConfiguration::builder().build();
                let put =
                    self.s3.put_bucket_notification_configuration().bucket(&name).notification_configuration(silent);
                put.send().await.map_err(|error| settle(&format!("silencing bucket {name}"), &error))?;
                empty_for(&self.s3, &name, None, DRAIN_TIME).await
            }
            Look::Absent | Look::Foreign(_) => Ok(Emptied { deleted: 0, all: true }),
        }
    }

    /// What is to be set on a bucket whose lifecycle rules are these.
    fn wanted(&self, tenant: &Tenant, rules: &[LifecycleRule]) -> Result<Settings<Value>, StepError> {
        Ok(Settings {
            public_access: Some(
                PublicAccessBlockConfiguration::builder()
                    .block_public_acls(true)
                    .block_public_policy(true)
                    .ignore_public_acls(true)
                    .restrict_public_buckets(true)
                    .build(),
            ),
            ownership: Some(ObjectOwnership::BucketOwnerEnforced),
            encryption: Some(ServerSideEncryption::Aes256),
            versioning: Some(BucketVersioningStatus::Enabled),
            lifecycle: wanted_rules(tenant, rules)?,
            notifications: Some(notifications::to_event_bridge()),
            policy: policy::bucket_policy(tenant, &self.account, &self.stack_roles),
        })
    }

    async fn create(&self, tenant: &Tenant) -> Result<(), StepError> {
        let name = tenant.bucket();
        let tag = Tag::builder().key(OWNER_TAG).value(tenant.id.to_string()).build();
        // us-east-1 is the one region that S3 refuses to be named.
        let place = Some(BucketLocationConstraint::from(tenant.region.as_str()));
        let configuration = CreateBucketConfiguration::builder()
            .tags(tag.map_err(|error| unbuildable(&error))?)
            .set_location_constraint(place.filter(|_| tenant.region.as_str() != "us-east-1"))
            .build();
        let create = self
            .s3
            .create_bucket()
            .bucket(&name)
            .create_bucket_configuration(configuration)
            .object_ownership(ObjectOwnership::BucketOwnerEnforced);
        match create.send().await {
            Ok(_) => Ok(()),
            // Made between our look and now: the next look says by whom.
            Err(error) if code(&error) == Some("BucketAlreadyOwnedByYou") => Ok(()),
            Err(error) if code(&error) == Some("BucketAlreadyExists") => {
                Err(foreign(name, "it belongs to another AWS account".to_owned()))
            }
            Err(error) => Err(classify(&format!("creating bucket {name}"), &error)),
        }
    }

    /// Writes one setting as `wanted` has it.
    async fn write(&self, name: &str, setting: Setting, wanted: &Settings<Value>) -> Result<(), StepError> {
        let s3 = &self.s3;
        let doing = format!("writing the {} of bucket {name}", setting.name());
        match setting {
            Setting::PublicAccess => {
                let put = s3.put_public_access_block().bucket(name);
                let put = put.set_public_access_block_configuration(wanted.public_access.clone());
                put.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
            Setting::Ownership => {
                let rule = OwnershipControlsRule::builder().set_object_ownership(wanted.ownership.clone()).build();
                let rule = rule.map_err(|error| unbuildable(&error))?;
                let controls = OwnershipControls::builder().rules(rule).build().map_err(|error| unbuildable(&error))?;
                let put = s3.put_bucket_ownership_controls().bucket(name).ownership_controls(controls);
                put.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
            Setting::Encryption => {
                let default = ServerSideEncryptionByDefault::builder().set_sse_algorithm(wanted.encryption.clone());
                let default = default.build().map_err(|error| unbuildable(&error))?;
                let rule = ServerSideEncryptionRule::builder().apply_server_side_encryption_by_default(default).build();
                let configuration = ServerSideEncryptionConfiguration::builder().rules(rule).build();
                let configuration = configuration.map_err(|error| unbuildable(&error))?;
                let put = s3.put_bucket_encryption().bucket(name).server_side_encryption_configuration(configuration);
                put.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
            Setting::Versioning => {
                let versioning = VersioningConfiguration::builder().set_status(wanted.versioning.clone()).build();
                let put = s3.put_bucket_versioning().bucket(name).versioning_configuration(versioning);
                put.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
            Setting::Lifecycle => write_rules(s3, name, wanted.lifecycle.clone()).await,
            Setting::Notifications => {
                let put = s3.put_bucket_notification_configuration().bucket(name);
                let put = put.set_notification_configuration(wanted.notifications.clone());
                put.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
            Setting::Policy => {
                let put = s3.put_bucket_policy().bucket(name).policy(wanted.policy.to_string());
                put.send().await.map(drop).map_err(|error| settle(&doing, &error))
            }
        }
    }
}

#[async_trait]
impl Resource for Bucket {
    fn kind(&self) -> &'static str {
        "bucket"
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        let name = tenant.bucket();
        let mut look = self.look(tenant).await?;
        if matches!(look, Look::Absent) {
            self.create(tenant).await?;
            // What a new bucket has already need not be written, and in us-east-1, where creating another's bucket of
            // this account answers 200, this is where it shows.
            look = self.look(tenant).await?;
        }
        let found = match look {
            Look::Absent => return Err(StepError::Transient(format!("bucket {name} was created but is not seen yet"))),
            Look::Foreign(found) => return Err(foreign(name, found)),
            Look::Ours(found) => found,
        };
        let wanted = self.wanted(tenant, &found.lifecycle)?;
        // One after the other: S3 answers OperationAborted to simultaneous changes of one bucket.
        for (setting, _) in differences(&found, &wanted) {
            self.write(&name, setting, &wanted).await?;
        }
        Ok(json!({"bucket": name, "arn": format!("arn:{}:s3:::{name}", partition(&tenant.region))}))
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let name = &tenant.bucket();
        if !matches!(self.look(tenant).await?, Look::Ours(_)) {
            return Ok(());
        }
        empty::empty(&self.s3, name).await?;
        let doing = &format!("deleting bucket {name}");
        match self.s3.delete_bucket().bucket(name).send().await {
            Ok(_) => {}
            Err(error) if code(&error) == Some("NoSuchBucket") => {}
            Err(error) if code(&error) == Some("BucketNotEmpty") => {
                return Err(StepError::Transient(format!("{doing}: something was written to it meanwhile")));
            }
            Err(error) => return Err(classify(doing, &error)),
        }
        until_done(doing, || async move {
            match self.s3.head_bucket().bucket(name).send().await {
                Ok(_) => Ok(Some("it is still there".to_owned())),
                // An answer to HEAD has no body, so no code but what the SDK makes of the status.
                Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found()) => Ok(None),
                Err(error) => Err(classify(doing, &error)),
            }
        })
        .await
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        Ok(match self.look(tenant).await? {
            Look::Absent => Inspection::Absent,
            Look::Foreign(found) => Inspection::Foreign(found),
            Look::Ours(found) => {
                let drift = differences(&found, &self.wanted(tenant, &found.lifecycle)?);
                match drift.is_empty() {
                    true => Inspection::Present,
                    false => Inspection::Drifted(drift.into_iter().map(|(_, text)| text).collect()),
                }
            }
        })
    }
}

/// What the tags of the tenant's bucket, as they were answered, say of whose it is.
fn whose(
    tenant: &Tenant,
    tags: Result<GetBucketTaggingOutput, SdkError<GetBucketTaggingError>>,
) -> Result<Whose, StepError> {
    let tags = match tags {
        Ok(tags) => tags.tag_set,
        Err(error) if code(&error) == Some("NoSuchBucket") => return Ok(Whose::Nobodys),
        Err(error) if code(&error) == Some("NoSuchTagSet") => Vec::new(),
        Err(error) => return Err(classify(&format!("reading the tags of bucket {}", tenant.bucket()), &error)),
    };
    Ok(match tags.iter().find(|tag| tag.key == OWNER_TAG) {
        None => Whose::Anothers(format!("it has no tag {OWNER_TAG}")),
        Some(tag) if tag.value != tenant.id.to_string() => {
            Whose::Anothers(format!("its tag {OWNER_TAG} is {}", tag.value))
        }
        Some(_) => Whose::Tenants,
    })
}

/// The rules that a bucket which has these is to have.
fn wanted_rules(tenant: &Tenant, kept: &[LifecycleRule]) -> Result<Vec<LifecycleRule>, StepError> {
    let rules = lifecycle::rules(&tenant.quotas).map_err(|error| unbuildable(&error))?;
    Ok(lifecycle::beside_others(kept, rules))
}

async fn write_rules(s3: &Client, name: &str, rules: Vec<LifecycleRule>) -> Result<(), StepError> {
    let doing = format!("writing the {} of bucket {name}", Setting::Lifecycle.name());
    let rules = BucketLifecycleConfiguration::builder().set_rules(Some(rules)).build();
    let rules = rules.map_err(|error| unbuildable(&error))?;
    let put = s3.put_bucket_lifecycle_configuration().bucket(name).lifecycle_configuration(rules);
    put.send().await.map(drop).map_err(|error| settle(&doing, &error))
}

#[async_trait]
impl Freezable for Bucket {
    async fn settle(&self, tenant: &Tenant) -> Result<(), StepError> {
        let name = tenant.bucket();
        let found = match self.look(tenant).await? {
            Look::Ours(found) => found,
            Look::Foreign(found) => return Err(foreign(name, found)),
            Look::Absent => return Err(missing("bucket", tenant, "create-bucket")),
        };
        let wanted = self.wanted(tenant, &found.lifecycle)?;
        if differences(&found, &wanted).iter().any(|(setting, _)| *setting == Setting::Policy) {
            self.write(&name, Setting::Policy, &wanted).await?;
        }
        Ok(())
    }
}

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Setting::PublicAccess => "public access block",
            Setting::Ownership => "object ownership",
            Setting::Encryption => "default encryption",
            Setting::Versioning => "versioning",
            Setting::Lifecycle => "lifecycle rules",
            Setting::Notifications => "notifications",
            Setting::Policy => "policy",
        }
    }
}

/// What has to be written, in a safe order (closed first, the policy last, since it may shut out a role that was
/// forgotten in the list), and the words for it.
fn differences(found: &Settings<Option<String>>, wanted: &Settings<Value>) -> Vec<(Setting, String)> {
    let mut differences = Vec::new();
    let mut differs = |setting: Setting, is: Option<String>| {
        let is = is.unwrap_or_else(|| "not set".to_owned());
        differences.push((setting, format!("{}: {is}", setting.name())));
    };
    if found.public_access != wanted.public_access {
        differs(Setting::PublicAccess, found.public_access.as_ref().map(|block| format!("{block:?}")));
    }
    if found.ownership != wanted.ownership {
        differs(Setting::Ownership, found.ownership.as_ref().map(ToString::to_string));
    }
    if found.encryption != wanted.encryption {
        differs(Setting::Encryption, found.encryption.as_ref().map(ToString::to_string));
    }
    if found.versioning != wanted.versioning {
        differs(Setting::Versioning, found.versioning.as_ref().map(ToString::to_string));
    }
    if !lifecycle::same_rules(&found.lifecycle, &wanted.lifecycle) {
        let ids: Vec<_> = found.lifecycle.iter().map(|rule| rule.id().unwrap_or("(no id)")).collect();
        differs(Setting::Lifecycle, (!ids.is_empty()).then(|| format!("not the plan's: {}", ids.join(", "))));
    }
    if found.notifications != wanted.notifications {
        differs(Setting::Notifications, Some("not EventBridge alone".to_owned()));
    }
    if !found.policy.as_deref().is_some_and(|policy| same_policy(policy, &wanted.policy)) {
        differs(Setting::Policy, found.policy.as_ref().map(|policy| format!("not ours: {policy}")));
    }
    differences
}

/// A setting that may not be set; `unset` is the error code that says so.
fn set<T, E>(bucket: &str, result: Result<T, SdkError<E>>, unset: &str) -> Result<Option<T>, StepError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match result {
        Ok(output) => Ok(Some(output)),
        Err(error) if code(&error) == Some(unset) => Ok(None),
        Err(error) => Err(settle(&format!("reading the settings of bucket {bucket}"), &error)),
    }
}

/// A bucket's existence spreads slower than the answer that it was created.
fn settle<E>(doing: &str, error: &SdkError<E>) -> StepError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match code(error) {
        Some("NoSuchBucket") => StepError::Transient(format!("{doing}: it is not seen yet, or was just deleted")),
        _ => classify(doing, error),
    }
}

fn foreign(name: String, found: String) -> StepError {
    StepError::Foreign { kind: "bucket", name, found }
}

fn unbuildable(error: &aws_sdk_s3::error::BuildError) -> StepError {
    StepError::Unexpected(format!("composing a bucket's settings: {error}"))
}
