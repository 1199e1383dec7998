//! Dates and times, from their ISO output under UTC.

/// Days from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
const EPOCH: i64 = 10_957;
const DAY: i64 = 86_400_000_000;

/// A `date` as days since 2000-01-01.
pub(super) fn date(text: &str) -> Option<i32> {
    match text {
        "infinity" => return Some(i32::MAX),
        "-infinity" => return Some(i32::MIN),
        _ => {}
    }
    let (text, before_christ) = era(text);
    i32::try_from(days(text, before_christ)?).ok()
}

/// A `timestamp` (or, with a zone, a `timestamptz`) as microseconds since 2000-01-01.
pub(super) fn timestamp(text: &str, zone: bool) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, before_christ) = era(text);
    let (date, time) = text.split_once(' ')?;
    let (time, offset) = if zone {
        let at = time.find(['+', '-'])?;
        (time.get(..at)?, offset(time.get(at..)?)?)
    } else {
        (time, 0)
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut parts = time.split(':');
    let hours = number(parts.next()?, 2)?;
    let minutes = number(parts.next()?, 2)?;
    let seconds = number(parts.next()?, 2)?;
    if parts.next().is_some() || hours > 24 || minutes > 59 || seconds > 60 || fraction.len() > 6 {
        return None;
    }
    let micros = number(&format!("{fraction:0<6}"), 6)?;
    let in_day = ((hours * 60 + minutes) * 60 + seconds - offset) * 1_000_000 + micros;
    days(date, before_christ)?
        .checked_mul(DAY)?
        .checked_add(in_day)
}

fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC")
        .map_or((text, false), |text| (text, true))
}

/// `+HH`, `-HH:MM`, `+HH:MM:SS` in seconds.
fn offset(text: &str) -> Option<i64> {
    let negative = text.starts_with('-');
    let mut seconds = 0;
    let mut unit = 3_600;
    for part in text.get(1..)?.split(':') {
        seconds += number(part, 2)? * unit;
        unit /= 60;
    }
    Some(if negative { -seconds } else { seconds })
}

fn number(text: &str, width: usize) -> Option<i64> {
    if text.len() != width || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Days since 2000-01-01 of `YYYY-MM-DD`, years of more digits included.
fn days(text: &str, before_christ: bool) -> Option<i64> {
    let (year, rest) = text.split_once('-')?;
    let (month, day) = rest.split_once('-')?;
    if !(4..=7).contains(&year.len()) {
        return None;
    }
    let year = number(year, year.len())?;
    let (month, day) = (number(month, 2)?, number(day, 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year == 0 {
        return None;
    }
    let year = if before_christ { 1 - year } else { year };
    // Counted in 400-year eras that begin on 1 March: the leap day is then a year's last day.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468 - EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_from_2000() {
        assert_eq!(date("2000-01-01"), Some(0));
        assert_eq!(date("1999-12-31"), Some(-1));
        assert_eq!(date("2000-03-01"), Some(60));
        assert_eq!(date("4713-01-01 BC"), Some(-2_451_507));
        assert_eq!(date("5874897-12-31"), Some(2_145_031_948));
        assert_eq!(date("infinity"), Some(i32::MAX));
        for bad in [
            "",
            "2000",
            "2000-13-01",
            "00-01-01",
            "2000-1-1",
            "0000-01-01",
        ] {
            assert_eq!(date(bad), None, "{bad}");
        }
    }

    #[test]
    fn instants_count_from_2000_in_utc() {
        assert_eq!(timestamp("2000-01-01 00:00:00.5", false), Some(500_000));
        assert_eq!(timestamp("2000-01-01 01:00:00+01", true), Some(0));
        assert_eq!(timestamp("1999-12-31 18:30:00-05:30", true), Some(0));
        assert_eq!(timestamp("2000-01-01 00:00:00", true), None);
    }
}
