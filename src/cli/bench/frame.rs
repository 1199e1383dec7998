//! The few things that a subscriber has to read in what it is sent.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::log::Cursor;

/// What a frame means to the benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A row arrived.
    Row {
        /// Its `id`.
        id: u64,
        /// When it was due, by the run's clock.
        sent: u64,
        /// The place behind it; the bare relay says none.
        cursor: Option<Cursor>,
    },
    /// The join was answered.
    Joined {
        /// Why it failed, where it did.
        error: Option<String>,
    },
    /// The bindings were answered.
    Subscribed {
        /// Why it failed, where it did.
        error: Option<String>,
    },
    /// How far the channel has got.
    Cursor(Cursor),
    /// The channel may have missed something, and why.
    Resync(String),
    /// Anything else.
    Other,
}

#[derive(Deserialize)]
struct Message<'a>(
    #[expect(dead_code, reason = "its place is taken")] Option<&'a str>,
    #[expect(dead_code, reason = "its place is taken")] Option<&'a str>,
    #[expect(dead_code, reason = "its place is taken")] &'a str,
    &'a str,
    #[serde(borrow)] &'a RawValue,
);

#[derive(Deserialize)]
struct Changes<'a> {
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    record: Record<'a>,
    cursor: Option<&'a str>,
}

#[derive(Deserialize)]
struct Record<'a> {
    id: u64,
    sent: &'a str,
}

#[derive(Deserialize)]
struct Status {
    status: String,
    #[serde(default)]
    extension: String,
    #[serde(default)]
    reason: String,
    cursor: Option<String>,
    #[serde(default)]
    message: String,
    #[serde(default)]
    response: serde_json::Value,
}

/// Reads a frame of the relay, in version 2 of Supabase's framing.
///
/// # Errors
/// Where it is not in that form.
pub fn read(text: &str) -> serde_json::Result<Frame> {
    let message: Message<'_> = serde_json::from_str(text)?;
    let payload = message.4.get();
    Ok(match message.3 {
        "postgres_changes" => row(&serde_json::from_str::<Changes<'_>>(payload)?.data),
        "phx_reply" => {
            let status: Status = serde_json::from_str(payload)?;
            Frame::Joined {
                error: (status.status != "ok").then(|| status.response.to_string()),
            }
        }
        "system" => {
            let status: Status = serde_json::from_str(payload)?;
            let cursor = status.cursor.and_then(|cursor| cursor.parse().ok());
            match (&*status.extension, &*status.status, cursor) {
                ("rowcast", "cursor", Some(cursor)) => Frame::Cursor(cursor),
                ("rowcast", "resync", _) => Frame::Resync(status.reason),
                ("rowcast", ..) => Frame::Other,
                (_, said, _) => Frame::Subscribed {
                    error: (said != "ok").then_some(status.message),
                },
            }
        }
        _ => Frame::Other,
    })
}

/// Reads a frame of the bare relay.
///
/// # Errors
/// Where it is not in that form.
pub fn read_bare(text: &str) -> serde_json::Result<Frame> {
    Ok(row(&serde_json::from_str(text)?))
}

/// Reads the row's number and when it was due in what the relay's frames carry as `data`: no more,
/// as what that takes is measured for the relay's work.
///
/// # Errors
/// Where it is not in that form.
pub fn read_data(data: &[u8]) -> serde_json::Result<Frame> {
    let data: Data<'_> = serde_json::from_slice(data)?;
    Ok(row(&Data {
        cursor: None,
        ..data
    }))
}

fn row(data: &Data<'_>) -> Frame {
    data.record
        .sent
        .parse()
        .map_or(Frame::Other, |sent| Frame::Row {
            id: data.record.id,
            sent,
            cursor: data.cursor.and_then(|cursor| cursor.parse().ok()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Epoch, Offset};

    #[test]
    fn frames_of_supabases_protocol_are_read() {
        let row = r#"[null,null,"realtime:bench","postgres_changes",{"ids":[1],"data":{"schema":"rowcast_bench","table":"rows","type":"INSERT","commit_timestamp":"2026-11-21T00:00:00.000Z","columns":[{"name":"id","type":"int8"}],"record":{"id":7,"user_id":"u","sent":"123"},"errors":null,"cursor":"0000000000000001-0000000000000002"}}]"#;
        let cursor = Cursor {
            epoch: Epoch(1),
            offset: Offset(2),
        };
        assert_eq!(
            read(row).unwrap(),
            Frame::Row {
                id: 7,
                sent: 123,
                cursor: Some(cursor)
            }
        );
        let joined = r#"["1","1","realtime:bench","phx_reply",{"status":"ok","response":{}}]"#;
        assert_eq!(read(joined).unwrap(), Frame::Joined { error: None });
        let system = r#"["1",null,"realtime:bench","system",{"extension":"postgres_changes","status":"error","message":"no","channel":"bench"}]"#;
        assert_eq!(
            read(system).unwrap(),
            Frame::Subscribed {
                error: Some("no".into())
            }
        );
        let told = r#"["1",null,"realtime:bench","system",{"extension":"rowcast","status":"cursor","message":"Everything","cursor":"0000000000000001-0000000000000002","channel":"bench"}]"#;
        assert_eq!(read(told).unwrap(), Frame::Cursor(cursor));
        let resync = r#"["1",null,"realtime:bench","system",{"extension":"rowcast","status":"resync","message":"Changes","reason":"trimmed","cursor":"0000000000000001-0000000000000002","channel":"bench"}]"#;
        assert_eq!(read(resync).unwrap(), Frame::Resync("trimmed".into()));
        let presence = r#"["1",null,"realtime:bench","presence_state",{}]"#;
        assert_eq!(read(presence).unwrap(), Frame::Other);
        assert!(read("{}").is_err());
    }
}
