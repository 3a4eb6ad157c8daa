//! Pages for people, behind function URLs (payload format 2.0).

use serde_json::{Value, json};

/// A page that loads nothing, is kept by nobody and tells no other page where it was. `title` and `content` are HTML.
pub(crate) fn page(status: u16, title: &str, content: &str) -> Value {
    json!({
        "statusCode": status,
        "headers": {
            "content-type": "text/html; charset=utf-8",
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        },
        "body": format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><title>{title}</title></head><body><h1>{title}</h1>{content}</body></html>\n"
        ),
    })
}

/// Sends the reader on, once.
pub(crate) fn see_other(location: &str) -> Value {
    json!({
        "statusCode": 303,
        "headers": {"location": location, "cache-control": "no-store", "referrer-policy": "no-referrer"},
        "body": "",
    })
}

/// The method of a request.
pub(crate) fn method(request: &Value) -> &str {
    request["requestContext"]["http"]["method"].as_str().unwrap_or_default()
}

/// A parameter of a request's query; empty where there is none.
pub(crate) fn queried<'a>(request: &'a Value, name: &str) -> &'a str {
    request["queryStringParameters"][name].as_str().unwrap_or_default()
}
