//! Deletion for good: nothing is left in any store, nobody else is touched, and a certificate says so. Whatever stops it on its way is
//! seen, and it goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_sfn::types::ExecutionStatus;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tenant_gate::Verdict as Gate;
use tenantry_core::certificate::{self, Envelope, Payload, Refusal};
use tenantry_core::postgres::quote_identifier;
use tenantry_core::registry::{Selector, erasure, suspensions};
use tenantry_core::tenant::{Reason, Status, Tenant};
use tenantry_local::functions;
use tenantry_local::proxy::{System, Verdict};
use tokio::time::sleep;
use uuid::Uuid;

use crate::billing::mine;
use crate::faults::{Target, marks};
use crate::gate::gate;
use crate::machine::{Outcome, sign_up};
use crate::neighbour::{exports, fingerprint, furnish};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("a_shared_tenant_is_gone_everywhere_and_its_neighbour_untouched", |world| Box::pin(gone(world, "starter"))),
    ("a_tenant_with_a_schema_is_gone_everywhere_and_its_neighbour_untouched", |world| Box::pin(gone(world, "growth"))),
    ("a_tenant_with_a_server_is_gone_everywhere_and_its_neighbour_untouched", |world| {
        Box::pin(gone(world, "enterprise"))
    }),
    ("ten_thousand_objects_with_versions_are_deleted", |world| Box::pin(many_objects(world))),
    ("who_is_erased_at_once_gets_the_rest_of_the_period_back", |world| Box::pin(given_back(world))),
    ("every_step_again_changes_nothing", |world| Box::pin(again(world))),
    ("of_two_deletions_at_once_one_acts", |world| Box::pin(at_once(world))),
    ("what_is_put_behind_our_back_fails_the_scan_until_it_is_gone", |world| Box::pin(behind_our_back(world))),
    ("a_killed_step_and_a_dead_execution_are_gone_on_with", |world| Box::pin(killed(world))),
    ("a_deletion_that_is_stopped_is_flagged_and_goes_on_by_hand_or_when_started_again", |world| {
        Box::pin(stopped(world))
    }),
    ("a_deletion_whose_execution_died_is_started_again_by_itself", |world| Box::pin(recovered(world))),
    ("nothing_is_deleted_without_a_hold_that_asks_for_it", |world| Box::pin(no_hold(world))),
    ("every_table_of_the_registry_is_erased_or_kept_for_a_reason", |world| Box::pin(tables(world))),
];

/// Cases that register systems, which every deletion then asks.
pub const ALONE: &[(&str, Case)] =
    &[("downstream_systems_are_asked_and_the_certificate_names_who_did_not_confirm", |world| {
        Box::pin(downstream(world))
    })];

const PATIENCE: Duration = Duration::from_secs(120);

/// A tenant in service, with something in every store.
async fn furnished(world: &World, stem: &str, plan: &str) -> Result<Tenant> {
    let slug = world.fresh_slug(stem);
    world.provision(&sign_up(&slug, plan)).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    furnish(world, &tenant).await?;
    Ok(tenant)
}

/// Somebody with the right to it asked for the tenant's erasure: it is suspended, and its hold asks for deletion.
pub async fn condemn(world: &World, tenant: &Tenant) -> Result<()> {
    leaves(world, tenant, "'erasure', 'data_protection_law', 'DP-17', NULL").await
}

/// As [`condemn`], where somebody waived the tenant's export instead.
pub async fn waive(world: &World, tenant: &Tenant) -> Result<()> {
    leaves(world, tenant, "'offboarding', 'contract_ended', NULL, 'test'").await
}

async fn leaves(world: &World, tenant: &Tenant, hold: &str) -> Result<()> {
    let mut registry = world.registry().await?;
    suspensions::suspend(&mut registry, &Selector::Id(tenant.id), Reason::Offboarding, "test").await?;
    let sql = format!(
        "INSERT INTO holds (tenant_id, requested_by, kind, reason, ticket, waived_by) VALUES ($1, 'manual:test', {hold})"
    );
    registry.execute(&sql, &[&tenant.id.0]).await?;
    Ok(())
}

