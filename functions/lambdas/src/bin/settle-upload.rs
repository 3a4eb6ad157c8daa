//! SettleUpload: keeps the ledger of what lies in tenants' buckets, as S3's events come in.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::uploads::SettleUpload;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(SettleUpload::from_env(env)?))).await
}
