//! IssueUpload: keeps room for an upload, and signs its URL.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::uploads::IssueUpload;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(IssueUpload::from_env(env)?))).await
}
