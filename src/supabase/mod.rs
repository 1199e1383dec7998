//! Supabase Realtime's words: Phoenix frames to requests, replies to frames.

mod binary;
mod encode;
mod join;
mod json;
mod rowcast;
mod text;

pub use encode::{can_be_held, encode, room, write, write_change, write_holder};

use crate::session::Request;

/// A frame that is none; it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unreadable frame")]
pub struct Malformed;

/// How a socket writes its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serializer {
    /// `vsn=1.0.0`: a JSON object.
    V1,
    /// `vsn=2.0.0`: a JSON array, and binary frames from the client.
    V2,
}

impl Serializer {
    /// The serializer of a `vsn` parameter, which may be missing; `None` for an unknown one.
    #[must_use]
    pub fn from_version(vsn: Option<&str>) -> Option<Self> {
        let Some(vsn) = vsn else {
            return Some(Self::V1);
        };
        let mut numbers = vsn.split('.').map(|number| {
            (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
                .then_some(number)
        });
        let (major, minor, patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let _any_patch = patch;
        match (major, minor, numbers.next()) {
            ("1", "0", None) => Some(Self::V1),
            ("2", "0", None) => Some(Self::V2),
            _ => None,
        }
    }

    /// Reads a text frame.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn text(self, frame: &str) -> Result<Request, Malformed> {
        match self {
            Self::V1 => text::object(frame),
            Self::V2 => text::array(frame),
        }
    }

    /// Reads a binary frame.
    ///
    /// # Errors
    /// [`Malformed`]; always so for version 1, which has none.
    pub fn binary(self, frame: &[u8]) -> Result<Request, Malformed> {
        match self {
            Self::V1 => Err(Malformed),
            Self::V2 => binary::push(frame),
        }
    }
}
