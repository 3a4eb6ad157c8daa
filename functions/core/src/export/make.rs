//! Making one part: a stream from the tenant's systems into the exports bucket.

use futures::{StreamExt, pin_mut};
use serde_json::{Value, json};

use super::objects::Source;
use super::parts::{Bounds, Part, Uploaded};
use super::upload::Upload;
use super::{COPY_TIMEOUT, Exporter, hold_of, planned, schema, tables};
use crate::error::StepError;
use crate::registry::Record;
use crate::registry::exports::{self, Export, State};
use crate::registry::fence::Actor;
use crate::tenant::Tenant;

impl Exporter {
    /// Makes a part, unless it is there as it was made before. Of an export that is gone on with after half a day, it is made anew:
    /// the bucket deletes each file so many days after it was made, and the link is good for nearly as many.
    ///
    /// # Errors
    /// `Conflict` for a part that was not planned, or an object that changed; `Transient` when a stream broke off.
    pub async fn make(&self, record: &Record, actor: &Actor, number: i32) -> Result<Value, StepError> {
        let tenant = &record.tenant;
        let hold = hold_of(&self.registry, record, actor).await?;
        let export = planned(&self.registry, tenant, hold).await?;
        let part = exports::part_of(&*self.registry.client().await?, export.id, number).await?;
        let Some(part) = part.filter(|_| export.state != State::Planning) else {
            return Err(StepError::Conflict(format!(
                "tenant {} ({}): part {number} of its export is not planned",
                tenant.slug, tenant.id
            )));
        };
        let answer = |outcome: &str| Ok(json!({ "part": number, "outcome": outcome }));
        let anew = part.aged && export.state == State::Exporting;
        if !anew && self.is_there(tenant, &export, &part).await? {
            return answer("done before");
        }
        if export.state == State::Finished {
            return Err(StepError::Conflict(format!(
                "tenant {} ({}): its export is finished, but {} is not in the bucket as it was made",
                tenant.slug, tenant.id, part.name
            )));
        }
        let made = self.upload(tenant, &export, &part).await?;
        tracing::info!(
            part = number,
            kind = part.bounds.kind(),
            bytes = made.bytes,
            items = made.items,
            "a part was exported"
        );
        exports::part_done(&mut *self.registry.client().await?, actor, &export, number, &made).await?;
        answer("done")
    }

    /// Whether the bucket has a part as the registry says that it was made.
    pub(super) async fn is_there(&self, tenant: &Tenant, export: &Export, part: &Part) -> Result<bool, StepError> {
        let Some(made) = &part.made else { return Ok(false) };
        let head = self.s3.head_object().bucket(&self.bucket).key(self.key(tenant, export, &part.name)).send().await;
        match head {
            Ok(head) => Ok(head.content_length() == Some(made.bytes) && head.e_tag() == Some(&made.etag)),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found()) => Ok(false),
            Err(error) => Err(crate::aws::classify(&format!("looking at {} of an export", part.name), &error)),
        }
    }

    async fn upload(&self, tenant: &Tenant, export: &Export, part: &Part) -> Result<Uploaded, StepError> {
        let content_type = match part.bounds.kind() {
            "table" => "text/csv; charset=utf-8",
            "objects" => "application/x-tar",
            "config" => "application/json",
            "audit" => "application/x-ndjson",
            "schema" | "constraints" | "restore" => "application/sql",
            _ => "application/octet-stream",
        };
        let key = self.key(tenant, export, &part.name);
        let mut upload = Upload::begin(&self.s3, &self.bucket, key, content_type).await?;
        match Box::pin(self.fill(tenant, export, &part.bounds, &mut upload)).await {
            Ok((items, listing)) => upload.finish(items, listing).await,
            Err(error) => Err(upload.give_up(error).await),
        }
    }

    /// Streams what a part holds. Returns how many things that was, and, of an archive, what it was made of.
    async fn fill(
        &self,
        tenant: &Tenant,
        export: &Export,
        bounds: &Bounds,
        upload: &mut Upload,
    ) -> Result<(Option<i64>, Option<String>), StepError> {
        let bucket = tenant.bucket();
        let source = Source { s3: &self.s3, bucket: &bucket };
        match bounds {
            Bounds::Table { table, range } => {
                let reader = self.database.reader(tenant, COPY_TIMEOUT).await?;
                Ok((Some(tables::copy(&reader, table, range, upload).await?), None))
            }
            Bounds::Objects { after, upto } => {
                let packed = source.pack(after.as_deref(), upto, upload).await?;
                Ok((Some(packed.objects), Some(packed.listing)))
            }
            Bounds::Piece { key, etag, from, bytes } => {
                source.stream(key, etag, Some(*from), *bytes, upload).await?;
                // An object counts once, with its first piece.
                Ok((Some(i64::from(*from == 0)), None))
            }
            Bounds::Schema | Bounds::Constraints | Bounds::Restore => {
                let reader = self.database.reader(tenant, COPY_TIMEOUT).await?;
                let sql = match bounds {
                    Bounds::Schema => schema::tables(&reader, tenant).await?,
                    Bounds::Constraints => schema::constraints(&reader).await?,
                    _ => {
                        let parts = exports::parts(&*self.registry.client().await?, export.id).await?;
                        schema::restore(&reader, tenant, &parts).await?
                    }
                };
                upload.write(sql.as_bytes()).await?;
                Ok((None, None))
            }
            Bounds::Config => {
                let config =
                    self.config.as_ref().ok_or_else(|| StepError::Misconfigured("CONFIG_TABLE is not set".into()))?;
                upload.write(format!("{:#}\n", Value::Array(config.items(tenant).await?)).as_bytes()).await?;
                Ok((None, None))
            }
            Bounds::Audit { upto } => Ok((Some(self.audit(tenant, *upto, upload).await?), None)),
            Bounds::Forgotten { .. } => {
                Err(StepError::Superseded(format!("the export of tenant {} is over", tenant.id)))
            }
        }
    }

    /// The audit trail, a line of JSON for each entry.
    async fn audit(&self, tenant: &Tenant, upto: i64, upload: &mut Upload) -> Result<i64, StepError> {
        let sql = "SELECT json_build_object('id', id, 'at', at AT TIME ZONE 'UTC', 'actor', actor, 'action', action,
                                            'detail', detail)::text
                   FROM audit WHERE tenant_id = $1 AND id <= $2 ORDER BY id";
        let client = self.registry.client().await?;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&tenant.id.0, &upto];
        let rows = client.query_raw(sql, parameters).await?;
        pin_mut!(rows);
        let mut entries = 0;
        while let Some(row) = rows.next().await {
            let line: String = row?.try_get(0)?;
            upload.write(format!("{line}\n").as_bytes()).await?;
            entries += 1;
        }
        Ok(entries)
    }
}
