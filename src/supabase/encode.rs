//! Replies as text. What others wrote is copied as it is.

use std::io::Write;

use super::Serializer;
use crate::log::{HeldCursor, Holder};
use crate::session::{Reply, System, Wire};
use crate::snapshot::Page;

/// The end of a change's JSON, behind its cursor.
const CURSOR_END: &[u8] = b"\"}";

/// The text frame of a reply. `None` only where a change's bytes are no UTF-8, which no frame may
/// carry.
#[must_use]
pub fn encode(serializer: Serializer, reply: &Reply) -> Option<String> {
    let mut bytes = Vec::with_capacity(room(reply));
    write(serializer, reply, &mut bytes);
    String::from_utf8(bytes).ok()
}

/// How many bytes [`write`] is going to write, about.
#[must_use]
pub fn room(reply: &Reply) -> usize {
    match reply {
        Reply::Change { topic, data, .. } => data.len() + topic.len() + 128,
        Reply::Snapshot { topic, page, .. } => page.size() + 2 * topic.len() + 512,
        _ => 256,
    }
}

/// Whether a change ends with a cursor that can say whom it is given to. The frame before that is
/// the same for all.
#[must_use]
pub fn can_be_held(data: &[u8]) -> bool {
    data.ends_with(CURSOR_END)
}

/// Appends the text of a change's frame; of a `held` one up to where its cursor says whom it is
/// given to, which [`write_holder`] goes on with.
pub fn write_change(
    serializer: Serializer,
    topic: &str,
    bindings: &[u32],
    (data, held): (&[u8], bool),
    bytes: &mut Vec<u8>,
) {
    Frame { serializer, bytes }.change(topic, bindings, data, held);
}

/// Appends the rest of the text of a held change's frame.
pub fn write_holder(serializer: Serializer, holder: Holder, bytes: &mut Vec<u8>) {
    Frame { serializer, bytes }.holder(holder);
}

/// Appends the text of a reply's frame.
pub fn write(serializer: Serializer, reply: &Reply, bytes: &mut Vec<u8>) {
    let mut frame = Frame { serializer, bytes };
    match reply {
        Reply::Ok {
            join_ref,
            reference,
            topic,
        } => {
            let (join_ref, reference) = (join_ref.as_ref(), reference.as_ref());
            frame.open(join_ref, reference, topic, "phx_reply");
            frame.raw(b"{\"status\":\"ok\",\"response\":{}}");
            frame.close(reference);
        }
        Reply::Joined {
            join_ref,
            reference,
            topic,
            bindings,
        } => {
            let (join_ref, reference) = (join_ref.as_ref(), reference.as_ref());
            frame.open(join_ref, reference, topic, "phx_reply");
            frame.raw(b"{\"status\":\"ok\",\"response\":{\"postgres_changes\":[");
            for (at, binding) in bindings.iter().enumerate() {
                if at > 0 {
                    frame.raw(b",");
                }
                frame.raw(binding.0.as_bytes());
            }
            frame.raw(b"]}}");
            frame.close(reference);
        }
        Reply::Error {
            join_ref,
            reference,
            topic,
            reason,
        } => {
            let (join_ref, reference) = (join_ref.as_ref(), reference.as_ref());
            frame.open(join_ref, reference, topic, "phx_reply");
            frame.raw(b"{\"status\":\"error\",\"response\":{\"reason\":");
            frame.string(reason);
            frame.raw(b"}}");
            frame.close(reference);
        }
        Reply::System(system) => frame.system(system),
        Reply::Snapshot {
            join_ref,
            topic,
            page,
            holder,
        } => frame.page(join_ref.as_ref(), topic, page, *holder),
        Reply::Closed { join_ref, topic } => frame.end(join_ref.as_ref(), topic, "phx_close"),
        Reply::Failed { join_ref, topic } => frame.end(join_ref.as_ref(), topic, "phx_error"),
        Reply::Change {
            topic,
            bindings,
            data,
            holder,
            ..
        } => {
            let holder = holder.filter(|_| can_be_held(data));
            frame.change(topic, bindings, data, holder.is_some());
            if let Some(holder) = holder {
                frame.holder(holder);
            }
        }
    }
}

struct Frame<'a> {
    serializer: Serializer,
    bytes: &'a mut Vec<u8>,
}

