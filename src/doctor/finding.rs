//! One thing that stands between a row and its readers.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody receives nothing, or what they must not, or the relay cannot start.
    Error,
    /// Somebody receives too little or too late, or may soon.
    Warning,
    /// As it may be meant; worth knowing.
    Note,
}

impl Severity {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// What was found. It names tables, columns, roles and policies, never a value of a row or a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is, in a word that stays.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The table that it is about, as in SQL with its schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The role whose clients it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// For people, without a full stop at its end where there is one sentence.
    pub text: String,
    /// The statements that mend it, each without a semicolon. A line that begins with `--` has to
    /// be filled in first.
    pub sql: Vec<String>,
    /// What mends it besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(code: &'static str, severity: Severity, text: String) -> Self {
        Self {
            code,
            severity,
            table: None,
            role: None,
            text,
            sql: Vec::new(),
            advice: None,
        }
    }

    pub(crate) fn error(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(code, Severity::Error, text.into())
    }

    pub(crate) fn warning(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(code, Severity::Warning, text.into())
    }

    pub(crate) fn note(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(code, Severity::Note, text.into())
    }

    pub(crate) fn of_severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    pub(super) fn table(mut self, table: impl Into<String>) -> Self {
        self.table = Some(table.into());
        self
    }

    pub(super) fn role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    pub(crate) fn sql(mut self, sql: impl Into<String>) -> Self {
        self.sql.push(sql.into());
        self
    }

    pub(crate) fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Has a comment stay one, whatever the names in it: they may have line breaks, behind which
    /// somebody would run what they say.
    pub(super) fn keep_comments(&mut self) {
        for statement in self.sql.iter_mut().filter(|one| one.starts_with("--")) {
            *statement = statement.replace(['\n', '\r'], " ");
        }
    }

    /// What it is ordered by among its like.
    pub(super) fn place(&self) -> (&'static str, Option<&str>, Option<&str>, &str) {
        let (table, role) = (self.table.as_deref(), self.role.as_deref());
        (self.code, table, role, &self.text)
    }
}
