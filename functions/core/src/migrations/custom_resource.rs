//! ApplyMigrations: the CloudFormation custom resource that brings the registry's database up to date on every deploy, and
//! fails the deploy when it cannot.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Applied, apply, roles};
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::step::Step;

/// What CloudFormation is given as the resource's id; it never changes, so that an update never deletes.
const PHYSICAL_ID: &str = "tenantry-migrations";
/// CloudFormation truncates a reason at 4,096 bytes, as the whole answer is limited; 1,000 characters say enough.
const MAX_REASON_CHARS: usize = 1000;
/// The longest an answer to CloudFormation may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Migrates on a CloudFormation event, or by hand.
pub struct ApplyMigrations {
    env: Environment,
    registry_secret: String,
    app_secret: String,
}

impl ApplyMigrations {
    /// Wires the function: REGISTRY_SECRET and APP_DATABASE_SECRET name the secrets of the provisioner's and of the
    /// application's login.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ApplyMigrations {
            env: env.clone(),
            registry_secret: env.required("REGISTRY_SECRET")?,
            app_secret: env.required("APP_DATABASE_SECRET")?,
        })
    }

    /// Handles a custom resource's event, answering to its ResponseURL; an event without one is a call by hand, whose answer
    /// is the result alone. `Delete` does nothing: tenants' data outlives the stack.
    ///
    /// # Errors
    /// By hand, what failed. From CloudFormation, only when the answer could not be delivered.
    pub async fn handle(&self, event: &Value) -> Result<Value, StepError> {
        let deleting = event.get("RequestType").and_then(Value::as_str) == Some("Delete");
        let outcome = if deleting { Ok(None) } else { self.migrate().await.map(Some) };
        let Some(url) = event.get("ResponseURL").and_then(Value::as_str) else {
            return Ok(json!({ "applied": outcome? }));
        };
        if let Err(error) = &outcome {
            tracing::error!(error = error.name(), %error, "migrations failed: the deploy fails");
        }
        let answer = answer(event, &outcome);
        deliver(url, &answer).await?;
        Ok(answer)
    }

    async fn migrate(&self) -> Result<Applied, StepError> {
        let app = Database::new(&self.env, self.app_secret.clone()).credentials().await?;
        let ca_bundle = self.env.optional("POSTGRES_CA_BUNDLE").map(PathBuf::from);
        let set_app_password = !roles::accepts(&app, ca_bundle.as_deref()).await?;
        // A connection of its own, closed at the end: with it end the settings and the lock.
        let database = Database::new(&self.env, self.registry_secret.clone());
        let mut client = database.client().await?;
        apply(&mut client, &app, set_app_password, &self.registry_secret).await
    }
}

#[async_trait]
impl Step for ApplyMigrations {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        self.handle(input).await
    }
}

/// The answer in CloudFormation's form.
fn answer(event: &Value, outcome: &Result<Option<Applied>, StepError>) -> Value {
    let echoed = |key: &str| event.get(key).cloned().unwrap_or_default();
    let physical_id = event.get("PhysicalResourceId").cloned().unwrap_or_else(|| PHYSICAL_ID.into());
    let (status, reason, applied) = match outcome {
        Ok(applied) => ("SUCCESS", String::new(), applied.clone()),
        Err(error) => ("FAILED", format!("{}: {error}", error.name()).chars().take(MAX_REASON_CHARS).collect(), None),
    };
    let mut answer = json!({
        "Status": status,
        "PhysicalResourceId": physical_id,
        "StackId": echoed("StackId"),
        "RequestId": echoed("RequestId"),
        "LogicalResourceId": echoed("LogicalResourceId"),
        "Data": {},
    });
    if !reason.is_empty() {
        answer["Reason"] = reason.into();
    }
    if let Some(applied) = applied {
        // Attributes are texts: an output of the stack can show them.
        answer["Data"] = json!({ "Registry": applied.registry.join(", "), "Pool": applied.pool.join(", ") });
    }
    answer
}

/// Puts the answer where the event says: a presigned S3 address, which signs an empty content type.
async fn deliver(url: &str, answer: &Value) -> Result<(), StepError> {
    let unusable = |why: String| StepError::Unexpected(format!("answering CloudFormation: {why}"));
    let mut request = HttpRequest::new(SdkBody::from(answer.to_string()));
    request.set_method("PUT").map_err(|error| unusable(error.to_string()))?;
    request.set_uri(url).map_err(|error| unusable(error.to_string()))?;
    request.headers_mut().insert("content-type", "");
    request.headers_mut().insert("content-length", answer.to_string().len().to_string());
    let connector = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring)).build();
    // The address holds a signature: errors say nothing of it.
    let response = match timeout(ANSWER_TIMEOUT, connector.call(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return Err(StepError::Transient("answering CloudFormation: no connection".into())),
        Err(_) => return Err(StepError::Transient("answering CloudFormation: no answer in time".into())),
    };
    if response.status().is_success() {
        return Ok(());
    }
    Err(unusable(format!("status {}", response.status().as_u16())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_reason_and_keeps_the_resource() {
        let event = json!({"StackId": "s", "RequestId": "r", "LogicalResourceId": "l", "PhysicalResourceId": "p"});
        let failed = answer(&event, &Err(StepError::Unexpected("pool migrations: V2__x: no".into())));
        assert_eq!(failed["Status"], "FAILED");
        assert_eq!(failed["Reason"], "Unexpected: pool migrations: V2__x: no");
        assert_eq!(failed["PhysicalResourceId"], "p");
    }
}
