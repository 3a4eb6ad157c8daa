//! PublishLink: makes the export's link work, and starts the hold.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::download::PublishLink;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(PublishLink::from_env(env)?))).await
}
