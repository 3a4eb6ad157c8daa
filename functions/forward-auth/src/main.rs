//! Serves until it is told to end: then what is being asked is answered, and what was admitted uncounted is counted.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use forward_auth::answers;
use forward_auth::settings::Settings;
use json_subscriber::JsonLayer;
use tenant_gate::{Gate, PostgresRegistry};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How long open requests are waited for at the end. A decision takes two seconds at most.
const DRAIN: Duration = Duration::from_secs(3);
/// How long Redis is waited for at the end, to count what was admitted while it was down. With [`DRAIN`], less than the
/// eight to ten seconds that process managers are usually content with.
const FLUSH: Duration = Duration::from_secs(4);
const FLUSH_PAUSE: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> ExitCode {
    init_logs();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "forward-auth cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    let login = Arc::new(settings.login);
    let registry = PostgresRegistry::new(move || {
        let login = Arc::clone(&login);
        async move { login.connect().await }
    });
    let gate = Gate::builder(&settings.redis_url, &settings.base_domain).registry(registry);
    let gate = gate.when_blind(settings.when_blind).build().context("REDIS_URL")?;
    let app = answers::router(gate.clone(), settings.host_header.clone());
    let listener = TcpListener::bind(settings.listen).await.with_context(|| format!("LISTEN={}", settings.listen))?;
    tracing::info!(
        listen = %settings.listen, base_domain = settings.base_domain, host_header = %settings.host_header,
        when_blind = ?settings.when_blind, "forward-auth answers"
    );
    let late = async {
        told_to_end().await;
        sleep(DRAIN).await;
    };
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(told_to_end()) => served?,
        () = late => tracing::warn!("requests are still open, and end unanswered"),
    }
    let flushed = timeout(FLUSH, async {
        while !gate.flush().await {
            sleep(FLUSH_PAUSE).await;
        }
    });
    if flushed.await.is_err() {
        tracing::error!("Redis is still down: calls that were admitted without it are not counted");
    }
    tracing::info!("forward-auth ends");
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
async fn told_to_end() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // A system that has no such signals ends us in its own way.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// One JSON object a line, as the functions log.
fn init_logs() {
    let level = tracing_subscriber::EnvFilter::try_from_env("LOG_LEVEL")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let mut json = JsonLayer::stdout();
    json.with_timer("timestamp", tracing_subscriber::fmt::time::SystemTime);
    json.with_level("level");
    json.with_flattened_event();
    tracing_subscriber::registry().with(level).with(json).init();
}
