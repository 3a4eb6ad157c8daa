//! A tenant as the real systems show it, each asked with an ordinary client of its own. Nothing here uses the code that
//! made the tenant: only the names are the same.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::AttributeValue;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RecordType;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio_postgres::NoTls;

use crate::emulator;
use crate::events::Subscription;
use crate::inventory::connect;
use crate::stack::Stack;

/// Where to look.
pub struct Witness {
    aws: SdkConfig,
    exports: HashMap<String, String>,
    config_table: String,
    events: Subscription,
}

/// A tenant's registry row, and the names that follow from it.
struct Row {
    id: String,
    slug: String,
    isolation: String,
    region: String,
    text: String,
}

/// The login of a tenant with a schema or a server of its own, as its secret has it.
pub(crate) async fn own_login(aws: &SdkConfig, id: &str) -> Result<tokio_postgres::Config> {
    let secret = format!("tenant/{id}/database");
    let secret = aws_sdk_secretsmanager::Client::new(aws).get_secret_value().secret_id(secret).send().await?;
    let login: Value = serde_json::from_str(secret.secret_string().unwrap_or_default())?;
    let text = |key: &str| login[key].as_str().unwrap_or_default().to_owned();
    let mut config = tokio_postgres::Config::new();
    config.host(text("host")).dbname(text("dbname")).user(text("username")).password(text("password"));
    config.port(u16::try_from(login["port"].as_u64().unwrap_or_default())?);
    Ok(config)
}

impl Witness {
    /// Begins to listen for events; the rest is asked when it is wanted.
    ///
    /// # Errors
    /// When the bus cannot be subscribed to.
    pub async fn of(stack: &Stack) -> Result<Self> {
        let aws = stack.aws_config();
        let events = Subscription::open(&aws, stack.output("EventBusName")?).await?;
        let config_table = stack.output("ConfigTableName")?.to_owned();
        Ok(Witness { aws, exports: stack.exports(), config_table, events })
    }

    /// What there is of a tenant, by system, in the order the machine made it.
    ///
    /// # Errors
    /// When a system shows nothing of the tenant: the error names which.
    pub async fn of_tenant(&mut self, slug: &str) -> Result<Vec<(&'static str, String)>> {
        let row = self.registry(slug).await.context("the registry")?;
        let (database, role, bucket, queue, namespace, dns, billing, config, mail) = tokio::join!(
            self.database(&row),
            self.role(&row),
            self.bucket(&row),
            self.queue(&row),
            self.namespace(&row),
            self.dns(&row),
            self.billing(&row),
            self.config(&row),
            self.mail(&row),
        );
        let event = self.event(&row).await.context("the event")?;
        Ok(vec![
            ("registry", row.text),
            ("database", database.context("the database")?),
            ("IAM role", role.context("the IAM role")?),
            ("bucket", bucket.context("the bucket")?),
            ("queue", queue.context("the queue")?),
            ("namespace", namespace.context("the namespace")?),
            ("DNS", dns.context("DNS")?),
            ("billing", billing.context("billing")?),
            ("configuration", config.context("the configuration")?),
            ("mail", mail.context("the mail")?),
            ("event", event),
        ])
    }

    fn export(&self, name: &str) -> Result<&str> {
        self.exports.get(name).map(String::as_str).with_context(|| format!("no {name}"))
    }

    async fn registry(&self, slug: &str) -> Result<Row> {
        let sql = "SELECT id::text, isolation::text, region, plan::text, status::text, \
                   to_char(activated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM tenants WHERE slug = $1";
        let client = connect(self.export("REGISTRY_DATABASE_URL")?).await?;
        let row = client.query_opt(sql, &[&slug]).await?.with_context(|| format!("no tenant {slug}"))?;
        let text = |index: usize| row.get::<_, Option<String>>(index).unwrap_or_default();
        ensure!(text(4) == "active", "{slug} is {}", text(4));
        Ok(Row {
            id: text(0),
            slug: slug.to_owned(),
            isolation: text(1),
            region: text(2),
            text: format!("{} {} {}, active since {} UTC", text(0), text(3), text(1), text(5)),
        })
    }

