//! Signatures of plugins: ed25519 in the format of minisign, in `FILE.minisig` beside the file.
//!
//! Making and checking are separate: what comes with a plugin is only ever read by the checking half,
//! which takes any bytes for an answer and never for more than [`State::Bad`]. A signature says who
//! vouches for the content, not which plugin it is: `plastic.lock` says that.

use super::component::hex;
use crate::atomic;
use ct_codecs::{Base64, Decoder};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Signature and key files are small.
const MOST_BYTES: u64 = 1 << 20;
/// How the second line of a secret key begins: `Ed`, the way it is encrypted, `B2`.
const PLAIN_SECRET: &str = "RWQAAEIy";
const ENCRYPTED_SECRET: &str = "RWRTY0Iy";
/// Bytes of a secret key, and of the checksum at its end.
const SECRET_BYTES: usize = 158;
const CHECKSUM_BYTES: usize = 32;

/// A key or a signature cannot be used or made.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SignatureError {
    message: String,
}

impl SignatureError {
    /// An error for people.
    pub fn new(message: impl Into<String>) -> SignatureError {
        SignatureError { message: message.into() }
    }
}

fn error(message: impl Into<String>) -> SignatureError {
    SignatureError::new(message)
}

/// A public key somebody trusts.
#[derive(Clone, Debug)]
pub struct Key {
    /// What its owner is called here; empty where it was given bare.
    pub label: String,
    id: String,
    base64: String,
    key: minisign_verify::PublicKey,
}

impl Key {
    /// Reads a key: the two lines of a `.pub` file, or the second of them alone.
    ///
    /// # Errors
    /// What it is not.
    pub fn parse(text: &str) -> Result<Key, SignatureError> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let base64 = match lines[..] {
            [key] => key,
            [comment, key] if comment.starts_with("untrusted comment:") => key,
            _ => return Err(error("is no minisign public key, which is a comment line and a line of 56 characters")),
        };
        let invalid = |e: &dyn std::fmt::Display| {
            error(match base64.starts_with(PLAIN_SECRET) || base64.starts_with(ENCRYPTED_SECRET) {
                true => "is a secret key; keep it to yourself and name the public one (.pub)".into(),
                false => format!("is no minisign public key: {e}"),
            })
        };
        let key = minisign_verify::PublicKey::from_base64(base64).map_err(|e| invalid(&e))?;
        let id = minisign::PublicKey::from_base64(base64).map_err(|e| invalid(&e))?;
        Ok(Key { label: String::new(), id: id_text(id.keynum()), base64: base64.to_owned(), key })
    }

    /// Reads a `.pub` file; the label is its name.
    ///
    /// # Errors
    /// Where it cannot be read or is no key; the message names the file.
    pub fn read(path: &Path) -> Result<Key, SignatureError> {
        let text = text_file(path).map_err(|m| error(format!("{}: {m}", path.display())))?;
        let mut key = Key::parse(&text).map_err(|e| error(format!("{}: {e}", path.display())))?;
        key.label = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(key)
    }

    /// Its number, as minisign prints it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key as one line of text.
    pub fn base64(&self) -> &str {
        &self.base64
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.label.as_str() {
            "" => f.write_str(&self.id),
            label => write!(f, "{} ({label})", self.id),
        }
    }
}

/// How a file stands with the keys one knows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// There is no signature.
    Unsigned,
    /// A known key signed exactly this content.
    Signed {
        /// The key, for people.
        by: String,
        /// The comment that the signature covers.
        comment: String,
    },
    /// There is a signature of a key one does not know; it may be anything.
    Unknown {
        /// The number it names.
        key: String,
    },
    /// The signature does not fit.
    Bad {
        /// Why.
        why: String,
    },
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            State::Unsigned => f.write_str("unsigned"),
            State::Signed { by, .. } => write!(f, "signed by {by}"),
            State::Unknown { key } => write!(f, "signed by the unknown key {key}"),
            State::Bad { why } => write!(f, "BAD: {why}"),
        }
    }
}

