//! A tenant's things in every store, with their contents: to tell whether anybody touched them. Nothing here uses the code that makes
//! or deletes tenants.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_sqs::types::QueueAttributeName;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ListParams};
use serde_json::Value;
use tenantry_core::tenant::{Isolation, Tenant};
use tenantry_local::stack::BASE_DOMAIN;

use crate::tenant_config::update;
use crate::world::{World, connect};

/// What a store holds of a tenant, by store.
pub type Fingerprint = BTreeMap<&'static str, String>;

/// Gives a tenant that was provisioned something to lose in every store: rows, objects in several versions, an upload that was never
/// completed, messages, a setting of its own, an export of an earlier hold.
pub async fn furnish(world: &World, tenant: &Tenant) -> Result<()> {
    let (client, schema) = database(world, tenant).await?;
    if tenant.isolation == Isolation::Shared {
        let sql =
            "INSERT INTO pool.projects (tenant_id, name) SELECT $1, 'project ' || n FROM generate_series(1, 50) AS n";
        client.execute(sql, &[&tenant.id.0]).await?;
    } else {
        let sql =
            format!("INSERT INTO {schema}.projects (name) SELECT 'project ' || n FROM generate_series(1, 50) AS n");
        client.execute(&sql, &[]).await?;
    }
    let (s3, bucket) = (world.s3(), tenant.bucket());
    for (key, text) in [("a", "one"), ("a", "two"), ("reports/2026 <&> é.pdf", "three"), ("gone", "four")] {
        s3.put_object().bucket(&bucket).key(key).body(ByteStream::from_static(text.as_bytes())).send().await?;
    }
    s3.delete_object().bucket(&bucket).key("gone").send().await?;
    s3.create_multipart_upload().bucket(&bucket).key("never completed").send().await?;
    let (exports, folder) = (world.env.required("EXPORTS_BUCKET")?, format!("exports/{}/1", tenant.id));
    let part = s3.put_object().bucket(&exports).key(format!("{folder}/projects.csv"));
    part.body(ByteStream::from_static(b"id,name")).send().await?;
    s3.create_multipart_upload().bucket(&exports).key(format!("{folder}/tasks.csv")).send().await?;
    let sqs = aws_sdk_sqs::Client::new(&world.env.aws);
    let url = sqs.get_queue_url().queue_name(tenant.queue()).send().await?.queue_url.context("no queue")?;
    for message in ["one", "two", "three"] {
        sqs.send_message().queue_url(&url).message_body(message).send().await?;
    }
    let own = aws_sdk_dynamodb::types::AttributeValue::S("de-DE".into());
    update(world, tenant, "settings", "SET #values.locale = :value", Some(own)).await
}

/// A connection to where the tenant's rows are, as the administrator, and its schema, quoted.
async fn database(world: &World, tenant: &Tenant) -> Result<(tokio_postgres::Client, String)> {
    let schema = format!("\"{}\"", tenant.schema());
    if tenant.isolation != Isolation::Database {
        return Ok((world.registry().await?, schema));
    }
    let maintenance = world.export("DEDICATED_DATABASE_URL")?;
    let (server, _) = maintenance.rsplit_once('/').context("a URL")?;
    Ok((connect(&format!("{server}/{}", tenant.schema())).await?, schema))
}

/// Reads everything.
pub async fn fingerprint(world: &World, tenant: &Tenant) -> Result<Fingerprint> {
    Ok(BTreeMap::from([
        ("rows", rows(world, tenant).await?),
        ("registry", registry(world, tenant).await?),
        ("objects", objects(world, tenant).await?),
        ("exports", exports(world, tenant).await?.join("\n")),
        ("messages", messages(world, tenant).await?),
        ("configuration", configuration(world, tenant).await?),
        ("role", role(world, tenant).await?),
        ("association", association(world, tenant).await?),
        ("secrets", secrets(world, tenant).await?),
        ("server", server(world, tenant).await?),
        ("records", records(world, tenant).await?),
        ("namespace", namespace(world, tenant).await?),
        ("billing", billing(world, tenant).await?),
        ("redis", redis(world, tenant).await?),
    ]))
}