    /// As the product sees it: through row-level security, or in the tenant's schema.
    async fn database(&self, row: &Row) -> Result<String> {
        if row.isolation == "shared" {
            let client = connect(self.export("APP_DATABASE_URL")?).await?;
            client.execute("SELECT set_config('app.current_tenant_id', $1, false)", &[&row.id]).await?;
            let roles = client.query_one("SELECT string_agg(name, ', ' ORDER BY name) FROM pool.roles", &[]).await?;
            let seen = client.query("SELECT slug FROM pool.tenants", &[]).await?;
            ensure!(
                seen.len() == 1 && seen[0].get::<_, String>(0) == row.slug,
                "the context shows {} tenants",
                seen.len()
            );
            let roles: Option<String> = roles.get(0);
            return Ok(format!("schema pool, own rows only; roles {}", roles.context("no roles")?));
        }
        let login = own_login(&self.aws, &row.id).await?;
        let (client, connection) = login.connect(NoTls).await?;
        tokio::spawn(connection);
        let sql = "SELECT current_user::text, current_schema()::text, string_agg(tablename, ', ' ORDER BY tablename)
                   FROM pg_tables WHERE schemaname = current_schema() AND tablename NOT LIKE '%history'";
        let seen = client.query_one(sql, &[]).await?;
        let (role, schema): (String, Option<String>) = (seen.get(0), seen.get(1));
        let tables: Option<String> = seen.get(2);
        let what = format!(
            "role {role}, schema {} with {}",
            schema.context("no schema")?,
            tables.context("the schema has no tables")?
        );
        if row.isolation != "database" {
            return Ok(what);
        }
        let name = format!("tenant-{}", row.id);
        let rds = aws_sdk_rds::Client::new(&self.aws);
        let instances = rds.describe_db_instances().db_instance_identifier(&name).send().await?;
        let instance = instances.db_instances().first().context("no instance")?;
        let marks = [
            (instance.storage_encrypted(), "encrypted"),
            (instance.deletion_protection(), "protected against deletion"),
        ];
        let marks: Vec<_> = marks.iter().filter(|(is, _)| *is == Some(true)).map(|(_, mark)| *mark).collect();
        let status = instance.db_instance_status().unwrap_or_default();
        Ok(format!(
            "instance {name} {status}, {}; database {}, {what}",
            marks.join(", "),
            login.get_dbname().unwrap_or_default()
        ))
    }

    async fn queue(&self, row: &Row) -> Result<String> {
        let client = aws_sdk_sqs::Client::new(&self.aws);
        let name = format!("tenant-{}", row.id);
        let url = client.get_queue_url().queue_name(&name).send().await?.queue_url.context("no queue")?;
        let all = aws_sdk_sqs::types::QueueAttributeName::All;
        let attributes = client.get_queue_attributes().queue_url(url).attribute_names(all).send().await?;
        let redrive = aws_sdk_sqs::types::QueueAttributeName::RedrivePolicy;
        let redrive = attributes.attributes().and_then(|all| all.get(&redrive)).context("no dead-letter queue")?;
        let redrive: Value = serde_json::from_str(redrive)?;
        let dead_letters = redrive["deadLetterTargetArn"].as_str().and_then(|arn| arn.rsplit(':').next());
        Ok(format!("{name}, dead letters in {}", dead_letters.context("no dead-letter queue")?))
    }

    async fn billing(&self, row: &Row) -> Result<String> {
        let url = format!("{}/v1/subscriptions?limit=100000", self.export("STRIPE_API_URL")?);
        let asked = reqwest::Client::new().get(&url).bearer_auth(self.export("STRIPE_API_KEY")?).send().await?;
        let list: Value = asked.error_for_status()?.json().await?;
        let ours = |one: &&Value| one["metadata"]["tenantry-tenant-id"] == row.id.as_str();
        let found: Vec<&Value> = list["data"].as_array().into_iter().flatten().filter(ours).collect();
        ensure!(found.len() == 1, "{} subscriptions", found.len());
        let text = |pointer: &str| found[0].pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Ok(format!(
            "{} of customer {}, {}, price {}",
            text("/id"),
            text("/customer"),
            text("/status"),
            text("/items/data/0/plan/id")
        ))
    }

    async fn role(&self, row: &Row) -> Result<String> {
        let client = aws_sdk_iam::Client::new(&self.aws);
        let name = format!("tenant-{}", row.id);
        let role = client.get_role().role_name(&name).send().await?;
        let role = role.role().context("no role")?;
        let policies = client.list_role_policies().role_name(&name).send().await?;
        let associations = aws_sdk_eks::Client::new(&self.aws)
            .list_pod_identity_associations()
            .cluster_name("tenantry")
            .namespace(format!("tenant-{}", row.slug))
            .send()
            .await?;
        let pods = associations.associations().first().context("no pod identity association")?;
        Ok(format!(
            "{} with policy {}, for pods of {}/{}",
            role.arn(),
            policies.policy_names().join(", "),
            pods.namespace().unwrap_or_default(),
            pods.service_account().unwrap_or_default()
        ))
    }