/// Waits until a tenant is deleted.
pub async fn until_gone(world: &World, tenant: &Tenant, deadline: Instant) -> Result<()> {
    loop {
        let status = world.record(tenant.slug.as_str()).await?.tenant.status;
        if status == Status::Deprovisioned {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} is not deleted: it is {status}", tenant.slug);
        sleep(Duration::from_millis(200)).await;
    }
}

/// As if an execution that nobody knows had begun the deletion. Returns its ARN.
pub async fn begun_by_nobody(world: &World, tenant: &Tenant) -> Result<String> {
    let execution = format!("arn:aws:states:us-east-1:000000000000:execution:delete-tenant:{}", Uuid::new_v4());
    let registry = world.registry().await?;
    // From tomorrow: no sweep takes it for stuck.
    let fence = "UPDATE tenants SET execution = $2, execution_since = now() + interval '1 day' WHERE id = $1";
    registry.execute(fence, &[&tenant.id.0, &execution]).await?;
    let hold = "UPDATE holds SET state = 'deleting', execution = $2 WHERE tenant_id = $1";
    registry.execute(hold, &[&tenant.id.0, &execution]).await?;
    let row = "INSERT INTO deletions (tenant_id, hold_id, customer, adopted, subscription)
               SELECT h.tenant_id, h.id, b.customer, b.adopted, b.subscription
               FROM holds h LEFT JOIN billing_accounts b USING (tenant_id) WHERE h.tenant_id = $1";
    registry.execute(row, &[&tenant.id.0]).await?;
    Ok(execution)
}

async fn delete(world: &World, tenant: &Tenant) -> Result<Outcome> {
    world.run_machine("DeleteTenantMachine", &json!({"tenant_id": tenant.id})).await
}

/// Starts the deletion and does not wait for it.
async fn start(world: &World, tenant: &Tenant) -> Result<String> {
    world.start_machine("DeleteTenantMachine", &json!({"tenant_id": tenant.id})).await
}

async fn gone(world: &World, plan: &str) -> Result<()> {
    let neighbour = furnished(world, "neighbour", plan).await?;
    let slug = world.fresh_slug("deleted");
    let request = sign_up(&slug, plan);
    world.provision(&request).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    furnish(world, &tenant).await?;
    condemn(world, &tenant).await?;
    let mut events = world.subscribe().await?;
    let before = fingerprint(world, &neighbour).await?;

    let outcome = delete(world, &tenant).await?.succeeded()?;
    ensure!(outcome.times("Deleted") == 1 && outcome.times("ScanTenant") == 1, "{:?}", outcome.states);

    let after = fingerprint(world, &neighbour).await?;
    for (store, held) in &before {
        ensure!(after.get(store) == Some(held), "{store} of a neighbour: {held} became {:?}", after.get(store));
    }
    let record = world.record(&slug).await?;
    ensure!(record.tenant.status == Status::Deprovisioned && record.execution.is_none(), "{record:?}");
    traceless(world, &tenant).await?;
    ensure!(exports(world, &tenant).await?.is_empty(), "an export is left: {:?}", exports(world, &tenant).await?);
    erased(world, &tenant, &request).await?;
    certified(world, &tenant).await?;
    told(world, &mut events, &tenant).await?;

    let verdict = gate(world)?.decide(&slug, 1).await;
    ensure!(matches!(verdict, Gate::Refused(..)), "a deleted tenant is served: {verdict:?}");
    let refused = world.provision(&sign_up(&slug, plan)).await?;
    ensure!(
        refused.error == "Conflict" && refused.times("BeginProvisioning") == 0,
        "the slug was given again: {refused:?}"
    );
    let once_more = delete(world, &tenant).await?.succeeded()?;
    ensure!(once_more.times("Superseded") == 1 && once_more.times("CountTenant") == 0, "{:?}", once_more.states);
    Ok(())
}

