//! ReportPlanFit: what of the tenant's use does not fit its plan.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::plan_fit::ReportPlanFit;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ReportPlanFit::from_env(env)?))).await
}
