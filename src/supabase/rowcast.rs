//! What clients ask of this server alone: the `rowcast` object of a join, and that of a binding.
//! What is not understood in it is refused by name, since its author relies on it.

use serde_json::value::RawValue;

use super::json::{Members, boolean, is_null, string};
use crate::log::HeldCursor;
use crate::subscription::Start;
use crate::subscription::order::{self, Wish};

/// What a join asks for.
#[derive(Debug, Default)]
pub(super) struct OfJoin {
    /// Where those bindings begin that do not say it themselves.
    pub(super) since: Option<HeldCursor>,
    /// Whether the client wants to be told its cursor.
    pub(super) cursor: bool,
}

pub(super) fn of_join(value: Option<&RawValue>) -> Result<OfJoin, String> {
    let mut asked = OfJoin::default();
    for (name, value) in &members(value)?.0 {
        match name.as_ref() {
            "since" => asked.since = since(value)?,
            "cursor" => {
                asked.cursor = boolean(value)
                    .ok_or_else(|| "`rowcast.cursor` must be true or false".to_owned())?;
            }
            name => return Err(unknown(name, "since, cursor")),
        }
    }
    Ok(asked)
}

/// What a binding asks for.
#[derive(Debug, Default)]
pub(super) struct OfBinding {
    /// Where it begins.
    pub(super) start: Start,
    /// Whether it takes a TRUNCATE as a change.
    pub(super) truncate: bool,
    /// Whether it is told when a row leaves its view.
    pub(super) leave: bool,
}

pub(super) fn of_binding(value: Option<&RawValue>) -> Result<OfBinding, String> {
    let mut asked = OfBinding::default();
    for (name, value) in &members(value)?.0 {
        match name.as_ref() {
            "since" => {
                let since = since(value)?;
                asked.start.since = since.map(|held| held.cursor);
                asked.start.holder = since.and_then(|held| held.holder);
            }
            "snapshot" => asked.start.snapshot = snapshot(value)?,
            "truncate" => {
                asked.truncate = boolean(value)
                    .ok_or_else(|| "`rowcast.truncate` must be true or false".to_owned())?;
            }
            "leave" => {
                asked.leave = boolean(value)
                    .ok_or_else(|| "`rowcast.leave` must be true or false".to_owned())?;
            }
            name => return Err(unknown(name, "since, snapshot, truncate, leave")),
        }
    }
    Ok(asked)
}

fn members(value: Option<&RawValue>) -> Result<Members<'_>, String> {
    match value.filter(|value| !is_null(value)) {
        None => Ok(Members(Vec::new())),
        Some(value) => Members::of(value).ok_or_else(|| "`rowcast` must be an object".to_owned()),
    }
}

fn since(value: &RawValue) -> Result<Option<HeldCursor>, String> {
    if is_null(value) {
        return Ok(None);
    }
    let text = string(value).ok_or_else(|| "`rowcast.since` must be a string".to_owned())?;
    let cursor = text
        .parse()
        .map_err(|error| format!("`rowcast.since` is {error}"))?;
    Ok(Some(cursor))
}

/// `true`, or an object with `limit` and `order`.
fn snapshot(value: &RawValue) -> Result<Option<Wish>, String> {
    let mut wish = Wish::default();
    if is_null(value) || boolean(value) == Some(false) {
        return Ok(None);
    }
    if boolean(value) == Some(true) {
        return Ok(Some(wish));
    }
    let members = Members::of(value)
        .ok_or_else(|| "`rowcast.snapshot` must be an object, true or false".to_owned())?;
    for (name, value) in &members.0 {
        match name.as_ref() {
            _ if is_null(value) => {}
            "limit" => {
                let limit = value.get().parse().map_err(|_| {
                    "`rowcast.snapshot.limit` must be a whole number, not negative".to_owned()
                })?;
                wish.limit = Some(limit);
            }
            "order" => {
                let text = string(value)
                    .ok_or_else(|| "`rowcast.snapshot.order` must be a string".to_owned())?;
                wish.order =
                    order::parse(&text).map_err(|error| format!("`rowcast.snapshot`: {error}"))?;
            }
            name => return Err(unknown(&format!("snapshot.{name}"), "limit, order")),
        }
    }
    Ok(Some(wish))
}

fn unknown(name: &str, known: &str) -> String {
    let shown: String = name.chars().take(64).collect();
    format!("`rowcast.{shown}` is not known to this server, which knows: {known}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::order::Nulls;

    fn read(text: &str) -> Result<Start, String> {
        let value: &RawValue = serde_json::from_str(text).unwrap();
        of_binding(Some(value)).map(|asked| asked.start)
    }

    #[test]
    fn a_snapshot_is_asked_for_in_a_few_words_or_refused_by_name() {
        let wish = |text: &str| read(text).unwrap().snapshot;
        for none in ["{}", "{\"snapshot\": null}", "{\"snapshot\": false}"] {
            assert_eq!(wish(none), None, "{none}");
        }
        assert_eq!(wish("{\"snapshot\": true}"), Some(Wish::default()));
        let all = wish("{\"snapshot\": {\"limit\": 7, \"order\": \"a.desc.nullslast\"}}").unwrap();
        assert_eq!((all.limit, all.order.len()), (Some(7), 1));
        assert!(all.order[0].descending && all.order[0].nulls == Some(Nulls::Last));
        for (text, said) in [
            ("{\"snapshot\": 1}", "must be an object, true or false"),
            (
                "{\"snapshot\": {\"limit\": -1}}",
                "`rowcast.snapshot.limit`",
            ),
            (
                "{\"snapshot\": {\"limit\": \"1\"}}",
                "`rowcast.snapshot.limit`",
            ),
            (
                "{\"snapshot\": {\"order\": [\"a\"]}}",
                "`rowcast.snapshot.order`",
            ),
            ("{\"snapshot\": {\"order\": \"a,,b\"}}", "empty segments"),
            (
                "{\"snapshot\": {\"offset\": 1}}",
                "`rowcast.snapshot.offset` is not known",
            ),
            ("{\"snapshots\": true}", "`rowcast.snapshots` is not known"),
        ] {
            let refusal = read(text).unwrap_err();
            assert!(refusal.contains(said), "{text}: {refusal}");
        }
    }
}
