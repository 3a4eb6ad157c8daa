//! BeginOffboarding: suspends a tenant that leaves, and opens its hold.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::offboarding::BeginOffboarding;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(BeginOffboarding::from_env(env)?))).await
}
