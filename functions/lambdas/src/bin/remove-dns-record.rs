//! RemoveDnsRecord: undoes create-dns-record: removes the tenant's host name.

use tenantry_core::resource::dns::DnsRecord;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("create-dns-record", env, Box::new(DnsRecord::from_env(env)?))).await
}
