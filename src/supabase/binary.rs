//! Binary frames of clients (version 2): a kind, the lengths of the names, the names, the payload.

use super::Malformed;
use super::text::{body, request};
use crate::session::{Body, Request, Wire};

/// Reads a push (kind 0) or a broadcast (kind 3). The payload is not looked at: nothing that
/// carries one is supported yet.
pub(super) fn push(frame: &[u8]) -> Result<Request, Malformed> {
    let (kind, rest) = frame.split_first().ok_or(Malformed)?;
    match kind {
        0 => {
            let (&[join_ref, reference, topic, event], names) =
                rest.split_first_chunk::<4>().ok_or(Malformed)?;
            let (join_ref, names) = name(names, join_ref)?;
            let (reference, names) = name(names, reference)?;
            let (topic, names) = name(names, topic)?;
            let (event, _payload) = name(names, event)?;
            request(
                wire(join_ref),
                wire(reference),
                topic.into(),
                body(event, None)?,
            )
        }
        3 => {
            let (&[join_ref, reference, topic, event, metadata, _encoding], names) =
                rest.split_first_chunk::<6>().ok_or(Malformed)?;
            let (join_ref, names) = name(names, join_ref)?;
            let (reference, names) = name(names, reference)?;
            let (topic, names) = name(names, topic)?;
            let (_event, names) = name(names, event)?;
            let (_metadata, _payload) = name(names, metadata)?;
            request(
                wire(join_ref),
                wire(reference),
                topic.into(),
                Body::Broadcast,
            )
        }
        _ => Err(Malformed),
    }
}

fn name(frame: &[u8], length: u8) -> Result<(&str, &[u8]), Malformed> {
    let (name, rest) = frame
        .split_at_checked(usize::from(length))
        .ok_or(Malformed)?;
    Ok((std::str::from_utf8(name).map_err(|_| Malformed)?, rest))
}

/// A reference as the JSON string that text frames answer with.
fn wire(reference: &str) -> Option<Wire> {
    if reference.is_empty() {
        return None;
    }
    Some(Wire(serde_json::to_string(reference).ok()?.into()))
}
