//! ApplyMigrations: the databases' schemas and roles, on every deployment.

use tenantry_core::migrations::custom_resource::ApplyMigrations;
use tenantry_core::step::{Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ApplyMigrations::from_env(env)?))).await
}
