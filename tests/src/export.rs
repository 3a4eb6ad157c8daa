//! Exports: all that is a tenant's goes out, and comes back; nothing is handed out that is not whole, and to nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tenantry_core::environment::Environment;
use tenantry_core::export::link::{self, ExportLinks};
use tenantry_core::steps::download::PublishLink;
use tenantry_core::steps::export::Export;
use tenantry_core::tenant::{Isolation, Tenant};
use tenantry_local::functions;
use tenantry_local::proxy::{System, Verdict};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::calls::{calls, run};
use crate::contract::repository;
use crate::deletion::until_gone;
use crate::faults::{Target, marks};
use crate::machine::sign_up;
use crate::neighbour::exports;
use crate::offboarding::erasing;
use crate::world::{Case, World, connect};

pub const CASES: &[(&str, Case)] = &[
    ("a_shared_tenant_goes_out_and_comes_back", |world| Box::pin(comes_back(world, "starter"))),
    ("a_schema_goes_out_and_comes_back", |world| Box::pin(comes_back(world, "growth"))),
    ("a_server_of_its_own_goes_out_and_comes_back", |world| Box::pin(comes_back(world, "enterprise"))),
    ("every_object_is_in_an_archive", |world| Box::pin(objects(world))),
    ("a_million_rows_take_little_memory_and_survive_a_kill", |world| Box::pin(million(world))),
    ("one_tenants_rows_of_a_large_shared_table_are_divided_without_loss", |world| Box::pin(divided(world))),
    ("what_is_written_meanwhile_is_noticed", |world| Box::pin(written(world))),
    ("only_who_exports_may", |world| Box::pin(fenced(world))),
    ("the_link_opens_the_export_until_it_ends", |world| Box::pin(linked(world))),
    ("no_file_expires_before_its_link", |world| Box::pin(aged(world))),
    ("an_erasure_takes_the_export_of_a_hold_along", |world| Box::pin(erased(world))),
];

/// The most memory that a Lambda may take for a part.
const MOST_BYTES: f64 = 256e6;
/// How long the machine of a deletion may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// A table that no migration knows.
const READINGS: &str = "readings";

/// A tenant that is leaving: suspended, its fence and its hold in the hands of an execution.
struct Leaving {
    tenant: Tenant,
    execution: String,
}

impl Leaving {
    /// Provisions a tenant, and takes it out of service as BeginOffboarding does.
    async fn of_plan(world: &World, plan: &str) -> Result<Self> {
        let slug = world.fresh_slug("leaving");
        world.provision(&sign_up(&slug, plan)).await?.succeeded()?;
        let tenant = world.record(&slug).await?.tenant;
        Ok(Leaving { tenant, execution: String::new() })
    }

    async fn suspend(&mut self, world: &World) -> Result<()> {
        let execution = format!("arn:aws:states:us-east-1:000000000000:execution:offboard-tenant:{}", Uuid::new_v4());
        let registry = world.registry().await?;
        let id = &self.tenant.id.0;
        let sql = "UPDATE tenants SET status = 'suspended', execution = $2, execution_since = now() WHERE id = $1";
        registry.execute(sql, &[id, &execution]).await?;
        let sql = "INSERT INTO holds (tenant_id, kind, reason, requested_by, execution)
                   VALUES ($1, 'offboarding', 'customer_request', 'test', $2)";
        registry.execute(sql, &[id, &execution]).await?;
        self.execution = execution;
        Ok(())
    }

    fn call(&self) -> Value {
        json!({"tenant_id": self.tenant.id, "execution": self.execution})
    }

    fn part(&self, number: i64) -> Value {
        json!({"tenant_id": self.tenant.id, "execution": self.execution, "part": number})
    }

    /// What a function answers, as the machine calls it.
    async fn step(&self, world: &World, name: &str, input: &Value) -> Result<Value> {
        let answer = world.invoke(name, input).await?;
        answer.map_err(|(error, message)| anyhow::anyhow!("{name}: {error}: {message}"))
    }

    async fn plan(&self, world: &World) -> Result<Vec<i64>> {
        let planned = self.step(world, "plan-export", &self.call()).await?;
        let numbers = planned["parts"].as_array().context("no parts")?;
        ensure!(planned["tenant_id"] == json!(self.tenant.id), "{planned}");
        Ok(numbers.iter().filter_map(Value::as_i64).collect())
    }

    /// Plans, makes every part, a few at a time, and finishes.
    async fn export(&self, world: &World) -> Result<Value> {
        let parts = self.plan(world).await?;
        let made =
            stream::iter(parts).map(|number| async move { self.step(world, "export-part", &self.part(number)).await });
        made.buffer_unordered(4).try_collect::<Vec<_>>().await?;
        self.step(world, "finish-export", &self.call()).await
    }

    /// The tenant's tables as the server's administrator sees them, and what stands before their names.
    async fn source(&self, world: &World) -> Result<(Client, String)> {
        let tenant = &self.tenant;
        Ok(match tenant.isolation {
            Isolation::Shared => (world.registry().await?, "pool".to_owned()),
            Isolation::Schema => (world.registry().await?, tenant.schema()),
            Isolation::Database => {
                let url =
                    world.export("DEDICATED_DATABASE_URL")?.replace("/postgres", &format!("/{}", tenant.schema()));
                (connect(&url).await?, tenant.schema())
            }
        })
    }

