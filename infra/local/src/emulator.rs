//! The AWS emulator, ministack, and the configuration that reaches it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::guard::{Guarded, Program};
use crate::proxy::{self, Proxy, System, Tap, Upstream};
use crate::tools::{Tools, free_port};

/// The region of every local stack.
pub const REGION: &str = "us-east-1";
/// The access key of every local client. The emulator asks for one and checks none.
pub const ACCESS_KEY: &str = "tenantry-local";
const PATIENCE: Duration = Duration::from_secs(60);

/// A running emulator.
pub struct Emulator {
    process: Guarded,
    endpoint: String,
    /// What functions call, where somebody looks at every call.
    _tapped: Option<Proxy>,
}

impl Emulator {
    /// Starts the emulator and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(tools: &Tools, directory: &Path, logs: &Path, tap: Option<Arc<dyn Tap>>) -> Result<Self> {
        let port = free_port()?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let tapped = match tap {
            None => None,
            Some(tap) => {
                let upstream = Upstream { authority: format!("127.0.0.1:{port}"), tls: None };
                Some(proxy::http(System::Aws, upstream, None, tap).await?)
            }
        };
        let for_functions = tapped.as_ref().map_or(endpoint.clone(), |proxy| format!("http://{}", proxy.address()));
        let home = directory.join("emulator");
        let temporary = home.join("tmp");
        std::fs::create_dir_all(&temporary)?;
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let text = |path: &Path| path.display().to_string();
        let process = Program {
            name: "emulator",
            path: &tools.ministack,
            args: Vec::new(),
            // Functions inherit all of it: nothing of the caller's environment belongs here.
            environment: vec![
                setting("PATH", "/usr/local/bin:/usr/bin:/bin"),
                setting("HOME", &text(&home)),
                setting("TMPDIR", &text(&temporary)),
                setting("STATE_DIR", &text(&home.join("state"))),
                setting("BIND_HOST", "127.0.0.1"),
                setting("MINISTACK_HOST", "127.0.0.1"),
                setting("GATEWAY_PORT", &port.to_string()),
                setting("MINISTACK_REGION", REGION),
                setting("AWS_ACCESS_KEY_ID", ACCESS_KEY),
                setting("AWS_SECRET_ACCESS_KEY", ACCESS_KEY),
                setting("AWS_REGION", REGION),
                // What it tells functions to call; without it they would call AWS.
                setting("AWS_ENDPOINT_URL", &for_functions),
                setting("PYTHONDONTWRITEBYTECODE", "1"),
                setting("LOG_LEVEL", "INFO"),
            ],
            user: None,
            directory: &home,
            interrupt: false,
        }
        .start(logs)?;
        let mut emulator = Emulator { process, endpoint, _tapped: tapped };
        let begun = Instant::now();
        let health = format!("{}/_ministack/health", emulator.endpoint);
        while !reqwest::get(&health).await.is_ok_and(|answer| answer.status().is_success()) {
            emulator.check()?;
            ensure!(begun.elapsed() < PATIENCE, "the AWS emulator does not answer at {health}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(emulator)
    }

    /// Fails when the emulator has ended by itself.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// The URL of every AWS service.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// An AWS configuration that reaches an emulator, with the timeouts that functions have.
pub async fn aws_config(endpoint: &str) -> SdkConfig {
    tenantry_core::aws::loader()
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(ACCESS_KEY, ACCESS_KEY, None, None, "local"))
        .load()
        .await
}

/// S3 by path: the emulator has no name of its own for each bucket.
pub fn s3(aws: &SdkConfig) -> aws_sdk_s3::Client {
    aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(aws).force_path_style(true).build())
}

/// Scales the seconds of Wait states and of retries, for tests that exhaust them.
///
/// # Errors
/// When the emulator does not take it.
pub async fn scale_waits(endpoint: &str, factor: f64) -> Result<()> {
    let url = format!("{endpoint}/_ministack/config");
    let body = json!({ "stepfunctions._SFN_WAIT_SCALE": factor });
    let answer = reqwest::Client::new().post(&url).json(&body).send().await?;
    ensure!(answer.status().is_success(), "{url} answered {}", answer.status());
    Ok(())
}

/// The mail that SES was asked to send.
///
/// # Errors
/// When the emulator does not answer.
pub async fn mail(endpoint: &str) -> Result<Vec<Value>> {
    let url = format!("{endpoint}/_ministack/ses/messages");
    let kept: Value = reqwest::get(&url).await?.error_for_status()?.json().await?;
    let accounts = kept["messages"].as_object().with_context(|| format!("{url} holds no messages by account"))?;
    Ok(accounts.values().filter_map(Value::as_array).flatten().cloned().collect())
}
