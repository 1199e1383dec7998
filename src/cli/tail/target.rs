//! Which table, and at which relay.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::http::Uri;

/// The tables to follow; `None` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    schema: Option<String>,
    table: Option<String>,
}

impl Table {
    /// The object of `postgres_changes` that asks for it.
    pub(super) fn binding(&self, event: &str, filter: &str) -> Value {
        let mut binding = json!({
            "event": event,
            "schema": self.schema.as_deref().unwrap_or("*"),
            "table": self.table.as_deref().unwrap_or("*"),
        });
        if event == "*"
            && let Some(binding) = binding.as_object_mut()
        {
            binding.insert("rowcast".into(), json!({ "truncate": true }));
        }
        if let (Some(binding), false) = (binding.as_object_mut(), filter.is_empty()) {
            binding.insert("filter".into(), filter.into());
        }
        binding
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |name: &Option<String>| name.as_deref().unwrap_or("*").to_owned();
        match (&self.schema, &self.table) {
            (None, None) => f.write_str("all tables"),
            _ => write!(f, "{}.{}", name(&self.schema), name(&self.table)),
        }
    }
}

impl FromStr for Table {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "expected `table`, `schema.table`, `schema.*` or `*`, a name in double quotes where \
             it holds a dot"
                .to_owned()
        };
        let (first, rest) = name(text).ok_or_else(wrong)?;
        let second = match rest {
            "" => None,
            rest => {
                let (second, rest) = rest.strip_prefix('.').and_then(name).ok_or_else(wrong)?;
                if !rest.is_empty() {
                    return Err(wrong());
                }
                Some(second)
            }
        };
        match (first, second) {
            (None, None | Some(None)) => Ok(Self {
                schema: None,
                table: None,
            }),
            // A table of that name in whatever schema is nothing that the relay knows.
            (None, Some(Some(_))) => Err(wrong()),
            (Some(table), None) => Ok(Self {
                schema: Some("public".to_owned()),
                table: Some(table),
            }),
            (Some(schema), Some(table)) => Ok(Self {
                schema: Some(schema),
                table,
            }),
        }
    }
}

/// A name (`None` for the star) at the beginning of a text, and what follows it.
fn name(text: &str) -> Option<(Option<String>, &str)> {
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut name = String::new();
        loop {
            let (part, after) = rest.split_once('"')?;
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    name.push('"');
                    rest = after;
                }
                None => return (!name.is_empty()).then_some((Some(name), after)),
            }
        }
    }
    let end = text.find('.').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match name {
        "" => None,
        "*" => Some((None, rest)),
        name => Some((Some(name.to_owned()), rest)),
    }
}

/// The address of the WebSocket of a relay at `url`. A path is kept in front, as
/// `createClient(url)` does it.
pub(super) fn websocket(url: &str) -> Result<String, String> {
    // The text may hold credentials, so it is not repeated.
    let wrong = || {
        "The relay's URL must be one like http://localhost:4000 or wss://example.com.".to_owned()
    };
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let scheme = match uri.scheme_str() {
        Some("http" | "ws") => "ws",
        Some("https" | "wss") => "wss",
        _ => return Err(wrong()),
    };
    let authority = uri.authority().ok_or_else(wrong)?;
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err(wrong());
    }
    let path = uri.path().trim_end_matches('/');
    let path = if path.ends_with("/websocket") {
        path.to_owned()
    } else {
        format!("{path}/realtime/v1/websocket")
    };
    let query = match uri.query() {
        Some(query) => format!("{query}&vsn=2.0.0"),
        None => "vsn=2.0.0".to_owned(),
    };
    Ok(format!("{scheme}://{authority}{path}?{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Option<(Option<String>, Option<String>)> {
        let table = text.parse::<Table>().ok()?;
        Some((table.schema, table.table))
    }

    #[test]
    fn names_are_taken_as_they_are_and_quotes_hold_dots() {
        let some = |schema: &str, table: &str| Some((Some(schema.into()), Some(table.into())));
        assert_eq!(table("todos"), some("public", "todos"));
        assert_eq!(table("Sales.Orders"), some("Sales", "Orders"));
        assert_eq!(table("sales.*"), Some((Some("sales".into()), None)));
        assert_eq!(table("*"), Some((None, None)));
        assert_eq!(table("*.*"), Some((None, None)));
        assert_eq!(table(r#""We.ird"."a""b""#), some("We.ird", "a\"b"));
        assert_eq!(table(r#""*""#), some("public", "*"));
        for wrong in ["", ".", "a.", ".a", "a.b.c", "*.a", "\"a", "\"a\"b", "\"\""] {
            assert_eq!(table(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_relays_address_leads_to_its_websocket() {
        for (url, address) in [
            (
                "http://localhost:4000",
                "ws://localhost:4000/realtime/v1/websocket?vsn=2.0.0",
            ),
            (
                "https://api.example.com/",
                "wss://api.example.com/realtime/v1/websocket?vsn=2.0.0",
            ),
            (
                "wss://example.com/prefix/",
                "wss://example.com/prefix/realtime/v1/websocket?vsn=2.0.0",
            ),
            (
                "ws://[::1]:4000/socket/websocket?region=x",
                "ws://[::1]:4000/socket/websocket?region=x&vsn=2.0.0",
            ),
        ] {
            assert_eq!(websocket(url).as_deref(), Ok(address));
        }
        for wrong in [
            "",
            "localhost:4000",
            "/x",
            "ftp://x",
            "http://",
            "http://user:s3cr3t@host",
        ] {
            let error = websocket(wrong).unwrap_err();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
