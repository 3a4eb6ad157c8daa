//! AuthorizeRequest: tells API Gateway whether a request's tenant is in service.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::authorize::AuthorizeRequest;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(AuthorizeRequest::from_env(env)?))).await
}
