//! `[[rule]]` in `rowcast.toml`.

use super::ConfigError;
use crate::policy::rule::{Rule, table_name};

/// How rules are written, for errors and the printed file.
pub(super) const EXAMPLE: &str = "\
#[[rule]]
#table = \"public.jobs\"
#using = \"business_id = (auth.jwt() ->> 'businessId')::bigint\"
#roles = [\"authenticated\"]
";

/// What a rule may have.
const KEYS: [&str; 3] = ["table", "using", "roles"];

/// Reads the rules of a file.
///
/// # Errors
/// A sentence about the first thing that is wrong.
pub(super) fn read(value: &toml::Value, path: &str) -> Result<Vec<Rule>, ConfigError> {
    let rules = value
        .as_array()
        .filter(|all| all.iter().all(toml::Value::is_table));
    let rules = rules.ok_or_else(|| {
        ConfigError(format!(
            "`rule` in {path} must be written as [[rule]], once for each rule, with a `table`, a \
             condition `using`, and perhaps `roles`."
        ))
    })?;
    let tables = rules.iter().filter_map(toml::Value::as_table);
    tables
        .enumerate()
        .map(|(place, rule)| one(rule, &format!("rule {} in {path}", place + 1)))
        .collect()
}

fn one(rule: &toml::Table, called: &str) -> Result<Rule, ConfigError> {
    if let Some(unknown) = rule.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(ConfigError(format!(
            "{called} has `{unknown}`; a rule has `table`, `using` and `roles`."
        )));
    }
    let text = |key: &str| rule.get(key).and_then(toml::Value::as_str);
    let wrong =
        |key: &str, right: &str| ConfigError(format!("`{key}` of {called} must be {right}."));
    let named = text("table").and_then(table_name);
    let Some((schema, table)) = named else {
        let right = "a table with its schema, in quotes, such as \"public.jobs\"";
        return Err(wrong("table", right));
    };
    let using = text("using").filter(|text| !text.trim().is_empty() && !text.contains('\0'));
    let Some(using) = using else {
        let right = "a condition as SQL, in quotes, such as \"owner = auth.uid()\"";
        return Err(wrong("using", right));
    };
    let roles = match rule.get("roles") {
        None => Some(Vec::new()),
        Some(roles) => {
            let named = |role: &toml::Value| role.as_str().map(str::to_owned);
            let roles: Option<Vec<String>> = roles
                .as_array()
                .and_then(|all| all.iter().map(named).collect());
            // None at all would be a rule for nobody, which looks like one for somebody.
            roles.filter(|roles| !roles.is_empty() && roles.iter().all(|role| !role.is_empty()))
        }
    };
    let Some(roles) = roles else {
        let right = "a list of roles, such as [\"anon\", \"authenticated\"]; without it the rule \
                     is for all";
        return Err(wrong("roles", right));
    };
    Ok(Rule {
        schema,
        table,
        using: using.to_owned(),
        roles,
    })
}

/// Rules as they are written in a file.
pub(super) fn printed(rules: &[Rule]) -> String {
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut out = String::new();
    for rule in rules {
        out.push_str(&format!(
            "\n[[rule]]\ntable = {}\nusing = {}\n",
            text(&rule.sql_name()),
            text(&rule.using)
        ));
        if !rule.roles.is_empty() {
            let roles: Vec<String> = rule.roles.iter().map(|role| text(role)).collect();
            out.push_str(&format!("roles = [{}]\n", roles.join(", ")));
        }
    }
    out
}
