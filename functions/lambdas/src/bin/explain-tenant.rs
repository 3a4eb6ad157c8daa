//! ExplainTenant: status, holder, journal, every resource, and what to do next; for operators, and changing nothing.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::explain::ExplainTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ExplainTenant::from_env(env)?))).await
}
