//! CreateDnsRecord: the tenant's host name, and the record that says whose it is.

use tenantry_core::resource::dns::DnsRecord;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(DnsRecord::from_env(env)?))).await
}
