//! Stripe, as localstripe plays it, and what stands in front of it to do what Stripe documents and localstripe does not:
//! idempotency keys, prices in place of plans, and invoices that are sent instead of charged.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tenantry_core::billing_event::STRIPE_TYPES;
use tokio::sync::Mutex;
use tokio::time::sleep;
use url::form_urlencoded::{Serializer, parse};

use crate::guard::{Guarded, Program};
use crate::proxy::{Kept, Proxy, Upstream, forwarded, serve};
use crate::tools::{Tools, free_port};

/// The key that functions have. localstripe asks for one and checks none.
pub const API_KEY: &str = "sk_test_tenantry_local";
const PATIENCE: Duration = Duration::from_secs(30);
/// Runs localstripe as this stack wants it.
const LAUNCHER: &str = include_str!("localstripe.py");
/// Stripe's own test card, as a payment method.
const TEST_CARD: &str = "pm_card_visa";
/// The plans' prices: id, and cents of a euro a month.
const PRICES: &[(&str, u32)] = &[("starter", 2900), ("growth", 19900), ("enterprise", 249_900)];

/// A running Stripe.
pub struct Stripe {
    process: Guarded,
    upstream: Upstream,
    front: Proxy,
}

/// Answers by key, each with what was asked: the same key with another request is an error.
type Answered = Arc<Mutex<HashMap<String, Arc<Mutex<Option<Answer>>>>>>;

#[derive(Clone)]
struct Answer {
    asked: Vec<u8>,
    status: StatusCode,
    body: Bytes,
}

impl Stripe {
    /// Starts localstripe and what stands in front of it, and makes the plans' prices.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(tools: &Tools, directory: &Path, logs: &Path) -> Result<Self> {
        let port = free_port()?;
        let home = directory.join("stripe");
        std::fs::create_dir_all(&home)?;
        let process = Program {
            name: "stripe",
            path: &tools.localstripe_python,
            args: vec!["-c".to_owned(), LAUNCHER.to_owned(), port.to_string()],
            environment: vec![
                ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
                ("HOME".to_owned(), home.display().to_string()),
                ("TMPDIR".to_owned(), home.display().to_string()),
                ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
            ],
            user: None,
            directory: &home,
            interrupt: false,
        }
        .start(logs)?;
        let upstream = Upstream { authority: format!("127.0.0.1:{port}"), tls: None };
        let answered = Answered::default();
        let behind = upstream.clone();
        let front = Proxy::listen(move |tcp, _| {
            let (upstream, answered) = (behind.clone(), answered.clone());
            serve(Box::new(tcp), move |request, kept| {
                let (upstream, answered) = (upstream.clone(), answered.clone());
                async move { answer(&upstream, &answered, request, &kept).await }
            })
        })
        .await?;
        let mut stripe = Stripe { process, upstream, front };
        stripe.prepare().await?;
        Ok(stripe)
    }

    async fn prepare(&mut self) -> Result<()> {
        let begun = Instant::now();
        let kept = Kept::default();
        while ask(&self.upstream, &kept, Method::GET, "/v1/plans", &[]).await.is_err() {
            self.check()?;
            ensure!(begun.elapsed() < PATIENCE, "localstripe does not answer; see {}", self.process.log().display());
            sleep(Duration::from_millis(50)).await;
        }
        for (id, cents) in PRICES {
            let cents = cents.to_string();
            let plan = [("id", *id), ("amount", &cents), ("currency", "eur"), ("interval", "month"), ("name", id)];
            ask(&self.upstream, &kept, Method::POST, "/v1/plans", &plan).await?;
        }
        Ok(())
    }

    /// Has the events that follow-billing listens to sent to a URL.
    ///
    /// # Errors
    /// When localstripe does not take it.
    pub async fn tell(&self, url: &str) -> Result<()> {
        let mut webhook = vec![("url", url), ("secret", "whsec_local")];
        webhook.extend(STRIPE_TYPES.iter().map(|kind| ("events[]", *kind)));
        send(&self.upstream, &Kept::default(), Method::POST, "/_config/webhooks/bus", &webhook).await.map(drop)
    }

    /// Fails when localstripe has ended by itself.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Where clients find it, `host:port`.
    pub fn authority(&self) -> String {
        self.front.address().to_string()
    }

    /// The URL of the API.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority())
    }
}

/// Has something happen to a subscription at Stripe that nobody asks Stripe for, such as a payment that fails: what becomes of
/// its attributes, and which events tell of it.
///
/// # Errors
/// When localstripe knows no such subscription.
pub async fn play(url: &str, subscription: &str, becomes: &Value, events: &[&str]) -> Result<()> {
    let request = reqwest::Client::new().post(format!("{url}/_local/subscriptions/{subscription}"));
    let played = json!({ "becomes": becomes, "events": events });
    request.bearer_auth(API_KEY).json(&played).send().await?.error_for_status()?;
    Ok(())
}

