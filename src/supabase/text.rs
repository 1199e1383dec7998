//! Text frames of clients, in both versions.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{Elements, Members, string};
use super::{Malformed, join};
use crate::session::{Body, Request, Wire};

/// References are small counters; anything longer is none.
const MAX_REFERENCE_BYTES: usize = 64;
/// Topics are answered with themselves, so what is no topic is not repeated at any length.
pub(super) const MAX_TOPIC_BYTES: usize = 4096;

/// Version 1.
pub(super) fn object(frame: &str) -> Result<Request, Malformed> {
    #[derive(Deserialize)]
    struct Frame<'a> {
        #[serde(borrow)]
        topic: Cow<'a, str>,
        #[serde(borrow)]
        event: Cow<'a, str>,
        #[serde(borrow)]
        payload: &'a RawValue,
        #[serde(borrow, rename = "ref")]
        reference: &'a RawValue,
        #[serde(borrow, default)]
        join_ref: Option<&'a RawValue>,
    }
    let frame: Frame<'_> = serde_json::from_str(frame).map_err(|_| Malformed)?;
    let join_ref = match frame.join_ref {
        Some(join_ref) => reference(join_ref)?,
        None => None,
    };
    let reference = reference(frame.reference)?;
    let body = body(&frame.event, Some(frame.payload))?;
    request(join_ref, reference, frame.topic, body)
}

/// Version 2.
pub(super) fn array(frame: &str) -> Result<Request, Malformed> {
    let frame: Elements<'_, 5> = serde_json::from_str(frame).map_err(|_| Malformed)?;
    let &[join_ref, own_reference, topic, event, payload] = frame.kept.as_slice() else {
        return Err(Malformed);
    };
    let topic = string(topic).ok_or(Malformed)?;
    let event = string(event).ok_or(Malformed)?;
    let join_ref = reference(join_ref)?;
    let own_reference = reference(own_reference)?;
    request(
        join_ref,
        own_reference,
        topic.into(),
        body(&event, Some(payload))?,
    )
}

pub(super) fn request(
    join_ref: Option<Wire>,
    reference: Option<Wire>,
    topic: Cow<'_, str>,
    body: Body,
) -> Result<Request, Malformed> {
    if topic.len() > MAX_TOPIC_BYTES {
        return Err(Malformed);
    }
    Ok(Request {
        join_ref,
        reference,
        topic: Arc::from(topic),
        body,
    })
}

/// A reference as its JSON text; strings and numbers only.
fn reference(value: &RawValue) -> Result<Option<Wire>, Malformed> {
    let text = value.get();
    match text.bytes().next() {
        Some(b'n') => Ok(None),
        // A string that cannot be decoded could not be parsed by everybody who gets it back.
        Some(b'"') if text.len() <= MAX_REFERENCE_BYTES && string(value).is_some() => {
            Ok(Some(Wire(text.into())))
        }
        Some(b'-' | b'0'..=b'9') if text.len() <= MAX_REFERENCE_BYTES => {
            Ok(Some(Wire(text.into())))
        }
        _ => Err(Malformed),
    }
}

/// What an event asks; without a payload for binary frames.
pub(super) fn body(event: &str, payload: Option<&RawValue>) -> Result<Body, Malformed> {
    Ok(match event {
        "heartbeat" => Body::Heartbeat,
        "phx_join" => Body::Join(Box::new(join::request(payload.ok_or(Malformed)?)?)),
        "phx_leave" => Body::Leave,
        "access_token" => Body::AccessToken(
            payload
                .and_then(Members::of)
                .and_then(|payload| payload.get("access_token"))
                .and_then(string),
        ),
        "broadcast" => Body::Broadcast,
        "presence" => Body::Presence,
        _ => Body::Unknown,
    })
}
