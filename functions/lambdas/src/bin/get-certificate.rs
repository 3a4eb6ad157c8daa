//! GetCertificate: the signed certificate of a tenant's deletion; for operators.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::certificate::GetCertificate;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(GetCertificate::from_env(env)?))).await
}
