//! Settings that policies read and no subscriber has.

use std::collections::{BTreeMap, BTreeSet};

use super::{Seen, Tables};
use crate::doctor::Finding;
use crate::policy::catalog::Policy;

/// What a relay's sessions have, from a token; `NULL` is meant where it has none.
const CLAIMS: &str = "request.jwt.claims";

/// What only old versions of PostgREST set for each claim of its own. Who reads one and else all claims
/// does without.
const CLAIM: &str = "request.jwt.claim";

impl Tables<'_> {
    /// What an application sets before its own queries is not there when a change is judged.
    pub(super) fn unset(&self, seen: &Seen<'_>, found: &mut Vec<Finding>) {
        let unset = self.catalog.unset.iter();
        let quoted: Vec<(&String, String)> = unset
            .filter(|name| *name != CLAIMS)
            .map(|name| (name, format!("'{name}'")))
            .collect();
        if quoted.is_empty() {
            return;
        }
        let mut reading: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut note = |text: &str, who: &dyn Fn() -> String| {
            let text = text.to_lowercase();
            let reads_claims = text.contains(CLAIMS);
            for (name, quoted) in &quoted {
                if text.contains(quoted) && !(reads_claims && name.starts_with(CLAIM)) {
                    reading.entry(name).or_default().insert(who());
                }
            }
        };
        for table in self.judged(seen.table) {
            for Policy {
                name, condition, ..
            } in &table.policies
            {
                let text = condition.as_deref().unwrap_or_default();
                note(text, &|| format!("policy {name}"));
            }
        }
        for function in self.called(seen.table) {
            note(&function.source, &|| format!("function {}", function.name));
        }
        let name = self.names.of(seen.table);
        for (setting, readers) in reading {
            let claim = setting.rsplit('.').next().unwrap_or(setting);
            let readers: Vec<String> = readers.into_iter().collect();
            let whose = if setting.starts_with("request.") {
                "what some versions of PostgREST set for each request"
            } else {
                "what an application sets before its own queries"
            };
            found.push(
                Finding::warning(
                    "setting_unset",
                    format!(
                        "{} of {name} reads the setting {setting}, which no subscriber has: {whose} is not \
                         there when a change is judged, and rows that need it are hidden from everybody",
                        readers.join(" and ")
                    ),
                )
                .table(name.as_str())
                .sql(format!(
                    "-- in {}, instead of current_setting('{setting}', …): \
                     nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> '{claim}'",
                    readers.join(" and ")
                ))
                .advice(
                    "Have it read a claim of the token, which whoever signs tokens has to put there.",
                ),
            );
        }
    }
}