impl Frame<'_> {
    fn change(&mut self, topic: &str, bindings: &[u32], data: &[u8], held: bool) {
        self.open(None, None, topic, "postgres_changes");
        self.raw(b"{\"ids\":[");
        for (at, id) in bindings.iter().enumerate() {
            if at > 0 {
                self.raw(b",");
            }
            self.raw(itoa::Buffer::new().format(*id).as_bytes());
        }
        self.raw(b"],\"data\":");
        // Many share the bytes, so what is one's own is put into the cursor at their end.
        match data.strip_suffix(CURSOR_END) {
            Some(open) if held => self.raw(open),
            _ => {
                self.raw(data);
                self.raw(b"}");
                self.close(None);
            }
        }
    }

    /// The rest of a change whose cursor is given to somebody.
    fn holder(&mut self, holder: Holder) {
        let _written = write!(self.bytes, "-{holder}");
        self.raw(CURSOR_END);
        self.raw(b"}");
        self.close(None);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn string(&mut self, text: &str) {
        // Writing to a Vec does not fail.
        let _written = serde_json::to_writer(&mut *self.bytes, text);
    }

    fn wire(&mut self, wire: Option<&Wire>) {
        self.raw(wire.map_or(b"null", |wire| wire.0.as_bytes()));
    }

    /// Everything before the payload.
    fn open(
        &mut self,
        join_ref: Option<&Wire>,
        reference: Option<&Wire>,
        topic: &str,
        event: &str,
    ) {
        match self.serializer {
            Serializer::V1 => {
                self.raw(b"{\"topic\":");
                self.string(topic);
                let _written = write!(self.bytes, ",\"event\":\"{event}\",\"payload\":");
            }
            Serializer::V2 => {
                self.raw(b"[");
                self.wire(join_ref);
                self.raw(b",");
                self.wire(reference);
                self.raw(b",");
                self.string(topic);
                let _written = write!(self.bytes, ",\"{event}\",");
            }
        }
    }

    /// Everything after the payload.
    fn close(&mut self, reference: Option<&Wire>) {
        match self.serializer {
            Serializer::V1 => {
                self.raw(b",\"ref\":");
                self.wire(reference);
                self.raw(b"}");
            }
            Serializer::V2 => self.raw(b"]"),
        }
    }

    /// The end of a channel: the reference is the join's, by which clients know a stale one.
    fn end(&mut self, join_ref: Option<&Wire>, topic: &str, event: &str) {
        self.open(join_ref, join_ref, topic, event);
        self.raw(b"{}");
        self.close(join_ref);
    }

    /// Rows, as a system message: those reach the application of every client whole, if they have
    /// no `ids`.
    fn page(&mut self, join_ref: Option<&Wire>, topic: &str, page: &Page, holder: Option<Holder>) {
        self.open(join_ref, None, topic, "system");
        let _written = write!(
            self.bytes,
            "{{\"extension\":\"rowcast\",\"status\":\"snapshot\",\"message\":\"Rows\",\
             \"id\":{},\"schema\":",
            page.binding
        );
        self.string(&page.schema);
        self.raw(b",\"table\":");
        self.string(&page.table);
        let _written = write!(self.bytes, ",\"page\":{},\"rows\":", page.number);
        self.raw(&page.rows);
        self.raw(b",\"errors\":");
        self.raw(if page.errors.is_empty() {
            b"null"
        } else {
            &page.errors
        });
        let cursor = HeldCursor {
            cursor: page.cursor,
            holder,
        };
        let _written = write!(
            self.bytes,
            ",\"last\":{},\"more\":{},\"cursor\":\"{cursor}\",\"channel\":",
            page.last, page.more
        );
        self.string(topic.strip_prefix("realtime:").unwrap_or(topic));
        self.raw(b"}");
        self.close(None);
    }

    fn system(&mut self, system: &System) {
        self.open(system.join_ref.as_ref(), None, &system.topic, "system");
        let _written = write!(
            self.bytes,
            "{{\"extension\":\"{}\",\"status\":\"{}\",\"message\":",
            system.extension,
            system.status.as_str()
        );
        self.string(&system.message);
        if let Some(reason) = system.reason {
            self.raw(b",\"reason\":");
            self.string(reason);
        }
        if let Some(binding) = &system.binding {
            self.raw(b",\"binding\":");
            self.raw(binding.0.as_bytes());
        }
        if let Some(cursor) = system.cursor {
            let _written = write!(self.bytes, ",\"cursor\":\"{cursor}\"");
        }
        if system.names_channel {
            let topic = &system.topic;
            self.raw(b",\"channel\":");
            self.string(topic.strip_prefix("realtime:").unwrap_or(topic));
        }
        self.raw(b"}");
        self.close(None);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use smallvec::smallvec;

    use super::*;
    use crate::pg::Lsn;

    const HOLDERS: [Holder; 2] = [
        Holder {
            claims: 0,
            read: 1,
            rules: None,
        },
        Holder {
            claims: u32::MAX,
            read: 7,
            rules: Some(Lsn(3)),
        },
    ];

    #[test]
    fn all_holders_of_a_change_share_the_frame_but_for_its_ending() {
        let data: &[u8] = br#"{"record":{"id":7},"cursor":"0000000000000001-0000000000000002"}"#;
        for serializer in [Serializer::V1, Serializer::V2] {
            let mut shared = Vec::new();
            write_change(serializer, "realtime:a", &[1, 2], (data, true), &mut shared);
            let endings = HOLDERS.map(|holder| {
                let mut ending = Vec::new();
                write_holder(serializer, holder, &mut ending);
                let text = [&shared[..], &ending[..]].concat();
                let frame: Value = serde_json::from_slice(&text).unwrap();
                let payload = frame.get("payload").unwrap_or_else(|| &frame[4]);
                let cursor = format!("0000000000000001-0000000000000002-{holder}");
                assert_eq!(payload["data"]["cursor"], cursor);
                assert_eq!(payload["ids"], serde_json::json!([1, 2]));
                let reply = Reply::Change {
                    topic: "realtime:a".into(),
                    bindings: smallvec![1, 2],
                    committed_at: 0,
                    data: data.to_vec().into(),
                    holder: Some(holder),
                };
                let whole = encode(serializer, &reply).unwrap();
                assert_eq!(whole.as_bytes(), text);
                ending
            });
            assert_ne!(endings[0], endings[1]);
        }
    }

    #[test]
    fn a_change_without_a_cursor_at_its_end_is_written_whole() {
        assert!(!can_be_held(b"{}"));
        let mut bytes = Vec::new();
        write_change(
            Serializer::V2,
            "realtime:a",
            &[1],
            (b"{}", true),
            &mut bytes,
        );
        let frame: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(frame[4]["data"], serde_json::json!({}));
    }
}
