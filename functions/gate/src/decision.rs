//! What the gate decides, and how it is said over HTTP.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::json;

use crate::tenant::Tenant;

/// draft-ietf-httpapi-ratelimit-headers-10: what is left of a policy, and the policy.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// How long a client waits before it asks a gate again that could ask nobody, in seconds.
const BLIND_RETRY_SECONDS: u64 = 5;

/// What the gate says to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it. Without a budget where the call is counted later.
    Admitted(Tenant, Option<Budget>),
    /// Answer with [`Refusal::response`].
    Refused(Refusal),
}

/// What is left of the billing cycle's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Calls that the cycle has.
    pub limit: i64,
    /// Calls that are left of it.
    pub remaining: i64,
    /// Seconds until the next cycle begins, rounded up.
    pub resets_in: u64,
    /// Seconds that this cycle has, as the policy's window: a month, so it differs from cycle to cycle.
    pub window: u64,
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The bill was not paid: 402.
    PaymentRequired,
    /// Suspended for another reason than the bill: 403.
    Suspended,
    /// No tenant in service has this host name: 403. Whether one had it, or is being made, is nobody's business.
    NotInService,
    /// The cycle's calls are used up: 429.
    QuotaExceeded,
    /// Neither Redis nor the registry can be asked, and the gate is closed then: 503.
    Unavailable,
}

/// A request that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// What is left of the cycle's calls, where that is the reason.
    pub budget: Option<Budget>,
}

impl Reason {
    /// The reason that a standing of the projection is, if it is one not to serve.
    pub fn of_standing(standing: &str) -> Option<Reason> {
        match standing {
            "active" => None,
            "payment_failure" => Some(Reason::PaymentRequired),
            "policy_violation" | "offboarding" | "admin" => Some(Reason::Suspended),
            // pending, provisioning, deprovisioned, unknown, and what a later version may add
            _ => Some(Reason::NotInService),
        }
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Reason::PaymentRequired => StatusCode::PAYMENT_REQUIRED,
            Reason::Suspended | Reason::NotInService => StatusCode::FORBIDDEN,
            Reason::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
            Reason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The last part of the problem's type.
    pub fn name(self) -> &'static str {
        match self {
            Reason::PaymentRequired => "payment-required",
            Reason::Suspended => "suspended",
            Reason::NotInService => "not-in-service",
            Reason::QuotaExceeded => "quota-exceeded",
            Reason::Unavailable => "unavailable",
        }
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Reason::PaymentRequired => {
                ("Payment required", "The subscription is not paid. Its owner can settle the open invoice.")
            }
            Reason::Suspended => ("Suspended", "This workspace is suspended. Its owner can ask the support."),
            Reason::NotInService => ("Not in service", "No workspace is served at this address."),
            Reason::QuotaExceeded => {
                ("Quota exceeded", "The plan's API calls of this billing cycle are used up. A larger plan has more.")
            }
            Reason::Unavailable => ("Unavailable", "It cannot be told now whether this request may be served."),
        }
    }
}

impl Refusal {
    pub(crate) fn new(reason: Reason) -> Self {
        Refusal { reason, budget: None }
    }

    /// Seconds after which the same request may be served, where that is known.
    pub fn retry_after(&self) -> Option<u64> {
        match self.reason {
            Reason::QuotaExceeded => self.budget.map(|budget| budget.resets_in),
            Reason::Unavailable => Some(BLIND_RETRY_SECONDS),
            _ => None,
        }
    }

    /// The problem document (RFC 9457).
    pub fn problem(&self) -> String {
        let (title, detail) = self.reason.words();
        json!({
            "type": format!("https://tenantry.dev/problems/{}", self.reason.name()),
            "title": title,
            "status": self.reason.status().as_u16(),
            "detail": detail,
        })
        .to_string()
    }

    /// The whole answer.
    pub fn response<B: From<String>>(&self) -> Response<B> {
        let mut response = Response::new(B::from(self.problem()));
        *response.status_mut() = self.reason.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        // A refusal ends with the next payment or the next cycle: nobody may keep it.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(budget) = &self.budget {
            budget.write(headers);
        }
        response
    }
}

impl Budget {
    /// Adds the RateLimit and RateLimit-Policy headers.
    pub fn write(&self, headers: &mut HeaderMap) {
        let Budget { limit, remaining, resets_in, window } = self;
        let fields = [
            (RATE_LIMIT_POLICY, format!("\"api-calls\";q={limit};w={window}")),
            (RATE_LIMIT, format!("\"api-calls\";r={remaining};t={resets_in}")),
        ];
        for (name, text) in fields {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_active_tenant_is_served() {
        assert_eq!(Reason::of_standing("active"), None);
        assert_eq!(Reason::of_standing("payment_failure"), Some(Reason::PaymentRequired));
        for standing in ["policy_violation", "offboarding", "admin"] {
            assert_eq!(Reason::of_standing(standing), Some(Reason::Suspended));
        }
        for standing in ["pending", "provisioning", "deprovisioned", "unknown", "", "Active"] {
            assert_eq!(Reason::of_standing(standing), Some(Reason::NotInService));
        }
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let budget = Budget { limit: 10, remaining: 0, resets_in: 90, window: 2_592_000 };
        let refusal = Refusal { reason: Reason::QuotaExceeded, budget: Some(budget) };
        let response = refusal.response::<String>();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "90");
        assert_eq!(response.headers()["ratelimit"], "\"api-calls\";r=0;t=90");
        assert_eq!(response.headers()["ratelimit-policy"], "\"api-calls\";q=10;w=2592000");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let problem: serde_json::Value = serde_json::from_str(response.body()).expect("JSON");
        assert_eq!(problem["status"], 429);
        assert_eq!(problem["type"], "https://tenantry.dev/problems/quota-exceeded");
    }
}
