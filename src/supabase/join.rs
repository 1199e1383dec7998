//! The payload of a join. Clients of many languages write it, so what is badly typed is passed
//! over, except where passing over it would show more than was asked for, or where nobody would
//! ever know.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::json::{Elements, Members, boolean, is_null, string};
use super::{Malformed, rowcast};
use crate::log::HeldCursor;
use crate::session::{Binding, JoinRequest, Wire};
use crate::subscription::{Events, Wanted, filter};

/// Bindings that are read; the session refuses fewer than that.
const MAX_BINDINGS: usize = 1000;

/// What Supabase says where a join's payload makes no sense to it.
const UNKNOWN: &str = "Unknown Error on Channel";
/// Columns of a selection that are read: as many as a table can have.
const MAX_SELECTED: usize = 1600;

pub(super) fn request(payload: &RawValue) -> Result<JoinRequest, Malformed> {
    let mut join = JoinRequest::default();
    let Some(payload) = Members::of(payload) else {
        join.refusal = Some(UNKNOWN.to_owned());
        return Ok(join);
    };
    let token = |key| payload.get(key).and_then(string);
    join.token = token("user_token").or_else(|| token("access_token"));
    let asked = match rowcast::of_join(payload.get("rowcast")) {
        Ok(asked) => asked,
        // To pass over it would leave a gap of which nobody knows.
        Err(reason) => {
            join.refusal = Some(format!("InvalidJoinPayload: {reason}"));
            return Ok(join);
        }
    };
    join.cursor = asked.cursor;
    let Some(config) = payload.get("config") else {
        // Clients of long ago meant the table that the topic names.
        join.mistake = Some(
            "A join without `config` subscribes to nothing. Please name the tables in \
             `config.postgres_changes`"
                .to_owned(),
        );
        return Ok(join);
    };
    let Some(config) = Members::of(config) else {
        // An object that cannot be read may have said that the channel is private.
        join.refusal = Some(UNKNOWN.to_owned());
        return Ok(join);
    };
    match config.get("private").map_or(Some(false), boolean) {
        Some(private) => join.private = private,
        // To pass over it would make the channel a public one.
        None => {
            join.refusal =
                Some("InvalidJoinPayload: `config.private` must be true or false".to_owned());
        }
    }
    join.wait = config
        .get("postgres_changes_options")
        .and_then(Members::of)
        .and_then(|options| options.get("wait").and_then(boolean))
        .unwrap_or_default();
    match config.get("postgres_changes") {
        Some(bindings) if bindings.get().starts_with('[') => {
            add(bindings, asked.since, &mut join)?;
        }
        Some(bindings) if !is_null(bindings) => {
            join.mistake =
                Some("Error parsing `postgres_changes` params: expected a list".to_owned());
        }
        _ => {}
    }
    Ok(join)
}

fn add(
    bindings: &RawValue,
    since: Option<HeldCursor>,
    join: &mut JoinRequest,
) -> Result<(), Malformed> {
    let bindings: Elements<'_, MAX_BINDINGS> =
        serde_json::from_str(bindings.get()).map_err(|_| Malformed)?;
    for object in bindings.kept {
        if !object.get().starts_with('{') {
            // Clients leave null where a binding was removed.
            continue;
        }
        let id = u32::try_from(join.bindings.len() + 1).map_err(|_| Malformed)?;
        match binding(object, id) {
            Ok(mut binding) => {
                if let (Ok(wanted), Some(since)) = (&mut binding.wanted, since)
                    && wanted.start.since.is_none()
                {
                    wanted.start.since = Some(since.cursor);
                    wanted.start.holder = since.holder;
                }
                join.bindings.push(binding);
            }
            // Without it the others would be answered in another order than they were asked for.
            Err(Malformed) => join.refusal = Some(UNKNOWN.to_owned()),
        }
    }
    join.binding_count = if bindings.total > MAX_BINDINGS {
        bindings.total
    } else {
        join.bindings.len()
    };
    Ok(())
}

fn binding(object: &RawValue, id: u32) -> Result<Binding, Malformed> {
    let members = Members::of(object).ok_or(Malformed)?;
    Ok(Binding {
        echo: Wire(echo(object, &members, id).into()),
        wanted: wanted(&members, id),
    })
}