async fn rows(world: &World, tenant: &Tenant) -> Result<String> {
    let (client, schema) = database(world, tenant).await?;
    let mut all = Vec::new();
    let from = if tenant.isolation == Isolation::Shared { "pool".to_owned() } else { tenant.schema() };
    let sql = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1 ORDER BY 1";
    for table in client.query(sql, &[&from]).await? {
        let table: String = table.get(0);
        let sql = match (tenant.isolation, table.as_str()) {
            (Isolation::Shared, "refinery_schema_history") => continue,
            (Isolation::Shared, "tenants") => format!("SELECT t::text FROM pool.tenants t WHERE id = '{}'", tenant.id),
            (Isolation::Shared, table) => {
                format!("SELECT t::text FROM pool.{table} t WHERE tenant_id = '{}'", tenant.id)
            }
            (_, table) => format!("SELECT t::text FROM {schema}.{table} t"),
        };
        let mut rows: Vec<String> = client.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect();
        rows.sort_unstable();
        all.push(format!("{table}: {rows:?}"));
    }
    let sql = "SELECT rolname, rolcanlogin, rolpassword FROM pg_authid WHERE rolname = $1";
    for row in client.query(sql, &[&tenant.database_role()]).await? {
        all.push(format!(
            "{:?} {:?} {:?}",
            row.get::<_, String>(0),
            row.get::<_, bool>(1),
            row.get::<_, Option<String>>(2)
        ));
    }
    Ok(all.join("\n"))
}

async fn registry(world: &World, tenant: &Tenant) -> Result<String> {
    let client = world.registry().await?;
    let mut all = Vec::new();
    for table in ["contacts", "invites", "billing_accounts", "quota_overrides", "step_journal", "suspensions"] {
        let sql = format!("SELECT t::text FROM {table} t WHERE tenant_id = $1 ORDER BY 1");
        let rows = client.query(&sql, &[&tenant.id.0]).await?;
        all.push(format!("{table}: {:?}", rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()));
    }
    let row = client.query_one("SELECT t::text FROM tenants t WHERE id = $1", &[&tenant.id.0]).await?;
    all.push(row.get(0));
    Ok(all.join("\n"))
}

/// The files of a tenant's exports, and those whose upload was never completed.
pub async fn exports(world: &World, tenant: &Tenant) -> Result<Vec<String>> {
    let (s3, bucket) = (world.s3(), world.env.required("EXPORTS_BUCKET")?);
    let folder = format!("exports/{}/", tenant.id);
    let files = s3.list_objects_v2().bucket(&bucket).prefix(&folder).send().await?;
    let files = files.contents().iter().map(|file| format!("{:?} {:?}", file.key(), file.e_tag()));
    let uploads = s3.list_multipart_uploads().bucket(&bucket).prefix(&folder).send().await?;
    let uploads = uploads.uploads().iter().map(|upload| format!("upload of {:?}", upload.key()));
    Ok(files.chain(uploads).collect())
}

async fn objects(world: &World, tenant: &Tenant) -> Result<String> {
    let (s3, bucket) = (world.s3(), tenant.bucket());
    let listed = s3.list_object_versions().bucket(&bucket).send().await?;
    let mut all = Vec::new();
    for version in listed.versions() {
        let (key, id) = (version.key().unwrap_or_default(), version.version_id().unwrap_or_default());
        let object = s3.get_object().bucket(&bucket).key(key).version_id(id).send().await?;
        all.push(format!("{key} {id} {:?}", object.body.collect().await?.into_bytes()));
    }
    all.extend(listed.delete_markers().iter().map(|marker| format!("{:?} {:?}", marker.key(), marker.version_id())));
    let uploads = s3.list_multipart_uploads().bucket(&bucket).send().await?;
    all.extend(uploads.uploads().iter().map(|upload| format!("{:?} {:?}", upload.key(), upload.upload_id())));
    all.push(s3.get_bucket_policy().bucket(&bucket).send().await?.policy.unwrap_or_default());
    Ok(all.join("\n"))
}

async fn messages(world: &World, tenant: &Tenant) -> Result<String> {
    let sqs = aws_sdk_sqs::Client::new(&world.env.aws);
    let mut all = Vec::new();
    for name in [tenant.queue(), tenant.dead_letter_queue()] {
        let url = sqs.get_queue_url().queue_name(&name).send().await?.queue_url.context("no queue")?;
        let attributes = sqs.get_queue_attributes().queue_url(&url).attribute_names(QueueAttributeName::All);
        let attributes = attributes.send().await?.attributes.unwrap_or_default();
        let sorted: BTreeMap<_, _> = attributes.iter().map(|(name, value)| (name.as_str(), value)).collect();
        all.push(format!("{name}: {sorted:?}"));
    }
    Ok(all.join("\n"))
}

async fn configuration(world: &World, tenant: &Tenant) -> Result<String> {
    let client = aws_sdk_dynamodb::Client::new(&world.env.aws);
    let key = aws_sdk_dynamodb::types::AttributeValue::S(tenant.config_key());
    let query = client.query().table_name(world.env.required("CONFIG_TABLE")?).key_condition_expression("tenant = :t");
    let items = query.expression_attribute_values(":t", key).send().await?.items.unwrap_or_default();
    let items: Vec<Value> = serde_dynamo::from_items(items)?;
    Ok(Value::from(items).to_string())
}

