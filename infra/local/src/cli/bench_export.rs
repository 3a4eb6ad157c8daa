//! How fast an export goes: rows beside COPY to a client that drops them, objects beside GET and PUT of each, in turns. The
//! exporting is done by the deployed Lambda.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_s3::primitives::ByteStream;
use futures::{StreamExt, TryStreamExt, pin_mut, stream};
use serde_json::{Value, json};
use tenantry_core::registry::{self, Selector};
use tenantry_core::tenant::Tenant;
use tokio_postgres::Client;

use super::bench::{percentile, sign_up};
use crate::inventory::connect;
use crate::progress::Progress;
use crate::stack::Stack;
use crate::{emulator, functions};

const SLUG: &str = "exported";
const TABLE: &str = "readings";
const ROWS: u32 = 1_000_000;
const OBJECTS: usize = 200;
const OBJECT_BYTES: usize = 512 << 10;
/// As many as export-part fetches at a time.
const AT_ONCE: usize = 8;
/// Raw, exported, raw, exported, …: what else the machine does meets both.
const ROUNDS: usize = 3;
const BY_HAND: &str = "manual:bench";

/// A stack with a tenant that is being exported.
struct Bench {
    lambda: aws_sdk_lambda::Client,
    s3: aws_sdk_s3::Client,
    registry: Client,
    exports: String,
    tenant: Tenant,
}

/// A part of the export.
struct Part {
    number: i32,
    key: String,
}

/// Measures, and tells. Returns how many tenants there are.
pub(super) async fn export(stack: &Stack, progress: &Progress) -> Result<usize> {
    let (aws, machine) = (stack.aws_config(), stack.output("ProvisionTenantMachine")?);
    let mut request = sign_up(SLUG);
    request["plan"] = json!("growth");
    let outcome = super::follow(&aws, machine, &request, SLUG, progress).await?;
    ensure!(outcome.error.is_empty(), "{}: {}", outcome.error, outcome.cause);
    let url = stack.exports().get("REGISTRY_DATABASE_URL").cloned().context("no REGISTRY_DATABASE_URL")?;
    let registry = connect(&url).await?;
    let tenant = registry::read(&registry, &Selector::Slug(SLUG.to_owned())).await?.tenant;
    let bench = Bench {
        lambda: functions::client(&aws),
        s3: emulator::s3(&aws),
        registry,
        exports: stack.output("ExportsBucketName")?.to_owned(),
        tenant,
    };
    bench.fill().await?;
    bench.invoke("plan-export", &bench.call()).await?;
    let (table, archive) = (bench.part("source = 'readings'").await?, bench.part("kind = 'objects'").await?);
    let (mut copied, mut rows, mut raw, mut objects) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        copied.push(bench.copied().await?);
        rows.push(bench.exported(&table).await?);
    }
    let peak = functions::peak_memory("export-part")? / 1e6;
    for _ in 0..ROUNDS {
        raw.push(bench.one_by_one().await?);
        objects.push(bench.exported(&archive).await?);
    }
    let [copied, rows, raw, objects] = [copied, rows, raw, objects].map(|mut rates| percentile(&mut rates, 50));
    progress.say(&format!("{ROWS} rows: COPY {copied:.0} MB/s, export-part {rows:.0} MB/s, {peak:.0} MB at its peak"));
    progress.say(&format!("{OBJECTS} objects: GET and PUT {raw:.0} MB/s, export-part {objects:.0} MB/s"));
    progress.tell(&json!({
        "rows_mb_per_second": rows, "copy_mb_per_second": copied, "objects_mb_per_second": objects,
        "raw_objects_mb_per_second": raw, "peak_mb": peak,
    }));
    Ok(1)
}

