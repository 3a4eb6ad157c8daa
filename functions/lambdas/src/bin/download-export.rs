//! DownloadExport: the page behind an export's link.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::download::DownloadExport;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(DownloadExport::from_env(env)?))).await
}
