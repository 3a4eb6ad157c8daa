//! FinishExport: checks the parts, and writes the manifest.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::export::Export;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), Export::finish).await
}
