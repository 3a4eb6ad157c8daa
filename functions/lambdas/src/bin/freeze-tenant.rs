//! FreezeTenant: withdraws every way to write, in every system.

use tenantry_core::step::{Journaled, Served, serve};
use tenantry_core::steps::withdrawal::Settle;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::after_activation(env, Box::new(Settle::freeze(env)?))).await
}
