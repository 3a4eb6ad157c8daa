//! SweepTenants: resumes the stuck, tries again what may pass, ends what was never paid for, and looks at billing again.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::recovery::SweepTenants;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(SweepTenants::from_env(env)?))).await
}