/// Where the signature of a file lies.
pub fn signature_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Checks the signature beside a file whose content is `bytes`.
pub fn check(path: &Path, bytes: &[u8], keys: &[Key]) -> State {
    match text_file(&signature_path(path)) {
        Ok(text) => check_text(&text, bytes, keys),
        Err(ReadError::Missing) => State::Unsigned,
        Err(e) => State::Bad { why: format!("the signature cannot be read: {e}") },
    }
}

/// The same for a file that was read before and had this digest then: checking and loading are of one content.
pub fn check_file(path: &Path, sha256: &str, most: u64, keys: &[Key]) -> State {
    if matches!(signature_path(path).symlink_metadata(), Err(e) if e.kind() == std::io::ErrorKind::NotFound) {
        return State::Unsigned;
    }
    match atomic::read_bounded(path, most) {
        Ok(bytes) if hex(&Sha256::digest(&bytes)) == sha256 => check(path, &bytes, keys),
        Ok(_) => State::Bad { why: "the file changed while it was read".into() },
        Err(e) => State::Bad { why: format!("the file cannot be read again: {e}") },
    }
}

/// The same for the text of a signature.
pub fn check_text(text: &str, bytes: &[u8], keys: &[Key]) -> State {
    let bad = |why: String| State::Bad { why };
    let signature = match minisign_verify::Signature::decode(text) {
        Ok(signature) => signature,
        Err(e) => return bad(format!("the signature file is damaged ({e})")),
    };
    let id = match minisign::SignatureBox::from_string(text) {
        Ok(b) if !b.is_prehashed() => {
            return bad("the signature is of minisign's old kind, without a hash; sign the file again".into());
        }
        Ok(b) => id_text(b.keynum()),
        Err(e) => return bad(format!("the signature file is damaged ({e})")),
    };
    // Numbers of keys are chosen by those who make them: several may share one.
    let known: Vec<&Key> = keys.iter().filter(|k| k.id == id).collect();
    if known.is_empty() {
        return State::Unknown { key: id };
    }
    match known.iter().find(|k| k.key.verify(bytes, &signature, false).is_ok()) {
        Some(key) => State::Signed { by: key.to_string(), comment: line(signature.trusted_comment()) },
        None => bad(format!("the signature names the key {id}, which did not sign this content and comment")),
    }
}

/// A secret key, ready to sign.
pub struct Secret {
    key: minisign::SecretKey,
}

impl Secret {
    /// Reads a secret key file; the password is asked for where there is one.
    ///
    /// # Errors
    /// Where the file cannot be read, is no secret key, or the password is wrong; the message names the file.
    pub fn read(
        path: &Path,
        password: impl FnOnce() -> Result<String, SignatureError>,
    ) -> Result<Secret, SignatureError> {
        let named = |m: &dyn std::fmt::Display| error(format!("{}: {m}", path.display()));
        let text = text_file(path).map_err(|e| named(&e))?;
        let second = text.lines().nth(1).unwrap_or_default().trim();
        let (plain, encrypted) = (second.starts_with(PLAIN_SECRET), second.starts_with(ENCRYPTED_SECRET));
        let boxed = minisign::SecretKeyBox::from_string(&text).map_err(|e| named(&e))?;
        let key = match (plain, encrypted) {
            (true, _) => unencrypted(boxed, second),
            (_, true) => boxed.into_secret_key(Some(password()?)),
            _ => {
                return Err(named(
                    &"is no minisign secret key; make one with `plastic-host plugin keygen`, or name the other file of the pair",
                ));
            }
        };
        Ok(Secret { key: key.map_err(|e| named(&e))? })
    }

    /// Signs content and a comment of one line; answers the text of the signature file.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn sign(&self, bytes: &[u8], comment: &str) -> Result<String, SignatureError> {
        let public = minisign::PublicKey::from_secret_key(&self.key).map_err(|e| error(e.to_string()))?;
        let untrusted = "signature made by plastic-host plugin sign";
        minisign::sign(Some(&public), &self.key, bytes, Some(&line(comment)), Some(untrusted))
            .map(|b| b.into_string())
            .map_err(|e| error(e.to_string()))
    }

    /// The number of its pair.
    pub fn id(&self) -> String {
        id_text(self.key.keynum())
    }
}

