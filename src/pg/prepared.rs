//! Statements that a session keeps prepared.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Statement;

/// Statements that are kept; past this all are prepared anew.
const MAX_STATEMENTS: usize = 500;

/// Bytes of text of the statements that are kept: what PostgreSQL holds of them grows with that.
const MAX_BYTES: usize = 4 << 20;

/// The prepared statements of a session, by their text.
#[derive(Default)]
pub struct Prepared {
    statements: HashMap<Arc<str>, Statement>,
    bytes: usize,
}

impl Prepared {
    /// Forgets all where there are too many. What is prepared from here to the next call is kept,
    /// however much it is.
    pub fn make_room(&mut self) {
        if self.statements.len() >= MAX_STATEMENTS || self.bytes >= MAX_BYTES {
            self.statements.clear();
            self.bytes = 0;
        }
    }

    /// The statement of a text.
    #[must_use]
    pub fn get(&self, text: &str) -> Option<&Statement> {
        self.statements.get(text)
    }

    /// Keeps a statement.
    pub fn insert(&mut self, text: &Arc<str>, statement: Statement) {
        if self
            .statements
            .insert(Arc::clone(text), statement)
            .is_none()
        {
            self.bytes += text.len();
        }
    }

    /// Forgets a statement.
    pub fn remove(&mut self, text: &str) {
        if let Some((text, _)) = self.statements.remove_entry(text) {
            self.bytes -= text.len();
        }
    }
}
