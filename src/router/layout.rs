//! Where a table's rows are not what the stream's description of them says, they are brought to
//! what they are before anything looks at them.
//!
//! Two things make that necessary. Generated columns are not in the stream (before PostgreSQL 18,
//! or where the publication leaves them out): they are computed and take their place among the
//! others. And the rows of a partitioned table come under the description of its root, while their
//! old values are what the partition's own replica identity has logged: what the root's names and
//! the partition's does not comes as NULL.

use std::sync::Arc;

use crate::change::{Change, Column, Kind, OldRow, Relation, ReplicaIdentity, Row, Value};
use crate::policy::ask::image::{self, Asked};
use crate::policy::catalog::Table;
use crate::policy::generated::Values;

/// How the rows of one version of a relation become what they are.
#[derive(Debug)]
pub(super) struct Layout {
    /// The relation with the columns that its rows then have.
    relation: Arc<Relation>,
    /// For each of them where it is found.
    places: Box<[Place]>,
    /// Of a partitioned table whether its old rows are complete.
    old_is_full: Option<bool>,
    computed: Option<Computed>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Stream(usize),
    Computed(usize),
}

#[derive(Debug)]
struct Computed {
    query: Arc<str>,
    /// For each column that it computes which places of the stream's rows that is computed from.
    inputs: Box<[Box<[bool]>]>,
}

/// A row to be computed on.
pub(super) struct Image {
    /// As the query takes it.
    pub(super) json: String,
    /// Of each computed column whether all that it is computed from is there.
    known: Box<[bool]>,
}

impl Image {
    /// What was computed on it, as far as it can be known.
    pub(super) fn known(&self, values: Values) -> Cells {
        let known = |(value, known): (Option<String>, &bool)| known.then_some(value);
        values.into_iter().zip(&self.known).map(known).collect()
    }
}

/// Computed values of a row in text output, `Some(None)` for NULL; `None` where it is not known.
pub(super) type Cells = Vec<Option<Option<String>>>;

/// What was computed for a change: for the new row and for the old one. Empty for nothing.
#[derive(Debug, Default)]
pub(super) struct Supplement {
    pub(super) new: Cells,
    pub(super) old: Cells,
}

impl Layout {
    /// How rows described by `relation` are laid out; `None` where they are what it says.
    pub(super) fn of(relation: &Relation, table: &Table) -> Option<Self> {
        let missing: Vec<_> = table
            .columns
            .iter()
            .filter(|column| {
                column.generated.is_some()
                    && relation.position(&column.name).is_none()
                    && table.publishes(&column.name)
            })
            .collect();
        if missing.is_empty() && table.leaves.is_none() {
            return None;
        }
        let old_is_full = table.leaves.is_some().then_some(table.identity.is_none());
        let full = old_is_full.unwrap_or(relation.replica_identity == ReplicaIdentity::Full);
        let (mut columns, mut places) = (Vec::new(), Vec::new());
        for column in &table.columns {
            if let Some(position) = relation.position(&column.name)
                && let Some(described) = relation.columns.get(position)
            {
                let identity = match old_is_full {
                    Some(full) => full || table.identity_carries(column),
                    None => described.identity,
                };
                columns.push(Column {
                    identity,
                    ..described.clone()
                });
                places.push(Place::Stream(position));
            } else if let Some(number) = missing.iter().position(|m| m.number == column.number) {
                columns.push(Column {
                    name: column.name.as_str().into(),
                    type_oid: column.type_oid,
                    type_modifier: column.modifier,
                    identity: full,
                });
                places.push(Place::Computed(number));
            }
        }
        let same = |(now, described): (&Column, &Column)| now.identity == described.identity;
        if missing.is_empty()
            && full == (relation.replica_identity == ReplicaIdentity::Full)
            && columns.iter().zip(&relation.columns).all(same)
        {
            return None;
        }
        let asked = Asked {
            table,
            condition: String::new(),
            reads: missing,
            whole: false,
        };
        let computed = (!asked.reads.is_empty()).then(|| {
            let inputs = |computed: &&crate::policy::catalog::Column| -> Box<[bool]> {
                let numbers = computed.computed_from.as_deref().unwrap_or_default();
                let read = |column: &Column| {
                    let known = table.column(&column.name);
                    known.is_some_and(|known| numbers.contains(&known.number))
                };
                relation.columns.iter().map(read).collect()
            };
            Computed {
                query: image::computation(&asked).into(),
                inputs: asked.reads.iter().map(inputs).collect(),
            }
        });
        Some(Self {
            relation: Arc::new(Relation {
                oid: relation.oid,
                schema: Arc::clone(&relation.schema),
                name: Arc::clone(&relation.name),
                replica_identity: match old_is_full {
                    Some(true) => ReplicaIdentity::Full,
                    Some(false) => ReplicaIdentity::Index,
                    None => relation.replica_identity,
                },
                columns,
                types: Arc::clone(&relation.types),
                version: relation.version,
            }),
            places: places.into(),
            old_is_full,
            computed,
        })
    }