    /// Inserts rows. `columns` and `select` leave out whose they are.
    async fn insert(&self, world: &World, table: &str, columns: &str, select: &str) -> Result<()> {
        let (client, schema) = self.source(world).await?;
        let sql = match self.tenant.isolation {
            Isolation::Shared => format!(
                "INSERT INTO {schema}.{table} (tenant_id, {columns}) SELECT '{}', rows.* FROM ({select}) AS rows",
                self.tenant.id
            ),
            _ => format!("INSERT INTO {schema}.{table} ({columns}) {select}"),
        };
        client.batch_execute(&sql).await.with_context(|| sql.chars().take(200).collect::<String>())
    }

    /// Rows that are hard to write as CSV.
    async fn fill(&self, world: &World) -> Result<()> {
        let odd =
            r#"'a,b', '"quoted" ''single''', E'two\nlines\r\n', '', '\.', 'NULL', E'tab\t\\ é 漢 🙂', '  spaces  '"#;
        let users =
            format!("SELECT gen_random_uuid(), n || '@odd.example', n, 'member' FROM unnest(ARRAY[{odd}]) AS n");
        self.insert(world, "users", "id, email, name, role", &users).await?;
        let projects = format!("SELECT md5(n)::uuid, n, NULL::uuid FROM unnest(ARRAY[{odd}]) AS n");
        self.insert(world, "projects", "id, name, owner_id", &projects).await?;
        let tasks = "SELECT md5('a,b')::uuid, 'task ' || n, CASE WHEN n % 2 = 0 THEN current_date - n END
                     FROM generate_series(1, 1000) AS n";
        self.insert(world, "tasks", "project_id, title, due_on", tasks).await
    }

    fn prefix(&self, export: &Value) -> String {
        format!("exports/{}/{}/", self.tenant.id, export["export_id"].as_str().unwrap_or_default())
    }
}

/// A directory that is gone with it.
struct Directory(PathBuf);

impl Directory {
    fn fresh() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tenantry-export-{}", Uuid::new_v4()));
        std::fs::create_dir_all(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn bucket(world: &World) -> Result<String> {
    Ok(world.env.required("EXPORTS_BUCKET")?)
}

/// Saves an export's files side by side, as a person would.
async fn download(world: &World, prefix: &str) -> Result<Directory> {
    let (s3, bucket, directory) = (world.s3(), bucket(world)?, Directory::fresh()?);
    let listed = s3.list_objects_v2().bucket(&bucket).prefix(prefix).send().await?;
    ensure!(listed.is_truncated() != Some(true) && !listed.contents().is_empty(), "{prefix}: {listed:?}");
    for object in listed.contents() {
        let key = object.key().context("no key")?;
        let mut body = s3.get_object().bucket(&bucket).key(key).send().await?.body;
        let mut file = std::fs::File::create(directory.0.join(key.trim_start_matches(prefix)))?;
        while let Some(chunk) = body.next().await {
            std::io::Write::write_all(&mut file, &chunk?)?;
        }
    }
    Ok(directory)
}

fn manifest(directory: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(directory.join("manifest.json"))?)?)
}

/// Restores into a new database of the registry's server, as docs/restore.md says, and returns a connection to it.
async fn restore(world: &World, directory: &Path) -> Result<(Client, String)> {
    let name = format!("restored_{}", Uuid::new_v4().simple());
    world.registry().await?.batch_execute(&format!("CREATE DATABASE {name}")).await?;
    let mut url: url::Url = world.export("REGISTRY_DATABASE_URL")?.parse()?;
    url.set_path(&name);
    let restore = repository().join("infra/restore/run");
    let done = tokio::process::Command::new(restore).arg(directory).arg(url.as_str()).output().await?;
    ensure!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    Ok((connect(url.as_str()).await?, name))
}

async fn drop_database(world: &World, name: &str) -> Result<()> {
    Ok(world.registry().await?.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await?)
}

/// The tables of a schema.
async fn tables(client: &Client, schema: &str) -> Result<BTreeSet<String>> {
    let sql = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1";
    Ok(client.query(sql, &[&schema]).await?.iter().map(|row| row.get(0)).collect())
}

