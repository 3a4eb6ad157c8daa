//! A local stack: every system that a tenant lives in, and the template deployed beside them.

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use aws_config::SdkConfig;
use aws_sdk_eks::types::VpcConfigRequest;
use aws_sdk_route53::types::HostedZoneConfig;
use serde_json::json;
use uuid::Uuid;

use crate::deploy::{self, Packaged};
use crate::dns::DnsServer;
use crate::emulator::{self, Emulator};
use crate::kube::Cluster;
use crate::postgres::{Authority, Postgres, Role};
use crate::progress::Progress;
use crate::proxy::{self, Proxy, System, Tap, Upstream};
use crate::redis::Redis;
use crate::sql_proxy::sql;
use crate::stripe::{self, Stripe};
use crate::stripe_events::{self, StripeEvents};
use crate::tools::{Tools, checkout};

/// Tenants are reached below this.
pub const BASE_DOMAIN: &str = "app.example.com";
const REGISTRY_SECRET: &str = "tenantry/local/registry";
const APP_DATABASE_SECRET: &str = "tenantry/local/app-database";
const STRIPE_SECRET: &str = "tenantry/local/stripe";
/// The cluster as EKS knows it, for the associations of tenants' roles; its API server is the stack's own.
const EKS_CLUSTER: &str = "tenantry";
const SENDER: &str = "no-reply@app.example.com";
/// How long downstream systems are waited for: nobody at this machine waits for a day.
const DOWNSTREAM_SECONDS: &str = "30";
/// Ten instances of each function, as the template has it.
const FUNCTION_CONCURRENCY: &str = "10";

/// What stack to boot.
pub struct Options {
    /// The checkout.
    pub root: PathBuf,
    /// Where its state goes, and stays; `None` is a directory of its own that goes with the stack.
    pub directory: Option<PathBuf>,
    /// Who is told what is being done.
    pub progress: Progress,
    /// Who looks at every call of the functions.
    pub tap: Option<Arc<dyn Tap>>,
    /// Parameters of the template that this stack has, beside those of every local one.
    pub parameters: &'static [(&'static str, &'static str)],
}

/// A running stack with the template deployed to it. Dropping it ends it.
pub struct Stack {
    aws: SdkConfig,
    root: PathBuf,
    parameters: &'static [(&'static str, &'static str)],
    zone: String,
    outputs: HashMap<String, String>,
    variables: HashMap<String, String>,
    systems: Systems,
}

struct Systems {
    dns: DnsServer,
    emulator: Emulator,
    postgres: Postgres,
    dedicated: Postgres,
    redis: Redis,
    stripe: Stripe,
    stripe_events: StripeEvents,
    cluster: Cluster,
    authority: Authority,
    tapped: Tapped,
    // Dropped last: what is in it is in use until then.
    _directory: Directory,
}

/// What stands in front of the systems where somebody looks at every call.
#[derive(Default)]
struct Tapped {
    postgres: Option<Proxy>,
    dedicated: Option<Proxy>,
    stripe: Option<Proxy>,
    _kubernetes: Option<Proxy>,
}

/// A stack's state on disk.
struct Directory {
    path: PathBuf,
    temporary: bool,
}

impl Options {
    /// A stack of a test run's own, told about in plain lines.
    ///
    /// # Errors
    /// When called from outside a checkout.
    pub fn for_tests() -> Result<Self> {
        Ok(Options { root: checkout()?, directory: None, progress: Progress::Plain, tap: None, parameters: &[] })
    }
}

