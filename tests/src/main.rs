//! temporary
#![allow(clippy::unwrap_used, missing_docs, clippy::print_stdout, dead_code)]
mod bucket;
mod identity;
mod recorder;
mod tenants;
mod world;
use std::collections::HashMap;
#[tokio::main]
async fn main() {
    let aws = tenantry_core::aws::config().await;
    let vars: HashMap<String, String> = std::env::vars().collect();
    let world = world::World { env: tenantry_core::environment::Environment::new(aws, vars), exports: HashMap::new() };
    let only = std::env::args().nth(1).unwrap_or_default();
    let mut failed = 0;
    macro_rules! run { ($($m:ident::$f:ident),* $(,)?) => { $( let name = concat!(stringify!($m), "::", stringify!($f)); if name.contains(&only) { let t = std::time::Instant::now(); let r = $m::$f(&world).await; println!("{} {} {:?}", if r.is_ok() {"ok  "} else {failed += 1; "FAIL"}, name, t.elapsed()); if let Err(e) = r { println!("     {e:?}"); } } )* } }
    run!(
        bucket::is_made_once,
        bucket::is_repaired,
        bucket::of_another_is_left_alone,
        bucket::is_removed_with_all_it_holds
    );
    std::process::exit(failed);
}
