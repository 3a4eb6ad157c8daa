//! RevokeLink: ends an export's link at once.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::download::RevokeLink;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(RevokeLink::from_env(env)?))).await
}
