//! BeginPlanChange: takes a tenant in service for one execution, and gives it the plan.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::plan_change::BeginPlanChange;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(BeginPlanChange::from_env(env)?))).await
}
