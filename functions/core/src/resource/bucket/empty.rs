//! Emptying a bucket for good: every version, every delete marker, every upload that was never completed.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{Delete, EncodingType, ObjectIdentifier};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::aws::classify;
use crate::error::StepError;
use crate::resource::policy_document::percent_decoded;
use crate::resource::wait::PATIENCE;

/// Deletions under way at a time, while the next page is being listed: 2,000 objects, below the 3,500 writes a second that S3
/// takes for one prefix.
const CONCURRENCY: usize = 8;
/// Objects per DeleteObjects call; S3 allows 1,000.
const CHUNK: usize = 250;

/// How far a bucket was emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emptied {
    /// Versions, delete markers and uploads that were deleted.
    pub deleted: usize,
    /// Whether nothing is left.
    pub all: bool,
}

/// What is emptied: a bucket, or what is in it under a prefix.
#[derive(Clone)]
struct Place {
    s3: Client,
    bucket: String,
    prefix: Option<String>,
}

struct Version {
    key: String,
    id: Option<String>,
}

/// Where the next page of versions begins; the first one where both are `None`.
#[derive(Default)]
struct Marker {
    key: Option<String>,
    version: Option<String>,
}

/// What one call deletes.
enum Deletion {
    Many(Vec<Version>),
    /// Of a key that the XML of DeleteObjects cannot carry.
    One(Version),
    /// An incomplete upload: its key and its id.
    Upload(String, String),
}

/// Deletes all that the bucket holds.
///
/// # Errors
/// `Transient` when the bucket is so full that it takes longer than the waiting limit; the next call goes on from there.
pub(super) async fn empty(s3: &Client, bucket: &str) -> Result<(), StepError> {
    let Emptied { deleted, all } = empty_for(s3, bucket, None, PATIENCE).await?;
    if all {
        return Ok(());
    }
    Err(StepError::Transient(format!("emptying bucket {bucket}: {deleted} deleted, there are more")))
}

/// Deletes what the bucket holds, all of it or what is under a prefix, until nothing is left or the time is over. Each round
/// begins with the first page: what was deleted is no longer listed, so there is no place to lose when the function dies in
/// between.
///
/// # Errors
/// As S3 answers.
pub(crate) async fn empty_for(
    s3: &Client,
    bucket: &str,
    prefix: Option<&str>,
    time: Duration,
) -> Result<Emptied, StepError> {
    let place = Place { s3: s3.clone(), bucket: bucket.to_owned(), prefix: prefix.map(str::to_owned) };
    let deadline = Instant::now() + time;
    let mut deleted = 0;
    loop {
        let round = round(&place, deadline).await?;
        deleted += round;
        // A round that finds nothing is the proof; one that ends with the time is none.
        if round == 0 && Instant::now() <= deadline {
            return Ok(Emptied { deleted, all: true });
        }
        if Instant::now() > deadline {
            return Ok(Emptied { deleted, all: false });
        }
    }
}

/// Lists page by page, and deletes each while the next is listed. Returns how many were deleted.
async fn round(place: &Place, deadline: Instant) -> Result<usize, StepError> {
    // Owned by each call, because calls are under way at the same time.
    let pages = stream::try_unfold((place.clone(), Some(Marker::default())), move |(place, marker)| async move {
        let Some(marker) = marker.filter(|_| Instant::now() <= deadline) else { return Ok(None) };
        let (page, next) = versions(&place, marker).await?;
        Ok::<_, StepError>(Some((page, (place, next))))
    });
    let uploads = uploads(place).await?.into_iter().map(|(key, id)| Ok(Deletion::Upload(key, id)));
    let objects = pages.map_ok(|page| stream::iter(calls(page).into_iter().map(Ok))).try_flatten();
    stream::iter(uploads)
        .chain(objects)
        .map_ok(|deletion| delete(place.clone(), deletion))
        .try_buffer_unordered(CONCURRENCY)
        .try_fold(0, |deleted, more| async move { Ok(deleted + more) })
        .await
}

/// A thousand versions and delete markers, and where the next ones begin. Keys are asked for percent-encoded, because a key
/// may hold characters that XML cannot carry.
async fn versions(place: &Place, from: Marker) -> Result<(Vec<Version>, Option<Marker>), StepError> {
    let list = place.s3.list_object_versions().bucket(&place.bucket).set_prefix(place.prefix.clone());
    let list = list.encoding_type(EncodingType::Url).set_key_marker(from.key).set_version_id_marker(from.version);
    let doing = format!("listing the versions in bucket {}", place.bucket);
    let page = list.send().await.map_err(|error| classify(&doing, &error))?;
    let encoding = page.encoding_type();
    let objects = page.versions().iter().map(|version| (version.key(), version.version_id()));
    let markers = page.delete_markers().iter().map(|marker| (marker.key(), marker.version_id()));
    let listed = objects.chain(markers);
    let listed =
        listed.filter_map(|(key, id)| Some(Version { key: decoded(key?, encoding), id: id.map(str::to_owned) }));
    let next = page.next_key_marker().filter(|_| page.is_truncated() == Some(true));
    let next = next.map(|key| Marker {
        key: Some(decoded(key, encoding)),
        version: page.next_version_id_marker().map(str::to_owned),
    });
    Ok((listed.collect(), next))
}