    /// The query that computes what is missing; `None` where nothing is.
    pub(super) fn query(&self) -> Option<&Arc<str>> {
        self.computed.as_ref().map(|computed| &computed.query)
    }

    /// The rows of a change, new and old, to be computed on; `None` for a row that is not there,
    /// where nothing can be known, and where the inputs are larger than `max_bytes`.
    pub(super) fn images(&self, change: &Change, max_bytes: usize) -> [Option<Image>; 2] {
        let (new, old) = match &change.kind {
            Kind::Insert { new } => (Some(new), None),
            Kind::Update { old, new } => (Some(new), old.as_ref()),
            Kind::Delete { old } => (None, Some(old)),
            Kind::Truncate | Kind::Rules | Kind::Lost(_) => (None, None),
        };
        let old = old.filter(|old| self.is_full(old)).map(OldRow::row);
        let image = |row: &Row, before: Option<&Row>| {
            let filled = filled(row, before);
            self.image(&change.relation, filled.as_ref().unwrap_or(row), max_bytes)
        };
        [
            new.and_then(|new| image(new, old)),
            old.and_then(|old| image(old, None)),
        ]
    }

    fn image(&self, relation: &Relation, row: &Row, max_bytes: usize) -> Option<Image> {
        let computed = self.computed.as_ref()?;
        let is_there = |inputs: &[bool]| {
            let mut needed = row.values().zip(inputs).filter(|(_, read)| **read);
            needed.all(|(value, _)| value != Value::Unchanged)
        };
        let known: Box<[bool]> = computed.inputs.iter().map(|of| is_there(of)).collect();
        let wanted = |position: usize| {
            let mut inputs = computed.inputs.iter();
            inputs.any(|inputs| inputs.get(position) == Some(&true))
        };
        let size: usize = row
            .values()
            .enumerate()
            .filter(|(position, _)| wanted(*position))
            .map(|(_, value)| match value {
                Value::Text(text) => text.len(),
                Value::Null | Value::Unchanged => 0,
            })
            .sum();
        (size <= max_bytes && known.contains(&true)).then(|| Image {
            json: image::of(relation, row, wanted),
            known,
        })
    }

    /// The change with its rows as they are.
    pub(super) fn complete(&self, change: &Change, mut supplement: Supplement) -> Change {
        if matches!(change.kind, Kind::Update { .. }) {
            // An old value beside one that is not known would be taken for one that did not change.
            for (number, old) in supplement.old.iter_mut().enumerate() {
                if supplement.new.get(number).is_none_or(Option::is_none) {
                    *old = None;
                }
            }
        }
        let (new_values, old_values) = (&supplement.new, &supplement.old);
        let kind = match &change.kind {
            Kind::Insert { new } => Kind::Insert {
                new: self.row(new, new_values),
            },
            Kind::Update { old, new } => Kind::Update {
                old: old.as_ref().map(|old| self.old_row(old, old_values)),
                new: self.row(new, new_values),
            },
            Kind::Delete { old } => Kind::Delete {
                old: self.old_row(old, old_values),
            },
            Kind::Truncate => Kind::Truncate,
            Kind::Rules => Kind::Rules,
            Kind::Lost(lost) => Kind::Lost(*lost),
        };
        Change {
            relation: Arc::clone(&self.relation),
            kind,
        }
    }

    fn is_full(&self, old: &OldRow) -> bool {
        self.old_is_full.unwrap_or(matches!(old, OldRow::Full(_)))
    }

    fn old_row(&self, old: &OldRow, computed: &Cells) -> OldRow {
        let row = self.row(old.row(), computed);
        if self.is_full(old) {
            OldRow::Full(row)
        } else {
            OldRow::Key(row)
        }
    }

    fn row(&self, row: &Row, computed: &Cells) -> Row {
        self.places
            .iter()
            .map(|place| match *place {
                Place::Stream(position) => row.get(position).unwrap_or(Value::Unchanged),
                Place::Computed(number) => match computed.get(number) {
                    Some(Some(Some(text))) => Value::Text(text),
                    Some(Some(None)) => Value::Null,
                    Some(None) | None => Value::Unchanged,
                },
            })
            .collect()
    }
}

