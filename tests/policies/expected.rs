//! What `rowcast explain` says of a schema, against what its header expects.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokio::process::Command;

use crate::file::{File, foreign};

/// What is known of a table's policies together.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) all_native: bool,
    /// What its policies look into, as `"schema"."table"`; only for what is compiled.
    pub(crate) lookups: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Explained {
    pub(crate) tables: BTreeMap<String, Compiled>,
    pub(crate) policies: usize,
    pub(crate) native: usize,
    pub(crate) levels: BTreeMap<String, usize>,
    pub(crate) wrong: Vec<String>,
}

/// Runs the command against the schema's database.
pub(crate) async fn explained(url: &str, file: &File) -> Explained {
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .args(["explain", "--all", "--json"])
        .current_dir(directory.path())
        .env_clear()
        .env("DATABASE_URL", url)
        .output()
        .await
        .expect("the command");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}: {}", file.name, String::from_utf8_lossy(&output.stderr)));
    let mut explained = Explained::default();
    let mut expected = file.expect.clone();
    for table in report["tables"].as_array().expect("tables") {
        let path = format!("{}.{}", text(&table["schema"]), text(&table["table"]));
        let policies = table["policies"].as_array().expect("policies");
        let mut compiled = Compiled {
            all_native: true,
            ..Compiled::default()
        };
        for policy in policies {
            explained.policies += 1;
            let status = text(&policy["status"]);
            let level = policy["level"].as_str().unwrap_or("-");
            *explained.levels.entry(level.to_owned()).or_default() += 1;
            explained.native += usize::from(status == "native");
            compiled.all_native &= status == "native" && policy["by_role"].is_null();
            let lookups = policy["lookups"].as_array().expect("lookups");
            compiled
                .lookups
                .extend(lookups.iter().map(|one| text(&one["table"])));
            let is = format!("{status} {level} {path} {}", text(&policy["name"]));
            let reasons: Vec<String> = policy["reasons"]
                .as_array()
                .expect("reasons")
                .iter()
                .map(text)
                .collect();
            if status != "native" && reasons.is_empty() {
                explained
                    .wrong
                    .push(format!("{}: {is} without a reason", file.name));
            }
            if foreign() && file.expect.is_empty() {
                if status != "native" {
                    eprintln!("{}: {is} because {}", file.name, reasons.join("; "));
                }
                continue;
            }
            let found = expected.iter().position(|line| {
                let (line, reason) = line.split_once(" because ").unwrap_or((line, ""));
                line == is && reasons.iter().any(|one| one.contains(reason)) != reasons.is_empty()
            });
            match found {
                Some(place) => drop(expected.remove(place)),
                None => explained.wrong.push(format!(
                    "EXPECT {} -- expect: {is}{}",
                    file.name,
                    if reasons.is_empty() {
                        String::new()
                    } else {
                        format!(" because {}", reasons.join("; "))
                    }
                )),
            }
        }
        explained.tables.insert(path, compiled);
    }
    let left = expected
        .into_iter()
        .map(|line| format!("{}: not so: {line}", file.name));
    explained.wrong.extend(left);
    explained
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
