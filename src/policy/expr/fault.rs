//! The deliberate fault of each operator, so that a new one does not compile without
//! ([`crate::mutant`]): its result is NULL, or the opposite.

use super::function::{ArrayFunction, Function, JsonbFunction, TextFunction, TimeFunction};
use super::select::Kind;
use super::{Arithmetic, Comparison};
use crate::mutant::{OperatorMutant as M, SelectMutant as S};

impl Comparison {
    pub(super) fn is_faulty(self) -> bool {
        match self {
            Self::Eq => M::EqIsFlipped.active(),
            Self::Ne => M::NeIsFlipped.active(),
            Self::Lt => M::LtIsFlipped.active(),
            Self::Le => M::LeIsFlipped.active(),
            Self::Gt => M::GtIsFlipped.active(),
            Self::Ge => M::GeIsFlipped.active(),
        }
    }
}

impl Arithmetic {
    pub(super) fn is_faulty(self) -> bool {
        match self {
            Self::Add => M::AddIsFirst.active(),
            Self::Subtract => M::SubtractIsFirst.active(),
            Self::Multiply => M::MultiplyIsFirst.active(),
            Self::Divide => M::DivideIsFirst.active(),
            Self::Remainder => M::RemainderIsFirst.active(),
        }
    }
}

impl Kind {
    pub(super) fn is_faulty(self) -> bool {
        match self {
            Self::Count => S::CountIsMore.active(),
            Self::Every => S::EveryIsFlipped.active(),
            Self::Some => S::SomeIsFlipped.active(),
            Self::Max => S::MaxIsMin.active(),
            Self::Min => S::MinIsMax.active(),
            Self::Array => S::ArrayAggregateIsNull.active(),
        }
    }
}

impl Function {
    pub(super) fn is_faulty(&self) -> bool {
        match self {
            Self::Get => M::GetIsNull.active(),
            Self::GetText => M::GetTextIsNull.active(),
            Self::Path(_) => M::PathIsNull.active(),
            Self::PathText(_) => M::PathTextIsNull.active(),
            Self::Has => M::HasIsNull.active(),
            Self::JsonbTypeof => M::JsonbTypeofIsNull.active(),
            Self::Concat => M::ConcatIsNull.active(),
            Self::Lower(_) => M::LowerIsNull.active(),
            Self::Upper(_) => M::UpperIsNull.active(),
            Self::Like => M::LikeIsNull.active(),
            Self::NotLike => M::NotLikeIsNull.active(),
            Self::Narrow(..) => M::NarrowIsNull.active(),
            Self::ToNumeric => M::ToNumericIsNull.active(),
            Self::ToFloat => M::ToFloatIsNull.active(),
            Self::Scalar(..) => M::ScalarIsNull.active(),
            Self::ToText => M::ToTextIsNull.active(),
            Self::Output => M::OutputIsNull.active(),
            Self::Input(_) => M::InputIsNull.active(),
            Self::Extreme(true) => M::GreatestIsNull.active(),
            Self::Extreme(false) => M::LeastIsNull.active(),
            Self::Array(function) => function.is_faulty(),
            Self::Jsonb(function) => function.is_faulty(),
            Self::Text(function) => function.is_faulty(),
            Self::Time(function) => function.is_faulty(),
            // Its result is another.
            Self::Arithmetic(..) => false,
        }
    }
}

impl ArrayFunction {
    fn is_faulty(&self) -> bool {
        match self {
            Self::Make => M::ArrayMakeIsNull.active(),
            Self::Contains => M::ArrayContainsIsNull.active(),
            Self::Contained => M::ArrayContainedIsNull.active(),
            Self::Overlaps => M::ArrayOverlapsIsNull.active(),
            Self::Length => M::ArrayLengthIsNull.active(),
            Self::Lower => M::ArrayLowerIsNull.active(),
            Self::Upper => M::ArrayUpperIsNull.active(),
            Self::Cardinality => M::ArrayCardinalityIsNull.active(),
            Self::Dimensions => M::ArrayDimensionsIsNull.active(),
            Self::Element => M::ArrayElementIsNull.active(),
            Self::Slice(..) => M::ArraySliceIsNull.active(),
            Self::Append => M::ArrayAppendIsNull.active(),
            Self::Prepend => M::ArrayPrependIsNull.active(),
            Self::Concat => M::ArrayConcatIsNull.active(),
            Self::Remove => M::ArrayRemoveIsNull.active(),
            Self::Position => M::ArrayPositionIsNull.active(),
            Self::Join => M::ArrayJoinIsNull.active(),
            Self::Split => M::ArraySplitIsNull.active(),
            Self::Each(_) => M::ArrayEachIsNull.active(),
            Self::Union(_) => S::UnionIsNull.active(),
        }
    }
}

impl JsonbFunction {
    fn is_faulty(&self) -> bool {
        match self {
            Self::Contains => M::JsonbContainsIsNull.active(),
            Self::Contained => M::JsonbContainedIsNull.active(),
            Self::HasAny => M::JsonbHasAnyIsNull.active(),
            Self::HasAll => M::JsonbHasAllIsNull.active(),
            Self::Length => M::JsonbLengthIsNull.active(),
            Self::Elements => M::JsonbElementsIsNull.active(),
            Self::Texts => M::JsonbTextsIsNull.active(),
            Self::Keys => M::JsonbKeysIsNull.active(),
            Self::Names => M::JsonbNamesIsNull.active(),
            Self::Make => M::JsonbMakeIsNull.active(),
            Self::Array => M::JsonbArrayIsNull.active(),
            Self::Object => M::JsonbObjectIsNull.active(),
        }
    }
}

impl TextFunction {
    fn is_faulty(&self) -> bool {
        match self {
            Self::Length => M::TextLengthIsNull.active(),
            Self::Trim(..) => M::TextTrimIsNull.active(),
            Self::Substring => M::TextSubstringIsNull.active(),
            Self::Left => M::TextLeftIsNull.active(),
            Self::Right => M::TextRightIsNull.active(),
            Self::Position => M::TextPositionIsNull.active(),
            Self::Starts => M::TextStartsIsNull.active(),
            Self::Replace => M::TextReplaceIsNull.active(),
            Self::Part => M::TextPartIsNull.active(),
            Self::Reverse => M::TextReverseIsNull.active(),
            Self::Insensitive(_) => M::TextInsensitiveIsNull.active(),
            Self::Concat => M::TextConcatIsNull.active(),
        }
    }
}

impl TimeFunction {
    fn is_faulty(&self) -> bool {
        match self {
            Self::Shift(..) => M::TimeShiftIsNull.active(),
            Self::ToDate => M::TimeToDateIsNull.active(),
            Self::AddDays(_) => M::TimeAddDaysIsNull.active(),
            Self::Midnight => M::TimeMidnightIsNull.active(),
        }
    }
}
