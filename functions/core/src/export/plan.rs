//! Dividing a tenant's data into parts, each of which one call can export.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::objects::{Listed, Source};
use super::parts::{Bounds, Part};
use super::{Exporter, LOOK_TIMEOUT, PATIENCE, archive, hold_of, tables};
use crate::error::StepError;
use crate::registry::Record;
use crate::registry::exports::{self, Export, State};
use crate::registry::fence::Actor;
use crate::resource::database::Reader;
use crate::tenant::Tenant;

/// Bytes of a part of a table, where the tenant is small enough.
const TABLE_PART: i64 = 256 << 20;
/// Bytes of the largest part, archives included.
const LARGEST_PART: i64 = 2 << 30;
/// The most parts that tables are divided into, and that objects are: together they keep an execution's history, at some ten
/// events a part, below Step Functions' 25,000.
const MOST_OF_TABLES: usize = 900;
const MOST_OF_OBJECTS: usize = 1000;
/// Parts that tables are to come to: their size grows with the tenant, from [`TABLE_PART`] to [`LARGEST_PART`].
const WANTED_OF_TABLES: i64 = 400;
/// How archives grow: up to so many of them, each holds so many bytes and so many objects.
const ARCHIVES: &[(usize, i64, usize)] =
    &[(300, 512 << 20, 10_000), (600, 1 << 30, 40_000), (MOST_OF_OBJECTS, LARGEST_PART, 100_000)];
/// An object that is larger is cut into pieces of this size.
const PIECE: i64 = 1 << 30;
const POLL: Duration = Duration::from_millis(200);

impl Exporter {
    /// Divides what there is, and returns the parts' numbers. A plan that is complete is returned as it is; one that was
    /// interrupted goes on from where it was.
    ///
    /// # Errors
    /// `NotReady` when there is more to list, or while a transaction from before the freeze runs: the next call goes on.
    /// `NeedsOperator` for a tenant that is too large.
    pub async fn plan(&self, record: &Record, actor: &Actor) -> Result<Value, StepError> {
        let tenant = &record.tenant;
        let deadline = Instant::now() + PATIENCE;
        let hold = hold_of(&self.registry, record, actor).await?;
        let mut export = exports::begin(&*self.registry.client().await?, tenant.id, hold).await?;
        if export.state == State::Planning {
            let reader = self.database.reader(tenant, LOOK_TIMEOUT).await?;
            self.settle(&reader, &mut export, deadline).await?;
            let mut parts = exports::parts(&*self.registry.client().await?, export.id).await?;
            if parts.is_empty() {
                parts = self.first_parts(&reader, tenant).await?;
                self.add(actor, &export, &parts, None, false).await?;
            }
            let bulk = parts.iter().filter(|part| matches!(part.bounds.kind(), "objects" | "piece")).count();
            self.list(tenant, actor, &mut export, bulk, deadline).await?;
        }
        let parts = exports::numbers(&*self.registry.client().await?, export.id).await?;
        Ok(json!({ "tenant_id": tenant.id, "parts": parts }))
    }

