//! Replies as text. What others wrote is copied as it is.

use std::io::Write;

use super::Serializer;
use crate::log::{HeldCursor, Holder};
use crate::session::{Reply, System, Wire};
use crate::snapshot::Page;

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

/// Appends the text of a change's frame.
pub fn write_change(
    serializer: Serializer,
    topic: &str,
    bindings: &[u32],
    (data, holder): (&[u8], Option<Holder>),
    bytes: &mut Vec<u8>,
) {
    Frame { serializer, bytes }.change(topic, bindings, data, holder);
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
        } => frame.change(topic, bindings, data, *holder),
    }
}

struct Frame<'a> {
    serializer: Serializer,
    bytes: &'a mut Vec<u8>,
}

impl Frame<'_> {
    fn change(&mut self, topic: &str, bindings: &[u32], data: &[u8], holder: Option<Holder>) {
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
        match (holder, data.strip_suffix(b"\"}")) {
            (Some(holder), Some(open)) => {
                self.raw(open);
                let _written = write!(self.bytes, "-{holder}\"}}");
            }
            _ => self.raw(data),
        }
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
