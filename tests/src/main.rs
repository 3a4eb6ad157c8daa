//! placeholder
mod database;
mod registry;
mod rls;
mod world;

fn main() {}
