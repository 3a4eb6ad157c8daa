//! The proof, on one real local stack: booted when the first test needs it, shared by all, ended after the last.

mod bad_input;
mod bus;
mod machine;
mod world;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};

use world::{Case, World};

/// Cases that compare the whole stack before and after run while no other does.
const ALONE: &[(&str, &[(&str, Case)])] = &[("bad_input", bad_input::CASES)];
const TOGETHER: &[(&str, &[(&str, Case)])] = &[];
/// Cases that read the repository and need no stack.
const WITHOUT_STACK: &[(&str, &[(&str, fn() -> Result<()>)])] = &[];

struct Stack {
    runtime: Runtime,
    booted: OnceCell<World>,
    quiet: RwLock<()>,
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    todo!()
}
