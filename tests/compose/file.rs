//! A compose file: variables put in, then read into types that know no other key than those that
//! are understood here, so that a misspelt one is an error as it is for Compose.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Variables and their values, as `.env` gives them.
pub(crate) type Environment = BTreeMap<String, String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default, rename = "name")]
    _name: String,
    pub(crate) services: BTreeMap<String, Service>,
    #[serde(default)]
    pub(crate) volumes: BTreeMap<String, Option<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Service {
    pub(crate) image: Option<String>,
    pub(crate) build: Option<Value>,
    pub(crate) container_name: Option<String>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) command: Vec<String>,
    pub(crate) environment: BTreeMap<String, Scalar>,
    pub(crate) ports: Vec<String>,
    pub(crate) volumes: Vec<String>,
    pub(crate) depends_on: BTreeMap<String, Dependency>,
    pub(crate) healthcheck: Option<Healthcheck>,
    pub(crate) profiles: Vec<String>,
    pub(crate) restart: Option<String>,
    pub(crate) read_only: bool,
    pub(crate) cap_drop: Vec<String>,
    pub(crate) security_opt: Vec<String>,
    #[serde(rename = "ulimits")]
    _ulimits: BTreeMap<String, Value>,
    #[serde(rename = "stop_grace_period")]
    _stop_grace_period: Option<String>,
}

impl Service {
    pub(crate) fn variables(&self) -> Environment {
        let texts = self.environment.iter();
        texts
            .map(|(name, value)| (name.clone(), value.text()))
            .collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Scalar {
    Text(String),
    Number(i64),
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dependency {
    pub(crate) condition: Condition,
    #[serde(default = "yes")]
    pub(crate) required: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Condition {
    #[serde(rename = "service_started")]
    Started,
    #[serde(rename = "service_healthy")]
    Healthy,
    #[serde(rename = "service_completed_successfully")]
    Completed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Healthcheck {
    #[serde(default)]
    pub(crate) test: Vec<String>,
    #[serde(default)]
    pub(crate) disable: bool,
    #[serde(default, rename = "interval")]
    _interval: Option<String>,
    #[serde(default, rename = "timeout")]
    _timeout: Option<String>,
    #[serde(default, rename = "retries")]
    _retries: Option<u32>,
    #[serde(default, rename = "start_period")]
    _start_period: Option<String>,
}

impl File {
    pub(crate) fn parse(text: &str, environment: &Environment) -> Result<Self, String> {
        let mut tree: Value =
            serde_saphyr::from_str(text).map_err(|error| format!("not YAML: {error}"))?;
        put_in(&mut tree, environment)?;
        serde_json::from_value(tree).map_err(|error| error.to_string())
    }

    /// The services that `docker compose --profile … up` starts, each after those that it waits
    /// for.
    pub(crate) fn order(&self, profiles: &[&str]) -> Result<Vec<&str>, String> {
        let active = |service: &Service| {
            service.profiles.is_empty()
                || service
                    .profiles
                    .iter()
                    .any(|profile| profiles.contains(&profile.as_str()))
        };
        let mut waiting: Vec<&str> = self
            .services
            .iter()
            .filter(|(_, service)| active(service))
            .map(|(name, _)| name.as_str())
            .collect();
        let mut order: Vec<&str> = Vec::new();
        while !waiting.is_empty() {
            let ready = |name: &&str| {
                let mut dependencies = self.services[*name].depends_on.iter();
                dependencies.all(|(other, dependency)| {
                    order.contains(&other.as_str())
                        || !dependency.required && !waiting.contains(&other.as_str())
                })
            };
            let at = waiting
                .iter()
                .position(ready)
                .ok_or_else(|| format!("{waiting:?} wait for each other or for nobody"))?;
            order.push(waiting.remove(at));
        }
        Ok(order)
    }
}

/// Puts variables into every text of a tree; keys stay as they are.
fn put_in(tree: &mut Value, environment: &Environment) -> Result<(), String> {
    match tree {
        Value::String(text) => *text = interpolate(text, environment)?,
        Value::Array(items) => {
            for item in items {
                put_in(item, environment)?;
            }
        }
        Value::Object(fields) => {
            for (_, field) in fields.iter_mut() {
                put_in(field, environment)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Compose's substitution. A variable without a value and without a default is an error here,
/// where Compose warns.
pub(crate) fn interpolate(text: &str, environment: &Environment) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let inside = after
            .strip_prefix('{')
            .ok_or_else(|| format!("{text}: $NAME without braces is easily misread"))?;
        let (inside, after) = inside
            .split_once('}')
            .ok_or_else(|| format!("{text}: no end of a variable"))?;
        let end = inside
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(inside.len());
        let (name, operator) = inside.split_at(end);
        let set = environment.get(name);
        let filled = set.filter(|value| !value.is_empty());
        let value = if let Some(default) = operator.strip_prefix(":-") {
            filled.map_or(default, String::as_str)
        } else if let Some(message) = operator.strip_prefix(":?") {
            filled.ok_or_else(|| format!("{name}: {message}"))?
        } else if operator.is_empty() {
            set.ok_or_else(|| format!("{name} has neither a value nor a default"))?
        } else {
            return Err(format!("{text}: {operator} is not understood here"));
        };
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// The variables of an `.env` file: those that are set, and those that are commented out.
pub(crate) fn dotenv(text: &str) -> (Environment, Vec<String>) {
    let mut set = Environment::new();
    let mut optional = Vec::new();
    for line in text.lines() {
        let (line, off) = match line.strip_prefix('#') {
            Some(line) => (line, true),
            None => (line, false),
        };
        let Some((name, value)) = line.split_once('=') else {
            assert!(off || line.is_empty(), "{line} is no variable");
            continue;
        };
        let is_name = name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b == b'_' || b.is_ascii_digit());
        match (off, is_name) {
            (true, true) => optional.push(name.to_owned()),
            (true, false) => {}
            (false, _) => {
                assert!(is_name, "{name} is no name");
                set.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    (set, optional)
}

/// `address:host:container`.
pub(crate) fn published(port: &str) -> Option<(&str, u16, u16)> {
    let mut parts = port.rsplitn(3, ':');
    let container = parts.next()?.parse().ok()?;
    let host = parts.next()?.parse().ok()?;
    Some((parts.next()?, host, container))
}

#[test]
fn variables_are_put_in_as_compose_does_it() {
    let environment = Environment::from([
        ("A".to_owned(), "a".to_owned()),
        ("EMPTY".to_owned(), String::new()),
    ]);
    let put = |text: &str| interpolate(text, &environment);
    assert_eq!(
        put("x${A}y${EMPTY:-d}z${NONE:-}$$").as_deref(),
        Ok("xaydz$")
    );
    assert_eq!(
        put("${EMPTY:?set it}").unwrap_err(),
        "EMPTY: set it",
        "empty is as good as missing"
    );
    assert!(put("${NONE}").is_err());
    assert!(put("$A").is_err());
}
