//! Every operator of the evaluator and every node of a plan has a deliberate fault that a test must
//! notice (`make test-mutants`). A new one does not compile here until it has one as well.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeSet;

use rowcast::mutant::{FunctionMutant, PolicyMutant, SelectMutant};
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
    match comparison {
        Comparison::Eq | Comparison::Ne => names(&[PolicyMutant::EqualFlipped]),
        Comparison::Lt | Comparison::Le => names(&[
            PolicyMutant::OrderStrictness,
            PolicyMutant::ComparisonForgetsEnds,
        ]),
        Comparison::Gt | Comparison::Ge => {
            names(&[PolicyMutant::OrderStrictness, PolicyMutant::OrderFlipped])
        }
    }
}

fn of_function(function: &Function) -> Vec<String> {
    use PolicyMutant as P;
    match function {
        Function::Get => names(&[P::MemberIgnored, P::ElementFromStart, P::JsonMemberIgnored]),
        Function::GetText => names(&[P::MemberTextKeepsQuotes, P::JsonMemberIgnored]),
        Function::Path(_) | Function::PathText(_) => names(&[P::PathStopsEarly]),
        Function::Has => names(&[P::HasFlipped]),
        Function::JsonbTypeof => names(&[P::TypeofIsObject]),
        Function::Concat => names(&[P::ConcatSwapped]),
        Function::Lower(_) => names(&[P::LowerIsUpper]),
        Function::Upper(_) => names(&[P::UpperIsLower]),
        Function::Like | Function::NotLike => names(&[P::LikeIsEqual]),
        Function::Narrow(..) => names(&[P::NarrowTakesAll]),
        Function::ToNumeric => names(&[P::NumericIsNegative]),
        Function::ToFloat => names(&[P::FloatIsNegative]),
        Function::Scalar(..) => names(&[P::ScalarIsNull]),
        Function::ToText | Function::Output => names(&[P::OutputIsEmpty]),
        Function::Input(_) => names(&[P::InputFailsToNull]),
        Function::Array(function) => of_array(function),
        Function::Jsonb(function) => of_document(function),
        Function::Text(function) => of_text(function),
        Function::Time(function) => match function {
            TimeFunction::Shift(..) | TimeFunction::ToDate | TimeFunction::AddDays(_) => {
                names(&[P::TimeIsNull])
            }
        },
        Function::Arithmetic(kind, ..) => match kind {
            Arithmetic::Subtract => names(&[P::MinusIsPlus, P::SumIsFirst]),
            Arithmetic::Add | Arithmetic::Multiply | Arithmetic::Divide | Arithmetic::Remainder => {
                names(&[P::SumIsFirst])
            }
        },
        Function::Extreme(_) => names(&[P::GreatestIsLeast]),
    }
}

fn of_array(function: &ArrayFunction) -> Vec<String> {
    use ArrayFunction as A;
    use PolicyMutant as P;
    match function {
        A::Contains | A::Contained => names(&[P::ContainsIsOverlaps]),
        A::Overlaps => names(&[P::OverlapsIsContains]),
        A::Length | A::Cardinality => names(&[P::LengthIsLess]),
        A::Element => names(&[P::SubscriptFromZero]),
        A::Slice(..) => names(&[P::SliceHasNoEnd]),
        A::Append | A::Prepend => names(&[P::AppendPrepends]),
        A::Split => names(&[P::SplitKeepsWhole]),
        A::Union(_) => names(&[SelectMutant::UnionKeepsAll]),
        A::Make
        | A::Lower
        | A::Upper
        | A::Dimensions
        | A::Concat
        | A::Remove
        | A::Position
        | A::Join
        | A::Each(_) => names(&[P::ArrayIsNull]),
    }
}

fn of_document(function: &JsonbFunction) -> Vec<String> {
    use JsonbFunction as J;
    use PolicyMutant as P;
    match function {
        J::Contains | J::Contained => names(&[P::JsonbContainsIsEqual]),
        J::HasAny | J::HasAll => names(&[P::AnyKeyIsAll]),
        J::Elements | J::Texts | J::Keys => names(&[P::ElementsForgetNull, P::JsonbIsNull]),
        J::Length | J::Names | J::Make | J::Array | J::Object => names(&[P::JsonbIsNull]),
    }
}

fn of_text(function: &TextFunction) -> Vec<String> {
    use PolicyMutant as P;
    use TextFunction as T;
    match function {
        T::Length => names(&[P::LengthIsOfBytes]),
        T::Trim(..) => names(&[P::TrimKeepsEnd]),
        T::Position => names(&[P::PositionFromZero]),
        T::Starts => names(&[P::StartsIsEnds]),
        T::Part => names(&[P::PartFromStart]),
        T::Insensitive(_) => names(&[P::IlikeIsLike]),
        T::Substring | T::Left | T::Right | T::Replace | T::Reverse | T::Concat => {
            names(&[P::TextIsNull])
        }
    }
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
        Kind::Count => names(&[S::DistinctIsForgotten, S::TimesAreForgotten]),
        Kind::Array => names(&[PolicyMutant::ArrayIsNull]),
        Kind::Every | Kind::Some | Kind::Max | Kind::Min => names(&[S::MaxIsMin]),
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
    ]);
    all.extend(names(&[
        S::MembersForgetAKey,
        S::AffectedIsAfterOnly,
        S::AffectedIsAlone,
        S::OwnPoliciesAreForgotten,
        S::OwnPoliciesAreRestrictive,
        S::HopsAreForgotten,
        S::ExceptIsIntersect,
        S::UnionTakesFirst,
        S::ViewIsCaller,
    ]));
    all.extend(names(&[
        PolicyMutant::PatternForgetsNot,
        PolicyMutant::CitextIsText,
    ]));
    all
}

#[test]
fn every_operator_and_every_node_of_a_plan_has_a_fault_and_every_fault_is_of_one() {
    let text = include_str!("mutants.rs");
    let known: BTreeSet<String> = names(PolicyMutant::ALL)
        .into_iter()
        .chain(names(SelectMutant::ALL))
        .collect();
    let unused: Vec<&String> = known
        .iter()
        .filter(|fault| !text.contains(&format!("::{fault}")))
        .collect();
    assert!(unused.is_empty(), "faults of nothing: {unused:?}");
    // That each of these has one is what the matches above say, which name every variant.
    let samples = [
        of_expression(&Expr::Claims),
        of_comparison(Comparison::Eq),
        of_function(&Function::Get),
        of_select(&Asked::Exists),
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
