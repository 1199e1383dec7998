//! The image's file system, put together by the script that the Dockerfile runs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::dockerfile::Dockerfile;

/// What everything but the binary may take, in bytes: with a release binary of 15 MB the image
/// stays far below 40 MB.
const MOST_BESIDE_THE_BINARY: u64 = 8_000_000;

/// A folder that holds what the image holds, with the binary of the tests.
pub(crate) struct Image {
    folder: TempDir,
}

impl Image {
    /// `hosts` are names of the stack's network.
    pub(crate) fn build(hosts: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = Self { folder };
        let made = Command::new(crate::path("scripts/image-root.sh"))
            .arg(env!("CARGO_BIN_EXE_rowcast"))
            .arg(image.root())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        // A container's root can be read by its user.
        fs::set_permissions(image.root(), fs::Permissions::from_mode(0o755)).unwrap();
        if Self::is_entered() {
            let dockerfile = Dockerfile::of_repository();
            let (user, group) = dockerfile.user();
            for owned in dockerfile.owned() {
                chown(image.inside(&owned), Some(user), Some(group)).unwrap();
            }
        }
        // Docker writes this file.
        let lines: String = hosts
            .iter()
            .map(|host| format!("127.0.0.1 {host}\n"))
            .collect();
        fs::write(image.root().join("etc/hosts"), lines).unwrap();
        image
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Where a path of the image is on this machine.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// A command of the image, as its user in its file system where this process may do that (it
    /// needs root), else the binary as it is.
    pub(crate) fn command(&self, program: &str) -> Command {
        if !Self::is_entered() {
            assert_eq!(program, Dockerfile::of_repository().entrypoint()[0]);
            return Command::new(env!("CARGO_BIN_EXE_rowcast"));
        }
        let (user, group) = Dockerfile::of_repository().user();
        let mut command = Command::new("chroot");
        command
            .arg(format!("--userspec={user}:{group}"))
            .arg(self.root())
            .arg(program);
        command
    }

    /// Whether commands run inside the image's file system.
    pub(crate) fn is_entered() -> bool {
        static ENTERED: OnceLock<bool> = OnceLock::new();
        *ENTERED.get_or_init(|| {
            let id = Command::new("id").arg("-u").output().unwrap();
            let chroot = Command::new("chroot").arg("--version").output();
            id.stdout == b"0\n" && chroot.is_ok_and(|output| output.status.success())
        })
    }
}

/// Every file under a folder, with its size.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.metadata().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push((entry.path(), kind.len()));
        }
    }
    found
}

#[test]
fn the_image_holds_the_binary_its_libraries_and_certificates_and_nothing_else() {
    let image = Image::build(&[]);
    let mut beside = 0;
    for (path, bytes) in files(image.root()) {
        let name = path.strip_prefix(image.root()).unwrap().to_str().unwrap();
        let known = match name {
            "usr/local/bin/rowcast" => continue,
            "etc/hosts" | "etc/passwd" | "etc/group" | "etc/nsswitch.conf" => true,
            "etc/ssl/certs/ca-certificates.crt" => bytes > 100_000,
            _ => name.starts_with("lib") && name.contains(".so"),
        };
        assert!(known, "{name} with {bytes} bytes");
        beside += bytes;
    }
    assert!(
        beside < MOST_BESIDE_THE_BINARY,
        "{beside} bytes beside the binary"
    );
}

#[test]
fn the_binary_runs_in_the_image_and_finds_the_certificates() {
    let image = Image::build(&[]);
    let entrypoint = Dockerfile::of_repository().entrypoint();
    let version = image.command(&entrypoint[0]).arg("--version").output();
    let version = version.unwrap();
    assert!(version.status.success(), "{version:?}");
    // Nobody listens there; what matters is how far it comes.
    let url = "postgres://nobody@127.0.0.1:1/app?sslmode=verify-full";
    let said = || {
        let output = image
            .command(&entrypoint[0])
            .args(["demo", "--listen", "127.0.0.1:0", "--database-url", url])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let empty = "certificate store is empty";
    assert!(!said().contains(empty), "{}", said());
    if Image::is_entered() {
        fs::remove_dir_all(image.root().join("etc/ssl")).unwrap();
        assert!(said().contains(empty), "{}", said());
    }
}

#[test]
fn the_images_user_owns_the_logs_folder_and_nothing_else() {
    let image = Image::build(&[]);
    let dockerfile = Dockerfile::of_repository();
    assert_eq!(
        dockerfile.environment(),
        [("ROWCAST_DATA".to_owned(), "/var/lib/rowcast".to_owned())]
    );
    assert_eq!(dockerfile.owned(), ["/var/lib/rowcast"]);
    assert!(image.inside("/var/lib/rowcast").is_dir());
    if Image::is_entered() {
        let (user, _) = dockerfile.user();
        let owner = |path: &str| fs::metadata(image.inside(path)).unwrap().uid();
        assert_eq!(owner("/var/lib/rowcast"), user);
        assert_ne!(owner("/var/lib"), user);
    }
}