/// No system has anything that carries the tenant's id or name, by listings that do not go through our code.
async fn traceless(world: &World, tenant: &Tenant) -> Result<()> {
    let marks = [tenant.id.to_string(), tenant.slug.to_string(), tenant.schema()];
    for (system, left) in world.inventory().left_of(&marks).await? {
        ensure!(left.is_empty(), "{system}: {left:?}");
    }
    let registry = world.registry().await?;
    for table in tenantry_core::migrations::PRODUCT_TABLES {
        let sql = format!("SELECT count(*) FROM pool.{table} WHERE tenant_id = $1");
        let rows: i64 = registry.query_one(&sql, &[&tenant.id.0]).await?.get(0);
        ensure!(rows == 0, "pool.{table} has {rows} rows");
    }
    let mut redis = redis::Client::open(world.export("REDIS_URL")?)?.get_multiplexed_async_connection().await?;
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("*{}*", tenant.slug)).query_async(&mut redis).await?;
    let allowed = format!("gate:{{{}}}", tenant.slug);
    let longer = |key: &String| !tenantry_local::inventory::carries(key, tenant.slug.as_str());
    ensure!(keys.iter().all(|key| *key == allowed || longer(key)), "Redis: {keys:?}");
    Ok(())
}

/// The registry knows nobody's name, address, card or customer any more.
async fn erased(world: &World, tenant: &Tenant, request: &Value) -> Result<()> {
    let registry = world.registry().await?;
    let (name, email) = (&request["owner"]["name"], &request["owner"]["email"]);
    for table in registry.query("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'", &[]).await? {
        let table: String = table.get(0);
        let sql = format!(
            "SELECT count(*) FROM {} t WHERE t::text LIKE '%' || $1 || '%' OR t::text LIKE '%' || $2 || '%'",
            quote_identifier(&table)
        );
        let rows: i64 =
            registry.query_one(&sql, &[&name.as_str().unwrap_or("?"), &email.as_str().unwrap_or("?")]).await?.get(0);
        ensure!(rows == 0, "{table} names the owner in {rows} rows");
    }
    let sql = "SELECT customer IS NULL AND subscription IS NULL FROM deletions WHERE tenant_id = $1";
    ensure!(registry.query_one(sql, &[&tenant.id.0]).await?.get::<_, bool>(0), "the customer's id is still known");
    Ok(())
}

/// SHA-256 of the key's public half, as an operator pins it.
pub async fn pinned(world: &World) -> Result<String> {
    let kms = aws_sdk_kms::Client::new(&world.env.aws);
    let key = world.outputs.get("CertificateKeyArn").context("no key")?;
    let public = kms.get_public_key().key_id(key).send().await?.public_key.context("no public key")?;
    certificate::fingerprint(&STANDARD.encode(public.as_ref())).context("a fingerprint")
}

async fn certificate_of(world: &World, tenant: &Tenant) -> Result<String> {
    let answer = world.invoke("get-certificate", &json!({"tenant_id": tenant.id, "execution": "manual:test"})).await?;
    Ok(answer.map_err(|error| anyhow::anyhow!("{error:?}"))?.to_string())
}

