//! S3: buckets that are named for the tenant with all that is in them, and its exports, which expire by themselves, or go with it
//! in an erasure.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::types::EncodingType;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::Instant;

use super::{Finding, Kept, Store, Subject, count};
use crate::aws::{classify, code, s3};
use crate::environment::Environment;
use crate::error::StepError;
use crate::export::folder_of;
use crate::moment;
use crate::resource::bucket::decoded;
use crate::tenant::Tenant;

/// How long the versions of buckets are counted: a thousand a call. What is not counted by then is counted as it is drained.
const PATIENCE: Duration = Duration::from_secs(20);

/// The account's buckets.
pub(super) struct Buckets {
    s3: Client,
}

/// The bucket of exports.
pub(super) struct Exports {
    s3: Client,
    bucket: String,
}

/// What a bucket holds, as far as it was counted.
#[derive(Default)]
struct Held {
    versions: i64,
    markers: i64,
    bytes: i64,
    uploads: i64,
    /// Whether there are more.
    more: bool,
}

impl Buckets {
    pub(super) fn from_env(env: &Environment) -> Self {
        Buckets { s3: s3(&env.aws) }
    }

    async fn named_for(&self, tenant: &Tenant) -> Result<Vec<String>, StepError> {
        let prefix = format!("tenant-{}", tenant.id);
        let mut pages = self.s3.list_buckets().prefix(&prefix).into_paginator().send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| classify("listing buckets", &error))?;
            names.extend(page.buckets.unwrap_or_default().into_iter().filter_map(|bucket| bucket.name));
        }
        names.retain(|name| name.starts_with(&prefix));
        Ok(names)
    }

    async fn held(&self, bucket: &str, deadline: Instant) -> Result<Held, StepError> {
        let doing = format!("counting what bucket {bucket} holds");
        let mut held = Held::default();
        // Percent-encoded, because a key may hold characters that XML cannot carry.
        let list = || self.s3.list_multipart_uploads().bucket(bucket).encoding_type(EncodingType::Url);
        let mut uploads = list();
        loop {
            let page = match uploads.send().await {
                Err(error) if code(&error) == Some("NoSuchBucket") => return Ok(held),
                page => page.map_err(|error| classify(&doing, &error))?,
            };
            held.uploads += count(page.uploads().len());
            if page.is_truncated() != Some(true) {
                break;
            }
            let next = page.next_key_marker().map(|key| decoded(key, page.encoding_type()));
            uploads = list().set_key_marker(next).set_upload_id_marker(page.next_upload_id_marker);
        }
        let list = || self.s3.list_object_versions().bucket(bucket).encoding_type(EncodingType::Url);
        let mut versions = list();
        loop {
            let page = match versions.send().await {
                Err(error) if code(&error) == Some("NoSuchBucket") => return Ok(held),
                page => page.map_err(|error| classify(&doing, &error))?,
            };
            held.versions += count(page.versions().len());
            held.markers += count(page.delete_markers().len());
            held.bytes += page.versions().iter().filter_map(|version| version.size()).sum::<i64>();
            held.more = page.is_truncated() == Some(true);
            if !held.more || Instant::now() > deadline {
                return Ok(held);
            }
            let next = page.next_key_marker().map(|key| decoded(key, page.encoding_type()));
            versions = list().set_key_marker(next).set_version_id_marker(page.next_version_id_marker);
        }
    }
}

#[async_trait]
impl Store for Buckets {
    fn name(&self) -> &'static str {
        "buckets"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let deadline = Instant::now() + PATIENCE;
        let names = self.named_for(&subject.tenant).await?;
        let mut all = Held::default();
        for name in &names {
            let held = self.held(name, deadline).await?;
            all.versions += held.versions;
            all.markers += held.markers;
            all.bytes += held.bytes;
            all.uploads += held.uploads;
            all.more |= held.more;
        }
        let versions = if all.more { "versions at least" } else { "versions" };
        Ok(Finding::of([
            ("buckets", count(names.len())),
            (versions, all.versions),
            ("delete markers", all.markers),
            ("bytes", all.bytes),
            ("uploads", all.uploads),
        ]))
    }
}

impl Exports {
    /// `None` where this stack makes no exports.
    pub(super) fn from_env(env: &Environment) -> Option<Self> {
        Some(Exports { s3: s3(&env.aws), bucket: env.optional("EXPORTS_BUCKET")? })
    }

    /// When S3 itself deletes an object, as the bucket's lifecycle has it.
    async fn expiry(&self, key: &str) -> Result<Option<OffsetDateTime>, StepError> {
        let head = self.s3.head_object().bucket(&self.bucket).key(key).send().await;
        let head = head.map_err(|error| classify("looking when an export expires", &error))?;
        let date = head.expiration().and_then(|text| text.split("expiry-date=\"").nth(1)?.split('"').next());
        Ok(date.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok()))
    }
}

#[async_trait]
impl Store for Exports {
    fn name(&self) -> &'static str {
        "exports"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let list = self.s3.list_objects_v2().bucket(&self.bucket).prefix(folder_of(&subject.tenant.id.to_string()));
        let mut pages = list.into_paginator().send();
        let (mut files, mut bytes, mut newest) = (0, 0, None);
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| classify("listing exports", &error))?;
            for object in page.contents() {
                files += 1;
                bytes += object.size().unwrap_or_default();
                newest = newest.max(object.last_modified().map(|at| at.secs()).zip(object.key().map(str::to_owned)));
            }
        }
        if subject.is_erased {
            return Ok(Finding::of([("files", files), ("bytes", bytes)]));
        }
        let Some((_, key)) = newest else { return Ok(Finding::default()) };
        let until = self.expiry(&key).await?.map(moment::text).transpose()?;
        let kept = Kept {
            what: format!("{files} files of exports, {bytes} bytes"),
            why: "the owner may download them until they expire".into(),
            until,
        };
        Ok(Finding { kept: vec![kept], ..Finding::default() })
    }
}
