//! Secrets that a command is given: out of a file or the environment, never as an argument, which
//! every user of the machine could see.

use std::path::{Path, PathBuf};

use crate::config::Secret;

/// A variable of the environment that is there and not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// A secret out of this file, or of the variable of that name, or of the file that the variable
/// with `_FILE` behind that name names; `None` where there is none of them. Messages call it
/// `what`, such as "password".
///
/// # Errors
/// A sentence, where both variables are set or the file holds nothing.
pub(super) fn given(what: &str, file: Option<&Path>, name: &str) -> Result<Option<Secret>, String> {
    let of_file = format!("{name}_FILE");
    let path = match (file, variable(name), variable(&of_file)) {
        (Some(path), _, _) => path.to_owned(),
        (None, Some(_), Some(_)) => {
            return Err(format!(
                "Both {name} and {of_file} are given; one of them must go."
            ));
        }
        (None, Some(secret), None) => return Ok(Some(Secret::new(secret))),
        (None, None, Some(path)) => PathBuf::from(path),
        (None, None, None) => return Ok(None),
    };
    read(what, &path).map(Some)
}

/// A secret out of a file.
///
/// # Errors
/// A sentence, where it holds none.
pub(super) fn read(what: &str, path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("The {what} in {} cannot be read: {error}.", path.display()))?;
    // Editors and `echo` end a file with a newline that is not part of the secret.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(format!("The {what} in {} is empty.", path.display()));
    }
    Ok(Secret::new(text))
}
