//! How far the router has handed out.

use std::sync::{PoisonError, RwLock};

use crate::log::{Cursor, Epoch, Offset};

/// A place in the log that one task moves on and everybody may look at.
#[derive(Debug)]
pub(super) struct Position(RwLock<Cursor>);

impl Default for Position {
    fn default() -> Self {
        Self(RwLock::new(Cursor {
            epoch: Epoch(0),
            offset: Offset(0),
        }))
    }
}

impl Position {
    pub(super) fn get(&self) -> Cursor {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, cursor: Cursor) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = cursor;
    }
}
