//! A proxy in front of AWS's endpoint that writes down what was called.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use aws_config::SdkConfig;
use tenantry_core::environment::Environment;
use tenantry_local::proxy::{self, Call, Proxy, System, Tap, Upstream, Verdict};

use crate::world::World;

/// Records the calls that go through [`Recorder::env`].
pub struct Recorder {
    /// The world's settings with the proxy as the AWS endpoint.
    pub env: Environment,
    calls: Arc<Calls>,
    _proxy: Proxy,
}

/// What was called, in order.
#[derive(Default)]
struct Calls(Mutex<Vec<String>>);

impl Recorder {
    /// Listens on a free port until it is dropped.
    pub async fn start(world: &World) -> Result<Self> {
        let endpoint = world.env.aws.endpoint_url().context("the stack's AWS endpoint is not set")?;
        let authority = endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let calls = Arc::<Calls>::default();
        let proxy = proxy::http(System::Aws, Upstream { authority, tls: None }, None, calls.clone()).await?;
        let mut env = world.env.clone();
        env.aws = through(&env.aws, format!("http://{}", proxy.address()));
        Ok(Recorder { env, calls, _proxy: proxy })
    }

    /// The calls since the last question that may have changed something, by name: an S3 or Route 53 request line, or the
    /// operation of a service that names it.
    pub fn mutations(&self) -> Vec<String> {
        let calls = std::mem::take(&mut *self.calls.0.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(!calls.is_empty(), "nothing went through the recorder");
        calls.into_iter().filter(|call| !reads(call)).collect()
    }
}

impl Tap for Calls {
    fn judge(&self, call: &Call) -> Verdict {
        let target = call.headers.get("x-amz-target").and_then(|target| target.to_str().ok()?.split('.').nth(1));
        let action = url::form_urlencoded::parse(&call.body).find(|(name, _)| name == "Action");
        let name = match (target, action) {
            (Some(operation), _) => operation.to_owned(),
            (None, Some((_, action))) => action.into_owned(),
            (None, None) => format!("{} {}", call.method, call.target),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        Verdict::Pass
    }
}

/// The same configuration with another endpoint. It is put together anew, because a loaded one asks the process's own
/// AWS_ENDPOINT_URL again for every client.
fn through(aws: &SdkConfig, endpoint: String) -> SdkConfig {
    let mut config = SdkConfig::builder();
    config
        .set_behavior_version(aws.behavior_version())
        .set_region(aws.region().cloned())
        .set_credentials_provider(aws.credentials_provider())
        .set_http_client(aws.http_client())
        .set_sleep_impl(aws.sleep_impl())
        .set_time_source(aws.time_source())
        .set_identity_cache(aws.identity_cache())
        .set_retry_config(aws.retry_config().cloned())
        .set_timeout_config(aws.timeout_config().cloned())
        .set_endpoint_url(Some(endpoint));
    config.build()
}

fn reads(call: &str) -> bool {
    ["GET ", "HEAD ", "Get", "List", "Query", "Describe", "BatchGet"].iter().any(|prefix| call.starts_with(prefix))
}
