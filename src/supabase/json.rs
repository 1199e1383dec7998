//! JSON from strangers: read as far as needed, the rest skipped without being stored.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The first `KEEP` elements of an array, and how many it has.
pub(super) struct Elements<'a, const KEEP: usize> {
    pub(super) kept: Vec<&'a RawValue>,
    pub(super) total: usize,
}

impl<'de: 'a, 'a, const KEEP: usize> Deserialize<'de> for Elements<'a, KEEP> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<const KEEP: usize>;

        impl<'de, const KEEP: usize> Visitor<'de> for Visit<KEEP> {
            type Value = Elements<'de, KEEP>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let (mut kept, mut total) = (Vec::new(), 0);
                while kept.len() < KEEP {
                    let Some(element) = seq.next_element()? else {
                        return Ok(Elements { kept, total });
                    };
                    kept.push(element);
                    total += 1;
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    total += 1;
                }
                Ok(Elements { kept, total })
            }
        }

        deserializer.deserialize_seq(Visit::<KEEP>)
    }
}

/// Members of an object that are kept; more are dropped.
const MAX_MEMBERS: usize = 64;

/// The members of an object in its own order, the values unread.
pub(super) struct Members<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The value of a key; of several the last, as JavaScript has it.
    pub(super) fn get(&self, key: &str) -> Option<&'a RawValue> {
        let found = self.0.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| *value)
    }

    /// Reads an object; `None` for anything else.
    pub(super) fn of(value: &'a RawValue) -> Option<Self> {
        serde_json::from_str(value.get()).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;

        /// Borrows where there is nothing to unescape.
        #[derive(Deserialize)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

        impl<'de> Visitor<'de> for Visit {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    if members.len() >= MAX_MEMBERS {
                        return Err(serde::de::Error::custom("too many members"));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Visit)
    }
}

/// The text of a JSON string; `None` for anything else.
pub(super) fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// Whether it is `null`.
pub(super) fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// A boolean, also one in a string of any case, as some clients write it; null is false. `None`
/// for anything else.
pub(super) fn boolean(value: &RawValue) -> Option<bool> {
    match value.get() {
        "true" => Some(true),
        "false" | "null" => Some(false),
        _ => match string(value)?.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
    }
}
