//! ConfirmDeletion: records a registered system's confirmation.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::downstream::ConfirmDeletion;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ConfirmDeletion::from_env(env)?))).await
}
