//! RemoveDatabase: undoes create-database: removes the tenant's place in PostgreSQL, and its login.

use tenantry_core::resource::database::TenantDatabase;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("create-database", env, Box::new(TenantDatabase::from_env(env)?)))
        .await
}
