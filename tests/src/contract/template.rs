//! CloudFormation's YAML as JSON, with short tags spelled out, and questions that several rules ask of it.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use serde_yaml_ng::Value as Yaml;

use super::Contract;

/// Reads a template. `!Ref x` becomes `{"Ref": "x"}`, `!GetAtt a.b` `{"Fn::GetAtt": "a.b"}`, and so on.
pub(super) fn parse(text: &str) -> Result<Value> {
    spelled_out(serde_yaml_ng::from_str(text)?)
}

fn spelled_out(yaml: Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::Tagged(tagged) => {
            let tag = tagged.tag.to_string();
            let tag = tag.trim_start_matches('!');
            let name = if matches!(tag, "Ref" | "Condition") { tag.to_owned() } else { format!("Fn::{tag}") };
            Value::Object(Map::from_iter([(name, spelled_out(tagged.value)?)]))
        }
        Yaml::Mapping(fields) => {
            let fields = fields.into_iter().map(|(key, value)| {
                let key = key.as_str().context("a key that is not text")?.to_owned();
                Ok((key, spelled_out(value)?))
            });
            Value::Object(fields.collect::<Result<_>>()?)
        }
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(spelled_out).collect::<Result<_>>()?),
        plain => serde_json::to_value(plain)?,
    })
}

/// A property of a function, its own or that of all (`Globals`).
pub(super) fn effective<'a>(contract: &'a Contract, function: &'a Value, property: &str) -> &'a Value {
    match &function["Properties"][property] {
        Value::Null => &contract.template["Globals"]["Function"][property],
        own => own,
    }
}

/// The logical id that `{"Ref": id}` or `{"Fn::GetAtt": "id.Attribute"}` refers to.
pub(super) fn target(reference: &Value) -> Option<&str> {
    match (&reference["Ref"], &reference["Fn::GetAtt"]) {
        (Value::String(id), _) => Some(id),
        (_, Value::String(path)) => path.split('.').next(),
        _ => None,
    }
}

/// What may be one thing or a list of them.
pub(super) fn each(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(items) => items,
        one => std::slice::from_ref(one),
    }
}

/// What `!If [condition, value, …]` is where the condition holds; anything else as it is.
pub(super) fn taken(value: &Value) -> &Value {
    value.get("Fn::If").map_or(value, |branches| &branches[1])
}

/// `!Sub ${Prefix}name`, as names are given.
pub(super) fn prefixed(name: &str) -> Value {
    json!({"Fn::Sub": format!("${{Prefix}}{name}")})
}
