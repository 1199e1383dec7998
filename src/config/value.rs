//! How a setting's text is read. An error is the end of the sentence "it must be …".

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{DeleteWithoutIdentity, Leaves, LogFormat, OldRowTables, Origins, Proxies, Require};

/// What would have been right.
pub(super) type Expected = String;

pub(super) fn address(text: &str) -> Result<SocketAddr, Expected> {
    text.parse()
        .map_err(|_| "an IP address with a port, such as 0.0.0.0:4000 or [::1]:4000".to_owned())
}

/// A whole number; `_` may group its digits.
pub(super) fn integer(text: &str, least: u64, most: u64) -> Result<u64, Expected> {
    let expected = || format!("a whole number from {least} to {most}");
    let number: u64 = text.replace('_', "").parse().map_err(|_| expected())?;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(expected())
    }
}

pub(super) fn count(text: &str, least: u64, most: u64) -> Result<usize, Expected> {
    usize::try_from(integer(text, least, most)?).map_err(|_| "a smaller number".to_owned())
}

pub(super) fn data(text: &str) -> Result<Option<PathBuf>, Expected> {
    match text.trim() {
        "" => Err("a directory, or memory".to_owned()),
        "memory" => Ok(None),
        directory => Ok(Some(PathBuf::from(directory))),
    }
}

/// Bytes: a number and a unit.
pub(super) fn size(text: &str, least: u64, most: u64) -> Result<usize, Expected> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let expected = || {
        format!(
            "a size from {} to {}, such as 512KiB, 8MiB or 1GiB",
            readable_size(least),
            readable_size(most)
        )
    };
    let (number, factor) = number_and_unit(text, &UNITS).ok_or_else(expected)?;
    number
        .checked_mul(factor)
        .filter(|bytes| (least..=most).contains(bytes))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(expected)
}

/// A size, or 0 for none.
pub(super) fn size_or_none(text: &str, least: u64, most: u64) -> Result<u64, Expected> {
    if matches!(text.trim(), "none" | "0") {
        return Ok(0);
    }
    size(text, least, most)
        .map(|bytes| bytes as u64)
        .map_err(|expected| format!("{expected}; or none"))
}

fn readable_size(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// A time: a number and a unit, which is never left out because nobody remembers which it was.
pub(crate) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, Expected> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let expected = || {
        format!(
            "a time from {} to {} with its unit, such as 500ms, 5s or 2m",
            readable_duration(least),
            readable_duration(most)
        )
    };
    let (number, factor) = number_and_unit(text, &UNITS).ok_or_else(expected)?;
    number
        .checked_mul(factor)
        .map(Duration::from_millis)
        .filter(|time| (least..=most).contains(time))
        .ok_or_else(expected)
}

fn readable_duration(time: Duration) -> String {
    let millis = time.as_millis();
    for (unit, factor) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis >= factor && millis.is_multiple_of(factor) {
            return format!("{}{unit}", millis / factor);
        }
    }
    format!("{millis}ms")
}

fn number_and_unit(text: &str, units: &[(&str, u64)]) -> Option<(u64, u64)> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number = number.replace('_', "").parse().ok()?;
    let unit = unit.trim_start();
    let (_, factor) = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    Some((number, *factor))
}

/// A replication slot's name, by PostgreSQL's rule for them.
pub(super) fn slot(text: &str) -> Result<String, Expected> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a slot name: 1 to 63 of a-z, 0-9 and _".to_owned())
    }
}

/// The name of something in the database.
pub(super) fn name(text: &str) -> Result<String, Expected> {
    if (1..=63).contains(&text.len()) && !text.contains('\0') {
        Ok(text.to_owned())
    } else {
        Err("a name of 1 to 63 bytes".to_owned())
    }
}