    async fn bucket(&self, row: &Row) -> Result<String> {
        let client = emulator::s3(&self.aws);
        let name = format!("tenant-{}-{}", row.id, row.region);
        let policy = client.get_bucket_policy().bucket(&name).send().await?.policy.context("no policy")?;
        let policy: Value = serde_json::from_str(&policy)?;
        let sids: Vec<&str> =
            policy["Statement"].as_array().into_iter().flatten().filter_map(|one| one["Sid"].as_str()).collect();
        let versioning = client.get_bucket_versioning().bucket(&name).send().await?;
        let versioning = versioning.status().context("no versioning")?;
        Ok(format!("{name}, versioning {versioning}, policy {}", sids.join(", ")))
    }

    async fn namespace(&self, row: &Row) -> Result<String> {
        let config = Kubeconfig::read_from(Path::new(self.export("KUBECONFIG")?))?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let client = kube::Client::try_from(config)?;
        let name = format!("tenant-{}", row.slug);
        let namespace = Api::<Namespace>::all(client.clone()).get(&name).await?;
        let labels = namespace.metadata.labels.unwrap_or_default();
        let security = labels.get("pod-security.kubernetes.io/enforce").context("no Pod Security level")?;
        let quotas = Api::<ResourceQuota>::namespaced(client.clone(), &name).list(&Default::default()).await?;
        let hard = quotas.items.first().and_then(|quota| quota.spec.clone()?.hard).context("no quota")?;
        let bindings = Api::<RoleBinding>::namespaced(client, &name).list(&Default::default()).await?;
        let binding = bindings.items.first().context("no role binding")?;
        let shown = ["requests.cpu", "requests.memory", "pods"];
        let hard = shown.iter().filter_map(|what| Some(format!("{what} {}", hard.get(*what)?.0))).collect::<Vec<_>>();
        let (kind, role) = (&binding.role_ref.kind, &binding.role_ref.name);
        Ok(format!("{name}, {security}, quota {}, bound to {kind} {role}", hard.join(", ")))
    }

    async fn dns(&self, row: &Row) -> Result<String> {
        let server: std::net::SocketAddr = self.export("DNS_SERVER")?.parse()?;
        let host = format!("{}.{}.", row.slug, self.export("BASE_DOMAIN")?);
        let mut udp = ConnectionConfig::udp();
        udp.port = server.port();
        let server = NameServerConfig::new(server.ip(), true, vec![udp]);
        let resolver = TokioResolver::builder_with_config(
            ResolverConfig::from_parts(None, Vec::new(), vec![server]),
            TokioRuntimeProvider::default(),
        )
        .build()?;
        let answer = resolver.lookup(host.as_str(), RecordType::CNAME).await?;
        let record = answer.answers().first().context("no answer")?;
        Ok(format!("{record}"))
    }

    async fn config(&self, row: &Row) -> Result<String> {
        let items = aws_sdk_dynamodb::Client::new(&self.aws)
            .query()
            .table_name(&self.config_table)
            .key_condition_expression("tenant = :tenant")
            .expression_attribute_values(":tenant", AttributeValue::S(format!("tenant.{}", row.id)))
            .send()
            .await?;
        let names: Vec<&str> =
            items.items().iter().filter_map(|item| item.get("item")?.as_s().ok()).map(String::as_str).collect();
        ensure!(!names.is_empty(), "no items");
        Ok(format!("tenant.{}: {}", row.id, names.join(", ")))
    }

    async fn mail(&self, row: &Row) -> Result<String> {
        let host = format!("{}.{}", row.slug, self.export("BASE_DOMAIN")?);
        let endpoint = self.export("AWS_ENDPOINT_URL")?;
        let kept = emulator::mail(endpoint).await?;
        let about: Vec<_> = kept.iter().filter(|mail| mail.to_string().contains(&host)).collect();
        ensure!(about.len() == 1, "{} messages about {host}", about.len());
        let invites = about[0].to_string().contains("?token=");
        ensure!(invites, "the welcome has no invitation");
        Ok(format!(
            "one message to the owner, with an invitation: {}",
            about[0]["Subject"].as_str().unwrap_or_default()
        ))
    }

    async fn event(&mut self, row: &Row) -> Result<String> {
        let events = self.events.events_of("tenant.provisioned", &row.id).await?;
        let event = &events[0]["detail"];
        let shown: BTreeMap<_, _> =
            event.as_object().into_iter().flatten().filter(|(_, value)| !value.is_object()).collect();
        Ok(format!("tenant.provisioned {}", serde_json::to_string(&shown)?))
    }
}