/// The certificate verifies, refuses what was changed, says what there was, and is kept in its bucket.
async fn certified(world: &World, tenant: &Tenant) -> Result<Payload> {
    let (text, key) = (certificate_of(world, tenant).await?, pinned(world).await?);
    let payload = certificate::verify(&text, &key)?;
    ensure!(payload.tenant_id == tenant.id.0 && payload.reason == "data_protection_law", "{payload:?}");
    ensure!(payload.ticket.as_deref() == Some("DP-17") && payload.exported_at.is_none(), "{payload:?}");
    ensure!(!text.contains(tenant.slug.as_str()), "the certificate names the tenant: {text}");
    let there_was = |store: &str, kind: &str| payload.deleted[store][kind].as_i64().unwrap_or_default();
    for (store, kind, least) in [
        ("buckets", "versions", 4),
        ("buckets", "delete markers", 1),
        ("buckets", "uploads", 1),
        ("exports", "files", 1),
        ("queues", "messages", 3),
        ("configuration", "items", 3),
        ("identities", "roles", 1),
        ("kubernetes", "namespaces", 1),
        ("DNS", "records", 2),
        ("registry", "contacts", 1),
        ("billing", "customers", 1),
    ] {
        ensure!(there_was(store, kind) >= least, "{store}: {kind}: {}", payload.deleted);
    }
    let rows = there_was("database", "rows") + there_was("database", "rows in shared tables");
    ensure!(rows >= 50, "{}", payload.deleted);
    let mut envelope = Envelope::parse(&text)?;
    envelope.payload = envelope.payload.replacen("growth", "grown", 1).replacen("erasure", "Erasure", 1);
    ensure!(certificate::verify(&envelope.to_json()?, &key) == Err(Refusal::Changed), "a changed document verifies");
    let other = format!("{}{}", if key.starts_with('0') { '1' } else { '0' }, &key[1..]);
    ensure!(matches!(certificate::verify(&text, &other), Err(Refusal::UnknownKey { .. })), "any key will do");
    let bucket = world.outputs.get("CertificatesBucketName").context("no bucket")?;
    let kept = world.s3().get_object().bucket(bucket).key(format!("{}.json", tenant.id)).send().await?;
    let kept = String::from_utf8(kept.body.collect().await?.to_vec())?;
    ensure!(certificate::verify(&kept, &key)? == payload, "the bucket has another certificate");
    by_command(&text, &envelope.to_json()?, &key, &other).await?;
    Ok(payload)
}

/// As somebody verifies it who has nothing but the file and the fingerprint.
async fn by_command(certificate: &str, changed: &str, key: &str, other: &str) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("certificate-{}", Uuid::new_v4()));
    std::fs::create_dir_all(&directory)?;
    for (text, key, code, says) in [
        (certificate, key, 0, "VALID: tenant"),
        (certificate, other, 3, "NOT VALID: the certificate is signed with the key"),
        (changed, key, 4, "NOT VALID: the signature does not fit"),
        ("{}", key, 5, "NOT VALID: this is not a certificate"),
    ] {
        let file = directory.join("certificate.json");
        std::fs::write(&file, text)?;
        let mut command = tokio::process::Command::new(functions::built()?.join("tenantry"));
        // Nothing of the environment: it needs no stack, and no network.
        let ended = command.env_clear().arg("verify-certificate").arg(&file).args(["--key", key]).output().await?;
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        ensure!(ended.status.code() == Some(code) && said.starts_with(says), "{:?}: {said}", ended.status);
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

/// Both events came, once, in order, and as their schemas say.
async fn told(world: &World, events: &mut tenantry_local::events::Subscription, tenant: &Tenant) -> Result<()> {
    let id = tenant.id.to_string();
    let mut versions = Vec::new();
    for (name, schema) in [
        ("tenant.deletion_requested", include_str!("../../events/schemas/tenant.deletion_requested.json")),
        ("tenant.deleted", include_str!("../../events/schemas/tenant.deleted.json")),
    ] {
        events.events_of(name, &id).await?;
        let came = events.settled(name, &id).await?;
        ensure!(came.len() == 1, "{name} came {} times", came.len());
        let schema: Value = serde_json::from_str(schema)?;
        let detail = &came[0]["detail"];
        let wrong: Vec<_> = jsonschema::validator_for(&schema)?.iter_errors(detail).map(|e| e.to_string()).collect();
        ensure!(wrong.is_empty(), "{name}: {wrong:?}");
        versions.push(detail["version"].as_i64());
    }
    ensure!(versions[0] < versions[1], "{versions:?}");
    let sql = "SELECT count(*) FROM outbox WHERE tenant_id = $1 AND published_at IS NULL";
    let waiting: i64 = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(waiting == 0, "{waiting} events were not published");
    Ok(())
}

async fn many_objects(world: &World) -> Result<()> {
    let slug = world.fresh_slug("full");
    world.provision(&sign_up(&slug, "starter")).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    let (s3, bucket) = (world.s3(), tenant.bucket());
    // The ledger of what is stored has cases of its own: here, 11,000 events would only keep the machine busy.
    let silent = aws_sdk_s3::types::NotificationConfiguration::builder().build();
    s3.put_bucket_notification_configuration().bucket(&bucket).notification_configuration(silent).send().await?;
    let put = |key: String, text: &'static str| {
        let put = s3.put_object().bucket(&bucket).key(key).body(ByteStream::from_static(text.as_bytes()));
        async move { put.send().await.map(drop) }
    };
    let begun = Instant::now();
    let firsts = (0..10_000).map(|n| put(format!("objects/{n:05}"), "one"));
    let seconds = (0..1_000).map(|n| put(format!("objects/{n:05}"), "two"));
    stream::iter(firsts).buffer_unordered(64).try_collect::<()>().await?;
    stream::iter(seconds).buffer_unordered(64).try_collect::<()>().await?;
    let filled = begun.elapsed();
    condemn(world, &tenant).await?;
    let begun = Instant::now();
    let outcome = delete(world, &tenant).await?.succeeded()?;
    eprintln!("10,000 objects: filled in {filled:?}, deleted with all else in {:?}", begun.elapsed());
    ensure!(outcome.times("DrainBucket") >= 1, "{:?}", outcome.states);
    traceless(world, &tenant).await?;
    let payload = certificate::verify(&certificate_of(world, &tenant).await?, &pinned(world).await?)?;
    let counted = &payload.deleted["buckets"];
    let versions = counted["versions"].as_i64().or(counted["versions at least"].as_i64());
    ensure!(versions.is_some_and(|count| count >= 10_000), "{counted}");
    Ok(())
}

