//! The tenant's bucket against S3.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use serde_json::{Value, json};
use tenantry_core::error::StepError;
use tenantry_core::resource::bucket::Bucket;
use tenantry_core::resource::{Inspection, Resource};
use tenantry_core::tenant::OWNER_TAG;

use crate::recorder::Recorder;
use crate::tenants::fresh_tenant;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("is_made_once", |world| Box::pin(is_made_once(world))),
    ("is_repaired", |world| Box::pin(is_repaired(world))),
    ("of_another_is_left_alone", |world| Box::pin(of_another_is_left_alone(world))),
    ("is_removed_with_all_it_holds", |world| Box::pin(is_removed_with_all_it_holds(world))),
];

/// Made with its tag, closed, versioned, encrypted; made again, nothing is written.
async fn is_made_once(world: &World) -> Result<()> {
    let (tenant, s3) = (fresh_tenant(world, "bucket")?, world.s3());
    let recorder = Recorder::start(world).await?;
    let bucket = Bucket::from_env(&recorder.env)?;
    ensure!(bucket.inspect(&tenant).await? == Inspection::Absent);
    let made = bucket.ensure(&tenant).await?;
    ensure!(made["bucket"] == json!(tenant.bucket()), "{made}");
    ensure!(bucket.inspect(&tenant).await? == Inspection::Present);

    let tags = s3.get_bucket_tagging().bucket(tenant.bucket()).send().await?;
    ensure!(tags.tag_set().iter().any(|tag| tag.key() == OWNER_TAG && tag.value() == tenant.id.to_string()));
    let policy = s3.get_bucket_policy().bucket(tenant.bucket()).send().await?.policy.context("no policy")?;
    let policy: Value = serde_json::from_str(&policy)?;
    ensure!(policy["Statement"].as_array().map(Vec::len) == Some(3), "{policy}");
    let heard = s3.get_bucket_notification_configuration().bucket(tenant.bucket()).send().await?;
    ensure!(heard.event_bridge_configuration().is_some(), "EventBridge does not hear of its objects");
    let lifecycle = s3.get_bucket_lifecycle_configuration().bucket(tenant.bucket()).send().await?;
    ensure!(lifecycle.rules().iter().any(|rule| rule.transitions().iter().any(|to| to.days() == Some(90))));

    recorder.mutations();
    ensure!(bucket.ensure(&tenant).await? == made, "the second run reports something else");
    let mutations = recorder.mutations();
    ensure!(mutations.is_empty(), "the second run wrote: {mutations:?}");
    Ok(bucket.remove(&tenant).await?)
}

/// Each setting that was changed by hand is named, and only it is written again.
async fn is_repaired(world: &World) -> Result<()> {
    let (tenant, s3) = (fresh_tenant(world, "bucket")?, world.s3());
    let recorder = Recorder::start(world).await?;
    let bucket = Bucket::from_env(&recorder.env)?;
    bucket.ensure(&tenant).await?;
    let name = tenant.bucket();
    let suspended = VersioningConfiguration::builder().status(BucketVersioningStatus::Suspended).build();
    s3.put_bucket_versioning().bucket(&name).versioning_configuration(suspended).send().await?;
    s3.delete_public_access_block().bucket(&name).send().await?;
    s3.delete_bucket_lifecycle().bucket(&name).send().await?;
    s3.put_bucket_policy().bucket(&name).policy(r#"{"Version":"2012-10-17","Statement":[]}"#).send().await?;

    let Inspection::Drifted(drift) = bucket.inspect(&tenant).await? else { anyhow::bail!("the drift was not seen") };
    let parts: Vec<_> = drift.iter().filter_map(|text| text.split(':').next()).collect();
    ensure!(parts == ["public access block", "versioning", "lifecycle rules", "policy"], "{drift:?}");
    recorder.mutations();
    bucket.ensure(&tenant).await?;
    let mutations = recorder.mutations();
    ensure!(mutations.len() == 4, "{mutations:?}");
    ensure!(bucket.inspect(&tenant).await? == Inspection::Present);
    Ok(bucket.remove(&tenant).await?)
}

/// A bucket of the tenant's name that is not the tenant's is neither adopted nor emptied nor deleted.
async fn of_another_is_left_alone(world: &World) -> Result<()> {
    let (tenant, other, s3) = (fresh_tenant(world, "bucket")?, fresh_tenant(world, "bucket")?, world.s3());
    let bucket = Bucket::from_env(&world.env)?;
    let name = tenant.bucket();
    s3.create_bucket().bucket(&name).send().await?;
    s3.put_object().bucket(&name).key("theirs").send().await?;
    for tag in [None, Some(other.id.to_string())] {
        if let Some(value) = tag {
            let tag = aws_sdk_s3::types::Tag::builder().key(OWNER_TAG).value(value).build()?;
            let tags = aws_sdk_s3::types::Tagging::builder().tag_set(tag).build()?;
            s3.put_bucket_tagging().bucket(&name).tagging(tags).send().await?;
        }
        ensure!(matches!(bucket.inspect(&tenant).await?, Inspection::Foreign(_)));
        let refused = bucket.ensure(&tenant).await;
        ensure!(matches!(refused, Err(StepError::Foreign { kind: "bucket", .. })), "{refused:?}");
        bucket.remove(&tenant).await?;
        s3.head_object().bucket(&name).key("theirs").send().await.context("another's object was deleted")?;
        ensure!(s3.get_bucket_policy().bucket(&name).send().await.is_err(), "another's bucket got our policy");
    }
    s3.delete_object().bucket(&name).key("theirs").send().await?;
    s3.delete_bucket().bucket(&name).send().await?;
    Ok(())
}

/// Versions, delete markers, unfinished uploads and odd keys all go, and nobody else's. (The emulator cannot list a key with
/// a control character; S3 can, percent-encoded.)
async fn is_removed_with_all_it_holds(world: &World) -> Result<()> {
    let (tenant, other, s3) = (fresh_tenant(world, "bucket")?, fresh_tenant(world, "bucket")?, world.s3());
    let bucket = Bucket::from_env(&world.env)?;
    bucket.ensure(&tenant).await?;
    bucket.ensure(&other).await?;
    let name = tenant.bucket();
    for number in 0..1100 {
        s3.put_object().bucket(&name).key(format!("many/{number}")).send().await?;
    }
    for key in ["a b+c&d=é", "twice", "twice", "line\nfeed", "<xml>%41"] {
        s3.put_object().bucket(&name).key(key).body(b"x".to_vec().into()).send().await?;
    }
    s3.delete_object().bucket(&name).key("twice").send().await?;
    s3.create_multipart_upload().bucket(&name).key("unfinished & more").send().await?;
    s3.put_object().bucket(other.bucket()).key("kept").send().await?;

    bucket.remove(&tenant).await?;
    ensure!(bucket.inspect(&tenant).await? == Inspection::Absent);
    bucket.remove(&tenant).await.context("removing what is gone")?;
    s3.head_object().bucket(other.bucket()).key("kept").send().await.context("another tenant's object is gone")?;
    ensure!(bucket.inspect(&other).await? == Inspection::Present);
    Ok(bucket.remove(&other).await?)
}