/// Asks localstripe itself.
async fn ask(upstream: &Upstream, kept: &Kept, method: Method, path: &str, form: &[(&str, &str)]) -> Result<Value> {
    Ok(serde_json::from_slice(&send(upstream, kept, method, path, form).await?)?)
}

async fn send(upstream: &Upstream, kept: &Kept, method: Method, path: &str, form: &[(&str, &str)]) -> Result<Bytes> {
    let body = Serializer::new(String::new()).extend_pairs(form).finish();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, &upstream.authority)
        .header(AUTHORIZATION, format!("Bearer {API_KEY}"))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Bytes::from(body))?;
    let answer = upstream.send(&mut *kept.lock().await, forwarded(request)).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "localstripe: {path}: {status}: {}", String::from_utf8_lossy(&body));
    Ok(body)
}

fn reply(status: StatusCode, body: Bytes, replayed: bool) -> Result<Response<Full<Bytes>>> {
    let mut response = Response::builder().status(status).header(CONTENT_TYPE, "application/json");
    if replayed {
        response = response.header("idempotent-replayed", "true");
    }
    Ok(response.body(Full::new(body))?)
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Result<Response<Full<Bytes>>> {
    reply(status, json!({"error": {"type": kind, "message": message}}).to_string().into(), false)
}

/// As Stripe documents it: the first answer of a key is kept, whatever it was, and given again to the same request; another
/// request with the key is an error, and one while the first is still being answered is a conflict.
async fn answer(
    upstream: &Upstream,
    answered: &Answered,
    request: Request<Bytes>,
    kept: &Kept,
) -> Result<Response<Full<Bytes>>> {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    let Some(key) = key.filter(|_| request.method() == Method::POST) else {
        let (status, body) = act(upstream, request, kept).await?;
        return reply(status, body, false);
    };
    let asked = [request.uri().to_string().as_bytes(), b"\n", request.body()].concat();
    let entry = answered.lock().await.entry(key).or_default().clone();
    let Ok(mut entry) = entry.try_lock_owned() else {
        return refusal(StatusCode::CONFLICT, "idempotency_error", "a request with this key is being answered");
    };
    if let Some(before) = &*entry {
        if before.asked == asked {
            return reply(before.status, before.body.clone(), true);
        }
        return refusal(StatusCode::BAD_REQUEST, "idempotency_error", "this key came with another request before");
    }
    // Finished even if the asker goes away: what has begun has its effect, and its answer is kept.
    let (upstream, kept) = (upstream.clone(), kept.clone());
    let acting = tokio::spawn(async move {
        let (status, body) = act(&upstream, request, &kept).await?;
        *entry = Some(Answer { asked, status, body: body.clone() });
        anyhow::Ok((status, body))
    });
    let (status, body) = acting.await??;
    reply(status, body, false)
}

/// What localstripe answers, once the request is one that it knows.
async fn act(upstream: &Upstream, request: Request<Bytes>, kept: &Kept) -> Result<(StatusCode, Bytes)> {
    let path = request.uri().path();
    let of_subscription = path == "/v1/subscriptions" || path.starts_with("/v1/subscriptions/");
    let request = if request.method() == Method::POST && of_subscription {
        subscription(upstream, kept, request).await?
    } else {
        request
    };
    let mut request = request;
    request.headers_mut().insert(HOST, upstream.authority.parse()?);
    let answer = upstream.send(&mut *kept.lock().await, forwarded(request)).await?;
    Ok((answer.status(), answer.into_body().collect().await?.to_bytes()))
}

/// A subscription, new or changed, in the words that localstripe knows. It sends no invoices: where they were to be sent, the customer is
/// given a test card, and charged.
async fn subscription(upstream: &Upstream, kept: &Kept, request: Request<Bytes>) -> Result<Request<Bytes>> {
    let (parts, body) = request.into_parts();
    let mut form: Vec<(String, String)> = parse(&body).into_owned().collect();
    let sends = form.iter().any(|(name, value)| name == "collection_method" && value == "send_invoice");
    // Of proration it knows the default alone, and no name for it.
    let unknown = ["collection_method", "days_until_due", "proration_behavior"];
    form.retain(|(name, _)| !unknown.contains(&name.as_str()));
    for (name, _) in &mut form {
        if name.starts_with("items[") && name.ends_with("[price]") {
            *name = name.replace("[price]", "[plan]");
        }
    }
    if sends && let Some((_, customer)) = form.iter().find(|(name, _)| name == "customer") {
        let attach = format!("/v1/payment_methods/{TEST_CARD}/attach");
        let card = ask(upstream, kept, Method::POST, &attach, &[("customer", customer)]).await?;
        let id = card["id"].as_str().context("no card")?;
        let default = [("invoice_settings[default_payment_method]", id)];
        ask(upstream, kept, Method::POST, &format!("/v1/customers/{customer}"), &default).await?;
    }
    let body = Serializer::new(String::new()).extend_pairs(form).finish();
    Ok(Request::from_parts(parts, Bytes::from(body)))
}