/// Without an offboarding nobody has cancelled the subscription. By the machine, and with the step run twice.
async fn given_back(world: &World) -> Result<()> {
    let slug = world.fresh_slug("prepaid");
    let mut request = sign_up(&slug, "growth");
    request["billing"] = json!({"payment_method": "pm_card_visa"});
    world.provision(&request).await?.succeeded()?;
    let tenant = world.record(&slug).await?.tenant;
    condemn(world, &tenant).await?;
    let call = json!({"tenant_id": tenant.id, "execution": begun_by_nobody(world, &tenant).await?});
    for time in ["once", "again"] {
        let answer = world.invoke("forget-billing", &call).await?;
        ensure!(answer.is_ok(), "{time}: {answer:?}");
    }
    delete(world, &tenant).await?.succeeded()?;
    let refunds = mine(world, "refunds", &tenant).await?;
    // Of 199.00 paid a moment ago for a month, all but moments are left.
    let amount = refunds.first().and_then(|one| one["amount"].as_i64()).unwrap_or_default();
    ensure!(refunds.len() == 1 && (19_800..=19_900).contains(&amount), "{refunds:?}");
    traceless(world, &tenant).await
}

/// The steps in the machine's order.
const STEPS: &[&str] = &[
    "count-tenant",
    "retire-access",
    "remove-dns-record",
    "invalidate-cache",
    "remove-namespace",
    "remove-queue",
    "drain-bucket",
    "remove-bucket",
    "remove-database",
    "ask-downstream",
    "await-downstream",
    "remove-config",
    "remove-identity",
    "forget-usage",
    "forget-billing",
    "erase-contacts",
    "scan-tenant",
    "sign-certificate",
    "close-deletion",
];

async fn again(world: &World) -> Result<()> {
    let tenant = furnished(world, "again", "growth").await?;
    condemn(world, &tenant).await?;
    let call = json!({"tenant_id": tenant.id, "execution": begun_by_nobody(world, &tenant).await?});
    let mut first_certificate = None;
    for step in STEPS {
        for time in ["once", "again"] {
            let answer = world.invoke(step, &call).await?;
            ensure!(answer.is_ok(), "{step} {time}: {answer:?}");
            if *step == "sign-certificate" {
                let certificate = certificate_of(world, &tenant).await?;
                ensure!(*first_certificate.get_or_insert(certificate.clone()) == certificate, "it was signed twice");
            }
        }
    }
    // By another execution, and by hand, nothing happens any more.
    let other =
        json!({"tenant_id": tenant.id, "execution": "arn:aws:states:us-east-1:0:execution:delete-tenant:other"});
    let by_hand = json!({"tenant_id": tenant.id, "execution": "manual:test"});
    for call in [&other, &by_hand] {
        for step in STEPS {
            let answer = world.invoke(step, call).await?;
            ensure!(matches!(&answer, Err((name, _)) if name == "Superseded"), "{step}: {answer:?}");
        }
    }
    certified(world, &tenant).await?;
    let sql = "SELECT count(*) FROM outbox WHERE tenant_id = $1 AND type = 'tenant.deleted'";
    let events: i64 = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(events == 1, "{events} events of one deletion");
    Ok(())
}

