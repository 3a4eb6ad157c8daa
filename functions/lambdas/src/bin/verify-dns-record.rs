//! VerifyDnsRecord: waits until every name server answers with exactly the tenant's records.

use tenantry_core::step::{Journaled, Served, serve};
use tenantry_core::steps::dns::VerifyDnsRecord;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(VerifyDnsRecord::from_env(env)?))).await
}
