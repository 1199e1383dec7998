//! Whom a server runs as: PostgreSQL refuses root.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;

use super::ThrowawayError;

/// Whom to run the server as where this is root; `None` where this is anybody else.
pub(super) fn other_user() -> io::Result<Option<(u32, u32)>> {
    // The owner of a file just made is who we are; asking the system directly takes unsafe code.
    let probe = std::env::temp_dir().join(format!(
        "rowcast-probe-{}-{:08x}",
        std::process::id(),
        rand::random::<u32>()
    ));
    let owner = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)?
        .metadata()?
        .uid();
    fs::remove_file(&probe)?;
    if owner != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            let user = fields.nth(1)?.parse().ok()?;
            Some((user, fields.next()?.parse().ok()?))
        })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .map(Some)
        .ok_or_else(|| io::Error::other(ThrowawayError::NoUser))
}
