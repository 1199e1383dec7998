//! Every operator of the evaluator and every node of a plan has a deliberate fault that a test must
//! notice (`make test-mutants`). A new one does not compile here until it has one as well.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeSet;

use rowcast::mutant::{FunctionMutant, OperatorMutant, PolicyMutant, SelectMutant};
use rowcast::policy::expr::select::{Asked, Kind, Several, Source};
use rowcast::policy::expr::{
    Arithmetic, ArrayFunction, Comparison, Expr, Function, JsonbFunction, TextFunction,
    TimeFunction,
};

/// Faults by their names.
fn names<T: std::fmt::Debug>(faults: &[T]) -> Vec<String> {
    faults.iter().map(|fault| format!("{fault:?}")).collect()
}

fn of_expression(expr: &Expr) -> Vec<String> {
    use PolicyMutant as P;
    match expr {
        Expr::Const(_) => names(&[P::ConstantIsNull]),
        Expr::Fail(_) => names(&[FunctionMutant::UnusedRaisesNothing]),
        Expr::Column(_) | Expr::Cell(_) => names(&[P::ColumnIsNull]),
        Expr::Claims => names(&[P::ClaimsAreEmpty]),
        Expr::Role => names(&[P::RoleIsNull]),
        Expr::Now(_) | Expr::Timed(..) => names(&[P::NowIsLongAgo]),
        Expr::Part(_) | Expr::Slot(_) => names(&[P::ProbeTakesWrongSlot]),
        Expr::And(_) => names(&[P::AndIsOr]),
        Expr::Or(_) => names(&[P::OrIsAnd, P::OrForgetsErrors]),
        Expr::Not(_) => names(&[P::NotIsNothing]),
        Expr::IsNull(..) => names(&[P::IsNullFlipped]),
        Expr::IsBool(..) => names(&[P::IsBoolFlipped]),
        Expr::Compare(..) => names(&[P::NullIsFalse]),
        Expr::Distinct(_) => names(&[P::DistinctForgetsNull]),
        Expr::NullIf(_) => names(&[P::NullIfNever]),
        Expr::Any(..) => names(&[P::AnyIsAll, P::AnyForgetsNull]),
        Expr::AnyOf(..) => names(&[P::AnyOfIsAll, P::AnyOfForgetsNull, P::ProbeForgetsElements]),
        Expr::Caught(_) => names(&[
            FunctionMutant::NothingIsCaught,
            FunctionMutant::ErrorsArePassedOver,
        ]),
        Expr::Coalesce(_) => names(&[P::CoalesceTakesLast]),
        Expr::Case(..) => names(&[P::CaseTakesDefault]),
        Expr::Body(..) => names(&[P::StrictCallsAnyway]),
        Expr::Call(function, _) => of_function(function),
        Expr::Inner(..) | Expr::Field(..) => names(&[SelectMutant::ConditionIsForgotten]),
        Expr::Select(select) => of_select(&select.result),
        Expr::Recursive(_) => names(&[SelectMutant::RecursionEndsAtOnce]),
    }
}

fn of_comparison(comparison: Comparison) -> Vec<String> {
    use OperatorMutant as O;
    use PolicyMutant as P;
    let own = match comparison {
        Comparison::Eq => O::EqIsFlipped,
        Comparison::Ne => O::NeIsFlipped,
        Comparison::Lt => O::LtIsFlipped,
        Comparison::Le => O::LeIsFlipped,
        Comparison::Gt => O::GtIsFlipped,
        Comparison::Ge => O::GeIsFlipped,
    };
    let more = match comparison {
        Comparison::Eq | Comparison::Ne => names(&[P::EqualFlipped]),
        Comparison::Lt | Comparison::Le => names(&[P::OrderStrictness, P::ComparisonForgetsEnds]),
        Comparison::Gt | Comparison::Ge => names(&[P::OrderStrictness, P::OrderFlipped]),
    };
    [names(&[own]), more].concat()
}

