//! A product's service behind the gate:
//!
//! ```sh
//! eval "$(make -s env)" && cargo run -p tenant-gate --example product
//! curl -i -H "Host: acme.$BASE_DOMAIN" http://127.0.0.1:8080/
//! ```

use axum::routing::get;
use axum::{Extension, Router};
use tenant_gate::{Gate, GateLayer, PostgresRegistry, RegistryError, Tenant};

/// What a handler learns of whom it works for. `tenant.enter(&transaction)` shows row-level security the same.
async fn hello(Extension(tenant): Extension<Tenant>) -> String {
    format!("Hello {}\n", tenant.slug)
}

/// Connects as the product's own role. A service on AWS connects with TLS here.
async fn connect(url: String) -> Result<tokio_postgres::Client, RegistryError> {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::main]
async fn main() -> Result<(), RegistryError> {
    let setting = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: eval \"$(make -s env)\""));
    let database = setting("APP_DATABASE_URL")?;
    let registry = PostgresRegistry::new(move || connect(database.clone()));
    let gate = Gate::builder(&setting("REDIS_URL")?, &setting("BASE_DOMAIN")?).registry(registry).build()?;
    let app = Router::new().route("/", get(hello)).layer(GateLayer::new(gate));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    Ok(axum::serve(listener, app).await?)
}
