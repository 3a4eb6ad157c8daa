//! ValidateRequest: refuses what cannot become a tenant, naming every problem.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::signup::ValidateRequest;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ValidateRequest::from_env(env)?))).await
}