fn of_function(function: &Function) -> Vec<String> {
    use OperatorMutant as O;
    use PolicyMutant as P;
    let (own, more): (O, &[P]) = match function {
        Function::Get => (
            O::GetIsNull,
            &[P::MemberIgnored, P::ElementFromStart, P::JsonMemberIgnored],
        ),
        Function::GetText => (
            O::GetTextIsNull,
            &[P::MemberTextKeepsQuotes, P::JsonMemberIgnored],
        ),
        Function::Path(_) => (O::PathIsNull, &[P::PathStopsEarly]),
        Function::PathText(_) => (O::PathTextIsNull, &[P::PathStopsEarly]),
        Function::Has => (O::HasIsNull, &[P::HasFlipped]),
        Function::JsonbTypeof => (O::JsonbTypeofIsNull, &[P::TypeofIsObject]),
        Function::Concat => (O::ConcatIsNull, &[P::ConcatSwapped]),
        Function::Lower(_) => (O::LowerIsNull, &[P::LowerIsUpper]),
        Function::Upper(_) => (O::UpperIsNull, &[P::UpperIsLower]),
        Function::Like => (O::LikeIsNull, &[P::LikeIsEqual]),
        Function::NotLike => (O::NotLikeIsNull, &[P::LikeIsEqual]),
        Function::Narrow(..) => (O::NarrowIsNull, &[P::NarrowTakesAll]),
        Function::ToNumeric => (O::ToNumericIsNull, &[P::NumericIsNegative]),
        Function::ToFloat => (O::ToFloatIsNull, &[P::FloatIsNegative]),
        Function::Scalar(..) => (O::ScalarIsNull, &[]),
        Function::ToText => (O::ToTextIsNull, &[P::OutputIsEmpty]),
        Function::Output => (O::OutputIsNull, &[P::OutputIsEmpty]),
        Function::Input(_) => (O::InputIsNull, &[P::InputFailsToNull]),
        Function::Array(function) => return of_array(function),
        Function::Jsonb(function) => return of_document(function),
        Function::Text(function) => return of_text(function),
        Function::Time(function) => match function {
            TimeFunction::Shift(..) => (O::TimeShiftIsNull, &[]),
            TimeFunction::ToDate => (O::TimeToDateIsNull, &[]),
            TimeFunction::AddDays(_) => (O::TimeAddDaysIsNull, &[]),
            TimeFunction::Midnight => (O::TimeMidnightIsNull, &[]),
        },
        Function::Arithmetic(kind, ..) => match kind {
            Arithmetic::Subtract => (O::SubtractIsFirst, &[P::MinusIsPlus]),
            Arithmetic::Add => (O::AddIsFirst, &[]),
            Arithmetic::Multiply => (O::MultiplyIsFirst, &[]),
            Arithmetic::Divide => (O::DivideIsFirst, &[]),
            Arithmetic::Remainder => (O::RemainderIsFirst, &[]),
        },
        Function::Extreme(true) => (O::GreatestIsNull, &[P::GreatestIsLeast]),
        Function::Extreme(false) => (O::LeastIsNull, &[P::GreatestIsLeast]),
    };
    [names(&[own]), names(more)].concat()
}

fn of_array(function: &ArrayFunction) -> Vec<String> {
    use ArrayFunction as A;
    use OperatorMutant as O;
    use PolicyMutant as P;
    let (own, more): (O, &[P]) = match function {
        A::Contains => (O::ArrayContainsIsNull, &[P::ContainsIsOverlaps]),
        A::Contained => (O::ArrayContainedIsNull, &[P::ContainsIsOverlaps]),
        A::Overlaps => (O::ArrayOverlapsIsNull, &[P::OverlapsIsContains]),
        A::Length => (O::ArrayLengthIsNull, &[P::LengthIsLess]),
        A::Cardinality => (O::ArrayCardinalityIsNull, &[P::LengthIsLess]),
        A::Element => (O::ArrayElementIsNull, &[P::SubscriptFromZero]),
        A::Slice(..) => (O::ArraySliceIsNull, &[P::SliceHasNoEnd]),
        A::Append => (O::ArrayAppendIsNull, &[P::AppendPrepends]),
        A::Prepend => (O::ArrayPrependIsNull, &[P::AppendPrepends]),
        A::Split => (O::ArraySplitIsNull, &[P::SplitKeepsWhole]),
        A::Union(_) => return names(&[SelectMutant::UnionKeepsAll, SelectMutant::UnionIsNull]),
        A::Make => (O::ArrayMakeIsNull, &[]),
        A::Lower => (O::ArrayLowerIsNull, &[]),
        A::Upper => (O::ArrayUpperIsNull, &[]),
        A::Dimensions => (O::ArrayDimensionsIsNull, &[]),
        A::Concat => (O::ArrayConcatIsNull, &[]),
        A::Remove => (O::ArrayRemoveIsNull, &[]),
        A::Position => (O::ArrayPositionIsNull, &[]),
        A::Join => (O::ArrayJoinIsNull, &[]),
        A::Each(_) => (O::ArrayEachIsNull, &[]),
    };
    [names(&[own]), names(more)].concat()
}

