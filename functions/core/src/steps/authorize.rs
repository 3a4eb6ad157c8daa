//! AuthorizeRequest: the gate as API Gateway asks it, a REST API's authorizer of type REQUEST.
//!
//! It answers in API Gateway's own words: a policy that allows or denies, or the error `Unauthorized`. The template's gateway
//! responses make 403 and 402 of the latter two (`docs/adr/0011-an-authorizer-only-looks.md`).

use async_trait::async_trait;
use serde_json::{Value, json};
use tenant_gate::{Gate, Reason, Verdict};
use tracing::Span;

use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::step::Step;

/// Who is let in or kept out, where it is no tenant that is known.
const NOBODY: &str = "nobody";

/// Answers API Gateway's question whether a request may go on.
pub struct AuthorizeRequest {
    gate: Gate,
}

/// What is read of an authorizer's event of type REQUEST.
struct Asked<'a> {
    host: &'a str,
    method_arn: &'a str,
}

impl AuthorizeRequest {
    /// Wires the step. Redis and the registry are connected to when they are first asked.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing or wrong.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        let blind = env.optional("WHEN_BLIND").unwrap_or_else(|| "closed".to_owned());
        let blind = blind.parse().map_err(|rule| StepError::Misconfigured(format!("WHEN_BLIND {rule}")))?;
        let gate = Gate::builder(&env.required("REDIS_URL")?, &env.required("BASE_DOMAIN")?)
            .registry(Database::registry(env)?)
            .when_blind(blind)
            .build()
            // The URL may hold a password.
            .map_err(|_| StepError::Misconfigured("REDIS_URL is no URL of a Redis".to_owned()))?;
        Ok(AuthorizeRequest { gate })
    }
}

impl<'a> Asked<'a> {
    fn read(event: &'a Value) -> Result<Self, StepError> {
        let headers = event["headers"].as_object();
        let host = headers.into_iter().flatten().find(|(name, _)| name.eq_ignore_ascii_case("host"));
        let method_arn = event["methodArn"].as_str().ok_or_else(|| {
            let rule = "must be there, as in a REST API's REQUEST authorizer event".to_owned();
            StepError::InvalidRequest(vec![Problem { field: "methodArn".to_owned(), rule }])
        })?;
        Ok(Asked { host: host.and_then(|(_, value)| value.as_str()).unwrap_or_default(), method_arn })
    }
}

#[async_trait]
impl Step for AuthorizeRequest {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let asked = Asked::read(input)?;
        // A look: what would be refused for used up calls can only be refused where 429 can be said.
        let refusal = match self.gate.decide_host(asked.host, 0).await {
            Verdict::Admitted(tenant, _) => {
                Span::current().record("tenant", tenant.slug.as_str());
                // API Gateway takes no null.
                let mut context = json!({ "tenant_slug": tenant.slug });
                let id = tenant.id.map(|id| id.to_string());
                if let Some(id) = &id {
                    context["tenant_id"] = json!(id);
                }
                return Ok(policy("Allow", id.as_deref().unwrap_or(NOBODY), asked.method_arn, &context));
            }
            Verdict::Refused(refusal) => refusal,
        };
        match refusal.reason {
            Reason::PaymentRequired => Err(StepError::Unauthorized),
            Reason::Unavailable => {
                Err(StepError::Transient("neither Redis nor the registry can be asked about the tenant".to_owned()))
            }
            Reason::Suspended | Reason::NotInService | Reason::QuotaExceeded => {
                Ok(policy("Deny", NOBODY, asked.method_arn, &json!({})))
            }
        }
    }
}

/// A decision on this one request, as API Gateway reads it.
fn policy(effect: &str, principal: &str, method_arn: &str, context: &Value) -> Value {
    json!({
        "principalId": principal,
        "policyDocument": {
            "Version": "2012-10-17",
            "Statement": [{ "Effect": effect, "Action": "execute-api:Invoke", "Resource": method_arn }],
        },
        "context": context,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_found_however_it_is_written() {
        for name in ["Host", "host", "HOST"] {
            let event = json!({"headers": {"Accept": "*/*", name: "acme.app.example.com"}, "methodArn": "arn"});
            assert_eq!(Asked::read(&event).map(|asked| asked.host).ok(), Some("acme.app.example.com"));
        }
        let event = json!({"headers": null, "methodArn": "arn"});
        assert_eq!(Asked::read(&event).map(|asked| asked.host).ok(), Some(""));
        let refused = Asked::read(&json!({"headers": {}})).map(|_| ()).expect_err("no methodArn");
        assert!(refused.to_string().contains("methodArn must be there"), "{refused}");
    }

    #[test]
    fn api_gateway_knows_a_payment_that_is_due_by_this_very_text() {
        assert_eq!(StepError::Unauthorized.to_string(), "Unauthorized");
    }
}
