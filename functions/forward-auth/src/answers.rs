//! What proxies ask, and how they are answered.
//!
//! | path | counts | a refusal is | for |
//! |---|---|---|---|
//! | `/auth`, `/auth/…` | one call | its own status: 402, 403, 429 or 503 | Traefik, Envoy |
//! | `/look`, `/look/…` | nothing | the same | the same, for pages that log people in |
//! | `/nginx/auth` | one call | 403, and its own status in a header | nginx, which makes 500 of others |
//! | `/nginx/look` | nothing | the same | the same, for pages that log people in |
//! | `/healthz` | | 200 | whoever looks after the process |
//!
//! Whether a call is counted is said by the path's beginning, which the proxy's configuration alone decides on. Envoy appends
//! the client's own path and query to it: nothing in those is looked at.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use axum::routing::{any, get};
use tenant_gate::{Budget, Gate, Refusal, Tenant, Verdict};

/// The admitted tenant's id, for the service behind the proxy. Empty where it is not known: [`tenant_gate::Blind::Open`].
const TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
/// The admitted tenant's slug.
const TENANT_SLUG: HeaderName = HeaderName::from_static("x-tenant-slug");
/// The status that nginx is to give the client.
const STATUS: HeaderName = HeaderName::from_static("x-tenantry-status");
/// The problem document that nginx is to give the client: nginx reads no body of an answer like this one.
const PROBLEM: HeaderName = HeaderName::from_static("x-tenantry-problem");

/// Whom the proxy is, as far as it changes the answer.
#[derive(Clone, Copy)]
enum Form {
    /// Hands a refusal on as it is.
    Plain,
    /// Hands on 401 and 403 alone.
    Nginx,
}

#[derive(Clone)]
struct Door {
    gate: Gate,
    host_header: HeaderName,
}

/// The service: asks `gate` about the host that proxies write into `host_header`.
pub fn router(gate: Gate, host_header: HeaderName) -> Router {
    let asked = |calls: u32, form: Form| {
        any(async move |State(door): State<Door>, uri: Uri, headers: HeaderMap| {
            door.answer(&uri, &headers, calls, form).await
        })
    };
    let mut router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/nginx/auth", asked(1, Form::Nginx))
        .route("/nginx/look", asked(0, Form::Nginx));
    for (path, calls) in [("/auth", 1), ("/look", 0)] {
        router = router
            .route(path, asked(calls, Form::Plain))
            .route(&format!("{path}/"), asked(calls, Form::Plain))
            .route(&format!("{path}/{{*clients}}"), asked(calls, Form::Plain));
    }
    router.with_state(Door { gate, host_header })
}

impl Door {
    async fn answer(&self, uri: &Uri, headers: &HeaderMap, calls: u32, form: Form) -> Response<Body> {
        let host = self.host(uri, headers).unwrap_or_default();
        match self.gate.decide_host(host, calls).await {
            Verdict::Admitted(tenant, budget) => admitted(&tenant, budget.as_ref()),
            Verdict::Refused(refusal) => refused(&refusal, form),
        }
    }

    /// The client's host, if the proxy named one. Two are none: which of them the product would believe is not known.
    fn host<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
        if self.host_header == HOST
            && let Some(host) = uri.host()
        {
            return Some(host);
        }
        let mut named = headers.get_all(&self.host_header).iter();
        let host = named.next()?.to_str().ok()?;
        named.next().is_none().then_some(host)
    }
}

fn admitted(tenant: &Tenant, budget: Option<&Budget>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let id = tenant.id.map(|id| id.to_string()).unwrap_or_default();
    for (name, text) in [(TENANT_ID, id.as_str()), (TENANT_SLUG, tenant.slug.as_str())] {
        write(headers, name, text);
    }
    if let Some(budget) = budget {
        budget.write(headers);
    }
    response
}

fn refused(refusal: &Refusal, form: Form) -> Response<Body> {
    let mut response = refusal.response();
    if let Form::Nginx = form {
        let headers = response.headers_mut();
        write(headers, STATUS, refusal.reason.status().as_str());
        write(headers, PROBLEM, &refusal.problem());
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response
}

fn write(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use tenant_gate::Reason;

    use super::*;

    fn door(host_header: &str) -> Door {
        let gate = Gate::builder("redis://127.0.0.1:1", "app.example.com").build().expect("a gate");
        Door { gate, host_header: host_header.parse().expect("a header's name") }
    }

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[tokio::test]
    async fn only_the_header_that_was_chosen_names_the_host() {
        let uri = Uri::from_static("/auth");
        let both = headers(&[("host", "forward-auth"), ("x-forwarded-host", "acme.app.example.com")]);
        assert_eq!(door("Host").host(&uri, &both), Some("forward-auth"));
        assert_eq!(door("X-Forwarded-Host").host(&uri, &both), Some("acme.app.example.com"));
        assert_eq!(door("X-Forwarded-Host").host(&uri, &headers(&[("host", "acme.app.example.com")])), None);
        let two =
            headers(&[("x-forwarded-host", "acme.app.example.com"), ("x-forwarded-host", "globex.app.example.com")]);
        assert_eq!(door("X-Forwarded-Host").host(&uri, &two), None);
    }

    #[test]
    fn nginx_learns_in_headers_what_others_learn_from_the_answer_itself() {
        let refusal = Refusal { reason: Reason::PaymentRequired, budget: None };
        assert_eq!(refused(&refusal, Form::Plain).status(), 402);
        let answer = refused(&refusal, Form::Nginx);
        assert_eq!((answer.status().as_u16(), &answer.headers()[STATUS]), (403, &HeaderValue::from_static("402")));
        assert_eq!(answer.headers()[PROBLEM].to_str().ok(), Some(refusal.problem().as_str()));
    }
}