async fn at_once(world: &World) -> Result<()> {
    let tenant = furnished(world, "once", "starter").await?;
    condemn(world, &tenant).await?;
    let starts: Vec<_> = futures::future::try_join_all((0..4).map(|_| start(world, &tenant))).await?;
    let mut acted = 0;
    for arn in &starts {
        let outcome = world.finish(arn).await?.succeeded()?;
        acted += outcome.times("CloseDeletion");
        ensure!(outcome.times("Deleted") + outcome.times("Superseded") == 1, "{:?}", outcome.states);
    }
    ensure!(acted == 1, "{acted} executions deleted the tenant");
    certified(world, &tenant).await.map(drop)
}

async fn behind_our_back(world: &World) -> Result<()> {
    let tenant = furnished(world, "behind", "starter").await?;
    condemn(world, &tenant).await?;
    let secrets = aws_sdk_secretsmanager::Client::new(&world.env.aws);
    let (secret, schema) = (format!("tenant/{}/copy", tenant.id), quote_identifier(&tenant.schema()));
    secrets.create_secret().name(&secret).secret_string("{}").send().await?;
    let registry = world.registry().await?;
    registry.batch_execute(&format!("CREATE SCHEMA {schema}")).await?;
    let outcome = delete(world, &tenant).await?;
    ensure!(outcome.status == ExecutionStatus::Failed && outcome.error == "Transient", "{outcome:?}");
    ensure!(outcome.cause.contains("1 schemas") && outcome.cause.contains("1 secrets"), "{}", outcome.cause);
    ensure!(!outcome.cause.contains(tenant.slug.as_str()), "the tenant's own words: {}", outcome.cause);
    ensure!(outcome.times("RemoveBucket") == 2, "everything is removed once more first: {:?}", outcome.states);
    let record = world.record(tenant.slug.as_str()).await?;
    let flag = record.needs_operator.context("nobody is told")?;
    ensure!(flag.contains("1 secrets") && record.tenant.status == Status::Suspended, "{flag}");
    ensure!(record.execution.is_none(), "the fence was not given back");
    let none = world.invoke("get-certificate", &json!({"tenant_id": tenant.id})).await?;
    ensure!(none.is_err(), "what is not gone is certified: {none:?}");

    secrets.delete_secret().secret_id(&secret).force_delete_without_recovery(true).send().await?;
    registry.batch_execute(&format!("DROP SCHEMA {schema}")).await?;
    delete(world, &tenant).await?.succeeded()?;
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Deprovisioned && record.needs_operator.is_none(), "{record:?}");
    traceless(world, &tenant).await?;
    // The first count is what is certified, not what was left for the second execution.
    certified(world, &tenant).await.map(drop)
}

async fn killed(world: &World) -> Result<()> {
    let tenant = furnished(world, "killed", "growth").await?;
    condemn(world, &tenant).await?;
    let gone = begun_by_nobody(world, &tenant).await?;
    for step in &STEPS[..4] {
        let answer = world.invoke(step, &json!({"tenant_id": tenant.id, "execution": gone})).await?;
        ensure!(answer.is_ok(), "{step}: {answer:?}");
    }
    let marks = marks(tenant.id, tenant.slug.as_str());
    let kill = |function, holds| {
        let target = Target { system: System::Aws, function, holds };
        world.faults.inject(target, marks.clone(), Verdict::Kill, 1)
    };
    let queue = kill("remove-queue", "DeleteQueue");
    let certificate = world.faults.inject(
        Target { system: System::Aws, function: "sign-certificate", holds: "PUT" },
        marks.clone(),
        Verdict::LoseAnswer,
        1,
    );
    delete(world, &tenant).await?.succeeded()?;
    ensure!(queue.hits() == 1 && certificate.hits() == 1, "nothing was killed");
    traceless(world, &tenant).await?;
    certified(world, &tenant).await?;
    let sql = "SELECT count(*) FROM audit WHERE tenant_id = $1 AND action = 'takeover' AND detail ->> 'from' = $2";
    let taken: i64 = world.registry().await?.query_one(sql, &[&tenant.id.0, &gone]).await?.get(0);
    ensure!(taken == 1, "{taken} takeovers");
    Ok(())
}

