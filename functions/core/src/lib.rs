//! What Tenantry's steps are made of.
//!
//! Data flows one way: a Lambda's `main` wires a [`step::Step`], a step acts on a [`resource`] or on the [`registry`], and
//! those call a client. Nothing below [`step`] knows that it runs in Lambda.

pub mod aws;
pub mod billing_event;
pub mod capacity;
pub mod certificate;
pub mod dns_check;
pub mod eks_token;
pub mod environment;
pub mod error;
pub mod export;
pub mod gate;
pub mod invite;
pub mod kubernetes;
pub mod link;
pub mod mail;
pub mod migrations;
pub mod moment;
mod page;
pub mod postgres;
pub mod registry;
pub mod request;
pub mod resource;
pub mod scan;
pub mod step;
pub mod steps;
pub mod stripe;
pub mod subscription;
pub mod tenant;
