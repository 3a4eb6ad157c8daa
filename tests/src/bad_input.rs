//! Bad requests, each with its error, through the whole machine: nothing is made of any of them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::machine::sign_up;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] =
    &[("every_bad_request_is_refused_by_field_and_rule_and_makes_nothing", |world| Box::pin(all_refused(world)))];

/// Executions at once: enough to keep two cores busy.
const AT_ONCE: usize = 8;

/// What is wrong, the request, and what its error must say.
struct Bad(&'static str, Value, &'static [&'static str]);

async fn all_refused(world: &World) -> Result<()> {
    let table = table();
    let names: BTreeSet<&str> = table.iter().map(|bad| bad.0).collect();
    ensure!(names.len() == table.len() && table.len() >= 60, "{} different bad requests", names.len());
    let before = world.snapshot().await?;
    for some in table.chunks(AT_ONCE) {
        try_join_all(some.iter().map(|bad| refused(world, bad))).await?;
    }
    let after = world.snapshot().await?;
    for (system, existed) in &before {
        ensure!(after.get(system) == Some(existed), "{system} changed: {existed:?} became {:?}", after.get(system));
    }
    Ok(())
}

async fn refused(world: &World, Bad(what, request, expected): &Bad) -> Result<()> {
    let outcome = world.provision(request).await.with_context(|| (*what).to_owned())?;
    ensure!(outcome.status == ExecutionStatus::Failed, "{what}: {} instead of refused", outcome.status);
    ensure!(outcome.error == "InvalidRequest", "{what}: {}: {}", outcome.error, outcome.cause);
    for text in *expected {
        ensure!(outcome.cause.contains(text), "{what}: the error must say {text:?}, says {}", outcome.cause);
    }
    ensure!(
        outcome
            .states
            .iter()
            .all(|state| ["RouteRequest", "ValidateRequest", "RequestRefused"].contains(&state.as_str())),
        "{what}: went through {:?}",
        outcome.states
    );
    ensure!(outcome.failed_attempts().len() <= 1, "{what}: a permanent error was retried");
    Ok(())
}

/// A good request with some fields replaced.
#[allow(clippy::needless_pass_by_value)] // It is called with literals.
fn with(fields: Value) -> Value {
    let mut request = sign_up("bad-input", "starter");
    for (path, value) in fields.as_object().expect("an object") {
        match path.split_once('.') {
            Some((outer, inner)) => request[outer][inner] = value.clone(),
            None => request[path] = value.clone(),
        }
    }
    request
}

/// A good request without a field.
fn without(path: &str) -> Value {
    let mut request = sign_up("bad-input", "starter");
    let (owner, field) = match path.split_once('.') {
        Some((outer, inner)) => (&mut request[outer], inner),
        None => (&mut request, path),
    };
    owner.as_object_mut().expect("an object").remove(field);
    request
}

const LETTERS: &str = "slug may hold only lower-case letters a-z, digits and hyphens";
const EMAIL: &str = "owner.email must be an email address";

#[allow(clippy::too_many_lines)] // it is a table
fn table() -> Vec<Bad> {
    let slug = |slug: &str| with(json!({"slug": slug}));
    let email = |email: &str| with(json!({"owner.email": email}));
    vec![
        // the slug's length and letters
        Bad("slug missing", without("slug"), &["slug is required"]),
        Bad("slug null", with(json!({"slug": null})), &["slug is required"]),
        Bad("slug empty", slug(""), &["slug must have at least 3 characters"]),
        Bad("slug of two letters", slug("ab"), &["slug must have at least 3 characters"]),
        Bad("slug one too long", slug(&"a".repeat(57)), &["slug must have at most 56 characters"]),
        Bad("slug as long as a DNS label", slug(&"a".repeat(63)), &["slug must have at most 56 characters"]),
        Bad("slug of ten thousand letters", slug(&"a".repeat(10_000)), &["slug must have at most 56 characters"]),
        Bad("slug in upper case", slug("ACME"), &[LETTERS]),
        Bad("slug with one capital", slug("acmE"), &[LETTERS]),
        Bad("slug with an underscore", slug("acme_corp"), &[LETTERS]),
        Bad("slug with a dot", slug("acme.corp"), &[LETTERS]),
        Bad("slug with a space", slug("acme corp"), &[LETTERS]),
        Bad("slug with a space at the end", slug("acme "), &[LETTERS]),
        Bad("slug with a line break", slug("acme\n"), &[LETTERS]),
        Bad("slug with a tab", slug("ac\tme"), &[LETTERS]),
        Bad("slug with a null byte", slug("acme\u{0}"), &[LETTERS]),
        Bad("slug with an umlaut", slug("bücher"), &[LETTERS]),
        Bad("slug with a Cyrillic letter that looks Latin", slug("аcme"), &[LETTERS]),
        Bad("slug of an emoji", slug("acme-🚀"), &[LETTERS]),
        Bad("slug with a zero-width joiner", slug("ac\u{200d}me"), &[LETTERS]),
        Bad("slug written right to left", slug("\u{202e}acme"), &[LETTERS]),
        Bad("slug in full-width letters", slug("ａｃｍｅ"), &[LETTERS]),
        Bad("slug that internationalizes", slug("xn--bcher-kva"), &["slug must not hold two hyphens in a row"]),
        Bad("slug with two hyphens", slug("acme--corp"), &["slug must not hold two hyphens in a row"]),
        Bad("slug beginning with a hyphen", slug("-acme"), &["slug must begin with a letter"]),
        Bad("slug ending with a hyphen", slug("acme-"), &["slug must not end with a hyphen"]),
        Bad("slug beginning with a digit", slug("1acme"), &["slug must begin with a letter"]),
        Bad("slug of digits", slug("12345"), &["slug must begin with a letter"]),
        // the slug as a weapon
        Bad("slug that ends a SQL string", slug("a'; DROP TABLE tenants; --"), &[LETTERS]),
        Bad("slug that ends a SQL identifier", slug("a\"; DROP SCHEMA pool; --"), &[LETTERS]),
        Bad("slug with a SQL wildcard", slug("acme%"), &[LETTERS]),
        Bad("slug that climbs directories", slug("../../etc/passwd"), &[LETTERS]),
        Bad("slug with a slash", slug("acme/corp"), &[LETTERS]),
        Bad("slug with a backslash", slug("acme\\corp"), &[LETTERS]),
        Bad("slug with a shell substitution", slug("$(reboot)"), &[LETTERS]),
        Bad("slug with a template", slug("${jndi:ldap}"), &[LETTERS]),
        Bad("slug that is a DNS wildcard", slug("*"), &["slug must have at least 3 characters"]),
        Bad("slug with a DNS wildcard", slug("*.acme"), &[LETTERS]),
        Bad("slug with markup", slug("<b>acme</b>"), &[LETTERS]),
        // reserved words
        Bad("slug www", slug("www"), &["slug is a reserved word"]),
        Bad("slug admin", slug("admin"), &["slug is a reserved word"]),
        Bad("slug api", slug("api"), &["slug is a reserved word"]),
        Bad("slug of the cluster", slug("kube-system"), &["slug is a reserved word"]),
        Bad("slug that mail clients look up", slug("autodiscover"), &["slug is a reserved word"]),
        Bad("slug of the database", slug("postgres"), &["slug is a reserved word"]),
        // plan, region, payment
        Bad("plan unknown", with(json!({"plan": "platinum"})), &["plan must be one of starter, growth, enterprise"]),
        Bad("plan in upper case", with(json!({"plan": "Starter"})), &["plan must be one of"]),
        Bad("plan empty", with(json!({"plan": ""})), &["plan must be one of"]),
        Bad("plan a number", with(json!({"plan": 1})), &["plan must be a text"]),
        Bad(
            "more isolation than the plan allows",
            with(json!({"plan": "starter", "isolation": "database"})),
            &["isolation must be between shared and schema on plan starter"],
        ),
        Bad(
            "less isolation than the plan has",
            with(json!({"plan": "growth", "isolation": "shared"})),
            &["isolation must be between schema and database on plan growth"],
        ),
        Bad(
            "isolation unknown",
            with(json!({"isolation": "galaxy"})),
            &["isolation must be one of shared, schema, database"],
        ),
        Bad("billing a text", with(json!({"billing": "cus_1"})), &["billing must be a JSON object"]),
        Bad("customer of another kind", with(json!({"billing": {"customer": "sub_1"}})), &["billing.customer must be"]),
        Bad(
            "customer with a path",
            with(json!({"billing": {"customer": "cus_1/../x"}})),
            &["billing.customer must be"],
        ),
        Bad(
            "card number",
            with(json!({"billing": {"payment_method": "4242424242424242"}})),
            &["billing.payment_method must"],
        ),
        Bad(
            "a payment method of another's",
            with(json!({"billing": {"customer": "cus_1", "payment_method": "pm_1"}})),
            &["billing.payment_method must be left out where billing.customer is named"],
        ),
        Bad("billing's own field", with(json!({"billing": {"iban": "DE1"}})), &["billing.iban is not a field"]),
        Bad("region elsewhere", with(json!({"region": "eu-central-1"})), &["region eu-central-1 is not served"]),
        Bad("region not of AWS", with(json!({"region": "mars-north"})), &["region must be the name of an AWS region"]),
        Bad("region an availability zone", with(json!({"region": "us-east-1a"})), &["region must be the name of"]),
        Bad("region with a path", with(json!({"region": "us-east-1/../x"})), &["region must be the name of"]),
        Bad("region a list", with(json!({"region": ["us-east-1"]})), &["region must be a text"]),
        Bad("paid a text", with(json!({"paid": "yes"})), &["paid must be true or false"]),
        Bad("paid a number", with(json!({"paid": 1})), &["paid must be true or false"]),
        // the request's id
        Bad("request id missing", without("request_id"), &["request_id is required"]),
        Bad("request id not a UUID", with(json!({"request_id": "order-17"})), &["request_id must be a UUID"]),
        Bad("request id a number", with(json!({"request_id": 17})), &["request_id must be a UUID"]),
        Bad("request id cut short", with(json!({"request_id": "7f3b8a4e-51b9-4a8e-9a30"})), &["request_id must be"]),
        // the owner
        Bad("owner missing", without("owner"), &["owner is required"]),
        Bad("owner a text", with(json!({"owner": "ada@acme.example"})), &["owner must be a JSON object"]),
        Bad("owner a list", with(json!({"owner": []})), &["owner must be a JSON object"]),
        Bad("owner empty", with(json!({"owner": {}})), &["owner.name is required", "owner.email is required"]),
        Bad("owner's name missing", without("owner.name"), &["owner.name is required"]),
        Bad("owner's name blank", with(json!({"owner.name": "  "})), &["owner.name must not be empty"]),
        Bad(
            "owner's name too long",
            with(json!({"owner.name": "x".repeat(201)})),
            &["owner.name must have at most 200"],
        ),
        Bad(
            "owner's name breaking a header",
            with(json!({"owner.name": "A\r\nBcc: b@c.d"})),
            &["owner.name must not hold control"],
        ),
        Bad("owner's name a number", with(json!({"owner.name": 7})), &["owner.name must be a text"]),
        Bad("email missing", without("owner.email"), &["owner.email is required"]),
        Bad("email empty", email(""), &[EMAIL]),
        Bad("email without an at", email("ada.example.com"), &[EMAIL]),
        Bad("email without a name", email("@example.com"), &[EMAIL]),
        Bad("email without a domain", email("ada@"), &[EMAIL]),
        Bad("email with two ats", email("ada@b@example.com"), &[EMAIL]),
        Bad("email with a space", email("ada lovelace@example.com"), &[EMAIL]),
        Bad("email with a display name", email("Ada <ada@example.com>"), &[EMAIL]),
        Bad("email breaking a header", email("ada@example.com\r\nBcc: b@c.d"), &[EMAIL]),
        Bad("email to a machine", email("ada@localhost"), &[EMAIL]),
        Bad("email to an address literal", email("ada@[127.0.0.1]"), &[EMAIL]),
        Bad("email quoted", email("\"ada\"@example.com"), &[EMAIL]),
        Bad("email too long", email(&format!("{}@example.com", "a".repeat(250))), &[EMAIL]),
        Bad("email a list", with(json!({"owner.email": ["ada@example.com"]})), &["owner.email must be a text"]),
        // the document
        Bad("document empty", json!({}), &["request_id is required", "slug is required", "owner is required"]),
        Bad("document a list", json!([]), &["the request must be a JSON object"]),
        Bad("document a text", json!("acme"), &["the request must be a JSON object"]),
        Bad("document a number", json!(7), &["the request must be a JSON object"]),
        Bad("an extra field", with(json!({"coupon": "FREE"})), &["coupon is not a field of this request"]),
        Bad("an extra field of the owner", with(json!({"owner.phone": "1"})), &["owner.phone is not a field"]),
        Bad("an attempt to set the status", with(json!({"status": "active"})), &["status is not a field"]),
        Bad(
            "an attempt to choose the server",
            with(json!({"database_server": "x"})),
            &["database_server is not a field"],
        ),
        Bad(
            "everything wrong at once",
            json!({"request_id": "x", "slug": "WWW", "plan": "x", "region": "x", "paid": "x", "owner": {"name": "", "email": "x"}, "x": 1}),
            &["request_id", "slug", "plan", "region", "paid", "owner.name", "owner.email", "x is not a field"],
        ),
    ]
}