async fn stopped(world: &World) -> Result<()> {
    let tenant = furnished(world, "halted", "growth").await?;
    condemn(world, &tenant).await?;
    // RetireAccess waits for the server's grants, which somebody else is changing.
    let busy = world.registry().await?;
    busy.execute("SELECT pg_advisory_lock(hashtextextended('tenantry grants', 0))", &[]).await?;
    let arn = start(world, &tenant).await?;
    let registry = world.registry().await?;
    let sql = "SELECT 1 FROM step_journal WHERE tenant_id = $1 AND step = 'retire-access' AND state = 'doing'";
    until(|| async { Ok(registry.query_opt(sql, &[&tenant.id.0]).await?.is_some()) }).await?;
    aws_sdk_sfn::Client::new(&world.env.aws).stop_execution().execution_arn(&arn).send().await?;
    busy.execute("SELECT pg_advisory_unlock_all()", &[]).await?;
    until(|| async { Ok(world.record(tenant.slug.as_str()).await?.needs_operator.is_some()) }).await?;
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.execution.is_none() && record.tenant.status == Status::Suspended, "{record:?}");
    ensure!(record.needs_operator.is_some_and(|flag| flag.contains("stopped")), "it does not say why");
    let by_hand = json!({"slug": tenant.slug, "execution": "manual:test"});
    for step in ["retire-access", "remove-queue", "drain-bucket"] {
        let answer = world.invoke(step, &by_hand).await?;
        ensure!(answer.is_ok(), "{step} by hand: {answer:?}");
    }
    let audited = "SELECT count(*) FROM audit WHERE tenant_id = $1 AND actor = 'manual:test'";
    let audited: i64 = registry.query_one(audited, &[&tenant.id.0]).await?.get(0);
    ensure!(audited == 3, "{audited} entries of three steps by hand");
    delete(world, &tenant).await?.succeeded()?;
    traceless(world, &tenant).await
}

async fn recovered(world: &World) -> Result<()> {
    let tenant = furnished(world, "recovered", "starter").await?;
    condemn(world, &tenant).await?;
    let gone = begun_by_nobody(world, &tenant).await?;
    let died = json!({"detail": {"executionArn": gone, "status": "TIMED_OUT"}});
    let answer = world.invoke("recover-execution", &died).await?;
    ensure!(matches!(&answer, Ok(done) if done["action"] == "resume"), "{answer:?}");
    let slug = tenant.slug.as_str();
    until(|| async { Ok(world.record(slug).await?.tenant.status == Status::Deprovisioned) }).await?;
    traceless(world, &tenant).await
}

