//! Archives: tar, written as a stream. A header says how long its file is, so nothing has to be held, and the size of an
//! archive is known before it is made. Not compressed: what tenants store is, mostly, and a bound is then a bound.

use std::collections::HashSet;
use std::io;

use crate::error::StepError;

/// What one file of an archive takes at most beside its content: headers, a long name, and filling up to a block.
pub(super) const OVERHEAD: i64 = 4096;
/// What an archive ends with (POSIX: two empty blocks).
pub(super) const END: [u8; 1024] = [0; 1024];
/// The longest name of a directory or file that is taken from a key: file systems end at 255 bytes.
const LONGEST_SEGMENT: usize = 200;
const BLOCK: u64 = 512;

/// The names in one archive.
#[derive(Default)]
pub(super) struct Names {
    taken: HashSet<String>,
    count: usize,
}

impl Names {
    /// The name of an object's file: its key, where that can be unpacked everywhere; else a name of ours, which the index explains.
    /// Two things cannot be unpacked: a name that leads out of the directory, and one that another file stands in the way of.
    pub(super) fn of(&mut self, key: &str) -> String {
        self.count += 1;
        let blocked = key.match_indices('/').any(|(at, _)| self.taken.contains(&key[..at]));
        let name = if plain(key) && !blocked { key.to_owned() } else { format!("renamed/{:06}", self.count) };
        self.taken.insert(name.clone());
        name
    }
}

/// Whether a key is a path that every common file system takes.
fn plain(key: &str) -> bool {
    let segment = |segment: &str| {
        !segment.is_empty()
            && segment != "."
            && segment != ".."
            && segment.len() <= LONGEST_SEGMENT
            && !segment.chars().any(|c| c.is_control() || c == '\\' || c == ':')
    };
    key.split('/').all(segment) && !key.starts_with("renamed/") && key != "index.jsonl" && key != "renamed"
}

/// What stands before a file's content. `modified` is in seconds since 1970.
pub(super) fn header(name: &str, bytes: u64, modified: u64) -> Result<Vec<u8>, StepError> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_mtime(modified);
    // A name past 100 bytes becomes an entry of its own before this one.
    let mut builder = tar::Builder::new(Vec::new());
    let written = builder.append_data(&mut header, name, io::empty());
    written.map_err(|error| StepError::Unexpected(format!("an archive's header: {error}")))?;
    Ok(std::mem::take(builder.get_mut()))
}

/// What stands after a file's content, so that the next begins at a block.
pub(super) fn filling(bytes: u64) -> &'static [u8] {
    let rest = usize::try_from(bytes % BLOCK).unwrap_or_default();
    if rest == 0 { &[] } else { &END[..END.len() / 2 - rest] }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_written_piece_by_piece_is_an_archive() {
        let long = format!("{}/{}", "d".repeat(180), "f".repeat(190));
        let files = [("a.txt", "hello".to_owned()), (long.as_str(), "x".repeat(512)), ("empty", String::new())];
        let mut bytes = Vec::new();
        for (name, content) in &files {
            bytes.extend(header(name, content.len() as u64, 1_700_000_000).expect("a header"));
            bytes.extend(content.as_bytes());
            bytes.extend(filling(content.len() as u64));
        }
        bytes.extend(END);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut read = Vec::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let mut content = String::new();
            entry.read_to_string(&mut content).expect("content");
            read.push((entry.path().expect("a path").display().to_string(), content));
        }
        let files: Vec<_> = files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
        assert_eq!(read, files);
    }

    #[test]
    fn keys_that_cannot_be_unpacked_get_a_name_of_ours() {
        let mut names = Names::default();
        let keys = ["a", "a-b", "a/b", "../etc/passwd", "/etc/passwd", "b//c", "photos/", "c/d.txt", "tab\there"];
        let named: Vec<_> = keys.iter().map(|key| names.of(key)).collect();
        let (kept, renamed): (Vec<_>, Vec<_>) = named.iter().partition(|name| !name.starts_with("renamed/"));
        assert_eq!(kept, ["a", "a-b", "c/d.txt"]);
        assert_eq!(renamed.iter().collect::<HashSet<_>>().len(), 6);
        assert_eq!(names.of(&"x".repeat(300)), "renamed/000010");
        assert_eq!(names.of("index.jsonl"), "renamed/000011");
    }
}
