//! temporary
#![allow(missing_docs, clippy::print_stdout, dead_code)]
mod database;
mod registry;
mod rls;
mod world;
use std::collections::HashMap;
#[tokio::main]
async fn main() {
    let aws = tenantry_core::aws::config().await;
    let vars: HashMap<String, String> = std::env::vars().collect();
    let world = world::World { env: tenantry_core::environment::Environment::new(aws, vars.clone()), exports: vars };
    let only = std::env::args().nth(1).unwrap_or_default();
    let first = tenantry_core::migrations::custom_resource::ApplyMigrations::from_env(&world.env).unwrap();
    println!("{:?}", first.handle(&serde_json::json!({})).await);
    let mut failed = 0;
    for (name, case) in registry::CASES.iter().chain(database::CASES).chain(rls::CASES) {
        if name.contains(&only) {
            let t = std::time::Instant::now();
            match case(&world).await {
                Ok(()) => println!("ok   {name} {:?}", t.elapsed()),
                Err(e) => { failed += 1; println!("FAIL {name} {:?}\n   {e:?}", t.elapsed()); }
            }
        }
    }
    std::process::exit(failed);
}
