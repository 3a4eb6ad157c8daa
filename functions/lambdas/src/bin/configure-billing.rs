//! ConfigureBilling: the tenant's customer and subscription at Stripe.

use tenantry_core::resource::billing::Billing;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(Billing::from_env(env)?))).await
}
