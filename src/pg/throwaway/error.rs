//! Why there is no throw-away cluster.

use std::io;
use std::path::PathBuf;

use crate::pg::connect::ConnectError;

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// PostgreSQL is not installed.
    #[error(
        "PostgreSQL's initdb and postgres are not to be found ({looked}): install it (Debian and \
         Ubuntu: apt install postgresql; macOS: brew install postgresql@17; Fedora: dnf install \
         postgresql-server) or set PG_BIN to the directory they are in"
    )]
    Binaries {
        /// Where they were looked for.
        looked: String,
    },
    /// PostgreSQL does not run as root and there is no other user to run it as.
    #[error("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")]
    NoUser,
    /// The directory cannot be prepared.
    #[error("{path}: {source}")]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program ended in an error.
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// The server runs, but a session with it failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error("the new server refused a statement: {0}")]
    Statement(#[from] tokio_postgres::Error),
}
