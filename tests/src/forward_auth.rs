//! The gate as a service of its own: behind a real nginx with the configuration that we ship, and asked directly as Traefik and
//! Envoy ask.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tenant_gate::Verdict;
use tenantry_core::tenant::Tenant;
use tenantry_local::forward_auth::ForwardAuth;
use tenantry_local::nginx::Nginx;
use tenantry_local::redis::Redis;
use tenantry_local::stack::BASE_DOMAIN;
use tenantry_local::tools::{Tools, checkout, free_port};
use tokio::task::spawn_blocking;

use crate::Check;
use crate::gate::{gate, gate_at, grant};
use crate::suspension::{in_service, step};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("nginx_answers_with_the_gates_own_refusals_and_serves_again", |world| Box::pin(behind_nginx(world))),
    ("what_a_client_says_of_its_tenant_is_not_believed", |world| Box::pin(spoofed(world))),
    ("nginx_serves_nobody_without_the_service", |world| Box::pin(unanswered(world))),
    ("traefik_gets_the_answer_as_it_is", |world| Box::pin(as_traefik_asks(world))),
    ("envoy_says_nothing_of_what_counts", |world| Box::pin(as_envoy_asks(world))),
    ("a_blind_service_is_closed_or_open_as_it_was_told", |world| Box::pin(blind(world))),
    ("the_registrys_certificate_is_verified", |world| Box::pin(verified(world))),
    ("what_was_admitted_without_redis_is_counted_before_it_ends", |world| Box::pin(counted_at_the_end(world))),
];
/// Cases that need no stack.
pub const SAMPLES: &[(&str, Check)] = &[
    ("samples_ask_the_service_and_hand_on_who_the_tenant_is", samples),
    ("it_does_not_start_with_settings_that_are_wrong", wrong_settings),
];

/// Where nobody listens.
const NOWHERE: &str = "127.0.0.1:1";
/// As `tenant_gate` names the types of its problem documents.
const PROBLEMS: &str = "https://tenantry.dev/problems/";

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

/// A directory that goes with its test.
struct Scratch(PathBuf);

/// A product behind an nginx that asks the service.
struct Front {
    url: String,
    client: reqwest::Client,
    /// How many requests came through to the product.
    reached: Arc<AtomicU32>,
    service: Option<ForwardAuth>,
    _nginx: Nginx,
    _directory: Scratch,
}

impl Answer {
    /// Sends a request and reads the answer.
    pub async fn to(request: RequestBuilder) -> Result<Self> {
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Answer { status, headers, body: answer.text().await? })
    }

    /// A header's value; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Fails unless this is one of the gate's refusals, in the form that every client gets.
    pub fn is_refusal(&self, status: u16, name: &str) -> Result<()> {
        self.has_status(status)?;
        ensure!(self.header("content-type") == "application/problem+json", "{self:?}");
        ensure!(self.header("cache-control") == "no-store", "{self:?}");
        let problem: Value = serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))?;
        ensure!(problem["status"] == status && problem["type"] == format!("{PROBLEMS}{name}"), "{problem}");
        Ok(())
    }

    /// Fails unless the status is this one.
    pub fn has_status(&self, status: u16) -> Result<()> {
        ensure!(self.status == status, "not {status}: {self:?}");
        Ok(())
    }

    fn is_served(&self) -> Result<Value> {
        self.has_status(200)?;
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }
}

impl Scratch {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tenantry-front-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Front {
    async fn start(world: &World) -> Result<Self> {
        let directory = Scratch::make()?;
        let service = ForwardAuth::start(&settings(world)?, &directory.0).await?;
        let (product, reached) = product().await?;
        let port = free_port()?;
        let mut sample = std::fs::read_to_string(config("nginx.conf")?)?;
        for (documented, ours) in [
            ("127.0.0.1:8081;", format!("{};", service.authority())),
            ("127.0.0.1:3000;", format!("{product};")),
            ("listen 8080;", format!("listen 127.0.0.1:{port};")),
        ] {
            ensure!(sample.contains(documented), "the sample has no {documented:?}");
            sample = sample.replace(documented, &ours);
        }
        let nginx = Nginx::start(&Tools::load(&checkout()?)?, &sample, port, &directory.0).await?;
        let url = format!("http://127.0.0.1:{port}");
        let client = reqwest::Client::new();
        Ok(Front { url, client, reached, service: Some(service), _nginx: nginx, _directory: directory })
    }