/// A key without a password. minisign itself leaves the checksum of such a key zero; signing checks
/// that its two halves fit.
fn unencrypted(boxed: minisign::SecretKeyBox, base64: &str) -> minisign::Result<minisign::SecretKey> {
    match Base64::decode_to_vec(base64, None) {
        Ok(bytes) if bytes.len() == SECRET_BYTES && bytes.iter().rev().take(CHECKSUM_BYTES).all(|b| *b == 0) => {
            minisign::SecretKey::from_bytes(&bytes)
        }
        _ => boxed.into_unencrypted_secret_key(),
    }
}

/// Makes a pair of keys, the secret one encrypted where a password is given: texts of the public and the secret file.
///
/// # Errors
/// Where the system has no randomness, or no memory to derive a key from the password.
pub fn generate(password: Option<String>) -> Result<(String, String), SignatureError> {
    let failed = |e: minisign::PError| error(format!("a key cannot be made: {e}"));
    let comment = match password {
        None => "minisign secret key",
        Some(_) => "minisign encrypted secret key",
    };
    let pair = match password {
        None => minisign::KeyPair::generate_unencrypted_keypair(),
        Some(_) => minisign::KeyPair::generate_encrypted_keypair(password),
    };
    let pair = pair.map_err(failed)?;
    let public = pair.pk.to_box().map_err(failed)?.into_string();
    Ok((public, pair.sk.to_box(Some(comment)).map_err(failed)?.into_string()))
}

/// A key's number as minisign prints it: little-endian, upper-case hexadecimal.
fn id_text(number: &[u8]) -> String {
    number.iter().rev().map(|b| format!("{b:02X}")).collect()
}

/// One line without control characters other than tabs, of bounded length.
fn line(text: &str) -> String {
    text.chars().filter(|c| *c == '\t' || !c.is_control()).take(1000).collect::<String>().trim().to_owned()
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("there is no such file")]
    Missing,
    #[error("{0}")]
    Other(std::io::Error),
    #[error("it is no text")]
    Binary,
}

