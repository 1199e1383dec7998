//! The roles that clients act as.

use std::collections::BTreeSet;

use super::server::Facts;
use super::token::Holder;
use super::{Finding, Severity};
use crate::config::Config;
use crate::pg::quote_identifier;
use crate::policy::catalog::Catalog;

/// The roles that clients can be expected to act as.
pub(super) fn named(config: &Config, holder: Option<&Holder>) -> BTreeSet<String> {
    let usual = ["anon", "authenticated", "service_role"].map(str::to_owned);
    let mut roles: BTreeSet<String> = usual.into_iter().collect();
    roles.insert(config.default_role.clone());
    roles.extend(config.api_keys.values().cloned());
    roles.extend(holder.map(|holder| holder.role.clone()));
    roles
}

/// Whether it matters that a role is there: a token, a key or a setting names it.
fn is_meant(role: &str, config: &Config, holder: Option<&Holder>) -> bool {
    role == config.default_role
        || config.api_keys.values().any(|of_key| of_key == role)
        || holder.is_some_and(|holder| holder.role == role)
}

pub(super) fn membership_sql(role: &str, login: &str, major: u16) -> String {
    let option = if major < 16 {
        ""
    } else {
        " with inherit true, set true"
    };
    format!(
        "grant {} to {}{option}",
        quote_identifier(role),
        quote_identifier(login)
    )
}

/// A role that tokens are of is not there.
fn missing(role: &str, from_token: bool) -> Finding {
    let (code, text) = if from_token {
        (
            "token_role",
            format!("the token is of role {role}, which does not exist"),
        )
    } else {
        (
            "role_missing",
            format!("tokens without a role are of role {role}, which does not exist"),
        )
    };
    Finding::error(code, text).role(role)
}

pub(super) fn findings(
    catalog: &Catalog,
    facts: &Facts,
    config: &Config,
    holder: Option<&Holder>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for role in named(config, holder) {
        let from_token = holder.is_some_and(|holder| holder.role == role);
        let Some(known) = catalog.roles.get(&role) else {
            if is_meant(&role, config, holder) {
                let finding = missing(&role, from_token);
                let mut known = catalog.roles.keys();
                let alike = known.find(|known| known.to_lowercase() == role.to_lowercase());
                let reserved = ["public", "none"].contains(&role.as_str());
                found.push(if let Some(alike) = alike {
                    finding.advice(format!(
                        "There is a role {alike}: the token has to name that."
                    ))
                } else if reserved || role.starts_with("pg_") {
                    finding.advice(
                        "No role can be made of that name: have tokens name another, or correct \
                         ROWCAST_DEFAULT_ROLE or ROWCAST_ROLE_CLAIM.",
                    )
                } else {
                    let make = format!("create role {} nologin", quote_identifier(&role));
                    let member = membership_sql(&role, &facts.login, catalog.major);
                    finding.sql(make).sql(member).advice(
                        "Or correct the claim role of the token, ROWCAST_DEFAULT_ROLE or \
                         ROWCAST_ROLE_CLAIM.",
                    )
                });
            }
            continue;
        };
        // One that is to see everything is named by a key or a token of its own.
        let usual = ["anon", "authenticated"].contains(&role.as_str());
        if known.bypass && (usual || role == config.default_role && role != "service_role") {
            let name = quote_identifier(&role);
            found.push(
                Finding::warning(
                    "role_bypass",
                    format!(
                        "row-level security does not hold for {role} (BYPASSRLS, or a superuser): its \
                         clients see every row of what they may SELECT from"
                    ),
                )
                .role(role.as_str())
                .sql(format!("alter role {name} nosuperuser nobypassrls"))
                .advice("Leave it where its clients are to see all."),
            );
        }
        if !known.bypass && !known.settable {
            found.push(
                Finding::warning(
                    "role_membership",
                    format!(
                        "the relay's login {} may not become {role}: what has to be asked of \
                         PostgreSQL for that role cannot be, and subscriptions are refused or rows \
                         hidden",
                        facts.login
                    ),
                )
                .of_severity(if from_token {
                    Severity::Error
                } else {
                    Severity::Warning
                })
                .role(role.as_str())
                .sql(membership_sql(&role, &facts.login, catalog.major)),
            );
        }
    }
    found
}
