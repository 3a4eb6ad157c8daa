//! NotifyOwner: tells the owner of the export's link and of the date of deletion.

use tenantry_core::step::{Journaled, Served, serve};
use tenantry_core::steps::withdrawal::NotifyOwner;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::after_activation(env, Box::new(NotifyOwner::from_env(env)?))).await
}
