//! SignCertificate: signs what was deleted, and writes the tombstone.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::unbuilt::Unbuilt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |_| Ok(Box::new(Unbuilt))).await
}
