//! `output_plugin_libraries`: which output plugins the server loads, where it has such a setting. Minor versions
//! of 2026 do.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::Finding;
use crate::pg::quote_literal;

/// The plugin that the relay reads by.
const PLUGIN: &str = "pgoutput";

/// What the server says of the setting.
#[derive(Debug, Default)]
pub(super) enum Libraries {
    /// It has no such setting.
    #[default]
    None,
    /// This login may not see it.
    Hidden,
    /// What it is.
    Some(String),
}

impl Libraries {
    pub(super) async fn read(client: &Client) -> Result<Self, Error> {
        let setting = "select pg_catalog.current_setting('output_plugin_libraries', true)";
        match client.query_one(setting, &[]).await {
            Ok(row) => {
                let libraries: Option<String> = row.try_get(0)?;
                Ok(libraries.map_or(Self::None, Self::Some))
            }
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                Ok(Self::Hidden)
            }
            Err(error) => Err(error),
        }
    }
}

/// What is wrong with the list, if anything is.
pub(super) fn finding(libraries: &str) -> Option<Finding> {
    let mut all = elements(libraries);
    if all.iter().any(|library| library == PLUGIN) {
        return None;
    }
    all.push(PLUGIN.to_owned());
    // Each by itself: PostgreSQL takes a literal for one element, commas and all.
    let all: Vec<String> = all.iter().map(|library| quote_literal(library)).collect();
    let finding = Finding::error(
        "output_plugin_libraries",
        "output_plugin_libraries does not name pgoutput: the server refuses to decode with it",
    );
    Some(
        finding
            .sql(format!(
                "alter system set output_plugin_libraries = {}",
                all.join(", ")
            ))
            .sql("select pg_reload_conf()"),
    )
}

/// The elements of a list, as PostgreSQL writes one: those with other characters are in double quotes, which
/// stand twice within them.
fn elements(list: &str) -> Vec<String> {
    let mut elements = Vec::new();
    let mut element = String::new();
    let (mut quoted, mut characters) = (false, list.chars().peekable());
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                element.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => elements.push(std::mem::take(&mut element)),
            other if other.is_whitespace() && !quoted => {}
            other => element.push(other),
        }
    }
    elements.push(element);
    elements.retain(|element| !element.is_empty());
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_postgresql_writes_it() {
        for (list, read) in [
            ("", vec![]),
            ("pgoutput, test_decoding", vec!["pgoutput", "test_decoding"]),
            (
                " pgoutput ,test_decoding",
                vec!["pgoutput", "test_decoding"],
            ),
            (
                "\"test_decoding, pgoutput\"",
                vec!["test_decoding, pgoutput"],
            ),
            (
                "\"$libdir/a\"\"b\", wal2json",
                vec!["$libdir/a\"b", "wal2json"],
            ),
        ] {
            assert_eq!(elements(list), read, "{list}");
        }
    }

    #[test]
    fn a_list_without_the_plugin_is_found_and_mended_by_one_with_it_and_all_others() {
        for known in ["pgoutput", "test_decoding, pgoutput", "\"pgoutput\""] {
            assert!(finding(known).is_none(), "{known}");
        }
        for (list, mended) in [
            ("", "'pgoutput'"),
            ("test_decoding", "'test_decoding', 'pgoutput'"),
            ("*", "'*', 'pgoutput'"),
            // Somebody has written it as one literal.
            (
                "\"test_decoding, pgoutput\"",
                "'test_decoding, pgoutput', 'pgoutput'",
            ),
        ] {
            let found = finding(list).unwrap();
            assert_eq!(
                found.sql[0],
                format!("alter system set output_plugin_libraries = {mended}"),
                "{list}"
            );
        }
    }
}
