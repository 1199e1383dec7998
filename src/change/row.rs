//! The values of a row, in PostgreSQL's text output, as they came.

use std::fmt;

/// One value of a [`Row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'row> {
    /// SQL NULL. In a key-only old row also every column outside the key.
    Null,
    /// An out-of-line value that this update did not touch: the stream does not carry it.
    Unchanged,
    /// The type's text output.
    Text(&'row str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Null,
    Unchanged,
    /// Where the text ends; it begins where the one before ends.
    Text {
        end: u32,
    },
}

/// A row: one text that holds all values, and where each ends.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Row {
    text: Box<str>,
    cells: Box<[Cell]>,
}

impl Row {
    /// The number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The value at `position`; `None` past the end.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<Value<'_>> {
        match *self.cells.get(position)? {
            Cell::Null => Some(Value::Null),
            Cell::Unchanged => Some(Value::Unchanged),
            Cell::Text { end } => {
                let begin = self
                    .cells
                    .get(..position)?
                    .iter()
                    .rev()
                    .find_map(|cell| match cell {
                        Cell::Text { end } => Some(*end),
                        Cell::Null | Cell::Unchanged => None,
                    })
                    .unwrap_or(0);
                Some(Value::Text(self.text.get(begin as usize..end as usize)?))
            }
        }
    }

    /// All values in column order.
    pub fn values(&self) -> impl Iterator<Item = Value<'_>> {
        let mut begin = 0;
        self.cells.iter().map(move |cell| match *cell {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Text { end } => {
                let text = self
                    .text
                    .get(begin as usize..end as usize)
                    .unwrap_or_default();
                begin = end;
                Value::Text(text)
            }
        })
    }

    /// About how much memory the row holds, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.text.len() + size_of_val(&*self.cells)
    }
}

/// Row values are user data and must not reach a log: only the shape is shown.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Row({} values, {} bytes)",
            self.cells.len(),
            self.text.len()
        )
    }
}

impl<'a> FromIterator<Value<'a>> for Row {
    fn from_iter<I: IntoIterator<Item = Value<'a>>>(values: I) -> Self {
        let mut row = RowBuilder::default();
        for value in values {
            row.push(value);
        }
        row.finish()
    }
}

/// Gathers the values of a [`Row`] in column order.
#[derive(Debug, Default)]
pub struct RowBuilder {
    text: String,
    cells: Vec<Cell>,
}

impl RowBuilder {
    /// A builder with room for `columns` values of `bytes` bytes of text in all.
    #[must_use]
    pub fn with_capacity(columns: usize, bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            cells: Vec::with_capacity(columns),
        }
    }

    /// Adds the next value. A row's text is bounded by PostgreSQL's own limit of 1 GiB a message.
    ///
    /// # Panics
    /// When the texts exceed 4 GiB together, which no message of the stream can hold.
    pub fn push(&mut self, value: Value<'_>) {
        self.cells.push(match value {
            Value::Null => Cell::Null,
            Value::Unchanged => Cell::Unchanged,
            Value::Text(text) => {
                self.text.push_str(text);
                let end = u32::try_from(self.text.len()).expect("a message is under 4 GiB");
                Cell::Text { end }
            }
        });
    }

    /// The row.
    #[must_use]
    pub fn finish(self) -> Row {
        Row {
            text: self.text.into_boxed_str(),
            cells: self.cells.into_boxed_slice(),
        }
    }
}

/// The row before an update or a delete, as far as the stream carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldRow {
    /// Only the columns of the replica identity mean something; the others are [`Value::Null`]
    /// because the stream has nothing there.
    Key(Row),
    /// Every column ([`super::ReplicaIdentity::Full`]).
    Full(Row),
}

impl OldRow {
    /// The values, whichever they are.
    #[must_use]
    pub const fn row(&self) -> &Row {
        match self {
            Self::Key(row) | Self::Full(row) => row,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_unchanged_and_empty_text_stay_three_different_things() {
        let values = [
            Value::Text("a"),
            Value::Null,
            Value::Text(""),
            Value::Unchanged,
            Value::Text("größer"),
        ];
        let row: Row = values.into_iter().collect();
        assert_eq!(row.values().collect::<Vec<_>>(), values);
        for (position, value) in values.into_iter().enumerate() {
            assert_eq!(row.get(position), Some(value));
        }
        assert_eq!(row.get(5), None);
    }

    #[test]
    fn a_row_in_a_log_line_shows_no_value() {
        let row: Row = [Value::Text("secret")].into_iter().collect();
        assert!(!format!("{row:?}").contains("secret"));
    }
}
