//! Storage: room is reserved before an upload, settled from S3's own events, and reconciled with the bucket.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::NotificationConfiguration;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tenantry_core::resource::Resource;
use tenantry_core::resource::bucket::Bucket;
use tenantry_core::step::Step;
use tenantry_core::steps::uploads::{IssueUpload, SettleUpload};
use tenantry_core::tenant::Tenant;
use tokio::time::sleep;
use url::Url;

use crate::logs;
use crate::suspension::in_service;
use crate::usage::{answered, events, overridden, types};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("an_upload_settles_from_its_own_event", |world| Box::pin(settles(world))),
    ("a_url_takes_what_was_reserved_once_and_nothing_else", |world| Box::pin(signed(world))),
    ("sixty_four_clients_over_the_edge_are_promised_exactly_the_quota", |world| Box::pin(edge(world))),
    ("what_does_not_fit_is_refused_until_something_expires_or_goes", |world| Box::pin(does_not_fit(world))),
    ("every_version_counts_as_long_as_it_is_there", |world| Box::pin(versions(world))),
    ("events_that_come_twice_and_out_of_order_settle_once", |world| Box::pin(shuffled(world))),
    ("eighty_percent_is_told_once_by_sixty_four_clients", |world| Box::pin(warned(world))),
    ("a_reconciliation_finds_what_no_event_told", |world| Box::pin(reconciled(world))),
    ("a_reconciliation_goes_on_where_it_stopped", |world| Box::pin(goes_on(world))),
    ("a_tenant_out_of_service_is_promised_nothing", |world| Box::pin(out_of_service(world))),
    ("a_tenant_that_is_gone_leaves_no_words_behind", |world| Box::pin(forgotten(world))),
];

/// Longer than an event of the emulator's takes on two busy cores.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tenant in service that has its bucket.
async fn with_bucket(world: &World) -> Result<Tenant> {
    let tenant = in_service(world).await?;
    Bucket::from_env(&world.env)?.ensure(&tenant).await?;
    Ok(tenant)
}

fn call(tenant: &Tenant, key: &str, bytes: usize) -> Value {
    json!({"tenant_id": tenant.id, "key": key, "bytes": bytes})
}

async fn issue(world: &World, tenant: &Tenant, key: &str, bytes: usize) -> Result<Value> {
    answered(world, "issue-upload", &call(tenant, key, bytes)).await
}

/// Uploads as a browser would. Returns the status.
async fn upload(answer: &Value, body: &str) -> Result<u16> {
    let upload = &answer["upload"];
    let mut request = reqwest::Client::new().put(upload["url"].as_str().context("no URL")?).body(body.to_owned());
    for (name, value) in upload["headers"].as_object().context("no headers")? {
        // A client counts its own body.
        if name != "content-length" {
            request = request.header(name, value.as_str().unwrap_or_default());
        }
    }
    Ok(request.send().await?.status().as_u16())
}

/// Puts an object into the bucket, as the tenant's own services may. Returns the version's id.
async fn put(world: &World, tenant: &Tenant, key: &str, bytes: usize) -> Result<String> {
    let put = world.s3().put_object().bucket(tenant.bucket()).key(key).body(vec![b'x'; bytes].into());
    put.send().await?.version_id.context("the bucket is not versioned")
}

async fn delete(world: &World, tenant: &Tenant, key: &str, version: Option<&str>) -> Result<()> {
    let delete = world.s3().delete_object().bucket(tenant.bucket()).key(key).set_version_id(version.map(str::to_owned));
    delete.send().await?;
    Ok(())
}

/// An event of S3's, as the rule hands it on.
fn event(tenant: &Tenant, key: &str) -> Value {
    json!({"bucket": {"name": tenant.bucket()}, "object": {"key": key}})
}

