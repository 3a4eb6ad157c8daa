//! Checking an export, part by part, and writing its manifest.

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::objects::Source;
use super::parts::{Bounds, Part};
use super::upload::Upload;
use super::{Exporter, LOOK_TIMEOUT, PATIENCE, hold_of, planned, tables};
use crate::error::StepError;
use crate::moment;
use crate::registry::Record;
use crate::registry::exports::{self, Export, State, Totals};
use crate::registry::fence::Actor;
use crate::resource::database::Reader;
use crate::tenant::Tenant;

/// The manifest's name.
const MANIFEST: &str = "manifest.json";
/// What the manifest says about what it lists.
const CONTENTS: &[(&str, &str)] = &[
    ("tables", "every row of every table, as of the suspension; restore.sql restores them with psql"),
    (
        "objects",
        "the current version of every object of the bucket; older versions and deleted objects are not included",
    ),
    ("pieces", "an object that is too large for an archive: its pieces, one after the other, are the object"),
    ("config", "feature flags, rate limits and settings"),
    ("audit", "what was done to the tenant, until the export was planned"),
];

impl Exporter {
    /// Checks what was not checked yet: every part is in the bucket as it was made, and what it was made of is unchanged. Then
    /// the manifest follows, and the export is finished.
    ///
    /// # Errors
    /// `Conflict` when something was written meanwhile, or a part is missing: an export that is not whole is never handed
    /// out. `NotReady` when there is more to check: the next call goes on.
    pub async fn finish(&self, record: &Record, actor: &Actor) -> Result<Value, StepError> {
        let tenant = &record.tenant;
        let deadline = Instant::now() + PATIENCE;
        let hold = hold_of(&self.registry, record, actor).await?;
        let export = planned(&self.registry, tenant, hold).await?;
        if export.state == State::Finished {
            let totals = exports::totals(&*self.registry.client().await?, export.id).await?;
            return Ok(answer(tenant, &export, totals));
        }
        let parts = exports::parts(&*self.registry.client().await?, export.id).await?;
        let reader = self.database.reader(tenant, LOOK_TIMEOUT).await?;
        for part in &parts {
            if part.verified {
                continue;
            }
            if Instant::now() > deadline {
                return Err(StepError::NotReady(format!("export {} has more parts to check", export.id)));
            }
            let changed = self.check(&reader, tenant, &export, part).await?;
            if let Some(why) = changed {
                return Err(self.spoil(tenant, actor, &export, &why).await?);
            }
            exports::part_verified(&*self.registry.client().await?, export.id, part.number).await?;
        }
        if let Some(why) = self.unplanned(&reader, tenant, &parts).await? {
            return Err(self.spoil(tenant, actor, &export, &why).await?);
        }
        let manifest = manifest(tenant, &export, &parts)?;
        let key = self.key(tenant, &export, MANIFEST);
        let mut upload = Upload::begin(&self.s3, &self.bucket, key, "application/json").await?;
        upload.write(format!("{manifest:#}\n").as_bytes()).await?;
        let made = upload.finish(None, None).await?;
        let mut client = self.registry.client().await?;
        let totals = exports::finish(&mut client, actor, &export, MANIFEST, &made).await?;
        Ok(answer(tenant, &export, totals))
    }

