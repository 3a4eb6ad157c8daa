//! ForgetUsage: deletes what Redis holds of a tenant.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::forget::ForgetUsage;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(ForgetUsage::from_env(env)?))).await
}
