//! ApplyBillingPrice: the subscription's price, as the plan has it.

use tenantry_core::resource::billing::price::BillingPrice;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::after_activation(env, Box::new(BillingPrice::from_env(env)?))).await
}
