//! The cluster that tenants' namespaces are in: a kubeconfig where one is named, EKS otherwise; and how Kubernetes' errors
//! become ours.

use std::time::{Duration, SystemTime};

use aws_credential_types::provider::ProvideCredentials;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::sync::Mutex;

use crate::eks_token;
use crate::environment::Environment;
use crate::error::StepError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A client is made anew this long before its token ends, so that no call starts with one about to expire.
const TOKEN_MARGIN: Duration = Duration::from_secs(2 * 60);

/// The cluster, reached on first use.
pub struct Cluster {
    env: Environment,
    client: Mutex<Option<(Client, SystemTime)>>,
}

impl Cluster {
    /// The cluster of `KUBECONFIG` or `EKS_CLUSTER`. Makes no network call and reads no file.
    ///
    /// # Errors
    /// `Misconfigured` when neither is set.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        if env.optional("KUBECONFIG").is_none() {
            env.required("EKS_CLUSTER")?;
        }
        Ok(Cluster { env: env.clone(), client: Mutex::new(None) })
    }

    /// A client that is logged in for two minutes at least; the same one until its token nears its end.
    ///
    /// # Errors
    /// As [`client`].
    pub async fn client(&self) -> Result<Client, StepError> {
        let mut kept = self.client.lock().await;
        // The wall clock, because a frozen function's monotonic clock may stand still.
        let now = SystemTime::now();
        match &*kept {
            Some((client, until)) if now < *until => Ok(client.clone()),
            _ => {
                let client = client(&self.env).await?;
                *kept = Some((client.clone(), now + eks_token::LIFETIME - TOKEN_MARGIN));
                Ok(client)
            }
        }
    }
}

/// A client of the cluster, from the kubeconfig that `KUBECONFIG` names, or for the EKS cluster `EKS_CLUSTER`, with a
/// token that EKS honours for [`eks_token::LIFETIME`]. Asks EKS for its endpoint, and the cluster for nothing yet.
///
/// # Errors
/// `Misconfigured` when neither is set or the kubeconfig is unusable; what EKS answers to DescribeCluster.
pub async fn client(env: &Environment) -> Result<Client, StepError> {
    let kubeconfig = match env.optional("KUBECONFIG") {
        Some(path) => Kubeconfig::read_from(&path).map_err(|error| unusable(&path, &error))?,
        None => eks_kubeconfig(env, &env.required("EKS_CLUSTER")?).await?,
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| unusable("the cluster's configuration", &error))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(REQUEST_TIMEOUT);
    config.write_timeout = Some(REQUEST_TIMEOUT);
    config.reset_reader_on_write = true; // otherwise a connection's idle time counts as waiting for an answer
    config.default_retry = false; // up to minutes; the state machine retries
    Client::try_from(config).map_err(|error| unusable("the cluster's configuration", &error))
}

fn unusable(what: &str, error: &dyn std::error::Error) -> StepError {
    StepError::Misconfigured(format!("{what} is unusable: {}", chain(error)))
}

/// What `aws eks update-kubeconfig` would write, with the token in place of the command that makes it.
async fn eks_kubeconfig(env: &Environment, name: &str) -> Result<Kubeconfig, StepError> {
    let answer = aws_sdk_eks::Client::new(&env.aws)
        .describe_cluster()
        .name(name)
        .send()
        .await
        .map_err(|error| crate::aws::classify(&format!("asking for EKS cluster {name}"), &error))?;
    let cluster = answer.cluster();
    let endpoint = cluster.and_then(aws_sdk_eks::types::Cluster::endpoint);
    let authority = cluster.and_then(|cluster| cluster.certificate_authority()?.data());
    let (Some(endpoint), Some(authority)) = (endpoint, authority) else {
        return Err(StepError::Transient(format!("EKS cluster {name} has no endpoint yet")));
    };
    let missing = |what| StepError::Misconfigured(format!("no AWS {what} to log in to EKS cluster {name} with"));
    let region = env.aws.region().ok_or_else(|| missing("region"))?;
    let credentials = env
        .aws
        .credentials_provider()
        .ok_or_else(|| missing("credentials"))?
        .provide_credentials()
        .await
        .map_err(|error| StepError::Transient(format!("getting AWS credentials: {}", chain(&error))))?;
    let token = eks_token::token(name, region.as_ref(), &credentials, SystemTime::now())?;
    serde_json::from_value(json!({
        "clusters": [{
            "name": name, "cluster": { "server": endpoint, "certificate-authority-data": authority },
        }],
        "users": [{ "name": name, "user": { "token": token } }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
        "current-context": name,
    }))
    .map_err(|error| StepError::Unexpected(format!("writing a kubeconfig for EKS cluster {name}: {error}")))
}

/// Turns a Kubernetes error into ours: `doing` says what was attempted, on what ("creating namespace tenant-…").
///
/// A call that got no answer is transient (every `ensure` and `remove` can be run again), and so are conflicts and what
/// the API server says of itself (429, 5xx).
pub fn classify(doing: &str, error: &kube::Error) -> StepError {
    let text = || format!("{doing}: {}", chain(error));
    match error {
        kube::Error::Api(status) => {
            let text = format!("{doing}: {} {}: {}", status.code, status.reason, status.message);
            let causes = status.details.iter().flat_map(|details| &details.causes);
            match status.code {
                // Making something in a namespace that is being deleted is answered with 403, for this cause.
                403 if causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating") => {
                    StepError::Transient(text)
                }
                401 | 403 => StepError::Denied(text),
                408 | 409 | 429 | 500.. => StepError::Transient(text),
                _ => StepError::Unexpected(text),
            }
        }
        kube::Error::HyperError(_) | kube::Error::Service(_) => StepError::Transient(text()),
        kube::Error::Auth(_) => StepError::Denied(text()),
        _ => StepError::Unexpected(text()),
    }
}

/// An error with its sources, which kube and hyper leave out of their own texts.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kube::core::response::StatusDetails;

    use super::*;

    #[test]
    fn only_what_may_pass_is_transient() {
        for (code, name) in [
            (400, "Unexpected"),
            (401, "Denied"),
            (403, "Denied"),
            (404, "Unexpected"),
            (409, "Transient"),
            (422, "Unexpected"),
            (429, "Transient"),
            (500, "Transient"),
            (503, "Transient"),
        ] {
            let error = kube::Error::Api(Status::failure("no", "Reason").with_code(code).boxed());
            assert_eq!(classify("doing", &error).name(), name, "{code}");
        }
        let details = serde_json::json!({"causes": [{"reason": "NamespaceTerminating"}]});
        let details: StatusDetails = serde_json::from_value(details).expect("details");
        let error = kube::Error::Api(Status::failure("no", "Forbidden").with_code(403).with_details(details).boxed());
        assert!(classify("doing", &error).is_transient());
    }
}
