//! Emptying a bucket for good: every version, every delete marker, every upload that was never completed.

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{Delete, EncodingType, ObjectIdentifier};
use futures::StreamExt;
use futures::stream;
use tokio::time::Instant;

use crate::aws::classify;
use crate::error::StepError;
use crate::resource::policy_document::percent_decoded;
use crate::resource::wait::PATIENCE;

/// Deletions under way at a time. A page of 1,000 is deleted in four calls, well below the 3,500 writes a second that S3
/// takes for one prefix.
const CONCURRENCY: usize = 4;
/// Objects per DeleteObjects call; S3 allows 1,000.
const CHUNK: usize = 250;

struct Version {
    key: String,
    id: Option<String>,
}

/// Deletes all that the bucket holds. Each round asks for the first page anew: what was deleted is no longer on it, so
/// there is no place to lose when the function dies in between.
///
/// # Errors
/// `Transient` when the bucket is so full that it takes longer than the waiting limit; the next call goes on from there.
pub(super) async fn empty(s3: &Client, bucket: &str) -> Result<(), StepError> {
    let deadline = Instant::now() + PATIENCE;
    let mut deleted = 0;
    loop {
        let versions = versions(s3, bucket).await?;
        let uploads = uploads(s3, bucket).await?;
        if versions.is_empty() && uploads.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(StepError::Transient(format!("emptying bucket {bucket}: {deleted} deleted, there are more")));
        }
        deleted += versions.len() + uploads.len();
        delete(s3, bucket, versions).await?;
        abort(s3, bucket, uploads).await?;
    }
}

/// The first thousand versions and delete markers. Keys are asked for percent-encoded, because a key may hold characters
/// that XML cannot carry.
async fn versions(s3: &Client, bucket: &str) -> Result<Vec<Version>, StepError> {
    let page = s3
        .list_object_versions()
        .bucket(bucket)
        .encoding_type(EncodingType::Url)
        .send()
        .await
        .map_err(|error| classify(&format!("listing the versions in bucket {bucket}"), &error))?;
    let encoding = page.encoding_type();
    let objects = page.versions().iter().map(|version| (version.key(), version.version_id()));
    let markers = page.delete_markers().iter().map(|marker| (marker.key(), marker.version_id()));
    Ok(objects
        .chain(markers)
        .filter_map(|(key, id)| Some(Version { key: decoded(key?, encoding), id: id.map(str::to_owned) }))
        .collect())
}

/// The first thousand uploads that were never completed, as key and upload id.
async fn uploads(s3: &Client, bucket: &str) -> Result<Vec<(String, String)>, StepError> {
    let page = s3
        .list_multipart_uploads()
        .bucket(bucket)
        .encoding_type(EncodingType::Url)
        .send()
        .await
        .map_err(|error| classify(&format!("listing the uploads to bucket {bucket}"), &error))?;
    let (uploads, encoding) = (page.uploads().iter(), page.encoding_type());
    Ok(uploads.filter_map(|upload| Some((decoded(upload.key()?, encoding), upload.upload_id()?.to_owned()))).collect())
}

/// A key as it was given. The answer says whether it encodes; not every S3 does when asked.
pub(crate) fn decoded(key: &str, encoding: Option<&EncodingType>) -> String {
    if encoding == Some(&EncodingType::Url) { percent_decoded(key) } else { key.to_owned() }
}

async fn delete(s3: &Client, bucket: &str, versions: Vec<Version>) -> Result<(), StepError> {
    let (plain, odd): (Vec<_>, Vec<_>) = versions.into_iter().partition(|version| fits_xml(&version.key));
    let mut chunks = Vec::new();
    for chunk in plain.chunks(CHUNK) {
        let objects = chunk
            .iter()
            .map(|version| ObjectIdentifier::builder().key(&version.key).set_version_id(version.id.clone()).build());
        let objects = objects.collect::<Result<Vec<_>, _>>().map_err(|error| unbuildable(&error))?;
        chunks.push(
            Delete::builder().set_objects(Some(objects)).quiet(true).build().map_err(|error| unbuildable(&error))?,
        );
    }
    let doing = format!("deleting from bucket {bucket}");
    let many = stream::iter(chunks.into_iter().map(|chunk| s3.delete_objects().bucket(bucket).delete(chunk).send()));
    let mut many = many.buffer_unordered(CONCURRENCY);
    while let Some(answer) = many.next().await {
        let answer = answer.map_err(|error| classify(&doing, &error))?;
        // The keys are the tenant's own words: they stay out of our errors.
        if let Some(failed) = answer.errors().first() {
            let code = failed.code().unwrap_or("no error code").to_owned();
            return Err(match code.as_str() {
                "InternalError" | "SlowDown" | "ServiceUnavailable" | "OperationAborted" => {
                    StepError::Transient(format!("{doing}: {code}"))
                }
                "AccessDenied" => StepError::Denied(format!("{doing}: {code}")),
                _ => StepError::Unexpected(format!("{doing}: {code}")),
            });
        }
    }
    for version in odd {
        let one = s3.delete_object().bucket(bucket).key(version.key).set_version_id(version.id);
        one.send().await.map_err(|error| classify(&doing, &error))?;
    }
    Ok(())
}

async fn abort(s3: &Client, bucket: &str, uploads: Vec<(String, String)>) -> Result<(), StepError> {
    let aborts =
        uploads.into_iter().map(|(key, id)| s3.abort_multipart_upload().bucket(bucket).key(key).upload_id(id).send());
    let mut aborts = stream::iter(aborts).buffer_unordered(CONCURRENCY);
    while let Some(answer) = aborts.next().await {
        match answer {
            Err(error) if crate::aws::code(&error) == Some("NoSuchUpload") => {}
            answer => {
                answer.map_err(|error| classify(&format!("aborting an upload to bucket {bucket}"), &error))?;
            }
        }
    }
    Ok(())
}

/// Whether DeleteObjects can name the key in its XML: version 1.0 has no control characters and no non-characters, and
/// turns a carriage return into a line feed. Others are deleted one by one, in a URL.
fn fits_xml(key: &str) -> bool {
    key.chars().all(|c| !c.is_control() && c != '\u{fffe}' && c != '\u{ffff}')
}

fn unbuildable(error: &aws_sdk_s3::error::BuildError) -> StepError {
    StepError::Unexpected(format!("S3 listed an object without a key: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_only_where_the_answer_says_so() {
        assert_eq!(decoded("a%41+b", Some(&EncodingType::Url)), "aA b");
        assert_eq!(decoded("a%41+b", None), "a%41+b");
    }

    #[test]
    fn keys_that_xml_cannot_carry_are_told_apart() {
        assert!(fits_xml("reports/2026 <&> é.pdf"));
        for odd in ["\u{1}", "a\rb", "a\nb", "\u{ffff}"] {
            assert!(!fits_xml(odd), "{odd:?}");
        }
    }
}
