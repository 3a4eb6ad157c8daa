//! SignCertificate: signs what was deleted, and that nothing is left.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::certificate::SignCertificate;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(SignCertificate::from_env(env)?))).await
}