    /// Looks at a part, and at what it was made of. Returns what was changed meanwhile.
    async fn check(
        &self,
        reader: &Reader,
        tenant: &Tenant,
        export: &Export,
        part: &Part,
    ) -> Result<Option<String>, StepError> {
        if !self.is_there(tenant, export, part).await? {
            return Err(StepError::Conflict(format!(
                "tenant {} ({}): part {} of its export, {}, is not in the bucket as it was made; export it again",
                tenant.slug, tenant.id, part.number, part.name
            )));
        }
        let made = part.made.as_ref();
        match &part.bounds {
            Bounds::Table { table, range } => {
                let horizon = export.horizon.unwrap_or_default();
                let found = tables::check(reader, table, range, horizon).await?;
                let exported = made.and_then(|made| made.items).unwrap_or_default();
                Ok(if found.written > 0 {
                    Some(format!("{} rows of table {table} were written", found.written))
                } else if found.rows != exported {
                    Some(format!("table {table} had {exported} rows, and has {} now", found.rows))
                } else {
                    None
                })
            }
            Bounds::Objects { after, upto } => {
                let bucket = tenant.bucket();
                let source = Source { s3: &self.s3, bucket: &bucket };
                let now = source.listing(after.as_deref(), upto).await?;
                let same = made.and_then(|made| made.listing.as_ref()) == Some(&now);
                Ok((!same).then(|| format!("objects of {} were written or deleted", part.name)))
            }
            _ => Ok(None),
        }
    }

    /// What there is beyond the plan: a table that was made, or an object after the last one.
    async fn unplanned(&self, reader: &Reader, tenant: &Tenant, parts: &[Part]) -> Result<Option<String>, StepError> {
        for table in tables::all(reader).await? {
            if !parts.iter().any(|part| part.bounds.source() == Some(&table.name)) {
                return Ok(Some(format!("table {} was made", table.name)));
            }
        }
        let last = parts.iter().rev().find_map(|part| match &part.bounds {
            Bounds::Objects { upto, .. } => Some(upto.as_str()),
            Bounds::Piece { key, .. } => Some(key.as_str()),
            _ => None,
        });
        let bucket = tenant.bucket();
        let (beyond, _) = Source { s3: &self.s3, bucket: &bucket }.page(last).await?;
        Ok((!beyond.is_empty()).then(|| "an object was written".to_owned()))
    }

    async fn spoil(&self, tenant: &Tenant, actor: &Actor, export: &Export, why: &str) -> Result<StepError, StepError> {
        exports::spoil(&mut *self.registry.client().await?, actor, export, why).await?;
        Ok(StepError::Conflict(format!(
            "tenant {} ({}) was written to while it was exported: {why}. Find out who can still write, and export again",
            tenant.slug, tenant.id
        )))
    }
}

fn answer(tenant: &Tenant, export: &Export, totals: Totals) -> Value {
    let Totals { parts, tables, rows, objects, bytes } = totals;
    json!({
        "tenant_id": tenant.id, "export_id": export.id, "parts": parts, "tables": tables, "rows": rows, "objects": objects,
        "bytes": bytes,
    })
}

/// What the export is: for whoever restores it, and for whoever asks what was handed over.
fn manifest(tenant: &Tenant, export: &Export, parts: &[Part]) -> Result<Value, StepError> {
    let mut files = Vec::with_capacity(parts.len());
    for part in parts {
        let Some(made) = &part.made else { continue };
        let mut file = json!({
            "name": part.name, "kind": part.bounds.kind(), "bytes": made.bytes, "sha256": made.sha256,
        });
        match &part.bounds {
            Bounds::Table { table, .. } => {
                file["table"] = json!(table);
                file["rows"] = json!(made.items);
            }
            Bounds::Objects { .. } => file["objects"] = json!(made.items),
            Bounds::Piece { key, from, .. } => {
                file["key"] = json!(key);
                file["from"] = json!(from);
            }
            Bounds::Audit { .. } => file["entries"] = json!(made.items),
            _ => {}
        }
        files.push(file);
    }
    let contents: serde_json::Map<String, Value> =
        CONTENTS.iter().map(|(what, text)| ((*what).to_owned(), json!(text))).collect();
    Ok(json!({
        "format": 1,
        "export_id": export.id,
        "tenant": {
            "id": tenant.id, "slug": tenant.slug, "plan": tenant.plan, "isolation": tenant.isolation, "region": tenant.region,
        },
        "started_at": moment::text(export.started_at)?,
        "finished_at": moment::text(OffsetDateTime::now_utc())?,
        "contents": contents,
        "files": files,
    }))
}
