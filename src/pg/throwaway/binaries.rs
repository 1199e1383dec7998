//! Where PostgreSQL's programs are on this machine.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ThrowawayError;

/// A directory with PostgreSQL's server programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Looks for the programs: `PG_BIN`, then what `pg_config` says, then where packages put
    /// them (the newest first), then `PATH`.
    ///
    /// # Errors
    /// [`ThrowawayError::Binaries`], which says how to get them.
    pub fn find() -> Result<Self, ThrowawayError> {
        if let Some(directory) = std::env::var_os("PG_BIN").filter(|value| !value.is_empty()) {
            let directory = PathBuf::from(directory);
            return Self::at(&directory).ok_or_else(|| ThrowawayError::Binaries {
                looked: format!("PG_BIN is {}", directory.display()),
            });
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        pg_config()
            .into_iter()
            .chain(packaged())
            .chain(std::env::split_paths(&path))
            .find_map(|directory| Self::at(&directory))
            .ok_or_else(|| ThrowawayError::Binaries {
                looked: "neither beside pg_config, nor where packages put them, nor in PATH"
                    .to_owned(),
            })
    }

    fn at(directory: &Path) -> Option<Self> {
        let complete = ["initdb", "postgres", "pg_ctl"]
            .iter()
            .all(|program| directory.join(program).is_file());
        complete.then(|| Self {
            directory: directory.to_owned(),
        })
    }

    /// PostgreSQL's own receiver of logical replication, where it is installed.
    #[must_use]
    pub fn recvlogical(&self) -> PathBuf {
        self.directory.join("pg_recvlogical")
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.directory.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.directory.join("postgres")
    }
}

fn pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// The directories that packages use, the newest version first.
fn packaged() -> Vec<PathBuf> {
    let parents = [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
        ("/Applications/Postgres.app/Contents/Versions", ""),
    ];
    let mut found = Vec::new();
    for (parent, prefix) in parents {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let version = name
                .to_str()
                .and_then(|name| name.strip_prefix(prefix))
                .and_then(|version| version.parse::<u32>().ok());
            if let Some(version) = version {
                found.push((Reverse(version), entry.path().join("bin")));
            }
        }
    }
    found.sort();
    found
        .into_iter()
        .map(|(_, directory)| directory)
        .chain(["/usr/local/pgsql/bin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_the_server_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("initdb"), "").unwrap();
        assert_eq!(Binaries::at(directory.path()), None);
    }

    #[test]
    fn missing_programs_come_with_the_way_to_get_them() {
        let text = ThrowawayError::Binaries {
            looked: String::new(),
        }
        .to_string();
        assert!(text.contains("apt install postgresql") && text.contains("brew install"));
    }
}
