//! BeginDeletion: takes a tenant and its hold for its deletion.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::begin::BeginDeletion;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(BeginDeletion::from_env(env)?))).await
}
