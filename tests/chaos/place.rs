//! Where the relay keeps its log: a small file system of its own, which outlives the relay and can
//! be filled.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tokio::process::Command;

/// Says that this machine has no namespaces for tests.
const NAMESPACES: &str = "ROWCAST_TEST_NAMESPACES";

const BYTES: &str = "96m";

pub(crate) struct Place {
    folder: tempfile::TempDir,
    /// Holds the namespace in which the file system is mounted, and its flags for entering.
    holder: Option<(Child, Vec<String>)>,
}

impl Place {
    pub(crate) fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        fs::create_dir(&disk).unwrap();
        if std::env::var(NAMESPACES).is_ok_and(|value| value == "no") {
            println!("NOT RUN, as {NAMESPACES}=no: full disks");
            return Self {
                folder,
                holder: None,
            };
        }
        let ways: [(&str, &[&str]); 2] = [
            ("-m", &["-m"]),
            ("-Urm", &["-U", "-m", "--preserve-credentials"]),
        ];
        for (flags, enter) in ways {
            // It ends with its standard input, and so with this process however that ends.
            let mut holder = std::process::Command::new("unshare")
                .args([flags, "sh", "-c"])
                .arg(format!(
                    "mount -t tmpfs -o size={BYTES},mode=0700 none \"$0\" && echo mounted && exec cat"
                ))
                .arg(&disk)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut said = String::new();
            let _read = BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut said);
            if said.trim() == "mounted" {
                let mut enter: Vec<String> = enter.iter().map(|&flag| flag.to_owned()).collect();
                enter.extend(["-t".to_owned(), holder.id().to_string()]);
                return Self {
                    folder,
                    holder: Some((holder, enter)),
                };
            }
            let _ended = (holder.kill(), holder.wait());
        }
        panic!("neither root nor anybody may mount here; {NAMESPACES}=no leaves full disks out")
    }

    /// Whether it can be filled.
    pub(crate) const fn is_bounded(&self) -> bool {
        self.holder.is_some()
    }

    /// A command that runs the relay where it sees the file system.
    pub(crate) fn command(&self) -> Command {
        let relay = env!("CARGO_BIN_EXE_rowcast");
        let Some((_, enter)) = &self.holder else {
            return Command::new(relay);
        };
        let mut command = Command::new("nsenter");
        command.args(enter).arg(relay);
        command
    }

    /// The log's directory, as the relay sees it.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("disk/data")
    }

    /// The same, as this process sees it.
    pub(crate) fn seen(&self) -> PathBuf {
        self.disk().join("data")
    }

    fn disk(&self) -> PathBuf {
        let here = self.folder.path().join("disk");
        match &self.holder {
            Some((holder, _)) => PathBuf::from(format!("/proc/{}/root", holder.id()))
                .join(here.strip_prefix("/").unwrap()),
            None => here,
        }
    }

    /// Leaves no room.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(self.disk().join("ballast")).unwrap();
        for size in [1 << 20, 4 << 10] {
            let block = vec![0; size];
            while ballast.write_all(&block).is_ok() {}
        }
    }

    pub(crate) fn make_room(&self) {
        fs::remove_file(self.disk().join("ballast")).unwrap();
    }

    /// The log's files, with their lengths.
    pub(crate) fn files(&self) -> Vec<(PathBuf, u64)> {
        let mut files: Vec<_> = fs::read_dir(self.seen())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.path(), entry.metadata().unwrap().len()))
            .collect();
        files.sort();
        files
    }

    /// Copies the log's directory to another place.
    pub(crate) fn save(&self) -> tempfile::TempDir {
        let kept = tempfile::tempdir().unwrap();
        for (path, _) in self.files() {
            let copied = fs::copy(&path, kept.path().join(path.file_name().unwrap()));
            // Segments end while this looks at them.
            if let Err(error) = copied {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            }
        }
        kept
    }

    /// Puts a copy in the place of the log.
    pub(crate) fn restore(&self, kept: &Path) {
        for (path, _) in self.files() {
            fs::remove_file(path).unwrap();
        }
        for entry in fs::read_dir(kept).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.seen().join(entry.file_name())).unwrap();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((holder, _)) = &mut self.holder {
            drop(holder.stdin.take());
            let _ended = holder.wait();
        }
    }
}
