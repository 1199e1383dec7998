//! Why a table is not mirrored.

use std::fmt;
use std::sync::Arc;

/// The kind of a [`Refusal`]: a closed set, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The relay's login may not read the table.
    Privilege,
    /// Row-level security would keep rows from the relay's login.
    RowSecurity,
    /// The table is in no publication that the stream carries, and the relay may not add it.
    Publication,
    /// A publication's list of columns, row filter or list of actions would blind the mirror.
    Narrowed,
    /// The table has no replica identity that a mirror can follow.
    Identity,
    /// The table's kind is not in the stream (a view, an unlogged table, …).
    Kind,
    /// A column is generated: its values are not in the stream.
    Generated,
    /// The mirror would be larger than may be.
    TooLarge,
    /// A value is not read natively.
    Value,
    /// The mirror did not hold what a change says was there.
    MissingRow,
    /// Columns are not what the policies were compiled with.
    Shape,
    /// The table, or how it is published, changed in a way that the stream does not tell.
    Changed,
    /// The log does not hold all that happened to the table.
    Lost,
    /// The stream does not carry the lookups' publication now.
    Stream,
    /// PostgreSQL could not be asked.
    Unreachable,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Privilege,
        Self::RowSecurity,
        Self::Publication,
        Self::Narrowed,
        Self::Identity,
        Self::Kind,
        Self::Generated,
        Self::TooLarge,
        Self::Value,
        Self::MissingRow,
        Self::Shape,
        Self::Changed,
        Self::Lost,
        Self::Stream,
        Self::Unreachable,
    ];

    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Privilege => "privilege",
            Self::RowSecurity => "row_security",
            Self::Publication => "publication",
            Self::Narrowed => "narrowed",
            Self::Identity => "identity",
            Self::Kind => "kind",
            Self::Generated => "generated",
            Self::TooLarge => "too_large",
            Self::Value => "value",
            Self::MissingRow => "missing_row",
            Self::Shape => "shape",
            Self::Changed => "changed",
            Self::Lost => "lost",
            Self::Stream => "stream",
            Self::Unreachable => "unreachable",
        }
    }

    pub(super) fn because(self, text: impl Into<Arc<str>>) -> Refusal {
        Refusal {
            cause: self,
            text: text.into(),
            mend: Arc::default(),
        }
    }
}

/// Why a table is not mirrored. The text is a sentence without its full stop, names no row's values,
/// and says what mends it where somebody can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its kind.
    pub cause: Cause,
    /// The sentence.
    pub text: Arc<str>,
    /// Of [`Cause::Narrowed`] and [`Cause::Identity`] the statements that mend it, where some do.
    pub mend: Arc<[String]>,
}

impl Refusal {
    /// The same, with the statements that mend it, which the sentence has, too, or has the gist of.
    pub(super) fn mended(self, mend: &[String]) -> Self {
        Self {
            mend: mend.into(),
            ..self
        }
    }

    pub(super) fn narrowed(what: &str, mend: &[String]) -> Self {
        let statements: Vec<String> = mend.iter().map(|sql| format!("\"{sql}\"")).collect();
        let text = format!("{what}: run {}", statements.join(" and "));
        Cause::Narrowed.because(text).mended(mend)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