impl Stack {
    /// Boots every system, as much as possible at once, and deploys the template.
    ///
    /// # Errors
    /// When a part does not come up or the deployment fails. What had come up is ended again.
    pub async fn boot(options: Options) -> Result<Self> {
        let Options { root, directory, progress, tap, parameters } = options;
        let tools = Tools::load(&root)?;
        let directory = Directory::make(&root, directory)?;
        let logs = directory.path.join("logs");
        std::fs::create_dir_all(&logs)?;
        let (path, logs) = (directory.path.as_path(), logs.as_path());
        let authority = Authority::make(path)?;
        // The emulator comes with what is to be deployed to it, ready before the databases are.
        let (emulator, postgres, dedicated, redis, stripe, cluster) = tokio::join!(
            told(&progress, "AWS emulator", async {
                let emulator = Emulator::start(&tools, path, logs, tap.clone()).await?;
                let aws = emulator::aws_config(emulator.endpoint()).await;
                let packaged = deploy::package(&aws, &root).await?;
                Ok((emulator, aws, packaged))
            }),
            told(&progress, "PostgreSQL", Postgres::start(&tools, path, logs, &authority, Role::Registry)),
            told(&progress, "PostgreSQL, dedicated", Postgres::start(&tools, path, logs, &authority, Role::Dedicated)),
            told(&progress, "Redis", Redis::start(&tools, path, logs)),
            told(&progress, "Stripe", Stripe::start(&tools, path, logs)),
            told(&progress, "Kubernetes", Cluster::start(&tools, path, logs)),
        );
        let ((emulator, aws, packaged), postgres, redis, mut cluster) = (emulator?, postgres?, redis?, cluster?);
        let (dedicated, stripe) = (dedicated?, stripe?);
        let tapped = match tap {
            None => Tapped::default(),
            Some(tap) => Tapped::in_front_of(&postgres, &dedicated, &stripe, &mut cluster, &authority, &tap).await?,
        };
        let zone = hosted_zone(&aws).await?;
        let dns = DnsServer::start(&aws, &zone, BASE_DOMAIN).await?;
        prepare(&aws, &postgres, port_of(tapped.postgres.as_ref(), &postgres)).await?;
        let stripe_events = StripeEvents::start(&aws, &stripe).await?;
        let systems = Systems {
            dns,
            emulator,
            postgres,
            dedicated,
            redis,
            stripe,
            stripe_events,
            cluster,
            authority,
            tapped,
            _directory: directory,
        };
        let mut stack =
            Stack { aws, root, parameters, zone, outputs: HashMap::new(), variables: HashMap::new(), systems };
        told(&progress, "Deployment", stack.apply(&packaged)).await?;
        Ok(stack)
    }

    /// Deploys the template as it is now, over the one that is deployed.
    ///
    /// # Errors
    /// When the deployment fails.
    pub async fn deploy(&mut self) -> Result<()> {
        let packaged = deploy::package(&self.aws, &self.root).await?;
        self.apply(&packaged).await
    }

    async fn apply(&mut self, packaged: &Packaged) -> Result<()> {
        let kubeconfig = self.systems.cluster.functions.display().to_string();
        let ca_bundle = self.systems.authority.bundle.display().to_string();
        let tapped = &self.systems.tapped;
        let dedicated_port = port_of(tapped.dedicated.as_ref(), &self.systems.dedicated).to_string();
        let stripe = match &tapped.stripe {
            Some(proxy) => format!("http://{}", proxy.address()),
            None => self.systems.stripe.url(),
        };
        let redis = self.systems.redis.url();
        let (dns, deployment) = (self.systems.dns.address(), Uuid::new_v4().to_string());
        let parameters = [
            ("Stage", "local"),
            ("BaseDomain", BASE_DOMAIN),
            ("HostedZoneId", &self.zone),
            ("DnsServers", &dns),
            ("RegistrySecret", REGISTRY_SECRET),
            ("AppDatabaseSecret", APP_DATABASE_SECRET),
            ("PostgresCaBundle", &ca_bundle),
            ("Kubeconfig", &kubeconfig),
            ("RedisUrl", &redis),
            ("EksCluster", EKS_CLUSTER),
            ("DedicatedPort", &dedicated_port),
            ("StripeSecret", STRIPE_SECRET),
            ("StripeApiUrl", &stripe),
            ("StripeEventBusName", stripe_events::BUS),
            ("SenderAddress", SENDER),
            ("DownstreamSeconds", DOWNSTREAM_SECONDS),
            (deploy::CONCURRENCY, FUNCTION_CONCURRENCY),
            ("DeployId", &deployment),
        ];
        let parameters = [&parameters, self.parameters].concat();
        let deployed = deploy::deploy(&self.aws, packaged, &parameters).await?;
        (self.outputs, self.variables) = (deployed.outputs, deployed.variables);
        Ok(())
    }

