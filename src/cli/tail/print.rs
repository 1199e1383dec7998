//! A change as text for people, or as a line of JSON for programs. Whatever a row holds, it cannot
//! command the terminal.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::IsTerminal;

use clap::ColorChoice;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::note;

/// A longer value is cut, in characters. `--json` has all of it.
const LONGEST_VALUE: usize = 200;

/// Names longer than this are not aligned, in characters.
const WIDEST_NAME: usize = 24;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Turns changes into text.
pub(super) struct Printer {
    json: bool,
    colours: bool,
    /// Tables of which it was said that no old rows come.
    without_old: BTreeSet<(String, String)>,
    /// Rows as they were shown last, for updates whose old row does not come.
    shown: HashMap<Identity, Shown>,
}

/// Schema, table, and the columns that name a row with their values.
type Identity = (String, String, Vec<(String, String)>);

/// A row's values as JSON.
type Shown = HashMap<String, String>;

/// Rows that are remembered; past this all are forgotten.
const MAX_SHOWN: usize = 10_000;

/// Bytes of a row past which it is not remembered.
const MAX_SHOWN_BYTES: usize = 16 << 10;

/// What clients get as `data`.
#[derive(Deserialize)]
struct Change<'a> {
    schema: String,
    table: String,
    commit_timestamp: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    columns: Vec<Column>,
    #[serde(default, borrow)]
    record: Row<'a>,
    #[serde(default, borrow)]
    old_record: Row<'a>,
    #[serde(default)]
    errors: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

type Row<'a> = HashMap<String, &'a RawValue>;

