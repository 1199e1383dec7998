//! Functions of dates and times, in UTC. Where the server's time zone or the length of a month
//! count they are only about right: [`Expr::Timed`](crate::policy::expr::Expr::Timed) is compiled
//! around them with as wide a margin.

use crate::datum::{Datum, Trouble};
use crate::policy::expr::Outcome;

const DAY: i64 = 86_400_000_000;

/// 30.436875 days: a year of the calendar has 365.2425 on average.
const MONTH: i64 = 2_629_746_000_000;

/// A function of dates and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeFunction {
    /// `timestamptz + interval`: months, days and microseconds
    Shift(i32, i32, i64),
    /// `timestamptz::date`
    ToDate,
    /// `date + integer`
    AddDays(i32),
    /// `date::timestamp`
    Midnight,
}

impl TimeFunction {
    pub(super) fn of(&self, values: &[Option<&Datum>]) -> Outcome {
        const FAR: Trouble = Trouble::Undecided;
        // Beyond what PostgreSQL has it raises an error.
        let known = |at: i64| {
            let range = -200_000_000_000_000_000..=9_000_000_000_000_000_000;
            range.contains(&at).then_some(at)
        };
        let infinite = |value: i64| matches!(value, i64::MIN | i64::MAX);
        Ok(Some(match (self, values) {
            (Self::Shift(..), [Some(Datum::Timestamp(at))]) if infinite(*at) => {
                Datum::Timestamp(*at)
            }
            (Self::Shift(months, days, micros), [Some(Datum::Timestamp(at))]) => {
                let months = i64::from(*months).checked_mul(MONTH).ok_or(FAR)?;
                let days = i64::from(*days).checked_mul(DAY).ok_or(FAR)?;
                let shifted = at.checked_add(months).and_then(|at| at.checked_add(days));
                let shifted = shifted.and_then(|at| at.checked_add(*micros)).ok_or(FAR)?;
                Datum::Timestamp(known(shifted).ok_or(FAR)?)
            }
            (Self::ToDate, [Some(Datum::Timestamp(i64::MAX))]) => Datum::Date(i32::MAX),
            (Self::ToDate, [Some(Datum::Timestamp(i64::MIN))]) => Datum::Date(i32::MIN),
            (Self::ToDate, [Some(Datum::Timestamp(at))]) => {
                Datum::Date(i32::try_from(at.div_euclid(DAY)).map_err(|_| FAR)?)
            }
            (Self::AddDays(_), [Some(Datum::Date(at @ (i32::MIN | i32::MAX)))]) => Datum::Date(*at),
            (Self::AddDays(days), [Some(Datum::Date(at))]) => {
                let shifted = at.checked_add(*days).ok_or(FAR)?;
                if !(-2_000_000..=100_000_000).contains(&shifted) {
                    return Err(FAR);
                }
                Datum::Date(shifted)
            }
            (Self::Midnight, [Some(Datum::Date(i32::MAX))]) => Datum::Timestamp(i64::MAX),
            (Self::Midnight, [Some(Datum::Date(i32::MIN))]) => Datum::Timestamp(i64::MIN),
            (Self::Midnight, [Some(Datum::Date(at))]) => {
                let begins = i64::from(*at).checked_mul(DAY);
                Datum::Timestamp(begins.and_then(known).ok_or(FAR)?)
            }
            _ => return Err(FAR),
        }))
    }
}