/// The client's object with our id in it. Clients compare what comes back with what they asked
/// for, so it is not written anew: `{` and all behind it stay as they are. Only an object that has
/// an id of its own is put together again without it.
fn echo(object: &RawValue, members: &Members<'_>, id: u32) -> String {
    let text = object.get().trim();
    let inner = text.strip_prefix('{').unwrap_or_default();
    if members.0.iter().any(|(name, _)| name == "id") {
        let mut text = format!("{{\"id\":{id}");
        for (name, value) in members.0.iter().filter(|(name, _)| name != "id") {
            let name = serde_json::Value::String(name.clone().into_owned());
            text.push_str(&format!(",{name}:{}", value.get()));
        }
        text.push('}');
        text
    } else if members.0.is_empty() {
        format!("{{\"id\":{id}}}")
    } else {
        format!("{{\"id\":{id},{inner}")
    }
}

fn wanted(members: &Members<'_>, id: u32) -> Result<Wanted, String> {
    let text = |key| members.get(key).and_then(string);
    let event = text("event");
    let name = |key| match text(key) {
        Some(name) if name == "*" => Some(None),
        name => name.map(Some),
    };
    let (schema, table) = match (name("schema"), name("table")) {
        (None, None) => {
            return Err(format!(
                "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: {}",
                inspected(members)
            ));
        }
        (None, Some(table)) => (Some("public".to_owned()), table),
        (Some(schema), table) => (schema, table.flatten()),
    };
    match members.get("select") {
        // Passing over it would deliver what was not asked for.
        Some(select) if !is_null(select) && !select.get().starts_with('[') => {
            return Err("Error parsing `select` params: expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]".to_owned());
        }
        _ => {}
    }
    // An empty list selects nothing in particular.
    let select = members
        .get("select")
        .map(selected)
        .filter(|names| !names.is_empty());
    if select.is_some() && (schema.is_none() || table.is_none()) {
        return Err("Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name.".to_owned());
    }
    let filter = match members.get("filter") {
        Some(filter) if !is_null(filter) => match string(filter) {
            Some(filter) => filter::parse(&filter).map_err(|error| error.to_string())?,
            // Passing over it would deliver what was not asked for.
            None => return Err("Error parsing `filter` params: expected a string".to_owned()),
        },
        _ => Vec::new(),
    };
    let rowcast = rowcast::of_binding(members.get("rowcast"))?;
    let mut events = Events::from_name(event.as_deref().unwrap_or("*"));
    if rowcast.truncate {
        if events != Events::All {
            // Clients hand a message of another kind than the binding's to nobody: whoever
            // believed to be told would never be.
            return Err(
                "`rowcast.truncate` is for bindings with the event `*`: to others clients hand \
                 no TRUNCATE"
                    .to_owned(),
            );
        }
        events = Events::AllAndTruncate;
    }
    if rowcast.leave && !events.deletes() {
        return Err(
            "`rowcast.leave` is for bindings with the event `*` or `DELETE`: a row that leaves \
             comes as a DELETE, and to others clients hand none"
                .to_owned(),
        );
    }
    Ok(Wanted {
        id,
        events,
        schema,
        table,
        filter,
        select,
        leave: rowcast.leave,
        start: rowcast.start,
    })
}

/// An object as Supabase shows it: Elixir's map, in the order of its keys.
fn inspected(members: &Members<'_>) -> String {
    let known: BTreeMap<&str, &RawValue> = members
        .0
        .iter()
        .map(|(name, value)| (name.as_ref(), *value))
        .collect();
    let shown: Vec<String> = known
        .into_iter()
        .map(|(name, value)| {
            let value = if is_null(value) { "nil" } else { value.get() };
            format!("{} => {value}", serde_json::Value::from(name))
        })
        .collect();
    format!("%{{{}}}", shown.join(", "))
}

/// The strings of a list, and of anything else none.
fn selected(value: &RawValue) -> Vec<String> {
    let list = serde_json::from_str::<Elements<'_, MAX_SELECTED>>(value.get());
    list.map(|list| list.kept.iter().filter_map(|name| string(name)).collect())
        .unwrap_or_default()
}
