//! The bucket's objects: listed page by page, packed into archives, and, where one is too large for that, cut into pieces.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{EncodingType, Object};
use futures::{StreamExt, stream};
use ring::digest::{Context, SHA256};
use serde_json::json;

use super::archive::{self, Names};
use super::upload::{Upload, hexadecimal};
use crate::aws::{classify, code};
use crate::error::StepError;
use crate::resource::bucket::decoded;

/// Small objects that are fetched at a time: one by one, each would wait for an answer.
const AT_ONCE: usize = 8;
/// Objects up to this size are fetched ahead, whole: 8 MiB at the most with all of them.
const SMALL: i64 = 1 << 20;
/// The index of an archive, its last file: a line of JSON for each object.
const INDEX: &str = "index.jsonl";

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: String,
    pub(super) etag: String,
    pub(super) bytes: i64,
    /// Seconds since 1970.
    modified: u64,
}

/// What an archive was made of.
pub(super) struct Packed {
    pub(super) objects: i64,
    /// SHA-256 of their keys, sizes and ETags.
    pub(super) listing: String,
}

/// The bucket of a tenant.
pub(super) struct Source<'a> {
    pub(super) s3: &'a Client,
    pub(super) bucket: &'a str,
}

impl Source<'_> {
    /// Up to a thousand objects after a key, in S3's order, and whether there are more. Current versions only.
    pub(super) async fn page(&self, after: Option<&str>) -> Result<(Vec<Listed>, bool), StepError> {
        let list = self.s3.list_objects_v2().bucket(self.bucket).encoding_type(EncodingType::Url);
        let page = list.set_start_after(after.map(str::to_owned)).send().await;
        let page = page.map_err(|error| classify(&format!("listing bucket {}", self.bucket), &error))?;
        let (encoding, more) = (page.encoding_type().cloned(), page.is_truncated() == Some(true));
        let listed =
            page.contents.unwrap_or_default().into_iter().filter_map(|object| listed(&object, encoding.as_ref()));
        Ok((listed.collect(), more))
    }

    /// Packs the objects after a key up to another one, and an index of them.
    pub(super) async fn pack(&self, after: Option<&str>, upto: &str, upload: &mut Upload) -> Result<Packed, StepError> {
        let (mut names, mut index, mut objects) = (Names::default(), Vec::new(), 0);
        let (mut digest, mut after) = (Context::new(&SHA256), after.map(str::to_owned));
        loop {
            let (page, more) = self.page(after.as_deref()).await?;
            let whole = page.len();
            let page: Vec<Listed> = page.into_iter().take_while(|listed| listed.key.as_str() <= upto).collect();
            let last = !more || page.len() < whole || page.last().is_some_and(|listed| listed.key == upto);
            after = page.last().map(|listed| listed.key.clone());
            let ahead = page.into_iter().map(|listed| async move {
                let fetched = if listed.bytes <= SMALL { Some(self.whole(&listed).await?) } else { None };
                Ok::<_, StepError>((listed, fetched))
            });
            let mut ahead = stream::iter(ahead).buffered(AT_ONCE);
            while let Some(fetched) = ahead.next().await {
                let (listed, fetched) = fetched?;
                let name = names.of(&listed.key);
                let bytes = u64::try_from(listed.bytes).unwrap_or_default();
                upload.write(&archive::header(&name, bytes, listed.modified)?).await?;
                let content_type = match fetched {
                    Some((content, content_type)) => {
                        upload.write(&content).await?;
                        content_type
                    }
                    None => self.stream(&listed.key, &listed.etag, None, listed.bytes, upload).await?,
                };
                upload.write(archive::filling(bytes)).await?;
                add(&mut digest, &listed);
                let line = json!({
                    "key": listed.key, "file": name, "bytes": listed.bytes, "etag": listed.etag, "content_type": content_type,
                });
                index.extend(format!("{line}\n").into_bytes());
                objects += 1;
            }
            if last {
                break;
            }
        }
        let bytes = index.len() as u64;
        upload.write(&archive::header(INDEX, bytes, 0)?).await?;
        upload.write(&index).await?;
        upload.write(archive::filling(bytes)).await?;
        upload.write(&archive::END).await?;
        Ok(Packed { objects, listing: hexadecimal(digest.finish().as_ref()) })
    }

    /// What the objects after a key up to another one are now, as [`Packed::listing`] has it.
    pub(super) async fn listing(&self, after: Option<&str>, upto: &str) -> Result<String, StepError> {
        let (mut digest, mut after) = (Context::new(&SHA256), after.map(str::to_owned));
        loop {
            let (page, more) = self.page(after.as_deref()).await?;
            for listed in &page {
                if listed.key.as_str() > upto {
                    return Ok(hexadecimal(digest.finish().as_ref()));
                }
                add(&mut digest, listed);
            }
            after = page.last().map(|listed| listed.key.clone());
            if !more || after.is_none() {
                return Ok(hexadecimal(digest.finish().as_ref()));
            }
        }
    }

    /// An object's content in memory, and its type.
    async fn whole(&self, listed: &Listed) -> Result<(Vec<u8>, Option<String>), StepError> {
        let (body, content_type) = self.get(&listed.key, &listed.etag, None).await?;
        let content = body.collect().await.map_err(|error| self.broken(&error))?.to_vec();
        self.complete(listed.bytes, i64::try_from(content.len()).unwrap_or_default())?;
        Ok((content, content_type))
    }

    /// Streams an object, or so many bytes of it from one on. Returns its type.
    pub(super) async fn stream(
        &self,
        key: &str,
        etag: &str,
        from: Option<i64>,
        bytes: i64,
        upload: &mut Upload,
    ) -> Result<Option<String>, StepError> {
        let range = from.map(|from| format!("bytes={from}-{}", from + bytes - 1));
        let (mut body, content_type) = self.get(key, etag, range).await?;
        let mut read = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| self.broken(&error))?;
            read += i64::try_from(chunk.len()).unwrap_or_default();
            upload.write(&chunk).await?;
        }
        self.complete(bytes, read)?;
        Ok(content_type)
    }

    async fn get(
        &self,
        key: &str,
        etag: &str,
        range: Option<String>,
    ) -> Result<(ByteStream, Option<String>), StepError> {
        // The keys are the tenant's own words: they stay out of our errors.
        let doing = format!("reading an object of bucket {}", self.bucket);
        let get = self.s3.get_object().bucket(self.bucket).key(key).if_match(etag).set_range(range).send().await;
        match get {
            Ok(got) => Ok((got.body, got.content_type)),
            Err(error) if matches!(code(&error), Some("PreconditionFailed" | "NoSuchKey")) => Err(self.changed()),
            Err(error) => Err(classify(&doing, &error)),
        }
    }

    fn complete(&self, expected: i64, read: i64) -> Result<(), StepError> {
        if expected == read { Ok(()) } else { Err(self.changed()) }
    }

    fn broken(&self, error: &dyn std::error::Error) -> StepError {
        StepError::Transient(format!("reading an object of bucket {}: {error}", self.bucket))
    }

    fn changed(&self) -> StepError {
        StepError::Conflict(format!("an object of bucket {} was written or deleted while it was exported", self.bucket))
    }
}

fn add(digest: &mut Context, listed: &Listed) {
    digest.update(format!("{}\0{}\0{}\n", listed.key, listed.bytes, listed.etag).as_bytes());
}

fn listed(object: &Object, encoding: Option<&EncodingType>) -> Option<Listed> {
    let modified = object.last_modified().map_or(0, aws_sdk_s3::primitives::DateTime::secs);
    Some(Listed {
        key: decoded(object.key()?, encoding),
        etag: object.e_tag().unwrap_or_default().to_owned(),
        bytes: object.size().unwrap_or_default(),
        modified: u64::try_from(modified).unwrap_or_default(),
    })
}

#[cfg(test)]
impl Listed {
    pub(super) fn sample(key: &str, bytes: i64) -> Self {
        Listed { key: key.to_owned(), etag: "\"e\"".to_owned(), bytes, modified: 0 }
    }
}
