//! Filters: the text of a binding, read once into conditions.
//!
//! The grammar is Supabase's: `column=op.value`, several joined by commas (AND), a value in double
//! quotes where it contains a comma or a parenthesis.

/// What a condition compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`
    Eq,
    /// `<>`
    Neq,
    /// `<`
    Lt,
    /// `<=`
    Lte,
    /// `>`
    Gt,
    /// `>=`
    Gte,
    /// `= any`
    In,
}

impl Operator {
    /// The operator's name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Neq => "neq",
            Self::Lt => "lt",
            Self::Lte => "lte",
            Self::Gt => "gt",
            Self::Gte => "gte",
            Self::In => "in",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [
            Self::Eq,
            Self::Neq,
            Self::Lt,
            Self::Lte,
            Self::Gt,
            Self::Gte,
            Self::In,
        ]
        .into_iter()
        .find(|operator| operator.as_str() == name)
    }
}

/// One condition, as worded by the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The column, taken literally.
    pub column: String,
    /// The comparison.
    pub operator: Operator,
    /// The values: one, or up to [`MAX_IN_ITEMS`] for [`Operator::In`], where `None` is NULL.
    pub values: Vec<Option<String>>,
}

/// More items than this in one `in` list are refused, as Supabase does.
pub const MAX_IN_ITEMS: usize = 100;

/// A filter longer than this is refused, in bytes.
pub const MAX_FILTER_BYTES: usize = 64 * 1024;