impl Printer {
    pub(super) fn new(json: bool, colours: ColorChoice) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let colours = match colours {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb,
        };
        Self {
            json,
            colours,
            without_old: BTreeSet::new(),
            shown: HashMap::new(),
        }
    }

    /// Changes may have been missed: no row is as it was shown.
    pub(super) fn forget(&mut self) {
        self.shown.clear();
    }

    /// A change (what clients get as `data`) as text that ends with a newline.
    ///
    /// # Errors
    /// Where it is no change.
    pub(super) fn change(&mut self, data: &str) -> Result<String, serde_json::Error> {
        let change: Change<'_> = serde_json::from_str(data)?;
        if self.json {
            let mut line = harmless(data);
            line.push('\n');
            return Ok(line);
        }
        if change.kind == "TRUNCATE" {
            let other = |of: &Identity| *of.0 != change.schema || *of.1 != change.table;
            self.shown.retain(|identity, _| other(identity));
            return Ok(self.block(&change, None));
        }
        let before = self.shown.remove(&change.identity());
        let before = before.filter(|_| change.kind == "UPDATE" && !change.has_old_row());
        if change.kind == "UPDATE" && !change.has_old_row() && before.is_none() {
            let table = (change.schema.clone(), change.table.clone());
            if self.without_old.insert(table) {
                note(&format!(
                    "no old rows come of {}.{} (its replica identity is not full, or its policies \
                     are asked): what changed is shown of rows that were shown before",
                    change.schema, change.table
                ));
            }
        }
        let text = self.block(&change, before.as_ref());
        self.remember(&change);
        Ok(text)
    }

    fn remember(&mut self, change: &Change<'_>) {
        let bytes: usize = change.record.values().map(|value| value.get().len()).sum();
        // Where something is wrong with a row it is not all there.
        if change.kind == "DELETE" || change.errors.is_some() || bytes > MAX_SHOWN_BYTES {
            return;
        }
        if self.shown.len() >= MAX_SHOWN {
            self.shown.clear();
        }
        let row = change.record.iter();
        let row = row.map(|(name, value)| (name.clone(), value.get().to_owned()));
        self.shown.insert(change.identity(), row.collect());
    }

    fn block(&self, change: &Change<'_>, before: Option<&Shown>) -> String {
        let colour = match change.kind.as_str() {
            "INSERT" => GREEN,
            "DELETE" | "TRUNCATE" => RED,
            _ => YELLOW,
        };
        let mut text = self.painted(DIM, &harmless(&change.commit_timestamp));
        let kind = self.painted(colour, &harmless(&change.kind));
        let table = format!("{}.{}", harmless(&change.schema), harmless(&change.table));
        let table = self.painted(BOLD, &table);
        // Writing to a String does not fail.
        let _written = write!(text, " {kind} {table}");
        for name in change.key() {
            if let Some(value) = change.value(name) {
                let _written = write!(text, " {}={}", harmless(name), shown(value));
            }
        }
        text.push('\n');
        let names = change.names();
        let widest = names
            .iter()
            .map(|name| name.chars().count())
            .filter(|width| *width <= WIDEST_NAME)
            .max()
            .unwrap_or(0);
        for name in names {
            self.line(&mut text, change, before, name, widest);
        }
        for error in change.errors.iter().flatten() {
            let _written = writeln!(text, "  ! {}", self.painted(RED, &harmless(error)));
        }
        text
    }

    /// One column of a change.
    fn line(
        &self,
        text: &mut String,
        change: &Change<'_>,
        before: Option<&Shown>,
        name: &str,
        widest: usize,
    ) {
        let label = format!("{:widest$}", harmless(name));
        let old = change.old_record.get(name).map(|value| value.get());
        let old = old.or_else(|| before?.get(name).map(String::as_str));
        let new = change.record.get(name);
        let _written = match (change.kind.as_str(), old, new) {
            ("UPDATE", Some(old), Some(new)) if old != new.get() => {
                let old = self.painted(RED, &shown(old));
                let new = self.painted(GREEN, &shown(new.get()));
                let label = self.painted(YELLOW, &format!("~ {label}"));
                writeln!(text, "  {label}  {old} → {new}")
            }
            ("DELETE", Some(old), _) => {
                let line = format!("- {label}  {}", shown(old));
                writeln!(text, "  {}", self.painted(RED, &line))
            }
            ("INSERT", _, Some(new)) => {
                let line = format!("+ {label}  {}", shown(new.get()));
                writeln!(text, "  {}", self.painted(GREEN, &line))
            }
            (_, _, Some(new)) => {
                let line = format!("  {label}  {}", shown(new.get()));
                // What did not change stands back; what may have changed does not.
                let known = old.is_some();
                writeln!(
                    text,
                    "  {}",
                    if known {
                        self.painted(DIM, &line)
                    } else {
                        line
                    }
                )
            }
            // In `columns` and not in the row: PostgreSQL did not send it.
            _ => Ok(()),
        };
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.colours {
            format!("{colour}{text}{PLAIN}")
        } else {
            text.to_owned()
        }
    }
}

impl Change<'_> {
    /// Whether more than the key of the row before is known.
    fn has_old_row(&self) -> bool {
        let known = self.record.len();
        known <= 1 || self.old_record.len() >= known
    }

    /// The columns in their order.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
        let listed: BTreeSet<&str> = names.iter().copied().collect();
        let others: BTreeSet<&str> = self
            .record
            .keys()
            .chain(self.old_record.keys())
            .map(String::as_str)
            .filter(|name| !listed.contains(name))
            .collect();
        names.extend(others);
        names
    }

    /// What names the row. The wire does not say what the key is: an old row that is shorter than
    /// the row is the key, else it is `id` where there is one, or the first column.
    fn key(&self) -> Vec<&str> {
        let names = self.names();
        if !self.old_record.is_empty() && self.old_record.len() < self.columns.len() {
            return names
                .into_iter()
                .filter(|name| self.old_record.contains_key(*name))
                .collect();
        }
        let id = names.iter().find(|name| **name == "id").copied();
        id.or(names.first().copied()).into_iter().collect()
    }

    /// What tells its row from others. Columns belong to it by name, so that a guessed key is never
    /// taken for the real one.
    fn identity(&self) -> Identity {
        let key = self.key().into_iter().filter_map(|name| {
            let value = self.value(name)?;
            Some((name.to_owned(), value.to_owned()))
        });
        (self.schema.clone(), self.table.clone(), key.collect())
    }

    fn value(&self, name: &str) -> Option<&str> {
        let value = self.record.get(name).or_else(|| self.old_record.get(name));
        value.map(|value| value.get())
    }
}

