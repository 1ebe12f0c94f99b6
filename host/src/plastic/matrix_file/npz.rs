//! NumPy's `.npz` archives: zip files of `.npy` members, stored or deflated.
//!
//! A deflated member cannot state more bytes than deflate can make of what is there, so that no small file asks
//! for a large memory. Refused: archives that are damaged or encrypted, and members that are missing or no matrix.

use super::{Error, Matrix, NAME, Result, npy};
use crate::atomic::{FileError, open_regular};
use std::io::{BufReader, Cursor, Write};
use std::path::Path;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Deflate makes at most so many bytes of one.
const MOST_INFLATION: u64 = 1032;

/// Reads a member, `name` or `name.npy`; without a name the only one.
///
/// # Errors
/// When the archive cannot be read, the member is not there, or is no matrix of finite floats.
pub fn read(path: &Path, member: Option<&str>) -> Result<Matrix> {
    let file = open_regular(path).map_err(FileError::at("reading", path))?;
    let broken = |e: ZipError| match e {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => FileError::at("reading", path)(e).into(),
        e => Error::bad(path, format!("is no .npz archive or a damaged one ({e}); save it with numpy.savez")),
    };
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let mut names = Vec::with_capacity(archive.len());
    for name in archive.file_names() {
        names.push(name.map_err(broken)?.into_owned());
    }
    names.sort();
    let short = |n: &str| n.strip_suffix(".npy").unwrap_or(n).to_owned();
    let held = || match names.len() {
        0 => "it is empty".to_owned(),
        n if n > 8 => format!(
            "it holds {}, … ({n} in all)",
            names.iter().take(8).map(|n| short(n)).collect::<Vec<_>>().join(", ")
        ),
        _ => format!("it holds {}", names.iter().map(|n| short(n)).collect::<Vec<_>>().join(", ")),
    };
    let chosen = match (member, names.as_slice()) {
        (None, [only]) => only.clone(),
        (None, _) => {
            return Err(Error::bad(path, format!("name a member behind a colon, FILE.npz:MEMBER; {}", held())));
        }
        (Some(wanted), _) => names
            .iter()
            .find(|n| *n == wanted || n.strip_suffix(".npy") == Some(wanted))
            .cloned()
            .ok_or_else(|| Error::bad(path, format!("has no member `{wanted}`; {}", held())))?,
    };
    let mut found = archive.by_name(&chosen).map_err(broken)?;
    let (size, packed) = (found.size(), found.compressed_size());
    if size > packed.saturating_mul(MOST_INFLATION).saturating_add(1024) {
        return Err(Error::bad(path, format!("member `{chosen}` states {size} bytes made of {packed}: it is damaged")));
    }
    npy::decode(&mut found, size, path, &format!("member `{chosen}` "))
}

/// An archive with one stored member, [`NAME`]. The same numbers give the same bytes.
///
/// # Errors
/// When the archive cannot be made.
pub fn to_bytes(path: &Path, numbers: &[f32], shape: [usize; 2]) -> Result<Vec<u8>> {
    let member = npy::to_bytes(numbers, shape);
    // No time of day: zip's first one.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
        .large_file(member.len() as u64 > u64::from(u32::MAX));
    let made = (|| {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        writer.start_file(format!("{NAME}.npy"), options)?;
        writer.write_all(&member)?;
        writer.finish()
    })();
    Ok(made.map_err(|e: ZipError| Error::bad(path, format!("cannot be made: {e}")))?.into_inner())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn archive(dir: &Path, members: &[(&str, Vec<u8>)], method: CompressionMethod) -> std::path::PathBuf {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in members {
            writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            writer.write_all(bytes).unwrap();
        }
        let path = dir.join("w.npz");
        std::fs::write(&path, writer.finish().unwrap().into_inner()).unwrap();
        path
    }

    #[test]
    fn members_are_chosen_and_inflated() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (npy::to_bytes(&[1.0; 6], [2, 3]), npy::to_bytes(&[2.0; 4000], [40, 100]));
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let path = archive(dir.path(), &[("a.npy", a.clone()), ("b.npy", b.clone())], method);
            assert_eq!(read(&path, Some("a")).unwrap().cols(), 3);
            assert_eq!(read(&path, Some("b.npy")).unwrap().rows(), 40);
            let text = read(&path, None).unwrap_err().to_string();
            assert!(text.contains("it holds a, b"), "{text}");
            let text = read(&path, Some("c")).unwrap_err().to_string();
            assert!(text.contains("no member `c`; it holds a, b"), "{text}");
        }
        let path = archive(dir.path(), &[("only.npy", a)], CompressionMethod::Deflated);
        assert_eq!(read(&path, None).unwrap().rows(), 2);
    }

    #[test]
    fn damaged_archives_are_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = archive(dir.path(), &[("a.npy", npy::to_bytes(&[1.0; 600], [2, 300]))], CompressionMethod::Stored);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(read(&path, None).unwrap_err().to_string().contains("no .npz archive or a damaged one"));
        // A flipped bit in the numbers is found by the archive's own check.
        let mut flipped = whole.clone();
        flipped[1000] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert!(read(&path, None).unwrap_err().to_string().contains("checksum"));
        let path = archive(dir.path(), &[("a.npy", b"hello, hello".to_vec())], CompressionMethod::Stored);
        assert!(read(&path, None).unwrap_err().to_string().contains("member `a.npy` does not begin"));
        assert!(read(dir.path(), None).unwrap_err().to_string().contains("not a regular file"));
        // Half a gigabyte stated in a file of a few bytes.
        let mut liar = whole;
        let central = liar.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
        liar[central + 24..central + 28].copy_from_slice(&(1u32 << 29).to_le_bytes());
        std::fs::write(&path, &liar).unwrap();
        assert!(read(&path, None).is_err());
    }
}