    /// Ends every process and removes what the stack kept on disk, unless that was to stay.
    ///
    /// # Errors
    /// When a process cannot be ended.
    pub async fn shutdown(self) -> Result<()> {
        let Systems {
            dns,
            emulator,
            postgres,
            dedicated,
            redis,
            stripe,
            stripe_events,
            cluster,
            tapped,
            _directory: directory,
            ..
        } = self.systems;
        drop((dns, tapped, stripe_events));
        // Each takes a moment to end: all at once.
        tokio::task::spawn_blocking(move || {
            std::thread::scope(|scope| {
                scope.spawn(move || drop(emulator));
                scope.spawn(move || drop(postgres));
                scope.spawn(move || drop(dedicated));
                scope.spawn(move || drop(redis));
                scope.spawn(move || drop(stripe));
                scope.spawn(move || drop(cluster));
            });
            drop(directory);
        })
        .await
        .context("ending the stack")
    }

    /// Fails when a system has ended by itself.
    ///
    /// # Errors
    /// As said, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        let Systems { emulator, postgres, dedicated, redis, stripe, cluster, .. } = &mut self.systems;
        emulator.check()?;
        postgres.check()?;
        dedicated.check()?;
        redis.check()?;
        stripe.check()?;
        cluster.check()
    }

    /// Whether the cluster is the stack's own, and not one that `KUBECONFIG` names.
    pub fn has_own_cluster(&self) -> bool {
        self.systems.cluster.is_own()
    }

    /// Reaches the stack's AWS.
    pub fn aws_config(&self) -> SdkConfig {
        self.aws.clone()
    }

    /// One of the template's outputs.
    ///
    /// # Errors
    /// When the template has none of that name.
    pub fn output(&self, name: &str) -> Result<&str> {
        self.outputs.get(name).map(String::as_str).with_context(|| format!("the template has no output {name}"))
    }

    /// All of the template's outputs.
    pub fn outputs(&self) -> &HashMap<String, String> {
        &self.outputs
    }

    /// The functions' environment variables, all together, and the region that Lambda itself would tell them.
    pub fn function_variables(&self) -> HashMap<String, String> {
        let mut variables = self.variables.clone();
        variables.insert("AWS_REGION".to_owned(), emulator::REGION.to_owned());
        variables
    }

    /// What `make -s env` exports.
    pub fn exports(&self) -> HashMap<String, String> {
        let Systems { dns, emulator, postgres, dedicated, redis, stripe, cluster, .. } = &self.systems;
        [
            ("AWS_ENDPOINT_URL", emulator.endpoint().to_owned()),
            ("AWS_REGION", emulator::REGION.to_owned()),
            // What the AWS command line reads.
            ("AWS_DEFAULT_REGION", emulator::REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", emulator::ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", emulator::ACCESS_KEY.to_owned()),
            ("KUBECONFIG", cluster.admin.display().to_string()),
            ("REGISTRY_DATABASE_URL", postgres.administrator_url()),
            ("APP_DATABASE_URL", postgres.application_url()),
            ("DEDICATED_DATABASE_URL", dedicated.maintenance_url()),
            ("REDIS_URL", redis.url()),
            ("STRIPE_API_URL", stripe.url()),
            ("STRIPE_API_KEY", stripe::API_KEY.to_owned()),
            ("DNS_SERVER", dns.address()),
            ("BASE_DOMAIN", BASE_DOMAIN.to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

impl Tapped {
    async fn in_front_of(
        postgres: &Postgres,
        dedicated: &Postgres,
        stripe: &Stripe,
        cluster: &mut Cluster,
        authority: &Authority,
        tap: &Arc<dyn Tap>,
    ) -> Result<Self> {
        let tls = Arc::new(authority.server_config()?);
        let upstream = Upstream { authority: stripe.authority(), tls: None };
        Ok(Tapped {
            postgres: Some(sql(System::Postgres, postgres.port(), tls.clone(), tap.clone()).await?),
            dedicated: Some(sql(System::Dedicated, dedicated.port(), tls, tap.clone()).await?),
            stripe: Some(proxy::http(System::Stripe, upstream, None, tap.clone()).await?),
            _kubernetes: cluster.tap(authority, tap.clone()).await?,
        })
    }
}

/// Where functions find a server: at what stands in front of it, or at the server itself.
fn port_of(proxy: Option<&Proxy>, server: &Postgres) -> u16 {
    proxy.map_or(server.port(), |proxy| proxy.address().port())
}

/// Tells what a part of the boot is and how long it took.
async fn told<T>(progress: &Progress, name: &str, part: impl Future<Output = Result<T>>) -> Result<T> {
    let task = progress.begin(name);
    let result = part.await;
    match &result {
        Ok(_) => task.done(""),
        Err(error) => task.failed(&format!("{error:#}")),
    }
    result.with_context(|| name.to_owned())
}

/// What the template expects to be there before it is deployed, as it would be in an AWS account.
async fn prepare(aws: &SdkConfig, postgres: &Postgres, port: u16) -> Result<()> {
    let secrets = aws_sdk_secretsmanager::Client::new(aws);
    let registry = postgres.secret(postgres.provisioner(), &postgres.provisioner_password, port);
    let application = postgres.secret("tenantry_app", &postgres.application_password, port);
    let billing = json!({ "api_key": stripe::API_KEY }).to_string();
    for (name, text) in [(REGISTRY_SECRET, registry), (APP_DATABASE_SECRET, application), (STRIPE_SECRET, billing)] {
        secrets.create_secret().name(name).secret_string(text).send().await?;
    }
    aws_sdk_eks::Client::new(aws)
        .create_cluster()
        .name(EKS_CLUSTER)
        .role_arn("arn:aws:iam::000000000000:role/cluster")
        .resources_vpc_config(VpcConfigRequest::builder().build())
        .send()
        .await?;
    aws_sdk_sesv2::Client::new(aws).create_email_identity().email_identity(SENDER).send().await?;
    Ok(())
}

async fn hosted_zone(aws: &SdkConfig) -> Result<String> {
    let made = aws_sdk_route53::Client::new(aws)
        .create_hosted_zone()
        .name(BASE_DOMAIN)
        .caller_reference(Uuid::new_v4().to_string())
        .hosted_zone_config(HostedZoneConfig::builder().comment("tenants of the local stack").build())
        .send()
        .await?;
    let id = made.hosted_zone().context("no hosted zone")?.id();
    Ok(id.trim_start_matches("/hostedzone/").to_owned())
}

impl Directory {
    /// Makes a directory: the given one, emptied, or one that goes with the stack.
    fn make(root: &Path, given: Option<PathBuf>) -> Result<Self> {
        let temporary = given.is_none();
        let runs = root.join(".local/runs");
        let path = given.unwrap_or_else(|| runs.join(std::process::id().to_string()));
        if temporary {
            remove_leftovers(&runs);
        }
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        // It holds credentials. PostgreSQL's own user, where it is another, has to pass through to its data.
        std::fs::set_permissions(&path, Permissions::from_mode(0o711))?;
        ensure!(path.is_absolute(), "{} is not an absolute path", path.display());
        Ok(Directory { path, temporary })
    }
}

/// Removes what stacks left behind that were killed: directories named for a process that is gone.
fn remove_leftovers(runs: &Path) {
    for entry in std::fs::read_dir(runs).into_iter().flatten().flatten() {
        let process = entry.file_name().to_string_lossy().parse::<u32>();
        if process.is_ok_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