/// A row with what it did not touch taken from a complete row before; `None` where it lacks
/// nothing.
fn filled(row: &Row, before: Option<&Row>) -> Option<Row> {
    let before = before?;
    row.values()
        .any(|value| value == Value::Unchanged)
        .then(|| {
            row.values()
                .enumerate()
                .map(|(position, value)| match value {
                    Value::Unchanged => before.get(position).unwrap_or(Value::Unchanged),
                    value => value,
                })
                .collect()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Oid;

    fn text(text: &str) -> Value<'_> {
        Value::Text(text)
    }

    /// A table `t (id, twice generated from id, body)` whose stream carries id and body.
    fn layout() -> (Layout, Arc<Relation>) {
        let column = |number: i16, name: &str, generated: Option<&str>| {
            serde_json::json!({
                "number": number, "name": name, "type": "25", "modifier": -1, "collation": "100",
                "type_sql": "text", "generated": generated,
                "computed_from": generated.map(|_| [1]),
            })
        };
        let table: Table = serde_json::from_value(serde_json::json!({
            "oid": "9", "schema": "s", "name": "t", "published": true, "published_columns": null,
            "row_security": false, "force_row_security": false, "ancestors": [],
            "written_by": [], "key": [1], "identity": null, "leaves": null, "policies": [],
            "lookup": false, "unfollowed": null,
            "rights": [], "file": null, "column_versions": [], "policy_versions": [], "version": "3",
            "columns": [
                column(1, "id", None), column(3, "twice", Some("id || id")), column(4, "body", None)
            ],
        }))
        .unwrap();
        let described = |name: &str| Column {
            name: name.into(),
            type_oid: Oid(25),
            type_modifier: -1,
            identity: true,
        };
        let relation = Relation {
            oid: Oid(9),
            schema: "s".into(),
            name: "t".into(),
            replica_identity: ReplicaIdentity::Full,
            columns: vec![described("id"), described("body")],
            types: Arc::default(),
            version: 1,
        };
        (Layout::of(&relation, &table).unwrap(), Arc::new(relation))
    }

    fn update(relation: &Arc<Relation>) -> Change {
        Change {
            relation: Arc::clone(relation),
            kind: Kind::Update {
                old: Some(OldRow::Full([text("1"), text("a")].into_iter().collect())),
                new: [text("2"), Value::Unchanged].into_iter().collect(),
            },
        }
    }

    #[test]
    fn computed_values_stand_at_their_columns_place() {
        let (layout, relation) = layout();
        let supplement = Supplement {
            new: vec![Some(Some("22".to_owned()))],
            old: vec![Some(None)],
        };
        let change = layout.complete(&update(&relation), supplement);
        let names: Vec<_> = change.relation.columns.iter().map(|c| &*c.name).collect();
        assert_eq!(names, ["id", "twice", "body"]);
        let Kind::Update {
            old: Some(old),
            new,
        } = change.kind
        else {
            panic!("an update stays one")
        };
        let new: Vec<_> = new.values().collect();
        assert_eq!(new, [text("2"), text("22"), Value::Unchanged]);
        let old: Vec<_> = old.row().values().collect();
        assert_eq!(old, [text("1"), Value::Null, text("a")]);
    }

    #[test]
    fn an_old_value_never_fills_in_for_a_new_one_that_is_not_known() {
        let (layout, relation) = layout();
        let supplement = Supplement {
            new: vec![None],
            old: vec![Some(Some("11".to_owned()))],
        };
        let change = layout.complete(&update(&relation), supplement);
        let Kind::Update {
            old: Some(old),
            new,
        } = change.kind
        else {
            panic!("an update stays one")
        };
        assert_eq!(new.get(1), Some(Value::Unchanged));
        assert_eq!(old.row().get(1), Some(Value::Unchanged));
    }

    #[test]
    fn an_image_holds_the_inputs_and_nothing_else() {
        let (layout, relation) = layout();
        let [new, old] = layout.images(&update(&relation), 100);
        assert_eq!(new.unwrap().json, "{\"id\":\"2\"}");
        assert_eq!(old.unwrap().json, "{\"id\":\"1\"}");
        let [new, _] = layout.images(&update(&relation), 0);
        assert!(new.is_none(), "larger than what is computed on");
    }
}
