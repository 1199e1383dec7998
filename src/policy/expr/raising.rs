//! Which expressions may raise an error.

use super::select::{Asked, Several};
use super::{Expr, Function};
use crate::datum::{Trouble, Type};

impl Expr {
    /// Whether this or something inside may raise an error.
    #[must_use]
    pub fn may_raise(&self) -> bool {
        self.raises() || self.children().into_iter().any(Self::may_raise)
    }

    /// Whether something in it may raise an error that depends on a row of another table.
    #[must_use]
    pub fn may_raise_by_row(&self) -> bool {
        let by_itself = match self {
            // What the row decides is whether it comes to that.
            Self::Case(..) | Self::Caught(_) => self.may_raise(),
            _ => self.raises(),
        };
        (by_itself && self.reads_inner()) || self.children().into_iter().any(Self::may_raise_by_row)
    }

    /// Whether it reads a row of another table.
    #[must_use]
    pub fn reads_inner(&self) -> bool {
        matches!(self, Self::Inner(..) | Self::Field(..))
            || self.children().into_iter().any(Self::reads_inner)
    }

    /// Whether this itself may raise an error, apart from what is inside.
    #[must_use]
    pub fn raises(&self) -> bool {
        match self {
            Self::Fail(trouble) => *trouble == Trouble::Error,
            Self::Select(select) => matches!(
                select.result,
                Asked::Scalar(Several::Raise | Several::Distinct, _)
            ),
            Self::Call(function, _) => match function {
                Function::Get
                | Function::GetText
                | Function::Path(_)
                | Function::PathText(_)
                | Function::Has
                | Function::JsonbTypeof
                | Function::Concat
                | Function::Lower(_)
                | Function::Upper(_)
                | Function::ToNumeric
                | Function::ToText
                | Function::Output
                | Function::Extreme(_) => false,
                Function::Input(of) => !matches!(of, Type::Text(_)),
                Function::Like
                | Function::NotLike
                | Function::Narrow(..)
                | Function::ToFloat
                | Function::Scalar(..)
                | Function::Array(_)
                | Function::Jsonb(_)
                | Function::Text(_)
                | Function::Time(_)
                | Function::Arithmetic(..) => true,
            },
            _ => false,
        }
    }
}
