//! RegisterDownstream: registers a system that is asked when a tenant is deleted, or retires it; for operators.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::downstream::RegisterDownstream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(RegisterDownstream::from_env(env)?))).await
}
