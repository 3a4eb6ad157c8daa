//! CancelSubscription: ends billing, and gives back the rest of the period.

use tenantry_core::step::{Journaled, Served, serve};
use tenantry_core::steps::withdrawal::Subscription;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::after_activation(env, Box::new(Subscription::cancel(env)?))).await
}
