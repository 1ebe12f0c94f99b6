//! `plastic-host plugin keygen` and `plastic-host plugin sign`.

use crate::atomic;
use crate::cli::{Global, locate};
use crate::model::paths;
use crate::plugin::signature::{self, Key, Secret, SignatureError};
use crate::plugin::{Loader, Rules};
use anyhow::{Context, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// The environment variable with the password of a secret key, for scripts.
const PASSWORD_ENV: &str = "PLASTIC_KEY_PASSWORD";

/// Options of `plugin keygen`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The secret key is encrypted with a password, asked for on the terminal or taken from PLASTIC_KEY_PASSWORD.
Keys and signatures are those of minisign: either program reads what the other wrote.

Examples:
  plastic-host plugin keygen --out alice
  plastic-host plugin sign my-policy.wasm --key alice.key
  plastic-host --policy my-policy.wasm --trust alice.pub")]
pub struct KeygenArgs {
    /// Write NAME.key, to keep secret, and NAME.pub, to give away
    #[arg(long, value_name = "NAME", default_value = "plastic")]
    out: PathBuf,
    /// Do not encrypt the secret key
    #[arg(long)]
    no_password: bool,
}

/// Options of `plugin sign`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin sign my-policy.wasm --key alice.key
  PLASTIC_KEY_PASSWORD=... plastic-host plugin sign my-policy.wasm --key alice.key --json
  minisign -Vm my-policy.wasm -p alice.pub")]
pub struct SignArgs {
    /// The plugin: a file, or a name on the plugin path; the signature is written beside it, as FILE.minisig
    file: PathBuf,
    /// Secret key file, of `plugin keygen` or of minisign
    #[arg(long, value_name = "SECRET")]
    key: PathBuf,
}

/// Makes a pair of keys.
pub fn keygen(args: &KeygenArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let (secret_path, public_path) = (with_ending(&args.out, ".key"), with_ending(&args.out, ".pub"));
    for path in [&secret_path, &public_path] {
        if path.symlink_metadata().is_ok() {
            bail!("{}: there already; a key is never overwritten, name another with --out", path.display());
        }
    }
    let password = match args.no_password {
        true => None,
        false => Some(new_password()?),
    };
    let (public, secret) = signature::generate(password)?;
    write_secret(&secret_path, secret.as_bytes())?;
    atomic::write_file(&public_path, public.as_bytes())?;
    let key = Key::parse(&public)?;
    if g.json {
        say!(
            "{}",
            serde_json::json!({ "key": key.id(), "public": public_path, "secret": secret_path, "public_key": key.base64() })
        );
        return Ok(ExitCode::SUCCESS);
    }
    say!("key {}: {} (keep it secret) and {}", key.id(), secret_path.display(), public_path.display());
    if !g.quiet {
        note!("others trust it with --trust {}", key.base64());
    }
    Ok(ExitCode::SUCCESS)
}

/// Signs a plugin.
pub fn sign(args: &SignArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let loader = Loader::new(Rules::default(), paths::cache_dir()).without_advice();
    let file = locate::plugin(&args.file, Some(&loader))?;
    // What is signed is a plugin that loads, and the very content that was looked at.
    let entry = super::lock::entry(&file, &loader)?;
    let bytes = atomic::read_bounded(&file, loader.limits().file_bytes).with_context(|| file.display().to_string())?;
    if crate::model::hash::sha256(&bytes) != entry.sha256 {
        bail!("{}: changed while it was read; nothing was signed", file.display());
    }
    let secret = Secret::read(&args.key, || password("Password of the secret key: "))?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut comment = format!("timestamp:{seconds}\tfile:{}\tname:{}", entry.file, entry.name);
    if !entry.version.is_empty() {
        comment += &format!("\tversion:{}", entry.version);
    }
    comment += &format!("\tsha256:{}", entry.sha256);
    let path = signature::signature_path(&file);
    atomic::write_file(&path, secret.sign(&bytes, &comment)?.as_bytes())?;
    match g.json {
        true => say!("{}", serde_json::json!({ "file": file, "signature": path, "key": secret.id(), "plugin": entry })),
        false => say!("{}: signed by {}, {}", file.display(), secret.id(), path.display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A file only this user can read; one that is there stays.
fn write_secret(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))?;
    Ok(atomic::sync_dir(dir)?)
}

fn new_password() -> Result<String, SignatureError> {
    if let Some(given) = from_environment()? {
        return Ok(given);
    }
    let first = ask("Password to encrypt the secret key with: ")?;
    if first.is_empty() {
        return Err(SignatureError::new("an empty password protects nothing; give one, or use --no-password"));
    }
    match ask("The same again: ")? == first {
        true => Ok(first),
        false => Err(SignatureError::new("the passwords differ; no key was made")),
    }
}

fn password(prompt: &str) -> Result<String, SignatureError> {
    from_environment()?.map_or_else(|| ask(prompt), Ok)
}

fn from_environment() -> Result<Option<String>, SignatureError> {
    match std::env::var(PASSWORD_ENV) {
        Ok(given) if given.is_empty() => {
            Err(SignatureError::new(format!("{PASSWORD_ENV} is empty; unset it, or put the password in")))
        }
        Ok(given) => Ok(Some(given)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(e) => Err(SignatureError::new(format!("{PASSWORD_ENV}: {e}"))),
    }
}

fn ask(prompt: &str) -> Result<String, SignatureError> {
    rpassword::prompt_password(prompt).map_err(|e| {
        SignatureError::new(format!(
            "the password cannot be asked for ({e}); set {PASSWORD_ENV}, or make a key with `plugin keygen --no-password`"
        ))
    })
}
