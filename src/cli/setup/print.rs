//! `--print`: the SQL as it would be run, each statement with its reason, and apart from it what
//! somebody else must run.

use std::fmt::Write as _;

use super::script::{Kind, Script, Step};

/// Text for psql, grown from part to part.
#[derive(Default)]
pub(super) struct Sheet {
    text: String,
    apart: Vec<Step>,
}

impl Sheet {
    /// Begins with what holds for all of it.
    pub(super) fn new(database: &str, login: &str, remove: bool) -> Self {
        let mut sheet = Self::default();
        let what = if remove {
            "undoes what rowcast setup made"
        } else {
            "sets up what Rowcast needs"
        };
        sheet.comment(&format!(
            "{} in database {database}, run by {login}. Nothing has been changed yet.\n\
             Every piece may be run by itself, in this order. Run again, PostgreSQL says of some that \
             they are {}\nalready; printed again, they are left out.",
            capital(what),
            if remove { "gone" } else { "there" },
        ));
        sheet.text.push('\n');
        sheet.comment(
            "Nobody waits longer than this for a lock, and so nobody waits longer behind it.",
        );
        let _written = writeln!(sheet.text, "{}", super::LOCK_TIMEOUT);
        sheet.comment(
            "Everything else in this session is as the statements expect it, whatever the login's \
             and the\ndatabase's own settings are; names outside PostgreSQL's own schema are \
             written in full.",
        );
        for setting in super::SESSION {
            let _written = writeln!(sheet.text, "set {setting};");
        }
        sheet
    }

    /// Begins a part.
    pub(super) fn part(&mut self, title: &str, path: &str) {
        let rule = "-".repeat(98_usize.saturating_sub(title.len() + path.len()));
        let _written = writeln!(self.text, "\n-- {title} ({path}) {rule}");
    }

    /// A file as it is.
    pub(super) fn whole(&mut self, script: Script, settings: &[(&str, String)]) {
        for (name, value) in settings {
            let value = crate::pg::quote_literal(value);
            let _written = writeln!(self.text, "set {name} = {value};");
        }
        self.text.push_str(script.text);
    }

    /// Steps that are all for others, and come before what is kept for them already.
    pub(super) fn steps_apart(&mut self, steps: Vec<Step>) {
        self.apart.splice(0..0, steps);
    }

    /// Steps in their place; what is for others is kept for the end.
    pub(super) fn steps(&mut self, steps: Vec<Step>) {
        if steps.is_empty() {
            self.comment("Everything is there already.");
        }
        for step in steps {
            match step.kind {
                Kind::Administrator | Kind::Advice => self.apart.push(step),
                Kind::Note | Kind::Refused => {
                    self.text.push('\n');
                    self.comment(&said(&step));
                }
                Kind::Run => {
                    self.text.push('\n');
                    self.comment(&step.reason);
                    self.text.push_str(&step.sql);
                    self.text.push('\n');
                }
            }
        }
    }

    /// The whole text; what is for others stands in comments, so that the rest can be run as one.
    pub(super) fn finish(mut self) -> String {
        let apart = std::mem::take(&mut self.apart);
        if let Some(text) = apart_text(&apart) {
            self.text.push('\n');
            self.comment(&text);
        }
        self.text
    }

    fn comment(&mut self, text: &str) {
        for line in text.lines() {
            let _written = writeln!(self.text, "{}", format!("-- {line}").trim_end());
        }
    }
}

/// A note, or what is not done.
pub(super) fn said(step: &Step) -> String {
    match step.kind {
        Kind::Refused => format!("NOT DONE: {}", step.word),
        _ => format!("Note: {}", step.word),
    }
}

/// What others must or may run, each with what is lost without it.
pub(super) fn apart_text(steps: &[Step]) -> Option<String> {
    let mut text = String::new();
    for (kind, title) in [
        (
            Kind::Administrator,
            "An administrator must run once, as this login may not or should not; then run this \
             again:",
        ),
        (Kind::Advice, "An administrator may want to run:"),
    ] {
        let mut steps = steps.iter().filter(|step| step.kind == kind).peekable();
        if steps.peek().is_none() {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(title);
        text.push('\n');
        for step in steps {
            text.push('\n');
            for line in capital(&step.word).lines().chain(step.reason.lines()) {
                let _written = writeln!(text, "  -- {line}");
            }
            for line in step.sql.lines() {
                let _written = writeln!(text, "  {line}");
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_uppercase().chain(characters).collect())
        .unwrap_or_default()
}