impl Bench {
    /// Rows and objects, and then a suspension, so that a person may export.
    async fn fill(&self) -> Result<()> {
        let schema = self.tenant.schema();
        let sql = format!(
            "CREATE TABLE {schema}.{TABLE} (id BIGINT, at TIMESTAMPTZ NOT NULL, note TEXT);
             INSERT INTO {schema}.{TABLE}
                 SELECT n, '2026-01-01'::timestamptz + n * interval '1 second', repeat(md5(n::text), 3)
                 FROM generate_series(1, {ROWS}) AS n;
             ALTER TABLE {schema}.{TABLE} OWNER TO tenantry_provisioner;
             UPDATE tenants SET status = 'suspended' WHERE slug = '{SLUG}'"
        );
        self.registry.batch_execute(&sql).await?;
        let bucket = self.tenant.bucket();
        let put = |number: usize| {
            let body = ByteStream::from(vec![u8::try_from(number % 251).unwrap_or_default(); OBJECT_BYTES]);
            self.s3.put_object().bucket(&bucket).key(key(number)).body(body).send()
        };
        stream::iter((0..OBJECTS).map(put)).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        Ok(())
    }

    fn call(&self) -> Value {
        json!({ "tenant_id": self.tenant.id, "execution": BY_HAND })
    }

    async fn invoke(&self, function: &str, input: &Value) -> Result<Value> {
        let invoke = self.lambda.invoke().function_name(function).payload(Blob::new(input.to_string()));
        let answer = invoke.send().await?;
        let body: Value = serde_json::from_slice(answer.payload().context("no payload")?.as_ref())?;
        ensure!(answer.function_error().is_none(), "{function}: {body}");
        Ok(body)
    }

    async fn part(&self, which: &str) -> Result<Part> {
        let sql = format!(
            "SELECT p.number, 'exports/' || e.tenant_id || '/' || e.id || '/' || p.name
             FROM export_parts p JOIN exports e ON e.id = p.export_id WHERE e.tenant_id = $1 AND {which}"
        );
        let row = self.registry.query_one(&sql, &[&self.tenant.id.0]).await?;
        Ok(Part { number: row.try_get(0)?, key: row.try_get(1)? })
    }

    /// Megabytes a second of export-part, on a part that is not there any more.
    async fn exported(&self, part: &Part) -> Result<f64> {
        self.s3.delete_object().bucket(&self.exports).key(&part.key).send().await?;
        let mut call = self.call();
        call["part"] = json!(part.number);
        let begun = Instant::now();
        let answer = self.invoke("export-part", &call).await?;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(answer["outcome"] == "done", "{answer}");
        let head = self.s3.head_object().bucket(&self.exports).key(&part.key).send().await?;
        Ok(megabytes(usize::try_from(head.content_length().unwrap_or_default())?) / seconds)
    }

    /// Megabytes a second of COPY to a client that only counts.
    async fn copied(&self) -> Result<f64> {
        let sql = format!("COPY {}.{TABLE} TO STDOUT WITH (FORMAT csv, HEADER)", self.tenant.schema());
        let begun = Instant::now();
        let lines = self.registry.copy_out(&sql).await?;
        pin_mut!(lines);
        let mut bytes = 0;
        while let Some(line) = lines.next().await {
            bytes += line?.len();
        }
        Ok(megabytes(bytes) / begun.elapsed().as_secs_f64())
    }

    /// Megabytes a second of reading each object and putting it elsewhere.
    async fn one_by_one(&self) -> Result<f64> {
        let bucket = self.tenant.bucket();
        let begun = Instant::now();
        let copy = |number: usize| {
            let bucket = &bucket;
            async move {
                let got = self.s3.get_object().bucket(bucket).key(key(number)).send().await?;
                let body = ByteStream::from(got.body.collect().await?.into_bytes());
                self.s3.put_object().bucket(&self.exports).key(format!("bench/{number}")).body(body).send().await?;
                anyhow::Ok(())
            }
        };
        stream::iter((0..OBJECTS).map(copy)).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        Ok(megabytes(OBJECTS * OBJECT_BYTES) / begun.elapsed().as_secs_f64())
    }
}

fn key(number: usize) -> String {
    format!("objects/{number:05}")
}

#[allow(clippy::cast_precision_loss)] // megabytes of a benchmark
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}
