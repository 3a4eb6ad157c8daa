//! Asking the world whether it can find a tenant: every name server of the zone, over UDP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_sdk_route53::types::ChangeStatus;
use futures::future::try_join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use serde_json::{Value, json};

use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::dns::same_name;
use crate::resource::wait::until_done;
use crate::tenant::Tenant;

/// How long one server may take to answer one question, and how often it is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const ASKED: usize = 2;

/// Knows whom to ask, and for what.
pub struct DnsCheck {
    route53: aws_sdk_route53::Client,
    zone: String,
    base_domain: String,
    ingress: String,
    /// Who is asked instead of the zone's own servers; empty on AWS.
    servers: Vec<String>,
}

/// A name server: its name, for people, and a resolver that asks nobody else.
struct Server {
    name: String,
    resolver: TokioResolver,
}

impl DnsCheck {
    /// Reads HOSTED_ZONE_ID, BASE_DOMAIN, INGRESS_TARGET and, where others than the zone's own servers are asked,
    /// DNS_SERVERS. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(DnsCheck {
            route53: aws_sdk_route53::Client::new(&env.aws),
            zone: env.required("HOSTED_ZONE_ID")?,
            base_domain: env.required("BASE_DOMAIN")?,
            ingress: env.required("INGRESS_TARGET")?,
            servers: env.list("DNS_SERVERS"),
        })
    }

    /// Waits until the change is INSYNC, where one is given, and until every server answers with exactly the tenant's
    /// records. Returns the host and the servers that were asked.
    ///
    /// # Errors
    /// `Transient` when it is not so within the function's patience: the machine's retry goes on waiting.
    pub async fn check(&self, tenant: &Tenant, change: Option<&str>) -> Result<Value, StepError> {
        let servers = &self.servers().await?;
        let host = tenant.host(&self.base_domain);
        until_done(&format!("verifying {host} of tenant {}", tenant.id), || self.lack(tenant, change, servers)).await?;
        Ok(json!({ "host": host, "name_servers": servers.iter().map(|server| &server.name).collect::<Vec<_>>() }))
    }

    /// What is not there yet, if anything.
    async fn lack(
        &self,
        tenant: &Tenant,
        change: Option<&str>,
        servers: &[Server],
    ) -> Result<Option<String>, StepError> {
        if let Some(change) = change {
            let state = match self.route53.get_change().id(change).send().await {
                Ok(output) => output.change_info.map(|info| info.status),
                // Route 53 forgets changes; what the servers say counts.
                Err(error) if code(&error) == Some("NoSuchChange") => None,
                Err(error) => return Err(classify(&format!("asking for change {change}"), &error)),
            };
            if let Some(state) = state.filter(|state| *state != ChangeStatus::Insync) {
                return Ok(Some(format!("Route 53's change {change} is {state}")));
            }
        }
        let (host, ownership) = (tenant.host(&self.base_domain), tenant.ownership_record(&self.base_domain));
        let (ingress, text) = (&self.ingress, tenant.ownership_text());
        let lacks = futures::future::join_all(servers.iter().map(|server| async {
            let (alias, owner) =
                tokio::join!(server.ask(&host, RecordType::CNAME), server.ask(&ownership, RecordType::TXT));
            match (alias.as_deref(), owner.as_deref()) {
                (Ok([target]), Ok([owner])) if same_name(target, ingress) && *owner == text => None,
                (Ok([target]), Ok([owner])) if *owner == text => {
                    Some(format!("{} says that {host} is {target}, not {ingress}", server.name))
                }
                (Ok(_), Ok(found)) => Some(format!("{} has {} ownership records of ours", server.name, found.len())),
                (Err(error), _) | (_, Err(error)) => Some(format!("{}: {error}", server.name)),
            }
        }));
        Ok(lacks.await.into_iter().flatten().next())
    }

    async fn servers(&self) -> Result<Vec<Server>, StepError> {
        if self.servers.is_empty() {
            let names = self.zones_own().await?;
            return try_join_all(names.into_iter().map(|name| async { Server::named(name).await })).await;
        }
        let given = self.servers.iter().map(|server| match server.parse::<SocketAddr>() {
            Ok(address) => Server::new(server.clone(), address),
            Err(_) => Err(StepError::Misconfigured(format!("DNS_SERVERS: {server} is not an address and a port"))),
        });
        given.collect()
    }

    /// The name servers that the zone is delegated to.
    async fn zones_own(&self) -> Result<Vec<String>, StepError> {
        let doing = format!("reading the name servers of zone {}", self.zone);
        let zone = self.route53.get_hosted_zone().id(&self.zone).send().await;
        let zone = zone.map_err(|error| classify(&doing, &error))?;
        let servers = zone.delegation_set.map(|set| set.name_servers).unwrap_or_default();
        if servers.is_empty() {
            // A private zone has none that could be asked from outside its VPC.
            return Err(StepError::Misconfigured(format!("{doing}: it has none: name some in DNS_SERVERS")));
        }
        Ok(servers)
    }
}

impl Server {
    /// Finds a server's address. IPv4, where it has one: a VPC need not have the other.
    async fn named(name: String) -> Result<Self, StepError> {
        let found = tokio::net::lookup_host((name.as_str(), 53)).await;
        let found = found.map_err(|error| StepError::Transient(format!("looking for name server {name}: {error}")))?;
        let address = found.min_by_key(|address| !address.is_ipv4());
        let address = address.ok_or_else(|| StepError::Transient(format!("name server {name} has no address")))?;
        Server::new(name, address)
    }

    fn new(name: String, address: SocketAddr) -> Result<Self, StepError> {
        let resolver = resolver(address.ip(), address.port());
        let resolver = resolver.map_err(|error| StepError::Unexpected(format!("a resolver for {name}: {error}")))?;
        Ok(Server { name, resolver })
    }

    /// The values of a name's records of a type. None is an answer, silence is an error.
    async fn ask(&self, name: &str, record_type: RecordType) -> Result<Vec<String>, String> {
        match self.resolver.lookup(format!("{name}."), record_type).await {
            Ok(answer) => Ok(answer.answers().iter().filter_map(|record| value(&record.data)).collect()),
            Err(error) if error.is_no_records_found() => Err(format!("{name} has no {record_type} record yet")),
            Err(error) => Err(format!("asking for {name}: {error}")),
        }
    }
}

/// A resolver that asks one server only, believes nothing it heard before, and asks for no recursion.
fn resolver(ip: IpAddr, port: u16) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut udp = ConnectionConfig::udp();
    udp.port = port;
    let mut options = ResolverOpts::default();
    options.timeout = ANSWER_TIMEOUT;
    options.attempts = ASKED;
    options.cache_size = 0;
    options.recursion_desired = false;
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![NameServerConfig::new(ip, true, vec![udp])]);
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.with_options(options).build()
}

fn value(data: &RData) -> Option<String> {
    match data {
        RData::CNAME(target) => Some(target.0.to_ascii()),
        RData::TXT(text) => Some(text.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect()),
        _ => None,
    }
}