fn of_document(function: &JsonbFunction) -> Vec<String> {
    use JsonbFunction as J;
    use OperatorMutant as O;
    use PolicyMutant as P;
    let (own, more): (O, &[P]) = match function {
        J::Contains => (O::JsonbContainsIsNull, &[P::JsonbContainsIsEqual]),
        J::Contained => (O::JsonbContainedIsNull, &[P::JsonbContainsIsEqual]),
        J::HasAny => (O::JsonbHasAnyIsNull, &[P::AnyKeyIsAll]),
        J::HasAll => (O::JsonbHasAllIsNull, &[P::AnyKeyIsAll]),
        J::Elements => (O::JsonbElementsIsNull, &[P::ElementsForgetNull]),
        J::Texts => (O::JsonbTextsIsNull, &[P::ElementsForgetNull]),
        J::Keys => (O::JsonbKeysIsNull, &[]),
        J::Length => (O::JsonbLengthIsNull, &[]),
        J::Names => (O::JsonbNamesIsNull, &[]),
        J::Make => (O::JsonbMakeIsNull, &[]),
        J::Array => (O::JsonbArrayIsNull, &[]),
        J::Object => (O::JsonbObjectIsNull, &[]),
    };
    [names(&[own]), names(more)].concat()
}

fn of_text(function: &TextFunction) -> Vec<String> {
    use OperatorMutant as O;
    use PolicyMutant as P;
    use TextFunction as T;
    let (own, more): (O, &[P]) = match function {
        T::Length => (O::TextLengthIsNull, &[P::LengthIsOfBytes]),
        T::Trim(..) => (O::TextTrimIsNull, &[P::TrimKeepsEnd]),
        T::Position => (O::TextPositionIsNull, &[P::PositionFromZero]),
        T::Starts => (O::TextStartsIsNull, &[P::StartsIsEnds]),
        T::Part => (O::TextPartIsNull, &[P::PartFromStart]),
        T::Insensitive(_) => (O::TextInsensitiveIsNull, &[P::IlikeIsLike]),
        T::Substring => (O::TextSubstringIsNull, &[]),
        T::Left => (O::TextLeftIsNull, &[]),
        T::Right => (O::TextRightIsNull, &[]),
        T::Replace => (O::TextReplaceIsNull, &[]),
        T::Reverse => (O::TextReverseIsNull, &[]),
        T::Concat => (O::TextConcatIsNull, &[]),
    };
    [names(&[own]), names(more)].concat()
}

fn of_select(asked: &Asked) -> Vec<String> {
    use SelectMutant as S;
    match asked {
        Asked::Exists => names(&[S::ExistsFlipped]),
        Asked::Any(..) => names(&[S::AnyForgetsNull, S::AllIsAny]),
        Asked::Scalar(several, _) => of_several(*several),
        Asked::First(..) => names(&[S::OrderIsReversed, S::NullsChangeEnds]),
        Asked::Folded(_, aggregates, _) => {
            let kinds = aggregates.iter().flat_map(|one| of_kind(one.kind));
            kinds.chain(names(&[S::FilterIsForgotten])).collect()
        }
    }
}

