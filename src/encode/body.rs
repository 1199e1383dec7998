//! A change as JSON, and the frames that it goes out in: everybody who receives the same shares
//! both.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use smallvec::SmallVec;

/// Frames that a change keeps beside the first. Where more different ones are asked for, the others are written for
/// whoever asks: to look for one among many would cost as much.
const MAX_FRAMES: usize = 8;

/// The JSON of a change. Cheap to clone.
#[derive(Clone)]
pub struct Body(Arc<Shared>);

struct Shared {
    data: Bytes,
    /// Looked at without a lock: mostly there is no other.
    first: OnceLock<Framed>,
    others: Mutex<Vec<Framed>>,
}

struct Framed {
    form: u8,
    topic: Arc<str>,
    bindings: SmallVec<[u32; 4]>,
    rest: usize,
    frame: Bytes,
}

/// What tells one frame of a change from another.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The version of the wire, by a number of the caller's choice.
    pub form: u8,
    /// The channel's topic.
    pub topic: &'a Arc<str>,
    /// The bindings that asked for the change.
    pub bindings: &'a SmallVec<[u32; 4]>,
    /// How many bytes follow behind what is shared, and count as the frame's: the receiver's own,
    /// from where the cursor says whom it is given to. 0 where nothing does.
    pub rest: usize,
    /// Whether others hold what holds this one [`Body`]: where nobody does nobody will ask again.
    pub shared: bool,
}

impl Body {
    /// The change in an envelope, which `write` writes unless that was done before.
    pub fn framed(
        &self,
        envelope: &Envelope<'_>,
        write: impl FnOnce(&Self) -> Option<Bytes>,
    ) -> Option<Cow<'_, Bytes>> {
        let shared = &*self.0;
        if let Some(first) = shared.first.get()
            && first.is(envelope)
        {
            return Some(Cow::Borrowed(&first.frame));
        }
        let mut others = shared.others.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been the first meanwhile.
        let mut known = shared.first.get().into_iter().chain(&*others);
        if let Some(known) = known.find(|framed| framed.is(envelope)) {
            return Some(Cow::Owned(known.frame.clone()));
        }
        let frame = write(self)?;
        if others.len() < MAX_FRAMES && (envelope.shared || Arc::strong_count(&self.0) > 1) {
            let framed = Framed {
                form: envelope.form,
                topic: Arc::clone(envelope.topic),
                bindings: envelope.bindings.clone(),
                rest: envelope.rest,
                frame: frame.clone(),
            };
            if let Err(framed) = shared.first.set(framed) {
                others.push(framed);
            }
        }
        Some(Cow::Owned(frame))
    }
}

impl Framed {
    fn is(&self, envelope: &Envelope<'_>) -> bool {
        self.form == envelope.form
            && self.rest == envelope.rest
            && self.bindings == *envelope.bindings
            && *self.topic == **envelope.topic
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.data
    }
}

impl From<Bytes> for Body {
    fn from(data: Bytes) -> Self {
        Self(Arc::new(Shared {
            data,
            first: OnceLock::new(),
            others: Mutex::default(),
        }))
    }
}

impl From<Vec<u8>> for Body {
    fn from(data: Vec<u8>) -> Self {
        Bytes::from(data).into()
    }
}

impl From<String> for Body {
    fn from(data: String) -> Self {
        Bytes::from(data).into()
    }
}

impl From<&'static str> for Body {
    fn from(data: &'static str) -> Self {
        Bytes::from_static(data.as_bytes()).into()
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.0.data == other.0.data
    }
}

impl Eq for Body {}

/// A row's values must not reach a log.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.data.len())
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    #[test]
    fn the_same_envelope_is_written_once_and_another_is_never_taken_for_it() {
        let body = Body::from("{}");
        let _another = body.clone();
        let (room, same, hall): (Arc<str>, Arc<str>, Arc<str>) =
            ("room".into(), "room".into(), "hall".into());
        let mut written = 0;
        let mut frame = |form, topic: &Arc<str>, bindings: SmallVec<[u32; 4]>, rest| {
            let envelope = Envelope {
                form,
                topic,
                bindings: &bindings,
                rest,
                shared: false,
            };
            body.framed(&envelope, |_| {
                written += 1;
                Some(Bytes::from(format!("{form} {topic} {bindings:?} {rest}")))
            })
            .unwrap()
            .into_owned()
        };
        let first = frame(0, &room, smallvec![1], 0);
        assert_eq!(first.as_ptr(), frame(0, &same, smallvec![1], 0).as_ptr());
        for other in [
            frame(1, &room, smallvec![1], 0),
            frame(0, &hall, smallvec![1], 0),
            frame(0, &room, smallvec![1, 2], 0),
            frame(0, &room, smallvec![1], 20),
            frame(0, &room, smallvec![1], 37),
        ] {
            assert_ne!(other, first);
        }
        assert_eq!(written, 6);
    }

    #[test]
    fn a_frame_is_kept_for_whoever_holds_the_change_with_others_and_for_nobody_else() {
        for (shared, times) in [(true, 1), (false, 2)] {
            let body = Body::from("{}");
            let mut written = 0;
            for _ in 0..2 {
                let envelope = Envelope {
                    form: 0,
                    topic: &"room".into(),
                    bindings: &smallvec![1],
                    rest: 0,
                    shared,
                };
                body.framed(&envelope, |_| {
                    written += 1;
                    Some(Bytes::from("frame"))
                })
                .unwrap();
            }
            assert_eq!(written, times, "shared: {shared}");
        }
    }

    #[test]
    fn more_frames_than_are_kept_are_still_right() {
        let body = Body::from("{}");
        let _another = body.clone();
        for _ in 0..2 {
            for number in 0..3 * MAX_FRAMES {
                let topic: Arc<str> = number.to_string().into();
                let envelope = Envelope {
                    form: 0,
                    topic: &topic,
                    bindings: &smallvec![1],
                    rest: 0,
                    shared: false,
                };
                let frame = body.framed(&envelope, |_| Some(Bytes::from(number.to_string())));
                assert_eq!(*frame.unwrap(), number.to_string());
            }
        }
    }
}
