//! The explanation for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::report::{Judged, Policy, Report, Row, Table};
use crate::cli::tail::print::harmless;

/// Everything as text.
pub(super) fn text(report: &Report) -> String {
    let mut out = String::new();
    for table in &report.tables {
        write_table(&mut out, table);
    }
    if let Some(row) = &report.row {
        write_row(&mut out, row);
    }
    if report.tables.len() != 1 {
        let totals = &report.totals;
        line(
            &mut out,
            &format!(
                "{} tables, {} policies: {} native, {} hybrid, {} asked, {} deny",
                totals.tables,
                totals.policies,
                totals.native,
                totals.hybrid,
                totals.asked,
                totals.deny
            ),
        );
        let levels: Vec<String> = totals
            .levels
            .iter()
            .map(|(level, count)| format!("{level} {count}"))
            .collect();
        if !levels.is_empty() {
            line(&mut out, &format!("by level: {}", levels.join(", ")));
        }
    }
    for note in &report.notes {
        line(&mut out, &format!("note: {note}"));
    }
    out
}

/// A line, whatever is in the names and errors that it quotes.
fn line(out: &mut String, text: &str) {
    // Writing to a String does not fail.
    let _written = writeln!(out, "{}", harmless(text));
}

fn write_table(out: &mut String, table: &Table) {
    let security = match (table.row_security, table.force_row_security) {
        (true, true) => "row-level security, forced",
        (true, false) => "row-level security",
        (false, _) if table.policies.iter().any(|one| one.kind == "policy") => {
            "no row-level security: its policies are without effect"
        }
        (false, _) => "no row-level security",
    };
    let published = if table.published {
        ""
    } else {
        ", not published"
    };
    line(
        out,
        &format!("{}.{}  {security}{published}", table.schema, table.table),
    );
    write_old_rows(out, table);
    for policy in &table.policies {
        write_policy(out, policy);
    }
    for role in &table.roles {
        let mut text = format!(
            "  as {}: {}",
            role.role,
            match role.sees {
                "everything" => "every row",
                "nothing" => "nothing",
                _ => "what the policies let through",
            }
        );
        if let Some(reason) = &role.reason {
            text.push_str(&format!(" ({reason})"));
        }
        if let Some(audience) = role.audience {
            text.push_str(&format!("; {}", found(audience)));
        }
        if role.asked {
            text.push_str("; PostgreSQL is asked where that does not decide");
        }
        line(out, &text);
    }
    out.push('\n');
}

/// What the row before an UPDATE or DELETE is judged by.
fn write_old_rows(out: &mut String, table: &Table) {
    let known = &table.old_rows;
    let columns = known.columns.join(", ");
    let from = match known.from {
        "full" => "in full (replica identity full)".to_owned(),
        "nothing" => "of which nothing is known (there is no replica identity)".to_owned(),
        "index" => format!("with {columns} (replica identity by an index)"),
        "relay" => format!("with {columns} (old_rows: the relay keeps them)"),
        _ => format!("with {columns} (replica identity by the primary key)"),
    };
    let lacks = if known.lacks.is_empty() {
        String::new()
    } else {
        format!(
            "; policies read {} besides, which is not known of them",
            known.lacks.join(", ")
        )
    };
    line(out, &format!("  old rows come {from}{lacks}"));
}

fn found(audience: &str) -> &'static str {
    match audience {
        "row" => "the row alone decides",
        "index" => "clients are found by an index",
        _ => "every client is judged (a scan)",
    }
}

