//! A proxy in front of AWS's endpoint that writes down what was called.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use aws_config::SdkConfig;
use tenantry_core::environment::Environment;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use crate::world::World;

/// Records the calls that go through [`Recorder::env`].
pub struct Recorder {
    /// The world's settings with the proxy as the AWS endpoint.
    pub env: Environment,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    /// Listens on a free port until the test's runtime ends.
    pub async fn start(world: &World) -> Result<Self> {
        let endpoint = world.env.aws.endpoint_url().context("the stack's AWS endpoint is not set")?;
        let endpoint = endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut env = world.env.clone();
        env.aws = through(&env.aws, format!("http://{}", listener.local_addr()?));
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let record = calls.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, endpoint.clone(), record.clone()));
            }
        });
        Ok(Recorder { env, calls })
    }

    /// The calls since the last question that may have changed something, by name: an S3 or Route 53 request line, or the
    /// operation of a service that names it.
    pub fn mutations(&self) -> Vec<String> {
        let calls = std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(!calls.is_empty(), "nothing went through the recorder");
        calls.into_iter().filter(|call| !reads(call)).collect()
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

async fn pass(mut client: TcpStream, endpoint: String, calls: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(endpoint).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async {
        let mut buffer = vec![0; 65536];
        loop {
            let length = from_client.read(&mut buffer).await?;
            if length == 0 {
                return to_server.shutdown().await;
            }
            note(&String::from_utf8_lossy(&buffer[..length]), &calls);
            to_server.write_all(&buffer[..length]).await?;
        }
    };
    futures::future::try_join(requests, copy(&mut from_server, &mut to_client)).await.map(drop)
}

/// A client sends one request at a time on a connection, so a request's first line begins what was read; the query
/// protocol's operation is in the body, which may come in a read of its own.
fn note(text: &str, calls: &Mutex<Vec<String>>) {
    let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
    let line = text.lines().next().unwrap_or_default();
    let target = text.lines().find_map(|line| line.strip_prefix("x-amz-target: "));
    if let Some(operation) = target.and_then(|target| target.split('.').nth(1)) {
        calls.push(operation.trim().to_owned());
    } else if let Some(request) = line.strip_suffix(" HTTP/1.1").filter(|request| *request != "POST /") {
        calls.push(request.to_owned());
    }
    if let Some(action) = text.split("Action=").nth(1) {
        calls.push(action.split('&').next().unwrap_or_default().to_owned());
    }
}