fn text_file(path: &Path) -> Result<String, ReadError> {
    let bytes = atomic::read_bounded(path, MOST_BYTES).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => ReadError::Missing,
        _ => ReadError::Other(e),
    })?;
    String::from_utf8(bytes).map_err(|_| ReadError::Binary)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    struct Pair {
        public: Key,
        secret: Secret,
    }

    fn pair() -> Pair {
        let (public, secret) = generate(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.key");
        std::fs::write(&path, secret).unwrap();
        let secret = Secret::read(&path, || panic!("it has no password")).unwrap();
        Pair { public: Key::parse(&public).unwrap(), secret }
    }

    #[test]
    fn what_was_signed_is_known_and_nothing_else_is() {
        let (a, b) = (pair(), pair());
        assert_eq!(a.secret.id(), a.public.id());
        let text = a.secret.sign(b"content", "name:x\tversion:1").unwrap();
        let of = |text: &str, bytes: &[u8], keys: &[&Pair]| {
            check_text(text, bytes, &keys.iter().map(|p| p.public.clone()).collect::<Vec<_>>())
        };
        let signed = State::Signed { by: a.public.id().into(), comment: "name:x\tversion:1".into() };
        assert_eq!(of(&text, b"content", &[&b, &a]), signed);
        assert_eq!(of(&text, b"content", &[&b]), State::Unknown { key: a.public.id().into() });
        assert!(matches!(of(&text, b"Content", &[&a]), State::Bad { .. }), "another file");
        assert!(matches!(of(&text.replace("name:x", "name:y"), b"content", &[&a]), State::Bad { .. }), "the comment");
        let other = b.secret.sign(b"content", "c").unwrap();
        // A signature of b's that claims to be a's.
        let (mine, theirs): (Vec<_>, Vec<_>) = (text.lines().collect(), other.lines().collect());
        let mixed = [mine[0], mine[1], theirs[2], theirs[3]].join("\n");
        assert!(matches!(of(&mixed, b"content", &[&a]), State::Bad { .. }));
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let (public, secret) = generate(None).unwrap();
        assert_eq!(Key::parse(public.lines().nth(1).unwrap()).unwrap().id(), Key::parse(&public).unwrap().id());
        for (text, expected) in [
            ("", "no minisign public key"),
            ("RWQ", "no minisign public key"),
            ("a\nb\nc", "no minisign public key"),
            (&secret, "secret key"),
            (&"A".repeat(56), "no minisign public key"),
        ] {
            let error = Key::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        std::fs::write(&path, public).unwrap();
        let error = Secret::read(&path, || panic!("not asked")).err().unwrap().to_string();
        assert!(error.contains("is no minisign secret key"), "{error}");
    }

    #[test]
    fn a_secret_key_of_minisign_without_a_checksum_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let (public, secret) = generate(None).unwrap();
        let public = Key::parse(&public).unwrap();
        let mut bytes = Base64::decode_to_vec(secret.lines().nth(1).unwrap(), None).unwrap();
        bytes[SECRET_BYTES - CHECKSUM_BYTES..].fill(0);
        let write = |bytes: &[u8]| {
            let text = <Base64 as ct_codecs::Encoder>::encode_to_string(bytes).unwrap();
            std::fs::write(&path, format!("comment\n{text}\n")).unwrap();
        };
        write(&bytes);
        let signed = Secret::read(&path, || panic!("no password")).unwrap().sign(b"x", "c").unwrap();
        assert!(matches!(check_text(&signed, b"x", &[public]), State::Signed { .. }));
        // Without its checksum a damaged key is found out when it signs.
        bytes[70] ^= 1;
        write(&bytes);
        assert!(Secret::read(&path, || panic!("no password")).unwrap().sign(b"x", "c").is_err());
        bytes[SECRET_BYTES - 1] = 1;
        write(&bytes);
        assert!(Secret::read(&path, || panic!("no password")).is_err());
    }

    #[test]
    fn comments_stay_on_their_line() {
        let a = pair();
        let text = a.secret.sign(b"x", "one\ntrusted comment: two\r\u{1b}[2J").unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(matches!(check_text(&text, b"x", &[a.public]), State::Signed { .. }));
    }

    #[test]
    fn a_file_that_changes_between_two_looks_is_bad() {
        let dir = tempfile::tempdir().unwrap();
        let (file, a) = (dir.path().join("f"), pair());
        std::fs::write(&file, b"x").unwrap();
        let digest = hex(&Sha256::digest(b"x"));
        assert_eq!(check_file(&file, &digest, 9, std::slice::from_ref(&a.public)), State::Unsigned);
        std::fs::write(signature_path(&file), a.secret.sign(b"y", "").unwrap()).unwrap();
        std::fs::write(&file, b"y").unwrap();
        let state = check_file(&file, &digest, 9, &[a.public]);
        assert!(matches!(&state, State::Bad { why } if why.contains("changed")), "{state}");
    }

    proptest! {
        #[test]
        fn no_damage_goes_unnoticed(at in 0usize..400, to in any::<u8>()) {
            let a = pair();
            let mut text = a.secret.sign(b"content", "comment").unwrap().into_bytes();
            let at = at % text.len();
            let line = text[..at].iter().filter(|b| **b == b'\n').count();
            prop_assume!(text[at] != to && line > 0 && text[at] != b'\n');
            text[at] = to;
            let Ok(text) = String::from_utf8(text) else { return Ok(()) };
            let state = check_text(&text, b"content", std::slice::from_ref(&a.public));
            // What is left of white space is not covered, and changes nothing.
            let covered = !to.is_ascii_whitespace();
            prop_assert!(!covered || !matches!(state, State::Signed { .. }), "{state:?}");
        }

        #[test]
        fn no_text_makes_it_panic(text in "(untrusted comment: \n)?[RWUQEdA-Za-z0-9+/=\n]{0,200}(\ntrusted comment: x\n)?[A-Za-z0-9+/=]{0,100}") {
            let _ = check_text(&text, b"x", &[]);
            let _ = Key::parse(&text);
        }
    }
}