fn write_policy(out: &mut String, policy: &Policy) {
    let kind = match (policy.kind, policy.permissive) {
        ("rule", _) => "",
        (_, true) => "policy ",
        (_, false) => "restrictive policy ",
    };
    let level = policy
        .level
        .map_or_else(|| "no level".to_owned(), |level| format!("level {level}"));
    line(
        out,
        &format!(
            "  {kind}{}: {}, {level}, {}",
            policy.name,
            policy.status,
            found(policy.audience)
        ),
    );
    if let Some(using) = &policy.using {
        for (number, part) in using.lines().enumerate() {
            let begin = if number == 0 { "using " } else { "  " };
            line(out, &format!("      {begin}{part}"));
        }
    }
    for reason in &policy.reasons {
        line(out, &format!("      because {reason}"));
    }
    for reason in &policy.raises {
        line(
            out,
            &format!("      raises an error in PostgreSQL, where it comes to that: {reason}"),
        );
    }
    if policy.applies_to.is_empty() {
        line(
            out,
            &format!(
                "      applies to none of these roles; explained as for {}",
                policy.explained_for
            ),
        );
    }
    for (role, other) in &policy.by_role {
        line(
            out,
            &format!(
                "      for {role}: {} ({})",
                other.status,
                other.reasons.join("; ")
            ),
        );
    }
    for (what, names) in [("columns", &policy.columns), ("claims", &policy.claims)] {
        if !names.is_empty() {
            line(out, &format!("      reads {what} {}", names.join(", ")));
        }
    }
    for lookup in &policy.lookups {
        let (table, columns) = (&lookup.table, lookup.columns.join(", "));
        let text = match &lookup.not_mirrored {
            None => format!("      mirrors {table} ({columns})"),
            Some(why) => format!(
                "      would mirror {table} ({columns}), but {why}; until then PostgreSQL is asked, \
                 row by row"
            ),
        };
        line(out, &text);
    }
    write_checked(out, policy);
}

/// What holding it against PostgreSQL has found.
fn write_checked(out: &mut String, policy: &Policy) {
    if let Some(checked) = &policy.checked {
        let count = format!("{} rows, {} verdicts", checked.rows, checked.verdicts);
        let text = if checked.agrees {
            format!("      checked against PostgreSQL: {count}")
        } else {
            format!(
                "ALARM: what is compiled answers otherwise than PostgreSQL ({count}), so it is \
                 asked. Please report it."
            )
        };
        line(out, &text);
    }
    if let Some(reason) = &policy.not_checked {
        line(
            out,
            &format!("      not checked against PostgreSQL: {reason}"),
        );
    }
}

fn write_row(out: &mut String, row: &Row) {
    let verdict = match row.visible {
        Some(true) => "sees the row",
        Some(false) => "does not see the row",
        None => "may or may not see the row",
    };
    line(
        out,
        &format!(
            "{} {verdict}: {} {}",
            row.role,
            row.because,
            row.decided_by.join(", ")
        ),
    );
    if !row.readable {
        line(
            out,
            "  this login does not read the row, so no values are shown and policies are not judged one by one",
        );
    }
    for one in &row.policies {
        write_judged(out, one);
    }
    let said = row
        .postgresql_says
        .as_deref()
        .map_or_else(String::new, |said| format!(" ({said})"));
    line(
        out,
        &format!("  PostgreSQL itself: {}{said}", row.postgresql),
    );
    if row.differs {
        line(
            out,
            "ALARM: the relay decides a policy otherwise than PostgreSQL. Please report it; until \
             then hide the table.",
        );
    }
    out.push('\n');
}

fn write_judged(out: &mut String, one: &Judged) {
    let by = match named(&one.values) {
        values if values.is_empty() => String::new(),
        values => format!("; {values}"),
    };
    let because = one.undecided_because.as_ref();
    let because = because.map_or_else(String::new, |because| format!(" ({because})"));
    line(
        out,
        &format!(
            "  {}: PostgreSQL {}, relay {}{because}{by}",
            one.name, one.postgresql, one.relay
        ),
    );
    for row in &one.lookups {
        line(
            out,
            &format!("      by a row of {}: {}", row.table, named(&row.values)),
        );
    }
}

fn named(values: &BTreeMap<String, Option<String>>) -> String {
    let values = values.iter().map(|(name, value)| match value {
        Some(text) => format!("{name} = {text:?}"),
        None => format!("{name} is null"),
    });
    values.collect::<Vec<_>>().join(", ")
}
