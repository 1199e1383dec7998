//! Small files of one line of JSON, replaced as a whole, with a checksum on a second line: after a
//! crash there is the old one or the new one, and one that was damaged is known.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What such a file held.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// What was written.
    Whole(String),
    /// Something else than what was written.
    Damaged,
    /// A file that nobody sealed.
    Unsealed(String),
}

/// Puts `line` in the place of what the file held, and has that outlive a crash. Blocks on the disk.
///
/// # Errors
/// The system's.
pub fn replace(path: &Path, line: &str) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&fresh)?;
    let seal = crc32fast::hash(line.as_bytes());
    file.write_all(format!("{line}\n{seal:08x}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// What the file holds; `None` where there is none. Blocks on the disk.
///
/// # Errors
/// The system's.
pub fn read(path: &Path) -> io::Result<Option<Content>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok(Some(Content::Damaged));
    };
    let Some((line, seal)) = text.split_once('\n') else {
        return Ok(Some(Content::Unsealed(text)));
    };
    let right = format!("{:08x}\n", crc32fast::hash(line.as_bytes()));
    Ok(Some(if seal == right {
        Content::Whole(line.to_owned())
    } else {
        Content::Damaged
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_that_was_flipped_anywhere_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(read(&path).unwrap(), None);
        replace(&path, "{\"one\":1}").unwrap();
        replace(&path, "{\"two\":2}").unwrap();
        let whole = Content::Whole("{\"two\":2}".to_owned());
        assert_eq!(read(&path).unwrap(), Some(whole));
        let right = fs::read(&path).unwrap();
        for bit in 0..right.len() * 8 {
            let mut wrong = right.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &wrong).unwrap();
            let content = read(&path).unwrap().unwrap();
            assert!(!matches!(content, Content::Whole(_)), "bit {bit}");
        }
        for length in 0..right.len() {
            fs::write(&path, &right[..length]).unwrap();
            let content = read(&path).unwrap().unwrap();
            assert!(!matches!(content, Content::Whole(_)), "{length} bytes");
        }
    }
}