async fn until<F, A>(mut holds: F) -> Result<()>
where
    F: FnMut() -> A,
    A: Future<Output = Result<bool>>,
{
    let begun = Instant::now();
    while !holds().await? {
        ensure!(begun.elapsed() < PATIENCE, "waited for in vain");
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn no_hold(world: &World) -> Result<()> {
    let tenant = furnished(world, "kept", "starter").await?;
    let before = fingerprint(world, &tenant).await?;
    let active = delete(world, &tenant).await?;
    ensure!(active.error == "Conflict" && active.times("CountTenant") == 0, "{active:?}");
    ensure!(fingerprint(world, &tenant).await? == before, "a refused deletion changed something");
    let mut registry = world.registry().await?;
    suspensions::suspend(&mut registry, &Selector::Id(tenant.id), Reason::Offboarding, "test").await?;
    let suspended = delete(world, &tenant).await?.succeeded()?;
    ensure!(suspended.times("Superseded") == 1 && suspended.times("CountTenant") == 0, "{:?}", suspended.states);
    let sql = "INSERT INTO holds (tenant_id, kind, state, reason, requested_by, published_at, expires_at)
               VALUES ($1, 'offboarding', 'held', 'customer_request', 'manual:test', now(), now() + interval '1 day')";
    registry.execute(sql, &[&tenant.id.0]).await?;
    let held = delete(world, &tenant).await?.succeeded()?;
    ensure!(held.times("Superseded") == 1 && held.times("CountTenant") == 0, "{:?}", held.states);
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.execution.is_none() && record.tenant.status == Status::Suspended, "{record:?}");
    for step in ["remove-bucket", "drain-bucket", "erase-contacts", "close-deletion"] {
        let answer = world.invoke(step, &json!({"slug": tenant.slug, "execution": "manual:test"})).await?;
        ensure!(matches!(&answer, Err((name, _)) if name == "InvalidRequest"), "{step} by hand: {answer:?}");
    }
    ensure!(fingerprint(world, &tenant).await?["objects"] == before["objects"], "something is deleted");
    registry.execute("UPDATE holds SET expires_at = now() WHERE tenant_id = $1", &[&tenant.id.0]).await?;
    delete(world, &tenant).await?.succeeded()?;
    traceless(world, &tenant).await
}

async fn tables(world: &World) -> Result<()> {
    let registry = world.registry().await?;
    let mut listed: Vec<String> = erasure::KEPT.iter().map(|(table, _)| (*table).to_owned()).collect();
    listed.extend(erasure::ERASED.iter().map(|table| (*table).to_owned()));
    listed.sort_unstable();
    let tables = erasure::tables(&registry).await?;
    ensure!(
        tables == listed,
        "the registry's tables with a tenant_id are {tables:?}; registry/erasure.rs lists {listed:?} as erased or kept"
    );
    ensure!(erasure::USAGE.iter().all(|table| erasure::ERASED.contains(table)), "usage is erased too");
    Ok(())
}

async fn downstream(world: &World) -> Result<()> {
    let register = async |name: &str, retire: bool| {
        let call = json!({"name": name, "kind": "search-index", "retire": retire, "execution": "manual:test"});
        let answer = world.invoke("register-downstream", &call).await?;
        answer.map(drop).map_err(|error| anyhow::anyhow!("{error:?}"))
    };
    register("search", false).await?;
    register("warehouse", false).await?;
    register("retired", true).await?;
    let tenant = furnished(world, "asked", "starter").await?;
    condemn(world, &tenant).await?;
    let mut events = world.subscribe().await?;
    let arn = start(world, &tenant).await?;
    let asked = events.events_of("tenant.deletion_requested", &tenant.id.to_string()).await?;
    ensure!(asked[0]["detail"]["systems"] == json!(["search", "warehouse"]), "{asked:?}");
    let confirm = |system: &str| json!({"tenant_id": tenant.id, "system": system, "records": 12});
    for (wrong, error) in [
        (confirm("nobody"), "InvalidRequest"),
        (confirm("retired"), "InvalidRequest"),
        (json!({"tenant_id": Uuid::new_v4(), "system": "search"}), "TenantNotFound"),
        (json!({"tenant_id": tenant.id, "system": "search", "records": -1}), "InvalidRequest"),
    ] {
        let answer = world.invoke("confirm-deletion", &wrong).await?;
        ensure!(matches!(&answer, Err((name, _)) if name == error), "{wrong}: {answer:?}");
    }
    world.put_event("search", "tenant.deletion_confirmed", &confirm("search")).await?;
    let outcome = world.finish(&arn).await?.succeeded()?;
    ensure!(outcome.times("WaitForDownstream") >= 1, "the warehouse was not waited for: {:?}", outcome.states);
    let payload = certified(world, &tenant).await?;
    let answers: Vec<_> =
        payload.downstream.iter().map(|one| (one.system.as_str(), one.confirmed_at.is_some(), one.records)).collect();
    ensure!(answers == [("search", true, Some(12)), ("warehouse", false, None)], "{answers:?}");
    register("search", true).await?;
    register("warehouse", true).await
}
