//! Deliberate faults, so that a test can show that it would notice them.
//!
//! Without the cargo feature `mutants` there are none: every switch is off at compile time.

#[cfg(feature = "mutants")]
use std::sync::atomic::{AtomicUsize, Ordering};

/// The faults of one part, each with a switch; one at a time is on.
macro_rules! mutants {
    ($(#[$doc:meta])* $name:ident { $($fault:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the names say what is wrong")]
        pub enum $name {
            $($fault,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$fault,)*];

            /// Whether this fault is switched on.
            #[cfg(not(feature = "mutants"))]
            #[must_use]
            #[inline]
            pub const fn active(self) -> bool {
                false
            }

            /// Whether this fault is switched on.
            #[cfg(feature = "mutants")]
            #[must_use]
            pub fn active(self) -> bool {
                Self::on().load(Ordering::Relaxed) == self as usize + 1
            }

            /// Switches this fault on, and every other of this part off.
            #[cfg(feature = "mutants")]
            pub fn switch_on(self) {
                Self::on().store(self as usize + 1, Ordering::Relaxed);
            }

            /// Switches the fault on that `ROWCAST_MUTANT` names, in a command of which a test sees
            /// that it notices.
            #[cfg(feature = "mutants")]
            pub fn switch_named_on() {
                let name = std::env::var("ROWCAST_MUTANT").unwrap_or_default();
                for fault in Self::ALL {
                    if format!("{fault:?}") == name {
                        fault.switch_on();
                    }
                }
            }

            /// Switches every fault of this part off.
            #[cfg(feature = "mutants")]
            pub fn switch_off() {
                Self::on().store(0, Ordering::Relaxed);
            }

            /// Which is on, counted from 1.
            #[cfg(feature = "mutants")]
            fn on() -> &'static AtomicUsize {
                static ON: AtomicUsize = AtomicUsize::new(0);
                &ON
            }
        }
    };
}

mutants! {
    /// Faults of filters.
    FilterMutant {
        EqIsNeq,
        NeqIsEq,
        LtIsLte,
        LteIsLt,
        GtIsGte,
        GteIsGt,
        InTakesFirst,
        LikeIsEqual,
        IlikeIsLike,
        IsNullFlipped,
        IsTrueFlipped,
        IsUnknownIsNotNull,
        MatchIsImatch,
        ImatchIsMatch,
        DistinctForgetsNull,
        NotIsForgotten,
        NullMatchesUnderNot,
        InForgetsNull,
        EmptyListMatches,
        QuotesAreKept,
        EscapesAreKept,
        QuotesDoNotHoldCommas,
        ParenthesesDoNotNest,
        AndIsFirst,
        AskedIsYes,
        AskedForgetsNot,
        CollationIsForgotten,
    }
}

mutants! {
    /// Faults of the evaluator of policies.
    PolicyMutant {
        CitextIsText,
        AndIsOr,
        OrIsAnd,
        NotIsNothing,
        OrForgetsErrors,
        NullIsFalse,
        IsNullFlipped,
        IsBoolFlipped,
        EqualFlipped,
        OrderFlipped,
        OrderStrictness,
        DistinctForgetsNull,
        NullIfNever,
        AnyIsAll,
        AnyForgetsNull,
        CoalesceTakesLast,
        CaseTakesDefault,
        StrictCallsAnyway,
        MemberIgnored,
        MemberTextKeepsQuotes,
        ElementFromStart,
        PathStopsEarly,
        HasFlipped,
        ConcatSwapped,
        LowerIsUpper,
        LikeIsEqual,
        InputFailsToNull,
        OutputIsEmpty,
        RestrictiveIsPermissive,
        AudienceIsNobody,
        ProbeTakesWrongSlot,
        AnyOfIsAll,
        AnyOfForgetsNull,
        AppendPrepends,
        ContainsIsOverlaps,
        OverlapsIsContains,
        LengthIsLess,
        SubscriptFromZero,
        SliceHasNoEnd,
        SplitKeepsWhole,
        ElementsForgetNull,
        LengthIsOfBytes,
        TrimKeepsEnd,
        PositionFromZero,
        StartsIsEnds,
        PartFromStart,
        IlikeIsLike,
        JsonbContainsIsEqual,
        AnyKeyIsAll,
        MinusIsPlus,
        GreatestIsLeast,
        ProbeForgetsElements,
        NowIsLongAgo,
        ClaimsAreEmpty,
        RoleIsNull,
        ComparisonForgetsEnds,
        JsonMemberIgnored,
        TypeofIsObject,
        UpperIsLower,
        NarrowTakesAll,
        NumericIsNegative,
        FloatIsNegative,
        ConstantIsNull,
        ColumnIsNull,
        PatternForgetsNot,
        RowPlanIsNobody,
        ProbePlanIsNobody,
        AmongPlanIsNobody,
        ClaimPlanIsNobody,
        OrPlanIsNobody,
        AndPlanIsNobody,
        ScanPlanIsNobody,
    }
}