fn of_several(several: Several) -> Vec<String> {
    match several {
        Several::Raise | Several::Distinct => names(&[SelectMutant::ScalarTakesFirst]),
        // Which one it is nobody knows, so it is asked.
        Several::First => names(&[FunctionMutant::FirstRowRaises]),
    }
}

fn of_kind(kind: Kind) -> Vec<String> {
    use SelectMutant as S;
    match kind {
        Kind::Count => names(&[S::DistinctIsForgotten, S::TimesAreForgotten, S::CountIsMore]),
        Kind::Array => names(&[S::ArrayAggregateIsNull]),
        Kind::Every => names(&[S::EveryIsFlipped]),
        Kind::Some => names(&[S::SomeIsFlipped]),
        Kind::Max => names(&[S::MaxIsMin]),
        Kind::Min => names(&[S::MinIsMax]),
    }
}

fn of_source(source: &Source) -> Vec<String> {
    match source {
        Source::Table(_) => names(&[SelectMutant::KeysAreForgotten]),
        Source::Optional(_) => names(&[SelectMutant::OuterJoinIsInner]),
    }
}

/// What decides beside single operators, and nodes that are compiled away.
fn besides() -> Vec<String> {
    use SelectMutant as S;
    let mut all = names(&[
        PolicyMutant::RestrictiveIsPermissive,
        PolicyMutant::AudienceIsNobody,
        PolicyMutant::PatternForgetsNot,
        PolicyMutant::CitextIsText,
        // The plans by which a row finds those who see it, each of which names its own
        // (`predicate/audience.rs`).
        PolicyMutant::RowPlanIsNobody,
        PolicyMutant::ProbePlanIsNobody,
        PolicyMutant::AmongPlanIsNobody,
        PolicyMutant::ClaimPlanIsNobody,
        PolicyMutant::OrPlanIsNobody,
        PolicyMutant::AndPlanIsNobody,
        PolicyMutant::ScanPlanIsNobody,
    ]);
    all.extend(names(&[
        S::MembersForgetAKey,
        S::MembersPlanIsNobody,
        S::AffectedIsAfterOnly,
        S::AffectedIsAlone,
        S::OwnPoliciesAreForgotten,
        S::OwnPoliciesAreRestrictive,
        S::HopsAreForgotten,
        S::ExceptIsIntersect,
        S::UnionTakesFirst,
        S::ViewIsCaller,
    ]));
    // Of bodies that take the place of a call.
    use FunctionMutant as F;
    all.extend(names(&[
        F::DefinerIsCaller,
        F::StrictIsForgotten,
        F::EndIsNull,
        F::IfTakesElse,
        F::NothingIsFound,
        F::RowSecurityIsForgotten,
        F::DefaultIsNull,
        F::RowsForgetTheirBranch,
        F::UnsetIsNull,
        F::MissingColumnKeepsValue,
        F::FieldByNumber,
        F::RowIsTheJudgedOne,
    ]));
    all
}

#[test]
fn every_operator_and_every_node_of_a_plan_has_a_fault_and_every_fault_is_of_one() {
    let text = include_str!("mutants.rs");
    let known: BTreeSet<String> = names(PolicyMutant::ALL)
        .into_iter()
        .chain(names(OperatorMutant::ALL))
        .chain(names(SelectMutant::ALL))
        .chain(names(FunctionMutant::ALL))
        .collect();
    let unused: Vec<&String> = known
        .iter()
        .filter(|fault| !text.contains(&format!("::{fault}")))
        .collect();
    assert!(unused.is_empty(), "faults of nothing: {unused:?}");
    // That each of these has one is what the matches above say, which name every variant.
    let samples = [
        of_expression(&Expr::Claims),
        of_expression(&Expr::Caught(Box::new((Expr::Claims, Expr::Role)))),
        of_comparison(Comparison::Eq),
        of_function(&Function::Get),
        of_select(&Asked::Exists),
        of_several(Several::First),
        of_kind(Kind::Count),
        of_source(&Source::Optional(Vec::new())),
        besides(),
    ];
    for sample in samples {
        assert!(!sample.is_empty());
        assert!(
            sample.iter().all(|fault| known.contains(fault)),
            "{sample:?}"
        );
    }
}
