//! ForgetBilling: deletes the customer's personal data at Stripe.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::forget::ForgetBilling;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(ForgetBilling::from_env(env)?))).await
}
