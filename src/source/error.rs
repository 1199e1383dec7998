//! Why there is no stream, in one sentence each, with what mends it.

use crate::pg::connect::ConnectError;
use crate::pg::refusal::{Refusal, Retry, with_causes};
use crate::pg::{quote_identifier, quote_literal};

/// Why changes do not flow. Where somebody has to do something, the text says what.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// PostgreSQL reported an error that has no sentence of its own here.
    #[error("{0}")]
    Refused(Refusal),
    /// The server is older than PostgreSQL 14.
    #[error("PostgreSQL {version} is too old: upgrade it to 14 or later")]
    TooOld {
        /// Its version, as `server_version` says it.
        version: String,
    },
    /// The write-ahead log does not hold what logical decoding needs.
    #[error(
        "wal_level is \"{level}\": run \"alter system set wal_level = logical\" and restart \
         PostgreSQL"
    )]
    WalLevel {
        /// What it is.
        level: String,
    },
    /// The role of `DATABASE_URL` may not read the stream.
    #[error(
        "role \"{role}\" may not replicate: run \"alter role {} replication\" (on Amazon RDS \
         \"grant rds_replication to {}\")",
        quote_identifier(role),
        quote_identifier(role)
    )]
    NoReplication {
        /// The role.
        role: String,
    },
    /// The publication does not exist.
    #[error(
        "publication \"{publication}\" does not exist: run \"create publication {} for table …\" \
         with the tables to follow",
        quote_identifier(publication)
    )]
    NoPublication {
        /// Its name.
        publication: String,
    },
    /// None is configured, and none has a name that is looked for.
    #[error(
        "there is neither a publication \"rowcast\" nor \"supabase_realtime\": run \"create \
         publication rowcast for table …\" with the tables to follow"
    )]
    NoPublications,
    /// At the slot's position the publication does not exist, though it may by now.
    #[error(
        "publication \"{publication}\" did not exist when the next change was made: if it is gone, \
         run \"create publication {} for table …\"",
        quote_identifier(publication)
    )]
    PublicationYounger {
        /// Its name.
        publication: String,
    },
    /// What comes next cannot be decoded, by the server or here.
    #[error("what comes next in replication slot \"{slot}\" cannot be decoded: {reason}")]
    Undecodable {
        /// The slot.
        slot: String,
        /// What the server says.
        reason: String,
    },
    /// The slot is of another kind.
    #[error(
        "replication slot \"{slot}\" is not one of pgoutput's: configure another name, or run \
         \"select pg_drop_replication_slot({})\" if nothing else needs it",
        quote_literal(slot)
    )]
    OtherPlugin {
        /// Its name.
        slot: String,
    },
    /// The slot belongs to another database of the server.
    #[error(
        "replication slot \"{slot}\" belongs to database \"{database}\": configure another name, \
         or run \"select pg_drop_replication_slot({})\" there if nothing else needs it",
        quote_literal(slot)
    )]
    OtherDatabase {
        /// Its name.
        slot: String,
        /// Whose it is.
        database: String,
    },
    /// The server does not stream the slot, which looked well a moment ago.
    #[error("replication slot \"{slot}\" is not to be used: {reason}")]
    SlotLost {
        /// Its name.
        slot: String,
        /// What the server says of it.
        reason: String,
    },
    /// All slots that the server may have are taken.
    #[error(
        "there is no free replication slot: drop one with pg_drop_replication_slot, or run \"alter \
         system set max_replication_slots = …\" with a larger number and restart PostgreSQL"
    )]
    SlotsExhausted,
    /// The connection ended.
    #[error("the replication connection ended: {problem}")]
    Disconnected {
        /// What the operating system or the protocol said.
        problem: String,
    },
}

impl SourceError {
    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect(error) => error.retry(),
            Self::Refused(refusal) => refusal.retry(),
            Self::Disconnected { .. }
            | Self::PublicationYounger { .. }
            | Self::Undecodable { .. }
            | Self::SlotLost { .. } => Retry::Soon,
            Self::TooOld { .. }
            | Self::WalLevel { .. }
            | Self::NoReplication { .. }
            | Self::NoPublication { .. }
            | Self::NoPublications
            | Self::OtherPlugin { .. }
            | Self::OtherDatabase { .. }
            | Self::SlotsExhausted => Retry::Never,
        }
    }

    /// Whether another session holds the slot.
    #[must_use]
    pub fn slot_is_taken(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.sqlstate == "55006")
    }

    /// Whether the stream cannot get past where it is: how often to try, should it be something
    /// that passes. `None` for everything else.
    #[must_use]
    pub const fn stuck(&self) -> Option<u32> {
        match self {
            // As it was at that time it stays.
            Self::PublicationYounger { .. } => Some(2),
            Self::Undecodable { .. } => Some(8),
            _ => None,
        }
    }

    pub(super) fn disconnected(problem: impl std::fmt::Display) -> Self {
        Self::Disconnected {
            problem: problem.to_string(),
        }
    }
}

impl From<tokio_postgres::Error> for SourceError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::Refused(refusal.into()),
            None => Self::disconnected(with_causes(&error)),
        }
    }
}
