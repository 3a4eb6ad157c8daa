//! FollowBilling: brings a tenant to where its subscription is.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::follow_billing::FollowBilling;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(FollowBilling::from_env(env)?))).await
}
