//! Deliberate faults, so that a test can show that it would notice them.
//!
//! Without the cargo feature `mutants` there are none: every switch is off at compile time.

/// One fault in the policy evaluator or in the encoder of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say which operator is wrong")]
pub enum Mutant {
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
    // The encoder of values.
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

impl Mutant {
    /// Those of the policy evaluator.
    pub const ALL: [Self; 30] = [
        Self::AndIsOr,
        Self::OrIsAnd,
        Self::NotIsNothing,
        Self::OrForgetsErrors,
        Self::NullIsFalse,
        Self::IsNullFlipped,
        Self::IsBoolFlipped,
        Self::EqualFlipped,
        Self::OrderFlipped,
        Self::OrderStrictness,
        Self::DistinctForgetsNull,
        Self::NullIfNever,
        Self::AnyIsAll,
        Self::AnyForgetsNull,
        Self::CoalesceTakesLast,
        Self::CaseTakesDefault,
        Self::StrictCallsAnyway,
        Self::MemberIgnored,
        Self::MemberTextKeepsQuotes,
        Self::ElementFromStart,
        Self::PathStopsEarly,
        Self::HasFlipped,
        Self::ConcatSwapped,
        Self::LowerIsUpper,
        Self::LikeIsEqual,
        Self::InputFailsToNull,
        Self::OutputIsEmpty,
        Self::RestrictiveIsPermissive,
        Self::AudienceIsNobody,
        Self::ProbeTakesWrongSlot,
    ];

    /// Those of the encoder of values.
    pub const ENCODER: [Self; 25] = [
        Self::EscapeIsForgotten,
        Self::DomainIsText,
        Self::DomainIsNamedByBase,
        Self::HstoreIsText,
        Self::VectorIsText,
        Self::BoolIsLetter,
        Self::NanIsNull,
        Self::NumberIsDouble,
        Self::ScaleIsCut,
        Self::PaddingIsCut,
        Self::BitIsFirst,
        Self::ZoneIsShort,
        Self::TimestampKeepsSpace,
        Self::EraIsLost,
        Self::ByteaKeepsPrefix,
        Self::DelimiterIsComma,
        Self::NullElementIsEmpty,
        Self::QuotedNullIsNull,
        Self::BoundsAreStrange,
        Self::DimensionsAreOne,
        Self::DoubledQuoteStays,
        Self::BackslashEndsNothing,
        Self::AttributesInOtherOrder,
        Self::NullAttributeIsEmpty,
        Self::NestedIsText,
    ];

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
        ACTIVE.load(std::sync::atomic::Ordering::Relaxed) == self as usize + 1
    }

    /// Switches this fault on, and every other off.
    #[cfg(feature = "mutants")]
    pub fn switch_on(self) {
        ACTIVE.store(self as usize + 1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Switches every fault off.
    #[cfg(feature = "mutants")]
    pub fn switch_off() {
        ACTIVE.store(0, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(feature = "mutants")]
static ACTIVE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
