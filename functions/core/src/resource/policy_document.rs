//! IAM policy documents: where their ARNs live, and when two of them say the same.

use serde_json::Value;

use crate::tenant::Region;

/// The second part of every ARN in the region.
pub(crate) fn partition(region: &Region) -> &'static str {
    match region.as_str() {
        name if name.starts_with("cn-") => "aws-cn",
        name if name.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// Whether the document AWS keeps says what `wanted` says. IAM prints a list of one as a bare value and gives lists in an
/// order of its own, and neither means anything in a policy.
pub(crate) fn same_policy(kept: &str, wanted: &Value) -> bool {
    serde_json::from_str(kept).is_ok_and(|kept: Value| normal(&kept) == normal(wanted))
}

fn normal(value: &Value) -> Value {
    match value {
        Value::Array(items) if items.len() == 1 => normal(&items[0]),
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(normal).collect();
            items.sort_by_cached_key(Value::to_string);
            Value::Array(items)
        }
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), normal(value))).collect(),
        other => other.clone(),
    }
}

/// Undoes the percent-encoding in which IAM returns documents and S3, where asked to, keys.
pub(crate) fn percent_decoded(text: &str) -> String {
    url::form_urlencoded::parse(text.as_bytes()).map(|(name, _)| name.into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order_spacing_and_lists_of_one_mean_nothing() {
        let wanted = json!({"Statement": [{"Action": ["s3:GetObject", "s3:PutObject"], "Resource": ["a"]}]});
        assert!(same_policy(r#"{ "Statement": {"Resource":"a","Action":["s3:PutObject","s3:GetObject"]} }"#, &wanted));
    }

    #[test]
    fn a_wider_document_differs() {
        let wanted = json!({"Statement": [{"Action": "s3:GetObject", "Resource": "a"}]});
        assert!(!same_policy(r#"{"Statement":[{"Action":"s3:*","Resource":"a"}]}"#, &wanted));
        assert!(!same_policy(r#"{"Statement":[{"Action":"s3:GetObject","Resource":["a","b"]}]}"#, &wanted));
        assert!(!same_policy("not json", &wanted));
    }

    #[test]
    fn documents_and_keys_are_decoded() {
        assert_eq!(percent_decoded("%7B%22a%22%3A%20%22b%2Bc%26d%3D%22%7D"), r#"{"a": "b+c&d="}"#);
        assert_eq!(percent_decoded("a+b%01%C3%A9"), "a b\u{1}é");
    }
}
