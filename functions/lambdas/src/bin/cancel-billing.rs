//! CancelBilling: undoes configure-billing: cancels, gives back what was charged, and deletes the customer unless adopted.

use tenantry_core::resource::billing::Billing;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("configure-billing", env, Box::new(Billing::from_env(env)?))).await
}