pub(super) fn claim(text: &str) -> Result<String, Expected> {
    if text.is_empty() {
        Err("a claim's name, such as role".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Only the shape is looked at: which parameters there are is the connection's business.
pub(super) fn database_url(text: &str) -> Result<&str, Expected> {
    let url = text.starts_with("postgres://") || text.starts_with("postgresql://");
    if url || (!text.contains("://") && text.contains('=')) {
        Ok(text)
    } else {
        Err(
            "a URL such as postgres://user:password@host:5432/database, or libpq's \
             `host=… user=… dbname=…` form"
                .to_owned(),
        )
    }
}

pub(super) fn http_url(text: &str) -> Result<String, Expected> {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !text.contains(char::is_whitespace) => {
            Ok(text.to_owned())
        }
        _ => Err("an http:// or https:// URL".to_owned()),
    }
}

/// Networks, separated by commas.
pub(super) fn proxies(text: &str) -> Result<Proxies, Expected> {
    text.parse()
        .map_err(|error: crate::transport::InvalidNetwork| error.to_string())
}

/// `*`, or origins separated by commas.
pub(super) fn origins(text: &str) -> Result<Origins, Expected> {
    text.parse()
        .map_err(|error: crate::transport::InvalidOrigin| error.to_string())
}

pub(super) fn secret(text: &str) -> Result<&str, Expected> {
    if text.is_empty() {
        Err("a text that is not empty".to_owned())
    } else {
        Ok(text)
    }
}

/// `key=role,key=role`.
pub(super) fn api_keys(text: &str) -> Result<BTreeMap<String, String>, Expected> {
    let expected = || {
        "a list such as sb_publishable_…=anon,sb_secret_…=service_role, each key once".to_owned()
    };
    let mut keys = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        // The role comes last: a key may hold an equals sign, a role hardly does.
        let (key, role) = pair.rsplit_once('=').ok_or_else(expected)?;
        let (key, role) = (key.trim(), role.trim());
        if key.is_empty() || role.is_empty() || keys.insert(key.into(), role.into()).is_some() {
            return Err(expected());
        }
    }
    Ok(keys)
}

pub(super) fn delete_without_identity(text: &str) -> Result<DeleteWithoutIdentity, Expected> {
    match text {
        "suppress" => Ok(DeleteWithoutIdentity::Suppress),
        "key" => Ok(DeleteWithoutIdentity::Key),
        _ => Err("suppress or key".to_owned()),
    }
}

/// Tables and columns, separated by commas.
pub(super) fn old_rows(text: &str) -> Result<OldRowTables, Expected> {
    text.parse()
        .map_err(|error: crate::router::InvalidTables| error.to_string())
}

pub(super) fn require(text: &str) -> Result<Require, Expected> {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let all = [Require::None, Require::Rls, Require::RlsOrRule];
    let meant = all.into_iter().find(|one| one.as_str() == words.join(" "));
    meant.ok_or_else(|| "none, rls, or `rls or rule`".to_owned())
}

pub(super) fn leave(text: &str) -> Result<Leaves, Expected> {
    match text {
        "asked" => Ok(Leaves::Asked),
        "all" => Ok(Leaves::All),
        _ => Err("asked or all".to_owned()),
    }
}

pub(super) fn switch(text: &str) -> Result<bool, Expected> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, Expected> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("auto, text or json".to_owned()),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, Expected> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(
            "a level (error, warn, info, debug, trace) or a filter such as \
             info,rowcast::source=debug"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_carry_their_unit() {
        assert_eq!(size("8MiB", 1, 1 << 40), Ok(8 << 20));
        assert_eq!(size("8 mib", 1, 1 << 40), Ok(8 << 20));
        assert_eq!(size("1_000", 1, 1 << 40), Ok(1000));
        assert_eq!(size("2kB", 1, 1 << 40), Ok(2000));
        for bad in ["", "MiB", "8 M", "-1", "99999999999GiB", "0"] {
            let expected = size(bad, 1024, 1 << 30).unwrap_err();
            assert!(expected.contains("from 1KiB to 1GiB"), "{bad}: {expected}");
        }
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(3600));
        assert_eq!(
            duration("500ms", least, most),
            Ok(Duration::from_millis(500))
        );
        assert_eq!(duration("2m", least, most), Ok(Duration::from_secs(120)));
        for bad in ["5", "0s", "2h", "s", "1d", "1.5s"] {
            let expected = duration(bad, least, most).unwrap_err();
            assert!(expected.contains("from 1ms to 1h"), "{bad}: {expected}");
        }
    }

    #[test]
    fn names_are_held_to_postgresqls_rules() {
        assert!(slot("rowcast_2").is_ok());
        for bad in ["", "Rowcast", "row-cast", &"x".repeat(64)] {
            assert!(slot(bad).is_err(), "{bad}");
        }
        assert!(
            name("Ünlike a slot").is_ok(),
            "a publication may have any name"
        );
        assert!(name(&"x".repeat(64)).is_err());
    }

    #[test]
    fn an_api_key_may_hold_an_equals_sign() {
        let keys = api_keys("sb_publishable_a==anon, sb_secret_b=service_role").unwrap();
        assert_eq!(keys["sb_publishable_a="], "anon");
        assert_eq!(keys["sb_secret_b"], "service_role");
        for bad in ["a", "a=", "=anon", "a=anon,a=authenticated"] {
            assert!(api_keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_database_is_named_by_url_or_by_pairs() {
        for good in [
            "postgres://u:p@h/d",
            "postgresql:///d?host=/tmp",
            "host=/tmp user=u",
        ] {
            assert!(database_url(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", "mysql://u@h/d?a=b", "http://h/d"] {
            assert!(database_url(bad).is_err(), "{bad}");
        }
    }
}