    fn get(&self, tenant: &Tenant, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url)).header("host", tenant.host(BASE_DOMAIN))
    }

    /// Fails unless the tenant's next request ends here, before the product.
    async fn refuses(&self, tenant: &Tenant, status: u16, name: &str) -> Result<Answer> {
        let reached = self.reached.load(Ordering::SeqCst);
        let answer = Answer::to(self.get(tenant, "/orders.html")).await?;
        answer.is_refusal(status, name)?;
        ensure!(!answer.body.contains(tenant.slug.as_str()), "who is refused is told to anyone: {answer:?}");
        ensure!(answer.header("x-tenantry-status").is_empty(), "what is nginx's is told to the client: {answer:?}");
        ensure!(self.reached.load(Ordering::SeqCst) == reached, "the product was asked all the same");
        Ok(answer)
    }

    async fn end(self) -> Result<()> {
        Ok(spawn_blocking(move || drop(self)).await?)
    }
}

fn settings(world: &World) -> Result<Vec<(&str, &str)>> {
    let (redis, registry) = (world.export("REDIS_URL")?, world.export("APP_DATABASE_URL")?);
    Ok(vec![("REDIS_URL", redis), ("BASE_DOMAIN", BASE_DOMAIN), ("APP_DATABASE_URL", registry)])
}

fn config(name: &str) -> Result<PathBuf> {
    Ok(checkout()?.join("functions/forward-auth/config").join(name))
}

/// A product that says what it was told.
async fn product() -> Result<(String, Arc<AtomicU32>)> {
    let reached = Arc::<AtomicU32>::default();
    let app = Router::new().fallback(echo).with_state(Arc::clone(&reached));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let authority = listener.local_addr()?.to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok((authority, reached))
}

async fn echo(
    State(reached): State<Arc<AtomicU32>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    reached.fetch_add(1, Ordering::SeqCst);
    let status = if uri.path() == "/forbidden" { StatusCode::FORBIDDEN } else { StatusCode::OK };
    let header = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let told = json!({
        "method": method.as_str(),
        "target": uri.to_string(),
        "host": header("host"),
        "id": header("x-tenant-id"),
        "slug": header("x-tenant-slug"),
        "body": body,
    });
    (status, told.to_string())
}