mutants! {
    /// Faults of single operators and functions.
    OperatorMutant {
        EqIsFlipped,
        NeIsFlipped,
        LtIsFlipped,
        LeIsFlipped,
        GtIsFlipped,
        GeIsFlipped,
        AddIsFirst,
        SubtractIsFirst,
        MultiplyIsFirst,
        DivideIsFirst,
        RemainderIsFirst,
        GetIsNull,
        GetTextIsNull,
        PathIsNull,
        PathTextIsNull,
        HasIsNull,
        JsonbTypeofIsNull,
        ConcatIsNull,
        LowerIsNull,
        UpperIsNull,
        LikeIsNull,
        NotLikeIsNull,
        NarrowIsNull,
        ToNumericIsNull,
        ToFloatIsNull,
        ScalarIsNull,
        ToTextIsNull,
        OutputIsNull,
        InputIsNull,
        GreatestIsNull,
        LeastIsNull,
        ArrayMakeIsNull,
        ArrayContainsIsNull,
        ArrayContainedIsNull,
        ArrayOverlapsIsNull,
        ArrayLengthIsNull,
        ArrayLowerIsNull,
        ArrayUpperIsNull,
        ArrayCardinalityIsNull,
        ArrayDimensionsIsNull,
        ArrayElementIsNull,
        ArraySliceIsNull,
        ArrayAppendIsNull,
        ArrayPrependIsNull,
        ArrayConcatIsNull,
        ArrayRemoveIsNull,
        ArrayPositionIsNull,
        ArrayJoinIsNull,
        ArraySplitIsNull,
        ArrayEachIsNull,
        JsonbContainsIsNull,
        JsonbContainedIsNull,
        JsonbHasAnyIsNull,
        JsonbHasAllIsNull,
        JsonbLengthIsNull,
        JsonbElementsIsNull,
        JsonbTextsIsNull,
        JsonbKeysIsNull,
        JsonbNamesIsNull,
        JsonbMakeIsNull,
        JsonbArrayIsNull,
        JsonbObjectIsNull,
        TextLengthIsNull,
        TextTrimIsNull,
        TextSubstringIsNull,
        TextLeftIsNull,
        TextRightIsNull,
        TextPositionIsNull,
        TextStartsIsNull,
        TextReplaceIsNull,
        TextPartIsNull,
        TextReverseIsNull,
        TextInsensitiveIsNull,
        TextConcatIsNull,
        TimeShiftIsNull,
        TimeToDateIsNull,
        TimeAddDaysIsNull,
        TimeMidnightIsNull,
    }
}

mutants! {
    /// Faults of what is told of rows that leave a view.
    LeaveMutant {
        HiddenRowLeaves,
        UnaskedRowLeaves,
        SeenRowLeaves,
        ShownRowLeaves,
        LeaveShowsTheRow,
        NotCarriedIsJudged,
    }
}

mutants! {
    /// Faults of what is kept of rows that were judged.
    JudgedMutant {
        OutlivesItsLookups,
        OutlivesItsKin,
        IsOfAnyRow,
        OldRowIsAlike,
    }
}

mutants! {
    /// Faults of policies that look into other tables.
    SelectMutant {
        ExistsFlipped,
        AnyForgetsNull,
        ConditionIsForgotten,
        ScalarTakesFirst,
        MembersForgetAKey,
        AffectedIsAfterOnly,
        AffectedIsAlone,
        OwnPoliciesAreForgotten,
        OwnPoliciesAreRestrictive,
        HopsAreForgotten,
        OuterJoinIsInner,
        KeysAreForgotten,
        DistinctIsForgotten,
        FilterIsForgotten,
        CountIsMore,
        EveryIsFlipped,
        SomeIsFlipped,
        MaxIsMin,
        MinIsMax,
        ArrayAggregateIsNull,
        UnionIsNull,
        MembersPlanIsNobody,
        OrderIsReversed,
        NullsChangeEnds,
        TimesAreForgotten,
        AllIsAny,
        ExceptIsIntersect,
        UnionTakesFirst,
        UnionKeepsAll,
        RecursionEndsAtOnce,
        ViewIsCaller,
    }
}

mutants! {
    /// Faults of functions whose body takes the place of the call.
    FunctionMutant {
        DefinerIsCaller,
        StrictIsForgotten,
        FirstRowRaises,
        EndIsNull,
        IfTakesElse,
        NothingIsFound,
        UnusedRaisesNothing,
        RowSecurityIsForgotten,
        NothingIsCaught,
        ErrorsArePassedOver,
        DefaultIsNull,
        RowsForgetTheirBranch,
        UnsetIsNull,
        MissingColumnKeepsValue,
        FieldByNumber,
        RowIsTheJudgedOne,
    }
}

mutants! {
    /// Faults of the encoder of values.
    EncoderMutant {
        EscapeIsForgotten,
        DomainIsText,
        DomainIsNamedByBase,
        HstoreIsText,
        VectorIsText,
        BoolIsLetter,
        NanIsNull,
        NumberIsDouble,
        ScaleIsCut,
        PaddingIsCut,
        BitIsFirst,
        ZoneIsShort,
        TimestampKeepsSpace,
        EraIsLost,
        ByteaKeepsPrefix,
        DelimiterIsComma,
        NullElementIsEmpty,
        QuotedNullIsNull,
        BoundsAreStrange,
        DimensionsAreOne,
        DoubledQuoteStays,
        BackslashEndsNothing,
        AttributesInOtherOrder,
        NullAttributeIsEmpty,
        NestedIsText,
    }
}
