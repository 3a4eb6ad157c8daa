//! What lies in a tenant's bucket, without reading any of it: URLs to upload to, and lists of versions.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::types::{DeleteMarkerEntry, EncodingType, ObjectVersion};
use tokio::time::Instant;

use super::empty::decoded;
use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::registry::storage::{Stretch, Version};
use crate::tenant::Tenant;

/// Pages that are listed of one key when an event names it: 10,000 versions. What a key has beyond is left to the reconciliation.
const PAGES_OF_A_KEY: usize = 10;

/// The objects of all tenants.
pub struct Objects {
    s3: Client,
    account: String,
}

/// What somebody needs who uploads an object. The URL is a secret while it works.
pub struct Upload {
    /// Where it goes, with PUT.
    pub url: String,
    /// What goes with it: the signature covers these, so S3 refuses a request with others.
    pub headers: BTreeMap<String, String>,
}

/// A page of S3's.
struct Page {
    versions: Vec<Version>,
    /// The last key on the page that has nothing on the next one: a key whose versions go on there is not it.
    complete: Option<Vec<u8>>,
    /// Where the next page begins: behind this version of this key.
    next: Option<(String, Option<String>)>,
}

impl Objects {
    /// Reads ACCOUNT_ID. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Objects { s3: crate::aws::s3(&env.aws), account: env.required("ACCOUNT_ID")? })
    }

    /// Signs the upload of one object of exactly so many bytes, for a while, with the credentials of the function.
    ///
    /// S3 enforces what is signed. Content-Length bounds the size. `If-None-Match: *` refuses a key that has an object, so the
    /// URL works once: every version counts, and a URL that could be used again would be room for any number of them.
    ///
    /// # Errors
    /// `Transient` when there are no credentials.
    pub async fn presign(
        &self,
        tenant: &Tenant,
        key: &str,
        bytes: i64,
        content_type: Option<&str>,
        works_for: Duration,
    ) -> Result<Upload, StepError> {
        let doing = format!("signing an upload to bucket {}", tenant.bucket());
        let config = PresigningConfig::expires_in(works_for)
            .map_err(|error| StepError::Unexpected(format!("{doing}: {error}")))?;
        let put = self.s3.put_object().bucket(tenant.bucket()).key(key);
        let put = put.content_length(bytes).if_none_match("*").set_content_type(content_type.map(str::to_owned));
        let signed = put.presigned(config).await.map_err(|error| classify(&doing, &error))?;
        let url = url::Url::parse(signed.uri()).map_err(|error| StepError::Unexpected(format!("{doing}: {error}")))?;
        let covered = url.query_pairs().find(|(name, _)| name == "X-Amz-SignedHeaders").map(|(_, names)| names);
        // A client names the host by itself; what is not covered, such as a trace's id, is this function's own.
        let covered =
            |name: &str| covered.iter().flat_map(|names| names.split(';')).any(|one| one == name && one != "host");
        let headers = signed.headers().filter(|(name, _)| covered(name));
        Ok(Upload {
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            url: url.into(),
        })
    }

    /// Every version of one object.
    ///
    /// # Errors
    /// `Denied` when the bucket is not this account's.
    pub async fn of_key(&self, tenant: &Tenant, key: &str) -> Result<(Stretch, Vec<Version>), StepError> {
        let (mut versions, mut from, mut pages) = (Vec::new(), None, 0);
        let whole = loop {
            let page = self.page(tenant, Some(key), from).await?;
            pages += 1;
            versions.extend(page.versions.into_iter().filter(|version| version.key == key.as_bytes()));
            // Keys that begin with this one are longer, and come after it.
            from = page.next.filter(|(last, _)| last == key);
            if from.is_none() || pages == PAGES_OF_A_KEY {
                break from.is_none();
            }
        };
        let key = key.as_bytes().to_vec();
        Ok((Stretch { from: key.clone(), to: Some(key), whole }, versions))
    }

    /// Every version of the keys that follow one, as many as a page has; of a key that has more versions than a page, as many as
    /// can be listed until `deadline`.
    ///
    /// # Errors
    /// `Denied` when the bucket is not this account's.
    pub async fn after(
        &self,
        tenant: &Tenant,
        reached: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<(Stretch, Vec<Version>), StepError> {
        // The smallest key that is greater than another: with one more byte, of value 0.
        let from = reached.map(|key| [key, &[0]].concat()).unwrap_or_default();
        let mut next = reached.map(|key| (String::from_utf8_lossy(key).into_owned(), None));
        let mut versions = Vec::new();
        loop {
            let page = self.page(tenant, None, next).await?;
            versions.extend(page.versions);
            next = page.next;
            let Some((last, _)) = &next else { return Ok((Stretch { from, to: None, whole: true }, versions)) };
            if let Some(complete) = page.complete {
                versions.retain(|version| version.key <= complete);
                return Ok((Stretch { from, to: Some(complete), whole: true }, versions));
            }
            if Instant::now() > deadline {
                let to = Some(last.as_bytes().to_vec());
                return Ok((Stretch { from, to, whole: false }, versions));
            }
        }
    }

    /// A page of versions. A bucket that is gone holds nothing.
    async fn page(
        &self,
        tenant: &Tenant,
        prefix: Option<&str>,
        from: Option<(String, Option<String>)>,
    ) -> Result<Page, StepError> {
        let (key, version) = from.unzip();
        let list = self.s3.list_object_versions().bucket(tenant.bucket()).expected_bucket_owner(&self.account);
        let list = list.encoding_type(EncodingType::Url).set_prefix(prefix.map(str::to_owned));
        let answer = match list.set_key_marker(key).set_version_id_marker(version.flatten()).send().await {
            Err(error) if code(&error) == Some("NoSuchBucket") => ListObjectVersionsOutput::builder().build(),
            answer => answer.map_err(|error| classify(&format!("listing bucket {}", tenant.bucket()), &error))?,
        };
        Ok(Page::of(&answer))
    }
}

