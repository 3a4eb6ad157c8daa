//! Stripe's API, as far as billing a tenant needs it.
//!
//! Form-encoded requests over the HTTP client that the AWS SDK brings along: a Stripe SDK would add another client, and
//! thousands of types for six calls.

use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::environment::Environment;
use crate::error::StepError;
use crate::subscription::Subscription;

/// The version of the API that this code was written for: an account's own default may be any.
const API_VERSION: &str = "2024-06-20";
/// The longest one request may take. A step makes up to ten, well below the functions' `Timeout` where Stripe is well.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A Stripe account.
pub struct Stripe {
    http: SharedHttpConnector,
    base: String,
    secrets: aws_sdk_secretsmanager::Client,
    secret_id: String,
    key: OnceCell<String>,
}

/// What the account's secret holds.
#[derive(Deserialize)]
struct ApiKey {
    api_key: String,
}

impl Stripe {
    /// Reads STRIPE_SECRET and STRIPE_API_URL. `None` where STRIPE_SECRET is empty: this stack bills nobody. Makes no network
    /// call.
    ///
    /// # Errors
    /// `Misconfigured` when STRIPE_API_URL is missing.
    pub fn from_env(env: &Environment) -> Result<Option<Self>, StepError> {
        let Some(secret_id) = env.optional("STRIPE_SECRET") else { return Ok(None) };
        let http = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring)).build();
        Ok(Some(Stripe {
            http: SharedHttpConnector::new(http),
            base: env.required("STRIPE_API_URL")?.trim_end_matches('/').to_owned(),
            secrets: aws_sdk_secretsmanager::Client::new(&env.aws),
            secret_id,
            key: OnceCell::new(),
        }))
    }

    /// Reads an object, or a list. `None` where Stripe has none of that id.
    ///
    /// # Errors
    /// As [`judge`].
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Option<Value>, StepError> {
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", encoded(query)) };
        self.send("GET", &path, None, None).await
    }

    /// A subscription as it is now; one that is over stays readable.
    ///
    /// # Errors
    /// As [`judge`]; `Unexpected` where Stripe has none of that id, or in a status that is not known.
    pub async fn subscription(&self, id: &str) -> Result<Subscription, StepError> {
        let object = self.get(&format!("/v1/subscriptions/{id}"), &[]).await?;
        let object = object.ok_or_else(|| {
            StepError::Unexpected(format!(
                "Stripe knows no subscription {id}: is the key in STRIPE_SECRET another account's?"
            ))
        })?;
        Subscription::of_stripe(&object)
    }

    /// All objects of a list, page by page.
    ///
    /// # Errors
    /// As [`judge`].
    pub async fn list(&self, path: &str, query: &[(&str, &str)]) -> Result<Vec<Value>, StepError> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after = all.last().and_then(|last| last["id"].as_str()).map(str::to_owned);
            let mut query = query.to_vec();
            query.push(("limit", "100"));
            query.extend(after.as_deref().map(|after| ("starting_after", after)));
            let Some(mut page) = self.get(path, &query).await? else { return Ok(all) };
            let more = page["has_more"] == true;
            let data = page["data"].as_array_mut().map(std::mem::take).unwrap_or_default();
            let empty = data.is_empty();
            all.extend(data);
            if !more || empty {
                return Ok(all);
            }
        }
    }

    /// Creates or changes an object. Stripe answers the same key with the same answer for 24 hours.
    ///
    /// # Errors
    /// As [`judge`]; `Unexpected` where what the path names does not exist.
    pub async fn post(&self, path: &str, form: &[(&str, &str)], idempotency_key: &str) -> Result<Value, StepError> {
        let answer = self.send("POST", path, Some(encoded(form)), Some(idempotency_key)).await?;
        answer.ok_or_else(|| StepError::Unexpected(format!("Stripe: POST {path}: what it names does not exist")))
    }

    /// Deletes an object; absent is success.
    ///
    /// # Errors
    /// As [`judge`].
    pub async fn delete(&self, path: &str) -> Result<(), StepError> {
        self.send("DELETE", path, None, None).await.map(drop)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        form: Option<String>,
        idempotency_key: Option<&str>,
    ) -> Result<Option<Value>, StepError> {
        // The query may hold an address.
        let doing = format!("Stripe: {method} {}", path.split('?').next().unwrap_or_default());
        let unusable = |why: String| StepError::Misconfigured(format!("{doing}: {why}"));
        let key = self.key.get_or_try_init(|| self.read_key()).await?;
        let body = form.unwrap_or_default();
        let mut request = HttpRequest::new(SdkBody::from(body.clone()));
        request.set_method(method).map_err(|error| unusable(error.to_string()))?;
        request.set_uri(format!("{}{path}", self.base)).map_err(|error| unusable(error.to_string()))?;
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {key}"));
        headers.insert("stripe-version", API_VERSION);
        let function = std::env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default();
        headers.insert("user-agent", format!("tenantry app/{function}"));
        if method == "POST" {
            headers.insert("content-type", "application/x-www-form-urlencoded");
            headers.insert("content-length", body.len().to_string());
        }
        if let Some(key) = idempotency_key {
            headers.insert("idempotency-key", key.to_owned());
        }
        let lost = |what: &str| StepError::Transient(format!("{doing}: {what}"));
        let exchange = async {
            let response = self.http.call(request).await.map_err(|_| lost("no answer"))?;
            let status = response.status().as_u16();
            let body = ByteStream::new(response.into_body()).collect().await.map_err(|_| lost("half an answer"))?;
            Ok::<_, StepError>((status, body.into_bytes()))
        };
        let (status, body) = timeout(REQUEST_TIMEOUT, exchange).await.map_err(|_| lost("no answer in time"))??;
        judge(&doing, status, &serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn read_key(&self) -> Result<String, StepError> {
        let doing = format!("reading secret {}", self.secret_id);
        let secret = self.secrets.get_secret_value().secret_id(&self.secret_id).send().await;
        let secret = secret.map_err(|error| crate::aws::classify(&doing, &error))?;
        let key: ApiKey = serde_json::from_str(secret.secret_string().unwrap_or_default())
            .map_err(|_| StepError::Misconfigured(format!("{doing}: it must hold {{\"api_key\": …}}")))?;
        Ok(key.api_key)
    }
}

/// Whether an object's `metadata` marks it as the tenant's.
pub fn marked(object: &Value, name: &str, value: &str) -> bool {
    object["metadata"][name] == value && object["deleted"] != true
}

fn encoded(form: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish()
}

/// Stripe's answer as ours. Its messages repeat what was sent, addresses included: only its own words are kept.
///
/// # Errors
/// `Transient` for a lost answer, a conflict of two requests (409), too many (429) and faults of Stripe's (5xx); `Denied` for
/// a key that is refused; `Conflict` for a payment that did not go through (402); `Unexpected` otherwise.
fn judge(doing: &str, status: u16, body: &Value) -> Result<Option<Value>, StepError> {
    let word = |key: &str| body["error"][key].as_str();
    let words: Vec<&str> = ["type", "code", "decline_code", "param"].into_iter().filter_map(word).collect();
    let text = format!("{doing}: status {status} {}", words.join(", "));
    match status {
        200..=299 => Ok(Some(body.clone())),
        404 => Ok(None),
        401 | 403 => Err(StepError::Denied(text)),
        402 => {
            Err(StepError::Conflict(format!("{text}: the payment did not go through; the owner must pay otherwise")))
        }
        409 | 429 | 500..=599 => Err(StepError::Transient(text)),
        _ => Err(StepError::Unexpected(text)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stripe_repeats_is_not_kept() {
        let body =
            json!({"error": {"type": "invalid_request_error", "param": "email", "message": "bad: ada@x.example"}});
        let error = judge("Stripe: POST /v1/customers", 400, &body).expect_err("refused");
        assert_eq!(error.to_string(), "Stripe: POST /v1/customers: status 400 invalid_request_error, email");
    }

    #[test]
    fn only_what_may_pass_is_transient() {
        for status in [409, 429, 500, 503] {
            assert!(judge("x", status, &Value::Null).expect_err("an error").is_transient());
        }
        assert!(matches!(judge("x", 401, &Value::Null), Err(StepError::Denied(_))));
        assert!(matches!(judge("x", 402, &Value::Null), Err(StepError::Conflict(_))));
        assert!(matches!(judge("x", 404, &Value::Null), Ok(None)));
    }
}