async fn role(world: &World, tenant: &Tenant) -> Result<String> {
    let client = aws_sdk_iam::Client::new(&world.env.aws);
    let role = client.get_role().role_name(tenant.role()).send().await?.role;
    let policy = client.get_role_policy().role_name(tenant.role()).policy_name("tenant").send().await?;
    Ok(format!("{role:?} {}", policy.policy_document))
}

async fn association(world: &World, tenant: &Tenant) -> Result<String> {
    let client = aws_sdk_eks::Client::new(&world.env.aws);
    let list = client.list_pod_identity_associations().cluster_name(world.env.required("EKS_CLUSTER")?);
    let listed = list.namespace(tenant.namespace()).send().await?;
    Ok(format!("{:?}", listed.associations()))
}

async fn secrets(world: &World, tenant: &Tenant) -> Result<String> {
    let client = aws_sdk_secretsmanager::Client::new(&world.env.aws);
    let names = match tenant.isolation {
        Isolation::Shared => vec![],
        Isolation::Schema => vec![tenant.database_secret()],
        Isolation::Database => vec![tenant.database_secret(), tenant.server_secret()],
    };
    let mut all = Vec::new();
    for name in names {
        let value = client.get_secret_value().secret_id(&name).send().await?;
        all.push(format!("{name}: {:?} {:?}", value.version_id, value.secret_string));
    }
    Ok(all.join("\n"))
}

async fn server(world: &World, tenant: &Tenant) -> Result<String> {
    if tenant.isolation != Isolation::Database {
        return Ok(String::new());
    }
    let client = aws_sdk_rds::Client::new(&world.env.aws);
    let described = client.describe_db_instances().db_instance_identifier(tenant.database_instance()).send().await?;
    let instance = described.db_instances().first().context("no instance")?;
    Ok(format!(
        "{:?} {:?} {:?} {:?}",
        instance.dbi_resource_id(),
        instance.db_instance_status(),
        instance.deletion_protection(),
        instance.tag_list()
    ))
}

async fn records(world: &World, tenant: &Tenant) -> Result<String> {
    let client = aws_sdk_route53::Client::new(&world.env.aws);
    let mut all = Vec::new();
    for name in [tenant.host(BASE_DOMAIN), tenant.ownership_record(BASE_DOMAIN)] {
        let list = client.list_resource_record_sets().hosted_zone_id(world.env.required("HOSTED_ZONE_ID")?);
        let listed = list.start_record_name(&name).max_items(1).send().await?;
        all.push(format!("{:?}", listed.resource_record_sets()));
    }
    Ok(all.join("\n"))
}

async fn namespace(world: &World, tenant: &Tenant) -> Result<String> {
    let (cluster, name) = (world.cluster().await?, tenant.namespace());
    let found = Api::<Namespace>::all(cluster.clone()).get(&name).await?;
    let mut all = vec![format!("{:?} {:?} {:?}", found.metadata.uid, found.metadata.labels, found.status)];
    let params = ListParams::default();
    let quotas = Api::<ResourceQuota>::namespaced(cluster.clone(), &name).list(&params).await?;
    all.extend(quotas.items.iter().map(|one| format!("{:?} {:?}", one.metadata.uid, one.spec)));
    let policies = Api::<NetworkPolicy>::namespaced(cluster.clone(), &name).list(&params).await?;
    all.extend(policies.items.iter().map(|one| format!("{:?} {:?}", one.metadata.uid, one.spec)));
    let accounts = Api::<ServiceAccount>::namespaced(cluster, &name).list(&params).await?;
    all.extend(accounts.items.iter().map(|one| format!("{:?} {:?}", one.metadata.uid, one.metadata.name)));
    Ok(all.join("\n"))
}

async fn billing(world: &World, tenant: &Tenant) -> Result<String> {
    let sql = "SELECT customer, subscription FROM billing_accounts WHERE tenant_id = $1";
    let row = world.registry().await?.query_one(sql, &[&tenant.id.0]).await?;
    let (customer, subscription): (String, String) = (row.get(0), row.get(1));
    let customer = world.stripe(&format!("/v1/customers/{customer}")).await?;
    let subscription = world.stripe(&format!("/v1/subscriptions/{subscription}")).await?;
    Ok(format!("{customer} {} {}", subscription["id"], subscription["status"]))
}

async fn redis(world: &World, tenant: &Tenant) -> Result<String> {
    let mut redis = redis::Client::open(world.export("REDIS_URL")?)?.get_multiplexed_async_connection().await?;
    let mut all = Vec::new();
    for key in [format!("gate:{{{}}}", tenant.slug), format!("usage:{{{}}}", tenant.slug)] {
        let held: BTreeMap<String, String> = redis::cmd("HGETALL").arg(&key).query_async(&mut redis).await?;
        all.push(format!("{key}: {held:?}"));
    }
    Ok(all.join("\n"))
}