/// Every row of a table as text, in order, without whose it is.
async fn rows(client: &Client, table: &str, whose: &str) -> Result<Vec<String>> {
    let sql = format!("SELECT (to_jsonb(t) - 'tenant_id')::text FROM {table} t WHERE {whose} ORDER BY 1");
    Ok(client.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

async fn comes_back(world: &World, plan: &str) -> Result<()> {
    let mut leaving = Leaving::of_plan(world, plan).await?;
    leaving.fill(world).await?;
    if plan == "starter" {
        // A neighbour's rows stay where they are.
        let neighbour = Leaving::of_plan(world, plan).await?;
        neighbour.fill(world).await?;
    }
    leaving.suspend(world).await?;
    let export = leaving.export(world).await?;
    let directory = download(world, &leaving.prefix(&export)).await?;
    let manifest = manifest(&directory.0)?;
    let (restored, name) = restore(world, &directory.0).await?;
    let (source, schema) = leaving.source(world).await?;
    let tenant = &leaving.tenant;
    let (mut expected, mut whose) = (tables(&source, &schema).await?, "true".to_owned());
    if tenant.isolation == Isolation::Shared {
        expected.retain(|table| !["tenants", "refinery_schema_history"].contains(&table.as_str()));
        whose = format!("tenant_id = '{}'", tenant.id);
    }
    let found = tables(&restored, &tenant.schema()).await?;
    ensure!(found == expected && found.len() >= 7, "restored were {found:?}, there are {expected:?}");
    let mut total = 0;
    for table in &expected {
        let there = rows(&source, &format!("{schema}.{table}"), &whose).await?;
        let here = rows(&restored, &format!("{}.{table}", tenant.schema()), "true").await?;
        ensure!(there == here, "{table} differs: {} rows, {} restored", there.len(), here.len());
        let files = manifest["files"].as_array().context("no files")?;
        let said: i64 =
            files.iter().filter(|file| file["table"] == **table).filter_map(|file| file["rows"].as_i64()).sum();
        ensure!(said == i64::try_from(there.len())?, "{table}: the manifest says {said}, there are {}", there.len());
        total += there.len();
    }
    ensure!(total > 1000 && export["rows"] == json!(total), "{total} rows, {export}");
    // Keys, checks, references and indexes are those that a schema of the tenant's own has.
    let model = if plan == "starter" { pristine(world).await? } else { leaving.source(world).await? };
    let (is, wanted) = (shape(&restored, &tenant.schema()).await?, shape(&model.0, &model.1).await?);
    let differ: Vec<&String> = is.symmetric_difference(&wanted).collect();
    ensure!(differ.is_empty(), "the tables differ: {differ:#?}");
    drop(restored);
    drop_database(world, &name).await?;

    let config: Value = serde_json::from_slice(&std::fs::read(directory.0.join("config.json"))?)?;
    let items = config.as_array().context("no items")?;
    ensure!(items.len() == 3 && items.iter().all(|item| item["tenant"] == json!(tenant.config_key())), "{config}");
    let audit = std::fs::read_to_string(directory.0.join("audit.jsonl"))?;
    let entries = audit.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    ensure!(entries.iter().any(|entry| entry["detail"]["to"] == "suspended"), "{audit}");

    // The world hears how much it was, and not whose.
    let sql = "SELECT detail FROM outbox WHERE tenant_id = $1 AND type = 'tenant.exported'";
    let sent = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    ensure!(sent.len() == 1, "{} events", sent.len());
    let schema: Value = serde_json::from_str(include_str!("../../events/schemas/tenant.exported.json"))?;
    let detail: Value = sent[0].get(0);
    let violations: Vec<String> =
        jsonschema::validator_for(&schema)?.iter_errors(&detail).map(|error| error.to_string()).collect();
    ensure!(violations.is_empty() && detail["rows"] == json!(total), "{detail}: {violations:?}");
    // The tenant's own words are no longer in the registry.
    let sql = "SELECT count(*) FROM export_parts p JOIN exports e ON e.id = p.export_id
               WHERE e.tenant_id = $1 AND (p.bounds IS NOT NULL OR e.listed_upto IS NOT NULL)";
    let kept: i64 = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(kept == 0, "{kept} parts keep their bounds");
    // A file that was changed on its way is not restored.
    std::fs::write(directory.0.join("config.json"), "{}")?;
    let refused = restore(world, &directory.0).await.err().context("a changed file was restored")?.to_string();
    ensure!(refused.contains("config.json: SHA-256 is"), "{refused}");
    Ok(())
}

/// The tables of a tenant with a schema of its own.
async fn pristine(world: &World) -> Result<(Client, String)> {
    Leaving::of_plan(world, "growth").await?.source(world).await
}

/// Columns, constraints and indexes of the product's tables, as text.
async fn shape(client: &Client, schema: &str) -> Result<BTreeSet<String>> {
    client.batch_execute(&format!("SET search_path = {schema}")).await?;
    let sql = "SELECT * FROM (
            SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
            FROM information_schema.columns WHERE table_schema = $1
            UNION ALL
            SELECT format('%s %s', c.relname, pg_get_constraintdef(k.oid)) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
            WHERE c.relnamespace = $1::text::regnamespace
            UNION ALL
            SELECT pg_get_indexdef(i.indexrelid, 0, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
            WHERE c.relnamespace = $1::text::regnamespace) AS shape (line)
        WHERE line NOT LIKE '%refinery_schema_history%'";
    // Of a reference by one column, setting that column null and setting all null are one thing.
    let plain = |line: String| line.split(" SET NULL (").next().map(|start| (start.to_owned(), line.clone()));
    let lines = client.query(sql, &[&schema]).await?.iter().map(|row| row.get(0)).filter_map(plain).collect::<Vec<_>>();
    Ok(lines.into_iter().map(|(start, line)| if start == line { line } else { format!("{start} SET NULL") }).collect())
}

async fn objects(world: &World) -> Result<()> {
    let mut leaving = Leaving::of_plan(world, "growth").await?;
    let (s3, own) = (world.s3(), leaving.tenant.bucket());
    let mut expected = BTreeMap::new();
    let odd =
        ["photos/", "photos/a b+c%&=.jpg", "ünï/漢.txt", "/absolute", "../../etc/passwd", "a", "a/b", "double//slash"];
    let many: Vec<String> = (0..1200).map(|number| format!("many/{number:05}")).collect();
    let put = odd.iter().map(|key| (*key).to_owned()).chain(many).map(|key| {
        let content = format!("content of {key}").into_bytes();
        expected.insert(key.clone(), content.clone());
        let put = s3.put_object().bucket(&own).key(key).body(ByteStream::from(content));
        async move { put.send().await }
    });
    let put: Vec<_> = put.collect();
    stream::iter(put).buffer_unordered(16).try_collect::<Vec<_>>().await?;
    // Larger than what is fetched ahead, and than a piece of an upload.
    let large: Vec<u8> = (0..20_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for (key, content) in [("large.bin", large), ("empty", Vec::new()), ("twice", b"new".to_vec())] {
        s3.put_object().bucket(&own).key(key).body(ByteStream::from(b"old".to_vec())).send().await?;
        s3.put_object().bucket(&own).key(key).body(ByteStream::from(content.clone())).send().await?;
        expected.insert(key.to_owned(), content);
    }
    s3.put_object().bucket(&own).key("deleted").send().await?;
    s3.delete_object().bucket(&own).key("deleted").send().await?;
    leaving.suspend(world).await?;
    let export = leaving.export(world).await?;
    ensure!(export["objects"] == json!(expected.len()), "{export}");
    let directory = download(world, &leaving.prefix(&export)).await?;
    let manifest = manifest(&directory.0)?;
    let mut found = BTreeMap::new();
    for file in manifest["files"].as_array().context("no files")?.iter().filter(|file| file["kind"] == "objects") {
        let path = directory.0.join(file["name"].as_str().context("no name")?);
        ensure!(std::fs::metadata(&path)?.len() <= 2 << 30, "{file}");
        let mut contents = BTreeMap::new();
        for entry in tar::Archive::new(std::fs::File::open(&path)?).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.to_str().context("a name that is no text")?.to_owned();
            ensure!(!name.starts_with('/') && !name.split('/').any(|part| part == ".."), "{name}");
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            contents.insert(name, content);
        }
        let index = String::from_utf8(contents.remove("index.jsonl").context("no index")?)?;
        for line in index.lines() {
            let line: Value = serde_json::from_str(line)?;
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            found.insert(text("key"), contents.remove(&text("file")).with_context(|| line.to_string())?);
        }
        ensure!(contents.is_empty(), "not in the index: {:?}", contents.keys());
        // An ordinary tar unpacks it.
        let unpacked = Directory::fresh()?;
        let tar = tokio::process::Command::new("tar").arg("-xf").arg(&path).arg("-C").arg(&unpacked.0).output().await?;
        ensure!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    }
    ensure!(
        found.keys().eq(expected.keys()),
        "{:?}",
        found.keys().filter(|key| !expected.contains_key(*key)).take(5).collect::<Vec<_>>()
    );
    for (key, content) in &expected {
        ensure!(found.get(key) == Some(content), "{key} differs");
    }
    Ok(())
}

async fn million(world: &World) -> Result<()> {
    let mut leaving = Leaving::of_plan(world, "growth").await?;
    let (source, schema) = leaving.source(world).await?;
    let sql = format!(
        "CREATE TABLE {schema}.{READINGS} (id BIGINT, at TIMESTAMPTZ NOT NULL, note TEXT);
         INSERT INTO {schema}.{READINGS}
             SELECT n, '2026-01-01'::timestamptz + n * interval '1 second', repeat(md5(n::text), 8) FROM generate_series(1, 1000000) AS n;
         ALTER TABLE {schema}.{READINGS} ADD PRIMARY KEY (id);
         ALTER TABLE {schema}.{READINGS} OWNER TO tenantry_provisioner"
    );
    source.batch_execute(&sql).await?;
    leaving.suspend(world).await?;
    leaving.plan(world).await?;
    let registry = world.registry().await?;
    let sql = "SELECT p.number FROM export_parts p JOIN exports e ON e.id = p.export_id WHERE e.tenant_id = $1 AND p.source = $2
               ORDER BY p.number";
    let parts = registry.query(sql, &[&leaving.tenant.id.0, &READINGS]).await?;
    ensure!(parts.len() > 1, "a table of 300 MB is {} parts", parts.len());
    let number: i32 = parts[0].get(0);
    // Killed in the middle of its upload, nothing is done; the next call makes it whole, and the one after that nothing.
    let target = Target { system: System::Aws, function: "export-part", holds: "partNumber=5" };
    let kill = world.faults.inject(target, marks(leaving.tenant.id, leaving.tenant.slug.as_str()), Verdict::Kill, 1);
    let killed = world.invoke("export-part", &leaving.part(number.into())).await?;
    ensure!(killed.is_err() && kill.hits() == 1, "{killed:?}, {} hits", kill.hits());
    drop(kill);
    let (s3, exports) = (world.s3(), bucket(world)?);
    let uploads = || async {
        let left = s3
            .list_multipart_uploads()
            .bucket(&exports)
            .prefix(format!("exports/{}/", leaving.tenant.id))
            .send()
            .await?;
        anyhow::Ok(left.uploads().len())
    };
    ensure!(uploads().await? == 1, "the killed function left {} uploads", uploads().await?);
    let made = leaving.step(world, "export-part", &leaving.part(number.into())).await?;
    ensure!(made["outcome"] == "done" && uploads().await? == 0, "{made}, and {} uploads are left", uploads().await?);
    let peak = functions::peak_memory(&world.function("export-part").await?)?;
    ensure!(peak < MOST_BYTES, "export-part took {peak} bytes for a million rows");
    let again = leaving.step(world, "export-part", &leaving.part(number.into())).await?;
    ensure!(again["outcome"] == "done before", "{again}");
    // One that the bucket lost is made again.
    let sql = "SELECT 'exports/' || e.tenant_id || '/' || e.id || '/' || p.name, p.sha256
               FROM export_parts p JOIN exports e ON e.id = p.export_id WHERE e.tenant_id = $1 AND p.number = $2";
    let row = registry.query_one(sql, &[&leaving.tenant.id.0, &number]).await?;
    let (key, sha256): (String, String) = (row.get(0), row.get(1));
    s3.delete_object().bucket(&exports).key(&key).send().await?;
    ensure!(leaving.step(world, "export-part", &leaving.part(number.into())).await?["outcome"] == "done");
    ensure!(registry.query_one(sql, &[&leaving.tenant.id.0, &number]).await?.get::<_, String>(1) == sha256);
    let export = leaving.export(world).await?;
    let directory = download(world, &leaving.prefix(&export)).await?;
    let (restored, name) = restore(world, &directory.0).await?;
    let sum = format!("SELECT count(*), sum(hashtextextended(t::text, 0))::text FROM {schema}.{READINGS} t");
    let (here, there) = (restored.query_one(&sum, &[]).await?, source.query_one(&sum, &[]).await?);
    let both = [here, there].map(|row| (row.get::<_, i64>(0), row.get::<_, String>(1)));
    ensure!(both[0] == both[1] && both[0].0 == 1_000_000, "{both:?}");
    drop(restored);
    drop_database(world, &name).await
}

async fn divided(world: &World) -> Result<()> {
    const ROWS: usize = 150_000;
    let mut leaving = Leaving::of_plan(world, "starter").await?;
    let neighbour = Leaving::of_plan(world, "starter").await?;
    for tenant in [&leaving, &neighbour] {
        tenant.insert(world, "projects", "id, name", "SELECT md5('p')::uuid, 'p'").await?;
        // Wide rows: the tenant's own are more than a part holds.
        let rows = if tenant.tenant.id == leaving.tenant.id { ROWS } else { 1000 };
        let files = format!(
            "SELECT gen_random_uuid(), md5('p')::uuid, n::text, repeat(md5(n::text), 60), n FROM generate_series(1, {rows}) AS n"
        );
        tenant.insert(world, "files", "id, project_id, object_key, name, bytes", &files).await?;
    }
    leaving.suspend(world).await?;
    let export = leaving.export(world).await?;
    let directory = download(world, &leaving.prefix(&export)).await?;
    let manifest = manifest(&directory.0)?;
    let (mut parts, mut ids) = (0, BTreeSet::new());
    for file in manifest["files"].as_array().context("no files")?.iter().filter(|file| file["table"] == "files") {
        let text = std::fs::read_to_string(directory.0.join(file["name"].as_str().context("no name")?))?;
        let mut lines = text.lines();
        ensure!(lines.next().is_some_and(|header| header.starts_with("id,project_id,")), "{file}");
        let before = ids.len();
        ids.extend(lines.filter_map(|line| line.split(',').next().map(str::to_owned)));
        ensure!(file["rows"] == json!(ids.len() - before), "{file}: {} rows are new", ids.len() - before);
        parts += 1;
    }
    ensure!(parts > 1, "all rows went into {parts} part");
    let (source, _) = leaving.source(world).await?;
    let sql = format!("SELECT id::text FROM pool.files WHERE tenant_id = '{}'", leaving.tenant.id);
    let there: BTreeSet<String> = source.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(there.len() == ROWS && there == ids, "{} rows, {} exported", there.len(), ids.len());
    let sql = format!("DELETE FROM pool.files WHERE tenant_id IN ('{}', '{}')", leaving.tenant.id, neighbour.tenant.id);
    source.batch_execute(&sql).await?;
    source.batch_execute("VACUUM pool.files").await?;
    Ok(())
}

async fn written(world: &World) -> Result<()> {
    for plan in ["starter", "growth"] {
        let mut leaving = Leaving::of_plan(world, plan).await?;
        leaving.fill(world).await?;
        leaving.suspend(world).await?;
        let (source, schema) = leaving.source(world).await?;
        let whose = if plan == "starter" { format!("tenant_id = '{}'", leaving.tenant.id) } else { "true".to_owned() };
        let insert = "SELECT md5('a,b')::uuid, 'late'";
        let update = format!("UPDATE {schema}.tasks SET title = title || '!' WHERE title = 'task 7' AND {whose}");
        let delete = format!("DELETE FROM {schema}.tasks WHERE title = 'task 8' AND {whose}");
        for what in ["insert", "update", "delete", "object", "other object"] {
            let parts = leaving.plan(world).await?;
            for number in &parts {
                leaving.step(world, "export-part", &leaving.part(*number)).await?;
            }
            let put = |key: &str| world.s3().put_object().bucket(leaving.tenant.bucket()).key(key).send();
            match what {
                "insert" => leaving.insert(world, "tasks", "project_id, title", insert).await?,
                "update" => source.batch_execute(&update).await?,
                "delete" => source.batch_execute(&delete).await?,
                "object" => drop(put("late").await?),
                // There is an archive by now, and this comes before what is in it.
                _ => drop(put("earlier").await?),
            }
            let refused = world.invoke("finish-export", &leaving.call()).await?;
            let Err((error, message)) = refused else { anyhow::bail!("{plan}: {what} went unnoticed: {refused:?}") };
            ensure!(
                error == "Conflict" && message.contains("was written to while it was exported"),
                "{error}: {message}"
            );
            // Its link cannot be published.
            let published = world.invoke("publish-link", &leaving.call()).await?;
            ensure!(published.as_ref().is_err_and(|(error, _)| error == "Conflict"), "{published:?}");
        }
        // The next one is another, and whole.
        let export = leaving.export(world).await?;
        ensure!(export["objects"] == json!(2), "{export}");
        let sql = "SELECT count(*) FILTER (WHERE state = 'spoiled'), count(*) FROM exports WHERE tenant_id = $1";
        let row = world.registry().await?.query_one(sql, &[&leaving.tenant.id.0]).await?;
        ensure!((row.get::<_, i64>(0), row.get::<_, i64>(1)) == (5, 6));
        // Again changes nothing.
        ensure!(leaving.step(world, "finish-export", &leaving.call()).await? == export);
    }
    Ok(())
}

async fn fenced(world: &World) -> Result<()> {
    let mut leaving = Leaving::of_plan(world, "starter").await?;
    let id = leaving.tenant.id;
    // In service, nobody exports: no execution, and no person.
    let other = "arn:aws:states:us-east-1:000000000000:execution:offboard-tenant:other";
    let refused = |input: Value, expected: &'static str| async move {
        let step = if input["part"].is_null() { "plan-export" } else { "export-part" };
        let answer = world.invoke(step, &input).await?;
        ensure!(answer.as_ref().is_err_and(|(error, _)| error == expected), "{input}: {answer:?}");
        anyhow::Ok(())
    };
    refused(json!({"tenant_id": id, "execution": other}), "Superseded").await?;
    refused(json!({"tenant_id": id, "execution": "manual:test"}), "Conflict").await?;
    leaving.suspend(world).await?;
    refused(json!({"tenant_id": id, "execution": other}), "Superseded").await?;
    refused(json!({"tenant_id": id, "execution": "manual:test"}), "Superseded").await?;
    refused(leaving.part(1), "Conflict").await?;
    let parts = leaving.plan(world).await?;
    ensure!(leaving.plan(world).await? == parts, "the second plan differs");
    refused(leaving.part(999), "Conflict").await?;
    for bad in [json!(0), json!("1"), json!(-1), json!(1.5), Value::Null] {
        let call = json!({"tenant_id": id, "execution": leaving.execution, "part": bad});
        let answer = world.invoke("export-part", &call).await?;
        ensure!(
            answer.as_ref().is_err_and(|(error, text)| error == "InvalidRequest" && text.contains("part")),
            "{answer:?}"
        );
    }
    // A cancelled hold ends the export, and the registry forgets where its parts began.
    let registry = world.registry().await?;
    registry.execute("UPDATE holds SET state = 'cancelled' WHERE tenant_id = $1", &[&id.0]).await?;
    refused(leaving.part(1), "Superseded").await?;
    let sql = "SELECT count(p.bounds) FROM export_parts p JOIN exports e ON e.id = p.export_id WHERE e.tenant_id = $1";
    ensure!(registry.query_one(sql, &[&id.0]).await?.get::<_, i64>(0) == 0);
    // A person exports a suspended tenant that nobody holds.
    let free = "UPDATE tenants SET execution = NULL, execution_since = NULL WHERE id = $1";
    registry.execute(free, &[&id.0]).await?;
    leaving.execution = "manual:test".to_owned();
    for number in leaving.plan(world).await? {
        leaving.step(world, "export-part", &leaving.part(number)).await?;
    }
    leaving.step(world, "finish-export", &leaving.call()).await?;
    Ok(())
}

/// An answer of the function URL: status, where it leads, and the page.
async fn ask(world: &World, method: reqwest::Method, query: &[(&str, &str)]) -> Result<(u16, String, String)> {
    let url: url::Url = world.outputs.get("DownloadExportUrl").context("no DownloadExportUrl")?.parse()?;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let request = client.request(method, format!("{}/?{query}", world.export("AWS_ENDPOINT_URL")?));
    let answer = request.header("host", url.host_str().unwrap_or_default()).send().await?;
    let location = answer.headers().get("location").and_then(|to| to.to_str().ok()).unwrap_or_default().to_owned();
    Ok((answer.status().as_u16(), location, answer.text().await?))
}

async fn linked(world: &World) -> Result<()> {
    use reqwest::Method;
    let mut leaving = Leaving::of_plan(world, "starter").await?;
    leaving.fill(world).await?;
    leaving.suspend(world).await?;
    let id = leaving.tenant.id;
    let registry = world.registry().await?;
    let links = ExportLinks::from_env(&world.env)?;
    let url = || link::url(&registry, &links, "https://page.example/", id);
    let export = leaving.export(world).await?;
    ensure!(url().await?.is_none(), "a link before it was published");
    let published = leaving.step(world, "publish-link", &leaving.call()).await?;
    ensure!(leaving.step(world, "publish-link", &leaving.call()).await? == published, "the second call differs");
    // The owner is mailed it once.
    let mailed = async |token: &str| {
        anyhow::Ok(world.emails().await?.iter().filter(|one| one.to_string().contains(token)).count())
    };
    for _ in 0..2 {
        leaving.step(world, "notify-owner", &leaving.call()).await?;
    }
    let sql = "SELECT h.state, to_char(date_trunc('second', h.expires_at + interval '999999 microseconds') AT TIME ZONE 'UTC',
                          'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                      e.link_expires_at > now() + interval '29 days', encode(e.token_hash, 'hex')
               FROM holds h JOIN exports e ON e.hold_id = h.id WHERE h.tenant_id = $1";
    let row = registry.query_one(sql, &[&id.0]).await?;
    ensure!(
        row.get::<_, &str>(0) == "held" && published == json!({"tenant_id": id, "expires_at": row.get::<_, &str>(1)}),
        "{published}"
    );
    ensure!(row.get::<_, bool>(2), "the link ends too early");
    let address = url().await?.context("no link")?.url;
    let token = address.strip_prefix("https://page.example/?token=").context("another address")?.to_owned();
    ensure!(
        row.get::<_, String>(3) == format!("{:x}", Sha256::digest(token.as_bytes())),
        "the registry keeps another hash"
    );

    // The page lists every file, and each leads to its own content.
    let (status, _, page) = ask(world, Method::GET, &[("token", &token)]).await?;
    ensure!(status == 200, "{status}: {page}");
    let sql = "SELECT p.number, p.name, p.sha256 FROM export_parts p JOIN exports e ON e.id = p.export_id
               WHERE e.tenant_id = $1 ORDER BY p.number";
    let parts = registry.query(sql, &[&id.0]).await?;
    ensure!(export["parts"] == json!(parts.len()));
    for part in &parts {
        let (number, name, sha256): (i32, &str, &str) = (part.get(0), part.get(1), part.get(2));
        ensure!(page.contains(name) && page.contains(sha256), "{name} is not on the page");
        let (status, location, text) =
            ask(world, Method::GET, &[("token", &token), ("part", &number.to_string())]).await?;
        ensure!(status == 303 && location.contains("X-Amz-Expires=300"), "{status} {location} {text}");
        let answer = reqwest::get(&location).await?.error_for_status()?;
        let disposition =
            answer.headers().get("content-disposition").and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure!(disposition == format!("attachment; filename=\"{name}\""), "{disposition}");
        let content = answer.bytes().await?;
        ensure!(format!("{:x}", Sha256::digest(&content)) == sha256, "{name} leads to something else");
    }
    let clicks = || async {
        let sql = "SELECT count(*) FROM export_downloads d JOIN exports e ON e.id = d.export_id WHERE e.tenant_id = $1";
        anyhow::Ok(usize::try_from(registry.query_one(sql, &[&id.0]).await?.get::<_, i64>(0))?)
    };
    ensure!(clicks().await? == parts.len(), "{} clicks", clicks().await?);
    // Looking is no click, and what is not there is said.
    for (method, query, expected) in [
        (Method::HEAD, vec![("token", token.as_str())], 200),
        (Method::HEAD, vec![("token", token.as_str()), ("part", "1")], 200),
        (Method::GET, vec![("token", token.as_str()), ("part", "999")], 404),
        (Method::GET, vec![("token", token.as_str()), ("part", "1; DROP")], 404),
        (Method::POST, vec![("token", token.as_str())], 405),
    ] {
        let (status, location, _) = ask(world, method.clone(), &query).await?;
        ensure!(status == expected && location.is_empty(), "{method} {query:?}: {status} {location}");
    }
    let mut forged = token.clone();
    let last = if forged.pop() == Some('A') { 'E' } else { 'A' };
    forged.push(last);
    let other = format!("{}.{}", Uuid::new_v4().simple(), token.split('.').nth(1).unwrap_or_default());
    for wrong in [forged.as_str(), &other, "", "x", "../../etc/passwd", "' OR 1=1 --"] {
        for query in [vec![("token", wrong)], vec![("token", wrong), ("part", "1")]] {
            let (status, location, _) = ask(world, Method::GET, &query).await?;
            ensure!(status == 404 && location.is_empty(), "{query:?}: {status} {location}");
        }
    }
    ensure!(mailed(&token).await? == 1, "the link was mailed {} times", mailed(&token).await?);
    // Another link ends this one, though the execution that waits holds the tenant.
    let renewed = leaving.step(world, "publish-link", &json!({"tenant_id": id, "execution": "manual:test"})).await?;
    ensure!(renewed["generation"] == json!(2), "{renewed}");
    ensure!(ask(world, Method::GET, &[("token", &token)]).await?.0 == 404, "the link before still works");
    let address = url().await?.context("no link")?.url;
    let token = address.strip_prefix("https://page.example/?token=").context("another address")?.to_owned();
    ensure!(ask(world, Method::GET, &[("token", &token)]).await?.0 == 200);
    // By hand the owner is mailed the new one.
    registry.execute("UPDATE tenants SET execution = NULL, execution_since = NULL WHERE id = $1", &[&id.0]).await?;
    ensure!(mailed(&token).await? == 0);
    leaving.step(world, "notify-owner", &json!({"tenant_id": id, "execution": "manual:test"})).await?;
    ensure!(mailed(&token).await? == 1, "the owner has no link that works");
    // It outlives the tenant.
    let gone = "UPDATE tenants SET status = 'deprovisioned', execution = NULL, execution_since = NULL WHERE id = $1";
    registry.execute(gone, &[&id.0]).await?;
    ensure!(
        ask(world, Method::GET, &[("token", &token), ("part", "1")]).await?.0 == 303,
        "the export went with the tenant"
    );
    let set = |what: &str| format!("UPDATE exports SET {what} WHERE tenant_id = $1");
    registry.execute(&set("link_expires_at = now() - interval '1 second'"), &[&id.0]).await?;
    ensure!(ask(world, Method::GET, &[("token", &token), ("part", "1")]).await?.0 == 410);
    ensure!(url().await?.is_none(), "an expired link is given out");
    registry.execute(&set("link_expires_at = now() + interval '1 hour'"), &[&id.0]).await?;
    let by = json!({"tenant_id": id, "execution": "manual:test"});
    let revoked = leaving.step(world, "revoke-link", &by).await?;
    ensure!(revoked["outcome"] == "revoked" && revoked["exports"] == json!([export["export_id"]]), "{revoked}");
    ensure!(leaving.step(world, "revoke-link", &by).await?["outcome"] == "no link was working");
    let (status, _, page) = ask(world, Method::GET, &[("token", &token)]).await?;
    ensure!(status == 410 && page.contains("revoked"), "{status}: {page}");
    ensure!(url().await?.is_none(), "a revoked link is given out");
    ensure!(clicks().await? == parts.len() + 1, "a refusal was counted");
    let sql = "SELECT count(*) FROM audit WHERE tenant_id = $1 AND action IN ('export link published', 'export link revoked')";
    ensure!(registry.query_one(sql, &[&id.0]).await?.get::<_, i64>(0) == 3);
    Ok(())
}

async fn aged(world: &World) -> Result<()> {
    let mut leaving = Leaving::of_plan(world, "starter").await?;
    leaving.suspend(world).await?;
    let parts = leaving.plan(world).await?;
    for number in &parts {
        leaving.step(world, "export-part", &leaving.part(*number)).await?;
    }
    let registry = world.registry().await?;
    let age = "UPDATE export_parts p SET done_at = now() - interval '10 days' FROM exports e
               WHERE e.id = p.export_id AND e.tenant_id = $1 AND p.number = $2";
    let (first, second) = (parts[0], parts[1]);
    registry.execute(age, &[&leaving.tenant.id.0, &i32::try_from(first)?]).await?;
    ensure!(leaving.step(world, "export-part", &leaving.part(first)).await?["outcome"] == "done");
    for number in [first, second] {
        ensure!(leaving.step(world, "export-part", &leaving.part(number)).await?["outcome"] == "done before");
    }
    leaving.step(world, "finish-export", &leaving.call()).await?;
    // Its oldest file, not its end, is what counts.
    let age = age.replace("10 days", "36 hours");
    registry.execute(&age, &[&leaving.tenant.id.0, &i32::try_from(second)?]).await?;
    leaving.step(world, "publish-link", &leaving.call()).await?;
    let sql = "SELECT link_expires_at BETWEEN now() + interval '28 days 23 hours' AND now() + interval '29 days'
               FROM exports WHERE tenant_id = $1";
    ensure!(registry.query_one(sql, &[&leaving.tenant.id.0]).await?.get::<_, bool>(0), "the link outlives the file");
    Ok(())
}

async fn erased(world: &World) -> Result<()> {
    let mut leaving = Leaving::of_plan(world, "starter").await?;
    leaving.fill(world).await?;
    leaving.suspend(world).await?;
    leaving.export(world).await?;
    leaving.step(world, "publish-link", &leaving.call()).await?;
    let Leaving { tenant, .. } = &leaving;
    let registry = world.registry().await?;
    let links = ExportLinks::from_env(&world.env)?;
    let address = link::url(&registry, &links, "https://page.example/", tenant.id).await?.context("no link")?.url;
    let token = address.strip_prefix("https://page.example/?token=").context("another address")?;
    ensure!(ask(world, reqwest::Method::GET, &[("token", token)]).await?.0 == 200);
    ensure!(exports(world, tenant).await?.len() > 1, "nothing was exported");

    world.run_machine("OffboardTenantMachine", &erasing(tenant, "DSR-19")).await?.succeeded()?;
    until_gone(world, tenant, Instant::now() + PATIENCE).await?;
    ensure!(exports(world, tenant).await?.is_empty(), "{:?}", exports(world, tenant).await?);
    let (status, _, page) = ask(world, reqwest::Method::GET, &[("token", token)]).await?;
    ensure!(status == 410 && page.contains("revoked"), "{status}: {page}");
    let sql = "SELECT (counts->'exports'->>'files')::bigint > 1 AND scan->'exports' = '{}',
                      (SELECT count(*) FROM audit a WHERE a.tenant_id = d.tenant_id AND a.action = 'export link revoked'
                                                      AND a.actor = 'ops:test')
               FROM deletions d WHERE tenant_id = $1";
    let row = registry.query_one(sql, &[&tenant.id.0]).await?;
    ensure!(row.get::<_, bool>(0), "the certificate counts no exports, or they were found after it");
    ensure!(row.get::<_, i64>(1) == 1, "nobody is said to have revoked the link");
    Ok(())
}

/// What the functions of an export were seen to call, by their logical ids.
pub async fn calls_of_an_export(world: &World) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let mut leaving = Leaving::of_plan(world, "growth").await?;
    let s3 = world.s3();
    let own = leaving.tenant.bucket();
    s3.put_object().bucket(&own).key("object").body(ByteStream::from_static(b"content")).send().await?;
    s3.put_object().bucket(&own).key("large").body(ByteStream::from(vec![7; 20_000_000])).send().await?;
    leaving.suspend(world).await?;
    let env: &Environment = &world.env;
    let mut seen = BTreeMap::new();
    seen.insert("PlanExportFunction", calls(run(&*Export::plan(env)?, &leaving.call())).await?);
    let part = Export::part(env)?;
    let mut made = BTreeSet::new();
    for number in leaving.plan(world).await? {
        let registry = world.registry().await?;
        let sql = "SELECT 'exports/' || e.tenant_id || '/' || e.id || '/' || p.name
                   FROM export_parts p JOIN exports e ON e.id = p.export_id WHERE e.tenant_id = $1 AND p.number = $2";
        let row = registry.query_one(sql, &[&leaving.tenant.id.0, &i32::try_from(number)?]).await?;
        // As a function that was killed leaves it.
        s3.create_multipart_upload().bucket(bucket(world)?).key(row.get::<_, String>(0)).send().await?;
        made.extend(calls(run(&*part, &leaving.part(number))).await?);
        made.extend(calls(run(&*part, &leaving.part(number))).await?);
    }
    seen.insert("ExportPartFunction", made);
    seen.insert("FinishExportFunction", calls(run(&*Export::finish(env)?, &leaving.call())).await?);
    seen.insert("PublishLinkFunction", calls(run(&PublishLink::from_env(env)?, &leaving.call())).await?);
    Ok(seen)
}