/// A value: its JSON, cut where it is long.
fn shown(json: &str) -> String {
    match json.char_indices().nth(LONGEST_VALUE) {
        None => harmless(json),
        Some((end, _)) => format!(
            "{}… ({} characters)",
            harmless(json.get(..end).unwrap_or(json)),
            json.chars().count()
        ),
    }
}

/// A text without what terminals obey or people misread: control characters of both sets, and
/// those that turn the direction of writing, as JSON writes them (`\u001b`). White space becomes a
/// space. JSON stays the same JSON: it holds such characters raw in strings only, where their
/// escapes mean the same, and line breaks only between its tokens.
pub(in crate::cli) fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => harmless.push(' '),
            c if c.is_control() || is_invisible(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String does not fail.
                    let _written = write!(harmless, "\\u{unit:04x}");
                }
            }
            c => harmless.push(c),
        }
    }
    harmless
}

/// Line and paragraph separators, marks that turn the direction of writing, tags. Joiners are left
/// alone: scripts and emoji need them.
const fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn printer(json: bool, colours: ColorChoice) -> Printer {
        Printer::new(json, colours)
    }

    fn update() -> String {
        json!({
            "schema": "public", "table": "todos", "type": "UPDATE",
            "commit_timestamp": "2026-08-21T12:03:56.123Z",
            "columns": [
                {"name": "id", "type": "int8"}, {"name": "title", "type": "text"},
                {"name": "done", "type": "bool"}
            ],
            "record": {"id": 7, "title": "Milk", "done": true},
            "old_record": {"id": 7, "title": "Milk", "done": false},
            "errors": null
        })
        .to_string()
    }

    #[test]
    fn a_diff_names_the_row_and_shows_old_and_new() {
        assert_eq!(
            printer(false, ColorChoice::Never)
                .change(&update())
                .unwrap(),
            "2026-08-21T12:03:56.123Z UPDATE public.todos id=7\n\
             \x20     id     7\n\
             \x20     title  \"Milk\"\n\
             \x20   ~ done   false → true\n"
                .replace("\x20     ", "    ")
                .replace("\x20   ~", "  ~")
        );
        let painted = printer(false, ColorChoice::Always)
            .change(&update())
            .unwrap();
        assert!(
            painted.contains("\x1b[31mfalse\x1b[0m → \x1b[32mtrue\x1b[0m"),
            "{painted:?}"
        );
    }

    #[test]
    fn an_update_without_its_old_row_is_held_against_what_was_shown_last_and_only_that() {
        let change = |kind: &str, id: u64, title: &str| {
            json!({
                "schema": "s", "table": "t", "type": kind, "commit_timestamp": "x",
                "columns": [{"name": "id", "type": "int8"}, {"name": "title", "type": "text"}],
                "record": {"id": id, "title": title},
                "old_record": if kind == "UPDATE" { json!({"id": id}) } else { json!({}) },
                "errors": null
            })
            .to_string()
        };
        let mut printer = printer(false, ColorChoice::Never);
        printer.change(&change("INSERT", 1, "a")).unwrap();
        printer.change(&change("INSERT", 2, "b")).unwrap();
        let mut title = |kind, id, title| {
            let text = printer.change(&change(kind, id, title)).unwrap();
            text.lines().last().unwrap().trim().to_owned()
        };
        assert_eq!(title("UPDATE", 1, "c"), "~ title  \"a\" → \"c\"");
        assert_eq!(title("UPDATE", 1, "d"), "~ title  \"c\" → \"d\"");
        assert_eq!(title("UPDATE", 3, "e"), "title  \"e\"", "another row");
        printer.forget();
        let text = printer.change(&change("UPDATE", 2, "f")).unwrap();
        assert!(!text.contains('→'), "it may have changed meanwhile: {text}");
    }

    #[test]
    fn a_truncate_is_one_line_and_no_row_of_the_table_is_as_it_was_shown() {
        let insert = |table: &str| {
            json!({
                "schema": "s", "table": table, "type": "INSERT", "commit_timestamp": "x",
                "columns": [{"name": "id", "type": "int8"}, {"name": "n", "type": "int8"}],
                "record": {"id": 1, "n": 1}, "errors": null
            })
        };
        let update = |table: &str| {
            let mut update = insert(table);
            update["type"] = "UPDATE".into();
            update["old_record"] = json!({"id": 1});
            update["record"]["n"] = 2.into();
            update.to_string()
        };
        let truncate = json!({
            "schema": "s", "table": "t", "columns": [], "commit_timestamp": "x",
            "type": "TRUNCATE", "errors": null, "cursor": "y"
        });
        let mut people = printer(false, ColorChoice::Never);
        for table in ["t", "u"] {
            people.change(&insert(table).to_string()).unwrap();
        }
        let line = people.change(&truncate.to_string()).unwrap();
        assert_eq!(line, "x TRUNCATE s.t\n");
        assert!(!people.change(&update("t")).unwrap().contains('→'));
        assert!(people.change(&update("u")).unwrap().contains('→'));
        let line = printer(true, ColorChoice::Never).change(&truncate.to_string());
        assert_eq!(line.unwrap(), format!("{truncate}\n"));
    }

    #[test]
    fn the_key_is_what_a_short_old_row_holds() {
        let delete = json!({
            "schema": "s", "table": "t", "type": "DELETE", "commit_timestamp": "x",
            "columns": [
                {"name": "a", "type": "int4"}, {"name": "b", "type": "int4"},
                {"name": "c", "type": "int4"}
            ],
            "old_record": {"a": 1, "c": 3}, "errors": ["Error 413: too large"]
        })
        .to_string();
        assert_eq!(
            printer(false, ColorChoice::Never).change(&delete).unwrap(),
            "x DELETE s.t a=1 c=3\n  - a  1\n  - c  3\n  ! Error 413: too large\n"
        );
    }

    #[test]
    fn no_value_and_no_name_reaches_the_terminal_as_a_command() {
        let hostile = "\u{1b}]0;owned\u{7}\r\u{9b}2J\u{7f}\u{202e}gnp\u{2028}\u{e0041}é";
        let change = json!({
            "schema": hostile, "table": hostile, "type": "INSERT", "commit_timestamp": hostile,
            "columns": [{"name": hostile, "type": "text"}],
            "record": {hostile: hostile}, "errors": [hostile]
        });
        // What JSON permits to stand raw, and white space between tokens.
        let data = change.to_string().replace(":{", ":\r\n\t{");
        assert!(data.contains('\u{9b}'), "the test sends it raw");
        for json in [false, true] {
            let text = printer(json, ColorChoice::Never).change(&data).unwrap();
            let line = text.strip_suffix('\n').unwrap();
            for line in line.split('\n') {
                let bad = line.chars().find(|c| c.is_control() || is_invisible(*c));
                assert_eq!(bad, None, "{text:?}");
            }
            assert!(text.contains('é'));
            if json {
                assert_eq!(line.lines().count(), 1);
                assert_eq!(serde_json::from_str::<Value>(line).unwrap(), change);
            }
        }
    }

    #[test]
    fn long_values_are_cut_between_characters_and_only_for_people() {
        let title = "é".repeat(5_000);
        let data = json!({
            "schema": "s", "table": "t", "type": "INSERT", "commit_timestamp": "x",
            "columns": [{"name": "title", "type": "text"}], "record": {"title": title}
        })
        .to_string();
        let block = printer(false, ColorChoice::Never).change(&data).unwrap();
        assert!(
            block.contains("… (5002 characters)") && block.len() < 1_500,
            "{block}"
        );
        let line = printer(true, ColorChoice::Never).change(&data).unwrap();
        assert!(line.contains(&title));
    }
}
