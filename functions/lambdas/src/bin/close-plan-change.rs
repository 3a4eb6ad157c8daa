//! ClosePlanChange: everything has followed the plan, the fence is given back.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::plan_change::ClosePlanChange;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ClosePlanChange::from_env(env)?))).await
}