async fn behind_nginx(world: &World) -> Result<()> {
    let front = Front::start(world).await?;
    let tenant = &in_service(world).await?;
    grant(world, tenant, 5).await?;
    // One call.
    let order = front.client.post(format!("{}/orders?page=2", front.url)).header("host", tenant.host(BASE_DOMAIN));
    let served = Answer::to(order.body("three of them")).await?;
    let told = served.is_served()?;
    ensure!(told["id"] == json!([tenant.id]) && told["slug"] == json!([tenant.slug]), "{told}");
    ensure!(told["host"] == json!([tenant.host(BASE_DOMAIN)]), "{told}");
    ensure!(
        told["method"] == "POST" && told["target"] == "/orders?page=2" && told["body"] == "three of them",
        "{told}"
    );
    ensure!(served.header("ratelimit").starts_with("\"api-calls\";r=4;t="), "{served:?}");
    ensure!(served.header("ratelimit-policy").starts_with("\"api-calls\";q=5;w="), "{served:?}");

    let nobody =
        Answer::to(front.client.get(&front.url).header("host", format!("nobody-at-all.{BASE_DOMAIN}"))).await?;
    nobody.is_refusal(403, "not-in-service")?;
    Answer::to(front.client.get(&front.url)).await?.is_refusal(403, "not-in-service")?;

    // At once, and at the very next request again.
    for (reason, status, name) in [("payment_failure", 402, "payment-required"), ("policy_violation", 403, "suspended")]
    {
        step(world, "suspend-tenant", tenant, reason).await?;
        front.refuses(tenant, status, name).await?;
        ensure!(Answer::to(front.get(tenant, "/login")).await?.status == status, "who is suspended may still log in");
        step(world, "reactivate-tenant", tenant, reason).await?;
        Answer::to(front.get(tenant, "/orders")).await?.is_served()?;
    }

    // A refusal of the product's own goes through as it is, and is a call.
    let own = Answer::to(front.get(tenant, "/forbidden")).await?;
    ensure!(own.status == 403 && own.body.contains(tenant.slug.as_str()), "{own:?}");
    ensure!(own.header("ratelimit").starts_with("\"api-calls\";r=1;t="), "{own:?}");
    Answer::to(front.get(tenant, "/orders")).await?.is_served()?;
    let exceeded = front.refuses(tenant, 429, "quota-exceeded").await?;
    let seconds: u64 = exceeded.header("retry-after").parse().with_context(|| format!("{exceeded:?}"))?;
    ensure!((1..=31 * 86_400).contains(&seconds), "{exceeded:?}");
    ensure!(exceeded.header("ratelimit") == format!("\"api-calls\";r=0;t={seconds}"), "{exceeded:?}");
    ensure!(exceeded.header("ratelimit-policy").starts_with("\"api-calls\";q=5;w="), "{exceeded:?}");
    // Logging in only looks, even where a smaller plan has made the calls too many.
    grant(world, tenant, 2).await?;
    Answer::to(front.get(tenant, "/login")).await?.is_served()?;
    front.refuses(tenant, 429, "quota-exceeded").await?;
    grant(world, tenant, 6).await?;
    Answer::to(front.get(tenant, "/orders")).await?.is_served()?;
    front.end().await
}

async fn spoofed(world: &World) -> Result<()> {
    let front = Front::start(world).await?;
    let (tenant, other) = (in_service(world).await?, in_service(world).await?);
    let claims = |request: RequestBuilder| {
        let claimed = [
            ("x-tenant-id", other.id.to_string()),
            ("X_Tenant_Id", other.id.to_string()),
            ("x-tenant-slug", other.slug.to_string()),
            ("x-forwarded-host", other.host(BASE_DOMAIN)),
            ("x-tenantry-status", "200".to_owned()),
        ];
        claimed.into_iter().fold(request, |request, (name, value)| request.header(name, value))
    };
    let told = Answer::to(claims(front.get(&tenant, "/orders"))).await?.is_served()?;
    ensure!(told["id"] == json!([tenant.id]) && told["slug"] == json!([tenant.slug]), "{told}");
    ensure!(!told.to_string().contains(other.slug.as_str()), "{told}");
    step(world, "suspend-tenant", &tenant, "payment_failure").await?;
    Answer::to(claims(front.get(&tenant, "/orders"))).await?.is_refusal(402, "payment-required")?;
    // What nginx asks the service is not for clients to ask.
    for path in ["/_gate/auth", "/_gate/look", "/_gate/"] {
        let answer = Answer::to(front.get(&other, path)).await?;
        ensure!(answer.status == 404 && answer.header("x-tenant-id").is_empty(), "{path}: {answer:?}");
    }
    let calls = gate(world)?.decide(other.slug.as_str(), 0).await;
    let Verdict::Admitted(_, Some(budget)) = calls else { anyhow::bail!("{calls:?}") };
    ensure!(budget.remaining == budget.limit, "another tenant's calls were used up: {budget:?}");
    front.end().await
}

async fn unanswered(world: &World) -> Result<()> {
    let mut front = Front::start(world).await?;
    let tenant = in_service(world).await?;
    Answer::to(front.get(&tenant, "/orders")).await?.is_served()?;
    let service = front.service.take();
    spawn_blocking(move || drop(service)).await?;
    let refused = front.refuses(&tenant, 503, "unavailable").await?;
    ensure!(refused.header("retry-after") == "5", "{refused:?}");
    front.end().await
}