    /// Draws the line: what is written after it spoils the export, and what was begun before it has ended.
    async fn settle(&self, reader: &Reader, export: &mut Export, deadline: Instant) -> Result<(), StepError> {
        let horizon = match export.horizon {
            Some(horizon) => horizon,
            None => {
                let now = tables::now(reader).await?;
                exports::keep_horizon(&*self.registry.client().await?, export.id, now).await?
            }
        };
        export.horizon = Some(horizon);
        while !tables::settled(reader, horizon).await? {
            if Instant::now() > deadline {
                return Err(StepError::NotReady(format!(
                    "tenant {}: a transaction that began before the export still runs on its database server",
                    export.tenant
                )));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Everything but the bucket.
    async fn first_parts(&self, reader: &Reader, tenant: &Tenant) -> Result<Vec<Part>, StepError> {
        let sql = "SELECT coalesce(max(id), 0) FROM audit WHERE tenant_id = $1";
        let upto = self.registry.client().await?.query_one(sql, &[&tenant.id.0]).await?.try_get(0)?;
        let mut parts = vec![
            Part::new("schema.sql".to_owned(), Bounds::Schema),
            Part::new("constraints.sql".to_owned(), Bounds::Constraints),
            Part::new("restore.sql".to_owned(), Bounds::Restore),
            Part::new("config.json".to_owned(), Bounds::Config),
            Part::new("audit.jsonl".to_owned(), Bounds::Audit { upto }),
        ];
        let all = tables::all(reader).await?;
        let bytes: i64 = all.iter().map(tables::Table::bytes).sum();
        let most = (bytes / WANTED_OF_TABLES).clamp(TABLE_PART, LARGEST_PART);
        for (position, table) in all.iter().enumerate() {
            let stem = stem(position, &table.name);
            for (index, range) in tables::divide(reader, table, most).await?.into_iter().enumerate() {
                let bounds = Bounds::Table { table: table.name.clone(), range };
                parts.push(Part::new(format!("table-{stem}-{:04}.csv", index + 1), bounds));
            }
        }
        if parts.len() > MOST_OF_TABLES {
            return Err(too_large(tenant, "tables come", parts.len()));
        }
        Ok(parts)
    }

    /// Divides the bucket, and completes the plan.
    async fn list(
        &self,
        tenant: &Tenant,
        actor: &Actor,
        export: &mut Export,
        bulk: usize,
        deadline: Instant,
    ) -> Result<(), StepError> {
        let bucket = tenant.bucket();
        let source = Source { s3: &self.s3, bucket: &bucket };
        let mut packing = Packing { after: export.listed_upto.clone(), upto: None, bytes: 0, objects: 0, bulk };
        let mut reached = export.listed_upto.clone();
        loop {
            let (page, more) = source.page(reached.as_deref()).await?;
            reached = page.last().map(|listed| listed.key.clone()).or(reached);
            let mut parts: Vec<Part> = page.into_iter().flat_map(|listed| packing.add(listed)).collect();
            if !more {
                parts.extend(packing.close());
            }
            if packing.bulk > MOST_OF_OBJECTS {
                return Err(too_large(tenant, "objects come", packing.bulk));
            }
            if !more || !parts.is_empty() {
                let upto = packing.after.clone();
                self.add(actor, export, &parts, upto.as_deref(), !more).await?;
                export.listed_upto = upto;
            }
            if !more {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(StepError::NotReady(format!(
                    "bucket {bucket}: {} archives planned, there are more",
                    packing.bulk
                )));
            }
        }
    }

    async fn add(
        &self,
        actor: &Actor,
        export: &Export,
        parts: &[Part],
        upto: Option<&str>,
        complete: bool,
    ) -> Result<(), StepError> {
        let mut client = self.registry.client().await?;
        exports::add_parts(&mut client, actor, export, parts, upto, complete).await
    }
}

fn too_large(tenant: &Tenant, what: &str, parts: usize) -> StepError {
    StepError::NeedsOperator(format!(
        "tenant {} ({}): its {what} to {parts} parts of up to 2 GiB, more than one export holds: export them by other \
         means, and record that with a waiver",
        tenant.slug, tenant.id
    ))
}

/// A table's name inside a file's name. One that would have to be changed gets its place as well, so that no two are the same.
fn stem(position: usize, table: &str) -> String {
    let plain: String = table
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' })
        .take(64)
        .collect();
    if plain == table { plain } else { format!("{}-{plain}", position + 1) }
}

/// An archive that is being filled.
struct Packing {
    /// The key before its first object.
    after: Option<String>,
    upto: Option<String>,
    bytes: i64,
    objects: usize,
    /// Archives and pieces that are planned already.
    bulk: usize,
}

impl Packing {
    /// Takes an object in the order of keys; returns the parts that are complete by that.
    fn add(&mut self, listed: Listed) -> Vec<Part> {
        let mut parts = Vec::new();
        if listed.bytes > PIECE {
            parts.extend(self.close());
            let mut from = 0;
            while from < listed.bytes {
                self.bulk += 1;
                let bytes = PIECE.min(listed.bytes - from);
                let bounds = Bounds::Piece { key: listed.key.clone(), etag: listed.etag.clone(), from, bytes };
                parts.push(Part::new(format!("object-{:04}.piece", self.bulk), bounds));
                from += bytes;
            }
            self.after = Some(listed.key);
            return parts;
        }
        let (_, most_bytes, most_objects) =
            ARCHIVES.iter().find(|(upto, ..)| self.bulk < *upto).unwrap_or(&ARCHIVES[ARCHIVES.len() - 1]);
        // The index has a line for each object, with its key twice.
        let index = 512 + 2 * i64::try_from(listed.key.len()).unwrap_or_default();
        let size = listed.bytes + archive::OVERHEAD + index;
        if self.bytes + size + archive::OVERHEAD > *most_bytes || self.objects >= *most_objects {
            parts.extend(self.close());
        }
        self.bytes += size;
        self.objects += 1;
        self.upto = Some(listed.key);
        parts
    }

    /// The archive, if there is anything in it; the next one begins after it.
    fn close(&mut self) -> Option<Part> {
        let upto = self.upto.take()?;
        self.bulk += 1;
        let after = self.after.replace(upto.clone());
        (self.bytes, self.objects) = (0, 0);
        Some(Part::new(format!("objects-{:04}.tar", self.bulk), Bounds::Objects { after, upto }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(sizes: &[i64]) -> Vec<Part> {
        let mut packing = Packing { after: None, upto: None, bytes: 0, objects: 0, bulk: 0 };
        let listed = sizes.iter().enumerate().map(|(n, bytes)| Listed::sample(&format!("{n:06}"), *bytes));
        let mut parts: Vec<Part> = listed.flat_map(|listed| packing.add(listed)).collect();
        parts.extend(packing.close());
        parts
    }

    #[test]
    fn archives_end_by_size_and_by_number() {
        let (after, upto) = (None, "000000".to_owned());
        assert_eq!(packed(&[1]), [Part::new("objects-0001.tar".to_owned(), Bounds::Objects { after, upto })]);
        assert_eq!(packed(&[]), []);
        assert_eq!(packed(&[400 << 20, 400 << 20, 100 << 20]).len(), 2);
        assert_eq!(packed(&vec![10; 25_000]).len(), 3);
    }

    #[test]
    fn a_large_object_is_cut_and_no_byte_is_lost() {
        let parts = packed(&[1, 3 << 30, 1]);
        let names: Vec<_> = parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(
            names,
            ["objects-0001.tar", "object-0002.piece", "object-0003.piece", "object-0004.piece", "objects-0005.tar"]
        );
        let cut: i64 =
            parts.iter().map(|part| if let Bounds::Piece { bytes, .. } = part.bounds { bytes } else { 0 }).sum();
        assert_eq!(cut, 3 << 30);
        let after = Some("000001".to_owned());
        assert_eq!(parts[4].bounds, Bounds::Objects { after, upto: "000002".to_owned() });
    }

    #[test]
    fn tables_names_become_names_of_files() {
        assert_eq!(stem(0, "users"), "users");
        assert_eq!(stem(2, "../it's"), "3-___it_s");
    }
}
