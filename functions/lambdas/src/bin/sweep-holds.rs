//! SweepHolds: reminds owners, starts deletions that nobody waits for, and resumes what died.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::hold_sweep::SweepHolds;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(SweepHolds::from_env(env)?))).await
}