/// A service without a proxy in front of it, until the work with it is done.
async fn with_service<F>(settings: &[(&str, &str)], work: impl FnOnce(String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let directory = Scratch::make()?;
    let service = ForwardAuth::start(settings, &directory.0).await?;
    let done = work(format!("http://{}", service.authority())).await;
    spawn_blocking(move || drop((service, directory))).await?;
    done
}

async fn as_traefik_asks(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    grant(world, &tenant, 1).await?;
    let mut settings = settings(world)?;
    settings.push(("HOST_HEADER", "X-Forwarded-Host"));
    with_service(&settings, async |url| {
        let client = reqwest::Client::new();
        let ask = async |path: &str, host: &str| {
            let forwarded = client.get(format!("{url}{path}")).header("x-forwarded-method", "POST");
            Answer::to(forwarded.header("x-forwarded-host", host)).await
        };
        let host = tenant.host(BASE_DOMAIN);
        let admitted = ask("/auth", &host).await?;
        ensure!(admitted.status == 200 && admitted.body.is_empty(), "{admitted:?}");
        ensure!(admitted.header("x-tenant-id") == tenant.id.to_string(), "{admitted:?}");
        ensure!(admitted.header("x-tenant-slug") == tenant.slug.as_str(), "{admitted:?}");
        ensure!(admitted.header("ratelimit").starts_with("\"api-calls\";r=0;t="), "{admitted:?}");
        let exceeded = ask("/auth", &host).await?;
        exceeded.is_refusal(429, "quota-exceeded")?;
        ensure!(exceeded.headers.contains_key("retry-after"), "{exceeded:?}");
        ensure!(exceeded.header("ratelimit").starts_with("\"api-calls\";r=0;t="), "{exceeded:?}");
        ensure!(ask("/look", &host).await?.status == 200, "a look is refused for calls");
        step(world, "suspend-tenant", &tenant, "payment_failure").await?;
        ask("/auth", &host).await?.is_refusal(402, "payment-required")?;
        ask("/look", &host).await?.is_refusal(402, "payment-required")?;
        step(world, "suspend-tenant", &tenant, "policy_violation").await?;
        ask("/auth", &host).await?.is_refusal(403, "suspended")?;
        ask("/auth", "nobody-at-all.app.example.com").await?.is_refusal(403, "not-in-service")?;
        // Any other header is not what Traefik wrote.
        let other = in_service(world).await?.host(BASE_DOMAIN);
        let by_host = client.get(format!("{url}/auth")).header("host", &other);
        Answer::to(by_host).await?.is_refusal(403, "not-in-service")?;
        let two =
            client.get(format!("{url}/auth")).header("x-forwarded-host", &other).header("x-forwarded-host", &host);
        Answer::to(two).await?.is_refusal(403, "not-in-service")?;
        let alive = Answer::to(client.get(format!("{url}/healthz"))).await?;
        ensure!(alive.status == 200, "{alive:?}");
        ensure!(ask("/", &host).await?.status == 404, "what nobody asks is answered");
        Ok(())
    })
    .await
}

async fn as_envoy_asks(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    grant(world, &tenant, 4).await?;
    with_service(&settings(world)?, async |url| {
        let client = reqwest::Client::new();
        // The client's own method, authority and path, behind the prefix: nothing in them makes a call cheaper.
        let asked = [
            (Method::GET, "/auth/"),
            (Method::POST, "/auth/orders?calls=0"),
            (Method::DELETE, "/auth/look"),
            (Method::OPTIONS, "/auth/nginx/look"),
        ];
        for (left, (method, path)) in (0..4).rev().zip(asked) {
            let asked = client
                .request(method, format!("{url}{path}"))
                .header("host", format!("{}:443", tenant.host(BASE_DOMAIN)));
            let admitted = Answer::to(asked).await?;
            ensure!(admitted.status == 200, "{path}: {admitted:?}");
            ensure!(admitted.header("x-tenant-slug") == tenant.slug.as_str(), "{path}: {admitted:?}");
            let limit = admitted.header("ratelimit");
            ensure!(limit.starts_with(&format!("\"api-calls\";r={left};t=")), "{path}: {limit}");
        }
        let host = tenant.host(BASE_DOMAIN);
        Answer::to(client.get(format!("{url}/auth/orders")).header("host", &host))
            .await?
            .is_refusal(429, "quota-exceeded")?;
        ensure!(Answer::to(client.get(format!("{url}/look/orders")).header("host", &host)).await?.status == 200);
        Ok(())
    })
    .await
}

async fn blind(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let (redis, registry) = (format!("redis://{NOWHERE}"), format!("postgres://tenantry_app@{NOWHERE}/registry"));
    for (when_blind, status) in [("closed", 503), ("open", 200)] {
        let settings = [
            ("REDIS_URL", redis.as_str()),
            ("BASE_DOMAIN", BASE_DOMAIN),
            ("APP_DATABASE_URL", registry.as_str()),
            ("WHEN_BLIND", when_blind),
        ];
        with_service(&settings, async |url| {
            let client = reqwest::Client::new();
            let ask = async |path: &str| {
                Answer::to(client.get(format!("{url}{path}")).header("host", tenant.host(BASE_DOMAIN))).await
            };
            let answer = ask("/auth").await?;
            ensure!(answer.status == status, "{when_blind}: {answer:?}");
            if when_blind == "open" {
                // Empty, and not left out: a proxy that merges headers must not let the client's own through.
                let id = answer.headers.get("x-tenant-id");
                ensure!(id.is_some_and(|id| id.is_empty()), "{answer:?}");
                ensure!(answer.header("x-tenant-slug") == tenant.slug.as_str(), "{answer:?}");
            } else {
                answer.is_refusal(503, "unavailable")?;
                let for_nginx = ask("/nginx/auth").await?;
                ensure!(for_nginx.status == 403 && for_nginx.header("x-tenantry-status") == "503", "{for_nginx:?}");
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn verified(world: &World) -> Result<()> {
    let bundle = world.env.required("POSTGRES_CA_BUNDLE")?;
    let another = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?.cert.pem();
    let directory = Scratch::make()?;
    let wrong = directory.0.join("another.pem");
    std::fs::write(&wrong, another)?;
    let wrong = wrong.display().to_string();
    for (bundle, status) in [(bundle.as_str(), 200), (wrong.as_str(), 503)] {
        let mut settings = settings(world)?;
        // Redis is nowhere, so the registry is what answers.
        settings.retain(|(name, _)| *name != "REDIS_URL");
        let redis = format!("redis://{NOWHERE}");
        settings.extend([("REDIS_URL", redis.as_str()), ("POSTGRES_CA_BUNDLE", bundle)]);
        let tenant = in_service(world).await?;
        with_service(&settings, async |url| {
            let asked = reqwest::Client::new().get(format!("{url}/look")).header("host", tenant.host(BASE_DOMAIN));
            let answer = Answer::to(asked).await?;
            ensure!(answer.status == status, "{bundle}: {answer:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn counted_at_the_end(world: &World) -> Result<()> {
    let (tenant, directory) = (in_service(world).await?, Scratch::make()?);
    let tools = Tools::load(&checkout()?)?;
    let redis = Redis::start(&tools, &directory.0, &directory.0).await?;
    let (port, redis_url) = (redis.port(), redis.url());
    let mut settings = settings(world)?;
    settings.retain(|(name, _)| *name != "REDIS_URL");
    settings.push(("REDIS_URL", &redis_url));
    let mut service = ForwardAuth::start(&settings, &directory.0).await?;
    let (client, url) = (reqwest::Client::new(), format!("http://{}/auth", service.authority()));
    let call = async || Answer::to(client.get(&url).header("host", tenant.host(BASE_DOMAIN))).await?.has_status(200);
    call().await?;
    spawn_blocking(move || drop(redis)).await?;
    for _ in 0..5 {
        call().await?;
    }
    // Told to end while Redis is away, it waits for it.
    service.release();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let redis = Redis::start_at(port, &tools, &directory.0, &directory.0).await?;
    spawn_blocking(move || drop(service)).await?;
    let calls = gate_at(world, &redis_url)?.decide(tenant.slug.as_str(), 0).await;
    let Verdict::Admitted(_, Some(budget)) = calls else { anyhow::bail!("{calls:?}") };
    ensure!(budget.limit - budget.remaining == 5, "the one before was lost with Redis, five came after: {budget:?}");
    Ok(spawn_blocking(move || drop((redis, directory))).await?)
}

fn yaml(name: &str) -> Result<Value> {
    let text = std::fs::read_to_string(config(name)?)?;
    serde_yaml_ng::from_str(&text).with_context(|| name.to_owned())
}

fn samples() -> Result<()> {
    let traefik = yaml("traefik.yaml")?;
    let (routers, middlewares) = (&traefik["http"]["routers"], &traefik["http"]["middlewares"]);
    for (router, path) in [("product", "/auth"), ("login", "/look")] {
        let used = routers[router]["middlewares"][0].as_str().context("a router without a middleware")?;
        let asked = &middlewares[used]["forwardAuth"];
        ensure!(asked["address"] == format!("http://127.0.0.1:8081{path}"), "{router}: {asked}");
        ensure!(asked["trustForwardHeader"] == false, "{router} believes clients: {asked}");
        let handed_on = json!(["X-Tenant-Id", "X-Tenant-Slug", "RateLimit", "RateLimit-Policy"]);
        ensure!(asked["authResponseHeaders"] == handed_on, "{router}: {asked}");
        ensure!(traefik["http"]["services"][routers[router]["service"].as_str().unwrap_or_default()].is_object());
    }
    let envoy = yaml("envoy.yaml")?;
    let manager = &envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    let removed = &manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"];
    ensure!(*removed == json!([{"remove": "x-tenant-id"}, {"remove": "x-tenant-slug"}]), "{removed}");
    let filters = manager["http_filters"].as_array().context("no filters")?;
    let names: Vec<_> = filters.iter().filter_map(|filter| filter["name"].as_str()).collect();
    ensure!(names == ["envoy.filters.http.ext_authz", "envoy.filters.http.router"], "{names:?}");
    let gate = &filters[0]["typed_config"];
    ensure!(gate["http_service"]["path_prefix"] == "/auth" && gate["failure_mode_allow"] == false, "{gate}");
    let response = &gate["http_service"]["authorization_response"];
    let handed_on = &response["allowed_upstream_headers"]["patterns"];
    ensure!(*handed_on == json!([{"exact": "x-tenant-id"}, {"exact": "x-tenant-slug"}]), "{handed_on}");
    let clusters = envoy["static_resources"]["clusters"].as_array().context("no clusters")?;
    let port = |name: &Value| {
        let cluster = clusters.iter().find(|cluster| cluster["name"] == *name)?;
        let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        endpoint["address"]["socket_address"]["port_value"].as_u64()
    };
    ensure!(port(&gate["http_service"]["server_uri"]["cluster"]) == Some(8081), "ext_authz asks no known cluster");
    Ok(())
}

fn wrong_settings() -> Result<()> {
    let started = Command::new(tenantry_local::functions::built()?.join("forward-auth"))
        .env_clear()
        .envs([("WHEN_BLIND", "half"), ("REDIS_URL", "redis://127.0.0.1"), ("BASE_DOMAIN", BASE_DOMAIN)])
        .output()
        .context("forward-auth")?;
    let said = String::from_utf8_lossy(&started.stdout);
    ensure!(!started.status.success(), "it started: {said}");
    let line: Value =
        serde_json::from_str(said.lines().last().unwrap_or_default()).with_context(|| said.to_string())?;
    let error = line["error"].as_str().unwrap_or_default();
    ensure!(
        error.contains("WHEN_BLIND must be closed or open") && error.contains("APP_DATABASE_URL must be set"),
        "{line}"
    );
    Ok(())
}