/// What the ledger sums up to, what it is the sum of, and how many promises are open.
async fn ledger(world: &World, tenant: &Tenant) -> Result<(i64, i64, i64)> {
    let sql = "SELECT coalesce((SELECT bytes FROM stored_bytes WHERE tenant_id = $1), 0),
                      (SELECT coalesce(sum(bytes), 0)::bigint FROM stored_versions WHERE tenant_id = $1),
                      (SELECT count(*) FROM upload_reservations WHERE tenant_id = $1)";
    let row = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

/// Waits for the ledger to hold so many bytes, with no promise open.
async fn holds(world: &World, tenant: &Tenant, bytes: i64) -> Result<()> {
    let begun = Instant::now();
    loop {
        let held = ledger(world, tenant).await?;
        if held == (bytes, bytes, 0) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the ledger holds {held:?}, not {bytes} bytes");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn settles(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    let key = "reports/Quillfeather 2026 <&> é+%41.txt";
    let answer = issue(world, tenant, key, 5).await?;
    ensure!(answer["granted"] == true && answer["used"] == 5 && answer["quota"] == 10_737_418_240_i64, "{answer}");
    ensure!(ledger(world, tenant).await? == (0, 0, 1));
    ensure!(upload(&answer, "hello").await? == 200);
    holds(world, tenant, 5).await?;
    let usage = answered(world, "read-usage", &json!({"tenant_id": tenant.id})).await?;
    let storage = &usage["resources"]["storage_bytes"];
    ensure!(storage["used"] == 5 && storage["most"] == 5 && storage["reserved"] == 0, "{usage}");
    let lines = logs::ours(world).await?;
    ensure!(lines.iter().any(|line| line.contains("\"step\":\"settle-upload\"")), "settle-upload wrote nothing");
    let told = lines.iter().find(|line| line.contains("Quillfeather") && line.contains("upload"));
    ensure!(told.is_none(), "a tenant's key was logged: {told:?}");
    Ok(())
}

async fn signed(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    let mut call = call(tenant, "once.png", 3);
    call["content_type"] = json!("image/png");
    let answer = answered(world, "issue-upload", &call).await?;
    let url: Url = answer["upload"]["url"].as_str().context("no URL")?.parse()?;
    let asked = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    // What is signed is what S3 holds the client to.
    let signed = asked("X-Amz-SignedHeaders").context("no signed headers")?;
    ensure!(signed == "content-length;content-type;host;if-none-match", "{signed}");
    ensure!(asked("X-Amz-Expires").as_deref() == Some("900"), "{url}");
    let headers = &answer["upload"]["headers"];
    let wanted = json!({"content-length": "3", "content-type": "image/png", "if-none-match": "*"});
    ensure!(*headers == wanted, "{headers}");
    ensure!(upload(&answer, "more").await? == 403, "more than was reserved is taken");
    ensure!(upload(&answer, "ok").await? == 403, "less than was reserved is taken");
    let mut bare = answer.clone();
    bare["upload"]["headers"] = json!({"content-type": "image/png"});
    ensure!(upload(&bare, "abc").await? == 403, "the URL works without its condition");
    ensure!(upload(&answer, "abc").await? == 200);
    ensure!(upload(&answer, "abc").await? == 412, "the URL works twice");
    holds(world, tenant, 3).await?;
    let (longest, kept) = {
        let sql = "SELECT extract(epoch FROM max(expires_at - reserved_at))::bigint FROM upload_reservations WHERE tenant_id = $1";
        issue(world, tenant, "other", 1).await?;
        (world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get::<_, i64>(0), 900)
    };
    ensure!(longest > kept, "room is kept for {longest} s, the URL works for {kept} s");
    Ok(())
}

async fn edge(world: &World) -> Result<()> {
    let tenant = &in_service(world).await?;
    overridden(world, tenant, "storage_bytes", 1000).await?;
    let clients = (0..64).map(|client| async move {
        let step = IssueUpload::from_env(&world.env)?;
        let mut granted = 0;
        for number in 0..2 {
            let answer = step.run("issue-upload", &call(tenant, &format!("{client}/{number}"), 10)).await?;
            match answer["granted"].as_bool() {
                Some(true) => granted += 1,
                _ => ensure!(answer["reason"] == "quota-exceeded" && answer["upload"].is_null(), "{answer}"),
            }
        }
        Ok(granted)
    });
    let granted: i32 = try_join_all(clients).await?.into_iter().sum();
    ensure!(granted == 100, "{granted} uploads of 10 bytes were promised room in 1,000");
    let told = events(world, tenant).await?;
    ensure!(types(&told) == ["tenant.quota_exceeded"], "{told:?}");
    Ok(())
}

async fn does_not_fit(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    overridden(world, tenant, "storage_bytes", 100).await?;
    ensure!(issue(world, tenant, "a", 60).await?["granted"] == true);
    let refused = issue(world, tenant, "b", 41).await?;
    ensure!(refused["granted"] == false && refused["reason"] == "quota-exceeded", "{refused}");
    ensure!(refused["status"] == 429 && refused["used"] == 60 && refused["quota"] == 100, "{refused}");
    ensure!(refused["upload"].is_null() && refused["detail"].as_str().is_some_and(|text| text.contains("delete")));
    issue(world, tenant, "c", 101).await?;
    let told = events(world, tenant).await?;
    ensure!(types(&told) == ["tenant.quota_exceeded"], "{told:?}");
    ensure!(told[0].1["resource"] == "storage_bytes" && told[0].1["used"] == 60, "{told:?}");
    // What has expired counts no more, though nobody has removed it yet.
    let expire = "UPDATE upload_reservations SET expires_at = now() WHERE tenant_id = $1";
    world.registry().await?.execute(expire, &[&tenant.id.0]).await?;
    let answer = issue(world, tenant, "b", 100).await?;
    ensure!(answer["granted"] == true && answer["used"] == 100, "{answer}");
    ensure!(upload(&answer, &"x".repeat(100)).await? == 200);
    let removed = answered(world, "reconcile-storage", &json!({})).await?;
    ensure!(removed["expired_promises"].as_i64() >= Some(1), "{removed}");
    holds(world, tenant, 100).await?;
    ensure!(issue(world, tenant, "d", 1).await?["granted"] == false, "one byte more than the quota");
    // A larger quota lifts it at once.
    overridden(world, tenant, "storage_bytes", 101).await?;
    ensure!(issue(world, tenant, "d", 1).await?["granted"] == true, "a larger quota lifts nothing");
    Ok(())
}

async fn versions(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    let first = put(world, tenant, "k", 10).await?;
    put(world, tenant, "k", 20).await?;
    // A longer key that begins with the first one is another object.
    put(world, tenant, "k/1", 5).await?;
    holds(world, tenant, 35).await?;
    // Deleted, both versions are still there.
    delete(world, tenant, "k", None).await?;
    delete(world, tenant, "k/1", None).await?;
    holds(world, tenant, 35).await?;
    delete(world, tenant, "k", Some(&first)).await?;
    holds(world, tenant, 25).await?;
    let sql = "SELECT storage_bytes FROM usage_cycles WHERE tenant_id = $1";
    let most: Option<i64> = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(most == Some(35), "the most of the cycle is {most:?}");
    Ok(())
}

/// Events of an upload, of an overwriting and of a deletion, each many times and at once. One arrival keeps one of two promises.
async fn shuffled(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    let answer = issue(world, tenant, "k", 7).await?;
    issue(world, tenant, "k", 7).await?;
    ensure!(upload(&answer, "content").await? == 200);
    let old = put(world, tenant, "k", 30).await?;
    put(world, tenant, "l", 100).await?;
    delete(world, tenant, "k", Some(&old)).await?;
    let settlers = (0..24).map(|number| async move {
        let step = SettleUpload::from_env(&world.env)?;
        step.run("settle-upload", &event(tenant, if number % 3 == 0 { "l" } else { "k" })).await?;
        Ok::<_, anyhow::Error>(())
    });
    try_join_all(settlers).await?;
    let held = ledger(world, tenant).await?;
    ensure!(held == (107, 107, 1), "{held:?}");
    // Of a bucket that is nobody's, and of a tenant's that only looks so.
    for bucket in
        ["tenant-x", "tenant-5d0f9a5c-9c3e-4d52-8f0a-5b1f6c1d2e05-us-east-1", &format!("{}x", tenant.bucket())]
    {
        let strange = json!({"bucket": {"name": bucket}, "object": {"key": "k"}});
        ensure!(answered(world, "settle-upload", &strange).await? == json!({"settled": false}), "{bucket}");
    }
    Ok(())
}

async fn warned(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    overridden(world, tenant, "storage_bytes", 790).await?;
    // Settled by their own events as well, meanwhile.
    try_join_all((0..64).map(|number| async move { put(world, tenant, &number.to_string(), 10).await })).await?;
    let settlers = (0..64).map(|number| async move {
        let step = SettleUpload::from_env(&world.env)?;
        step.run("settle-upload", &event(tenant, &number.to_string())).await?;
        Ok::<_, anyhow::Error>(())
    });
    try_join_all(settlers).await?;
    let told = events(world, tenant).await?;
    ensure!(types(&told) == ["tenant.quota_warning"], "{told:?}");
    ensure!(told[0].1["used"] == 640 && told[0].1["quota"] == 790, "{told:?}");
    answered(world, "reconcile-gate", &json!({})).await?;
    let subject = format!("{} has used 80 % of its storage", tenant.slug);
    let mails = world.emails().await?;
    ensure!(mails.iter().filter(|mail| mail["Subject"] == subject).count() == 1, "no mail, or two: {subject}");
    Ok(())
}

/// From here on, nothing is told of this bucket.
async fn silence(world: &World, tenant: &Tenant) -> Result<()> {
    let nobody = NotificationConfiguration::builder().build();
    let put = world.s3().put_bucket_notification_configuration().bucket(tenant.bucket());
    put.notification_configuration(nobody).send().await?;
    Ok(())
}

/// Runs reconciliations until one finds nothing more to do. Returns what they say together of pages.
async fn reconcile(world: &World, tenant: &Tenant) -> Result<i64> {
    let due = "INSERT INTO storage_reconciliations (tenant_id) VALUES ($1)
               ON CONFLICT (tenant_id) DO UPDATE SET due_at = now() - interval '1 year'";
    world.registry().await?.execute(due, &[&tenant.id.0]).await?;
    let (begun, mut pages) = (Instant::now(), 0);
    loop {
        let run = answered(world, "reconcile-storage", &json!({})).await?;
        pages += run["pages"].as_i64().unwrap_or_default();
        let sql = "SELECT due_at > now() AND reached IS NULL AND done_at IS NOT NULL FROM storage_reconciliations WHERE tenant_id = $1";
        if world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0) {
            return Ok(pages);
        }
        ensure!(begun.elapsed() < PATIENCE, "the bucket is not reconciled: {run}");
    }
}

async fn reconciled(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    let kept = put(world, tenant, "kept", 10).await?;
    let gone = put(world, tenant, "gone", 20).await?;
    holds(world, tenant, 30).await?;
    silence(world, tenant).await?;
    let promised = issue(world, tenant, "arrived", 3).await?;
    ensure!(upload(&promised, "abc").await? == 200);
    put(world, tenant, "behind/our/back", 40).await?;
    delete(world, tenant, "gone", Some(&gone)).await?;
    // A ledger that somebody wrote into.
    let invented = "INSERT INTO stored_versions VALUES ($1, 'kept', 'invented', 1000)";
    world.registry().await?.execute(invented, &[&tenant.id.0]).await?;
    ensure!(ledger(world, tenant).await? == (1030, 1030, 1));
    reconcile(world, tenant).await?;
    holds(world, tenant, 53).await?;
    let sql = "SELECT version FROM stored_versions WHERE tenant_id = $1 AND key = 'kept'";
    let rows = world.registry().await?.query(sql, &[&tenant.id.0]).await?;
    ensure!(rows.len() == 1 && rows[0].get::<_, &str>(0) == kept, "{rows:?}");
    // A second one has nothing to do, and says so of this tenant in no line.
    let drifts = |lines: Vec<String>| {
        let of_tenant = |line: &&String| line.contains(&tenant.id.to_string()) && line.contains("ledger differed");
        lines.iter().filter(of_tenant).count()
    };
    ensure!(drifts(logs::ours(world).await?) == 1, "the drift was not logged once");
    reconcile(world, tenant).await?;
    ensure!(drifts(logs::ours(world).await?) == 1, "what was reconciled differs again");
    let told = logs::ours(world).await?.into_iter().find(|line| line.contains("behind/our"));
    ensure!(told.is_none(), "a tenant's key was logged: {told:?}");
    Ok(())
}

/// More than two pages, and a key whose versions lie on two of them.
async fn goes_on(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    silence(world, tenant).await?;
    let keys = (0..1200).map(|number| match number {
        700..1100 => "b/many".to_owned(),
        _ => format!("{}/{number}", if number < 700 { "a" } else { "c" }),
    });
    let puts = keys.map(|key| async move { put(world, tenant, &key, 1).await });
    stream::iter(puts).buffer_unordered(8).try_collect::<Vec<_>>().await?;
    let pages = reconcile(world, tenant).await?;
    ensure!(pages >= 2, "1,200 versions lie on {pages} page");
    holds(world, tenant, 1200).await?;
    // A run that was killed: the next one begins behind what was done, and the bucket's first keys keep what they were given.
    let half = "UPDATE storage_reconciliations SET reached = 'b', due_at = now(), done_at = NULL WHERE tenant_id = $1";
    let registry = world.registry().await?;
    registry.execute("DELETE FROM stored_versions WHERE tenant_id = $1", &[&tenant.id.0]).await?;
    registry.execute(half, &[&tenant.id.0]).await?;
    reconcile(world, tenant).await?;
    let held = ledger(world, tenant).await?;
    ensure!(held == (500, 500, 0), "behind 'b' lie 500 versions, not {held:?}");
    Ok(())
}

async fn out_of_service(world: &World) -> Result<()> {
    let tenant = &in_service(world).await?;
    let request = json!({"tenant_id": tenant.id, "reason": "payment_failure", "actor": "test"});
    answered(world, "suspend-tenant", &json!({"request": request, "execution": "manual:test"})).await?;
    let answer = issue(world, tenant, "k", 1).await?;
    ensure!(
        answer["granted"] == false && answer["reason"] == "payment-required" && answer["status"] == 402,
        "{answer}"
    );
    ensure!(answer["upload"].is_null() && ledger(world, tenant).await? == (0, 0, 0), "{answer}");
    let error = world.invoke("issue-upload", &call(tenant, "/secret\n", 1)).await?.err().context("accepted")?;
    ensure!(error.0 == "InvalidRequest" && !error.1.contains("secret"), "{error:?}");
    Ok(())
}

async fn forgotten(world: &World) -> Result<()> {
    let tenant = &with_bucket(world).await?;
    put(world, tenant, "k", 10).await?;
    holds(world, tenant, 10).await?;
    issue(world, tenant, "l", 1).await?;
    answered(world, "reserve-seat", &json!({"tenant_id": tenant.id, "user": "one", "actor": "test"})).await?;
    let registry = world.registry().await?;
    for status in ["suspended", "deprovisioned"] {
        let sql = "UPDATE tenants SET status = $2::text::tenant_status WHERE id = $1";
        registry.execute(sql, &[&tenant.id.0, &status]).await?;
    }
    // Events that come late change nothing.
    answered(world, "settle-upload", &event(tenant, "k")).await?;
    ensure!(ledger(world, tenant).await? == (0, 0, 0));
    let sql = "SELECT (SELECT count(*) FROM seats WHERE tenant_id = $1),
                      (SELECT max(storage_bytes) FROM usage_cycles WHERE tenant_id = $1),
                      (SELECT max(seats) FROM usage_cycles WHERE tenant_id = $1)";
    let row = registry.query_one(sql, &[&tenant.id.0]).await?;
    let left: (i64, Option<i64>, Option<i64>) = (row.get(0), row.get(1), row.get(2));
    ensure!(left == (0, Some(10), Some(1)), "{left:?}");
    Ok(())
}
