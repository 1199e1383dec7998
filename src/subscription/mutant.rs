//! Deliberate faults of filters, so that their test can show that it would notice them.
//!
//! Without the cargo feature `mutants` there are none: every switch is off at compile time.

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say what is wrong")]
pub enum Mutant {
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

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::EqIsNeq,
        Self::NeqIsEq,
        Self::LtIsLte,
        Self::LteIsLt,
        Self::GtIsGte,
        Self::GteIsGt,
        Self::InTakesFirst,
        Self::LikeIsEqual,
        Self::IlikeIsLike,
        Self::IsNullFlipped,
        Self::IsTrueFlipped,
        Self::IsUnknownIsNotNull,
        Self::MatchIsImatch,
        Self::ImatchIsMatch,
        Self::DistinctForgetsNull,
        Self::NotIsForgotten,
        Self::NullMatchesUnderNot,
        Self::InForgetsNull,
        Self::EmptyListMatches,
        Self::QuotesAreKept,
        Self::EscapesAreKept,
        Self::QuotesDoNotHoldCommas,
        Self::ParenthesesDoNotNest,
        Self::AndIsFirst,
        Self::AskedIsYes,
        Self::AskedForgetsNot,
        Self::CollationIsForgotten,
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
    pub fn none() {
        ACTIVE.store(0, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(feature = "mutants")]
static ACTIVE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
