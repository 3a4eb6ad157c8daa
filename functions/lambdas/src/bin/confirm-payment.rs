//! ConfirmPayment: applies billing's `payment.confirmed`, or keeps it for a request still to come.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::signup::ConfirmPayment;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ConfirmPayment::from_env(env)?))).await
}
