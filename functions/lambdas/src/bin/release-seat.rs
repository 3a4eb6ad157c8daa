//! ReleaseSeat: takes a user's seat back.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::seats::ReleaseSeat;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ReleaseSeat::from_env(env)?))).await
}
