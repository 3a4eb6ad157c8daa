//! VerifyTenant: everything that a tenant has is as it was before its hold.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::coming_back::VerifyTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(VerifyTenant::from_env(env)?))).await
}
