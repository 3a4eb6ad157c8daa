//! CreateIdentity: the IAM role that the tenant's own pods run as.

use tenantry_core::resource::identity::Identity;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(Identity::from_env(env)?))).await
}