impl Page {
    fn of(answer: &ListObjectVersionsOutput) -> Self {
        let key = |key: &str| decoded(key, answer.encoding_type());
        let version = |version: &ObjectVersion| {
            Some(Version {
                key: key(version.key()?).into_bytes(),
                id: version.version_id().unwrap_or("null").to_owned(),
                bytes: version.size().unwrap_or_default(),
            })
        };
        let next = answer.next_key_marker().filter(|_| answer.is_truncated() == Some(true)).map(key);
        let listed = answer.versions().iter().filter_map(ObjectVersion::key);
        let marked = answer.delete_markers().iter().filter_map(DeleteMarkerEntry::key);
        let complete = listed.chain(marked).map(key).filter(|key| Some(key) != next.as_ref()).max();
        let behind = answer.next_version_id_marker().filter(|id| !id.is_empty()).map(str::to_owned);
        Page {
            versions: answer.versions().iter().filter_map(version).collect(),
            complete: complete.map(String::into_bytes),
            next: next.map(|key| (key, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[&str], marked: &[&str], next: Option<&str>) -> Page {
        let versions = keys.iter().map(|key| ObjectVersion::builder().key(*key).version_id("v").size(1).build());
        let markers = marked.iter().map(|key| DeleteMarkerEntry::builder().key(*key).version_id("m").build());
        let answer = ListObjectVersionsOutput::builder()
            .set_versions(Some(versions.collect()))
            .set_delete_markers(Some(markers.collect()))
            .is_truncated(next.is_some())
            .set_next_key_marker(next.map(str::to_owned));
        Page::of(&answer.build())
    }

    #[test]
    fn a_key_is_complete_when_the_next_page_cannot_have_more_of_it() {
        let complete = |keys, marked, next| page(keys, marked, next).complete;
        assert_eq!(complete(&["a", "b", "b"], &[], Some("b")), Some(b"a".to_vec()));
        assert_eq!(complete(&["b", "b"], &[], Some("b")), None);
        assert_eq!(complete(&[], &["a", "b"], Some("b")), Some(b"a".to_vec()));
        assert_eq!(complete(&["a"], &["z"], None), Some(b"z".to_vec()));
    }

    #[test]
    fn a_delete_marker_takes_no_room() {
        assert_eq!(page(&["a"], &["a", "b"], None).versions.len(), 1);
    }
}