/// The first thousand uploads that were never completed, as key and upload id.
async fn uploads(place: &Place) -> Result<Vec<(String, String)>, StepError> {
    let list = place.s3.list_multipart_uploads().bucket(&place.bucket).set_prefix(place.prefix.clone());
    let doing = format!("listing the uploads to bucket {}", place.bucket);
    let page = list.encoding_type(EncodingType::Url).send().await.map_err(|error| classify(&doing, &error))?;
    let (uploads, encoding) = (page.uploads().iter(), page.encoding_type());
    Ok(uploads.filter_map(|upload| Some((decoded(upload.key()?, encoding), upload.upload_id()?.to_owned()))).collect())
}

/// The calls that delete a page.
fn calls(page: Vec<Version>) -> Vec<Deletion> {
    let (mut plain, odd): (Vec<_>, Vec<_>) = page.into_iter().partition(|version| fits_xml(&version.key));
    let mut calls: Vec<Deletion> = odd.into_iter().map(Deletion::One).collect();
    while !plain.is_empty() {
        calls.push(Deletion::Many(plain.split_off(plain.len().saturating_sub(CHUNK))));
    }
    calls
}

/// A key as it was given. The answer says whether it encodes; not every S3 does when asked.
pub(crate) fn decoded(key: &str, encoding: Option<&EncodingType>) -> String {
    if encoding == Some(&EncodingType::Url) { percent_decoded(key) } else { key.to_owned() }
}

/// Makes one call, and returns how many things it deleted.
async fn delete(Place { s3, bucket, .. }: Place, deletion: Deletion) -> Result<usize, StepError> {
    let doing = format!("deleting from bucket {bucket}");
    match deletion {
        Deletion::Many(versions) => {
            let deleted = versions.len();
            delete_many(&s3, &bucket, &doing, versions).await?;
            Ok(deleted)
        }
        Deletion::One(version) => {
            let one = s3.delete_object().bucket(&bucket).key(version.key).set_version_id(version.id);
            one.send().await.map_err(|error| classify(&doing, &error))?;
            Ok(1)
        }
        Deletion::Upload(key, id) => {
            match s3.abort_multipart_upload().bucket(&bucket).key(key).upload_id(id).send().await {
                Err(error) if crate::aws::code(&error) == Some("NoSuchUpload") => Ok(0),
                aborted => {
                    aborted.map_err(|error| classify(&format!("aborting an upload to bucket {bucket}"), &error))?;
                    Ok(1)
                }
            }
        }
    }
}

async fn delete_many(s3: &Client, bucket: &str, doing: &str, versions: Vec<Version>) -> Result<(), StepError> {
    let objects = versions
        .into_iter()
        .map(|version| ObjectIdentifier::builder().key(version.key).set_version_id(version.id).build());
    let objects = objects.collect::<Result<Vec<_>, _>>().map_err(|error| unbuildable(&error))?;
    let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build();
    let delete = delete.map_err(|error| unbuildable(&error))?;
    let answer = s3.delete_objects().bucket(bucket).delete(delete).send().await;
    let answer = answer.map_err(|error| classify(doing, &error))?;
    // The keys are the tenant's own words: they stay out of our errors.
    let Some(failed) = answer.errors().first() else { return Ok(()) };
    let code = failed.code().unwrap_or("no error code").to_owned();
    Err(match code.as_str() {
        "InternalError" | "SlowDown" | "ServiceUnavailable" | "OperationAborted" => {
            StepError::Transient(format!("{doing}: {code}"))
        }
        "AccessDenied" => StepError::Denied(format!("{doing}: {code}")),
        _ => StepError::Unexpected(format!("{doing}: {code}")),
    })
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
    fn a_page_is_deleted_in_chunks_and_odd_keys_one_by_one() {
        let mut page: Vec<_> = (0..501).map(|n| Version { key: format!("key {n}"), id: None }).collect();
        page.push(Version { key: "a\rb".into(), id: None });
        let calls = calls(page);
        let sizes = calls.iter().map(|call| match call {
            Deletion::Many(versions) => versions.len(),
            Deletion::One(_) | Deletion::Upload(..) => 1,
        });
        assert_eq!(sizes.collect::<Vec<_>>(), [1, 250, 250, 1]);
    }

    #[test]
    fn keys_that_xml_cannot_carry_are_told_apart() {
        assert!(fits_xml("reports/2026 <&> é.pdf"));
        for odd in ["\u{1}", "a\rb", "a\nb", "\u{ffff}"] {
            assert!(!fits_xml(odd), "{odd:?}");
        }
    }
}
