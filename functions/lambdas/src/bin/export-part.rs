//! ExportPart: streams one part into the exports bucket.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::export::Export;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), Export::part).await
}
