//! A stream on its way into the exports bucket: hashed as it goes, never held but for the few pieces that are under way.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use ring::digest::{Context, SHA256};
use tokio::task::JoinSet;

use super::parts::Uploaded;
use crate::aws::{classify, code};
use crate::error::StepError;

/// Bytes of one piece of an upload. S3 takes 10,000 pieces of 5 MiB at least: 78 GiB, well past the largest part.
const PIECE: usize = 8 << 20;
/// Pieces that are under way while the next one fills.
const IN_FLIGHT: usize = 2;

/// An upload that goes on.
pub(super) struct Upload {
    s3: Client,
    bucket: String,
    key: String,
    content_type: &'static str,
    /// S3's id, once there is more than one piece.
    id: Option<String>,
    filling: Vec<u8>,
    begun: i32,
    sending: JoinSet<Result<CompletedPart, StepError>>,
    sent: Vec<CompletedPart>,
    hash: Context,
    bytes: i64,
}

impl Upload {
    /// Begins: what a killed function left under the same key is ended first.
    pub(super) async fn begin(
        s3: &Client,
        bucket: &str,
        key: String,
        content_type: &'static str,
    ) -> Result<Self, StepError> {
        let upload = Upload {
            s3: s3.clone(),
            bucket: bucket.to_owned(),
            key,
            content_type,
            id: None,
            filling: Vec::new(),
            begun: 0,
            sending: JoinSet::new(),
            sent: Vec::new(),
            hash: Context::new(&SHA256),
            bytes: 0,
        };
        upload.end_left_over().await?;
        Ok(upload)
    }

    async fn end_left_over(&self) -> Result<(), StepError> {
        let doing = self.doing("looking for what was left of");
        let list = self.s3.list_multipart_uploads().bucket(&self.bucket).prefix(&self.key).send().await;
        for left in list.map_err(|error| classify(&doing, &error))?.uploads() {
            if left.key() == Some(&self.key) {
                self.abort(left.upload_id()).await?;
            }
        }
        Ok(())
    }

    async fn abort(&self, id: Option<&str>) -> Result<(), StepError> {
        let abort =
            self.s3.abort_multipart_upload().bucket(&self.bucket).key(&self.key).set_upload_id(id.map(str::to_owned));
        match abort.send().await {
            Err(error) if code(&error) == Some("NoSuchUpload") => Ok(()),
            aborted => aborted.map(drop).map_err(|error| classify(&self.doing("ending"), &error)),
        }
    }

    /// Adds bytes; waits while as many pieces are under way as may be.
    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), StepError> {
        self.hash.update(bytes);
        self.bytes += i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        while !bytes.is_empty() {
            if self.filling.capacity() == 0 {
                self.filling.reserve_exact(PIECE);
            }
            let room = PIECE - self.filling.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.filling.extend_from_slice(now);
            bytes = later;
            if self.filling.len() == PIECE {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Sends the piece that has filled.
    async fn send(&mut self) -> Result<(), StepError> {
        while self.sending.len() >= IN_FLIGHT {
            self.receive().await?;
        }
        let id = match &self.id {
            Some(id) => id.clone(),
            None => {
                let create = self.s3.create_multipart_upload().bucket(&self.bucket).key(&self.key);
                let created = create.content_type(self.content_type).send().await;
                let created = created.map_err(|error| classify(&self.doing("beginning"), &error))?;
                self.id.insert(created.upload_id.unwrap_or_default()).clone()
            }
        };
        self.begun += 1;
        let (number, body) = (self.begun, std::mem::take(&mut self.filling));
        let upload = self.s3.upload_part().bucket(&self.bucket).key(&self.key).upload_id(id).part_number(number);
        let (send, doing) = (upload.body(ByteStream::from(body)).send(), self.doing("going on with"));
        self.sending.spawn(async move {
            let sent = send.await.map_err(|error| classify(&doing, &error))?;
            Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build())
        });
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), StepError> {
        if let Some(sent) = self.sending.join_next().await {
            let sent = sent.map_err(|error| StepError::Unexpected(format!("an upload's task ended: {error}")))?;
            self.sent.push(sent?);
        }
        Ok(())
    }

    /// Ends: from here on the object is there, whole.
    pub(super) async fn finish(mut self, items: Option<i64>, listing: Option<String>) -> Result<Uploaded, StepError> {
        let etag = match self.complete().await {
            Ok(etag) => etag,
            Err(error) => return Err(self.give_up(error).await),
        };
        let sha256 = hexadecimal(self.hash.finish().as_ref());
        Ok(Uploaded { bytes: self.bytes, sha256, etag, items, listing })
    }

    async fn complete(&mut self) -> Result<String, StepError> {
        let doing = self.doing("completing");
        if self.id.is_none() {
            let body = ByteStream::from(std::mem::take(&mut self.filling));
            let put = self.s3.put_object().bucket(&self.bucket).key(&self.key).content_type(self.content_type);
            let put = put.body(body).send().await.map_err(|error| classify(&doing, &error))?;
            return Ok(put.e_tag.unwrap_or_default());
        }
        if !self.filling.is_empty() {
            self.send().await?;
        }
        while !self.sending.is_empty() {
            self.receive().await?;
        }
        self.sent.sort_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.sent))).build();
        let complete = self.s3.complete_multipart_upload().bucket(&self.bucket).key(&self.key);
        let complete = complete.set_upload_id(self.id.clone()).multipart_upload(parts).send().await;
        Ok(complete.map_err(|error| classify(&doing, &error))?.e_tag.unwrap_or_default())
    }

    /// Ends an upload that cannot be completed, and returns why. Where that fails too, the bucket's lifecycle does it.
    pub(super) async fn give_up(mut self, error: StepError) -> StepError {
        self.sending.shutdown().await;
        if self.id.is_some()
            && let Err(left) = self.abort(self.id.as_deref()).await
        {
            tracing::warn!(error = %left, "an upload is left over");
        }
        error
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} the upload of {}", self.key)
    }
}

/// Bytes as hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
