//! Boots, drives and ends the local stack: the same template as on AWS, with real systems around it.

pub mod cli;
pub mod deploy;
pub mod dns;
pub mod emulator;
pub mod events;
pub mod evidence;
pub mod execution;
pub mod forward_auth;
pub mod functions;
pub mod guard;
pub mod inventory;
pub mod kube;
pub mod nginx;
pub mod postgres;
pub mod progress;
pub mod proxy;
pub mod redis;
pub mod sql_proxy;
pub mod stack;
pub mod stripe;
pub mod stripe_events;
pub mod supervisor;
pub mod tools;
