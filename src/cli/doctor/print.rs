//! The report for people.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::live::Live;
use crate::cli::tail::print::harmless;
use crate::doctor::{Finding, Report, Severity};

/// Of findings of one kind so many are shown.
const OF_A_KIND: usize = 8;

/// The whole text. Names in it cannot send control characters to the terminal.
pub(super) fn report(report: &Report, live: Option<&Live>) -> String {
    let mut text = String::new();
    head(report, &mut text);
    let mut shown: HashMap<(&str, Severity), usize> = HashMap::new();
    for one in &report.findings {
        let count = shown.entry((one.code, one.severity)).or_default();
        *count += 1;
        if *count <= OF_A_KIND {
            finding(one, &mut text);
        }
    }
    let mut more: Vec<_> = shown
        .into_iter()
        .filter(|(_, count)| *count > OF_A_KIND)
        .collect();
    more.sort_unstable();
    for ((code, _), count) in more {
        let rest = count - OF_A_KIND;
        line(
            &mut text,
            &format!("\n… and {rest} more of {code}; --json has all."),
        );
    }
    if let Some(live) = live {
        text.push('\n');
        for step in &live.steps {
            line(
                &mut text,
                &format!("{:>7} ms  {}", step.milliseconds, step.what),
            );
        }
    }
    for unseen in &report.unseen {
        line(&mut text, &format!("\nNot looked at: {unseen}."));
    }
    text.push('\n');
    let counted = |severity: Severity| {
        let count = report.count(severity);
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {}{plural}", severity.as_str())
    };
    let summary = match report.worst() {
        None => "Nothing is wrong.".to_owned(),
        Some(_) => format!(
            "{}, {}, {}.",
            counted(Severity::Error),
            counted(Severity::Warning),
            counted(Severity::Note)
        ),
    };
    line(&mut text, &summary);
    text
}

fn head(report: &Report, text: &mut String) {
    let mut parts = Vec::new();
    if let (Some(server), Some(database), Some(login)) =
        (&report.server, &report.database, &report.login)
    {
        parts.push(format!(
            "database {database} on PostgreSQL {server}, seen by {login}"
        ));
    }
    if let Some(publication) = &report.publication {
        let plural = if report.tables == 1 { "" } else { "s" };
        parts.push(format!(
            "publication {publication} with {} table{plural}",
            report.tables
        ));
    }
    parts.push(format!("{} ms", report.milliseconds));
    line(text, &parts.join("; "));
}

fn finding(one: &Finding, text: &mut String) {
    let role = one.role.as_ref().map(|role| format!(" for {role}"));
    line(
        text,
        &format!(
            "\n{} {}{}{}",
            one.severity.as_str().to_uppercase(),
            one.code,
            one.table
                .as_ref()
                .map_or_else(String::new, |table| format!(" {table}")),
            role.unwrap_or_default()
        ),
    );
    line(text, &format!("  {}.", one.text.trim_end_matches('.')));
    for statement in &one.sql {
        // A line break may be part of a name there.
        for part in format!("      {statement};").split('\n') {
            line(text, part);
        }
    }
    if let Some(advice) = &one.advice {
        line(text, &format!("  {advice}"));
    }
}

fn line(text: &mut String, said: &str) {
    let _written = writeln!(text, "{}", harmless(said));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_steer_the_terminal_and_many_alike_are_counted() {
        let mut whole = Report {
            format: 1,
            findings: Vec::new(),
            server: None,
            database: None,
            login: None,
            publication: Some("p\u{1b}[2J".to_owned()),
            tables: 1,
            unseen: Vec::new(),
            milliseconds: 3,
        };
        whole.add((0..20).map(|number| {
            Finding::warning("rls_off", format!("t{number:02}\u{7} is open")).sql("select 1")
        }));
        let text = report(&whole, None);
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text}");
        assert!(text.contains("t07"), "{text}");
        assert!(!text.contains("t08"), "{text}");
        assert!(text.contains("and 12 more of rls_off"), "{text}");
        assert!(text.contains("      select 1;\n"), "{text}");
        assert!(
            text.ends_with("0 errors, 20 warnings, 0 notes.\n"),
            "{text}"
        );
    }
}
