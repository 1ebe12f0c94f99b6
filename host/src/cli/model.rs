//! `plastic-host model`: fetch, import, inspect and list models.

use super::fetching::Bars;
use super::show::{megabytes, millions};
use super::{Global, table};
use crate::model::gguf::ImportOptions;
use crate::model::inspect::{self, Inspection};
use crate::model::layout;
use crate::model::registry::{self, DEFAULT_BASE, Listed, Options};
use crate::model::store::{self, ImportTo};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `model`.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Fetch a model into the cache; what is there already is left as it is
    #[command(after_help = FETCH_EXAMPLES)]
    Fetch(FetchArgs),
    /// Import a GGUF file as a checkpoint in MLX layout, without loss
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Show what a model is: architecture, widths, quantisation, parameters, hash
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// List the models on this machine
    #[command(after_help = LIST_EXAMPLES)]
    List,
}

const FETCH_EXAMPLES: &str = "\
Examples:
  plastic-host model fetch                                  the default model
  plastic-host model fetch mlx-community/Qwen3-0.6B-4bit    from the Hugging Face hub
  plastic-host model fetch org/name --revision v1.0         a branch, tag or commit
  plastic-host model fetch org/name --offline               is it here?

PLASTIC_CACHE moves the cache; HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are obeyed.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  plastic-host model import SmolLM2-360M-Instruct.Q4_0.gguf
  plastic-host model import model.gguf --name mine          then: plastic-host --base mine
  plastic-host model import model.gguf --out models/mine    then: plastic-host --base models/mine
  plastic-host model import model.Q6_K.gguf --dequantize    types that MLX lacks, rounded to float16";

const INSPECT_EXAMPLES: &str = "\
Examples:
  plastic-host model inspect smollm2-135m
  plastic-host model inspect path/to/checkpoint --json
  plastic-host model inspect model.gguf                     imports it into the cache first";

const LIST_EXAMPLES: &str = "\
Examples:
  plastic-host model list
  plastic-host model list --json";

/// Options of `model fetch`.
#[derive(clap::Args, Debug)]
struct FetchArgs {
    /// Known id, or a Hugging Face repository as org/name[@revision]
    #[arg(default_value = DEFAULT_BASE)]
    id: String,
    /// Branch, tag or commit of a repository
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Fetch again what is there already
    #[arg(long, conflicts_with = "offline")]
    force: bool,
}

/// Options of `model import`.
#[derive(clap::Args, Debug)]
struct ImportArgs {
    /// The GGUF file
    file: PathBuf,
    /// Name in the cache [default: the file's name and the beginning of its hash]
    #[arg(long, conflicts_with = "out")]
    name: Option<String>,
    /// Write the checkpoint into this directory instead of the cache
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Expand block types that MLX has no equivalent of to float16, which rounds them
    #[arg(long)]
    dequantize: bool,
    /// Import again, and replace an earlier import in the same place
    #[arg(long)]
    force: bool,
}

/// Options of `model inspect`.
#[derive(clap::Args, Debug)]
struct InspectArgs {
    /// Directory, GGUF file, id or Hugging Face repository
    #[arg(value_name = "SPEC", default_value = DEFAULT_BASE)]
    spec: String,
}

/// Runs the verb.
pub fn run(args: &ModelArgs, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Fetch(a) => fetch(a, g),
        Verb::Import(a) => import(a, g),
        Verb::Inspect(a) => inspect(a, g),
        Verb::List => list(g),
    }
}

fn fetch(a: &FetchArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let spec = match &a.revision {
        None => a.id.clone(),
        Some(r) if a.id.contains('/') && !a.id.contains('@') && !Path::new(&a.id).exists() => format!("{}@{r}", a.id),
        Some(r) => {
            note!(
                "error: --revision {r} needs a repository without a revision of its own (org/name); \"{}\" is none",
                a.id
            );
            return Ok(ExitCode::from(2));
        }
    };
    let options = Options { offline: g.offline, refresh: true, force: a.force };
    let base = registry::resolve_with(&spec, options, &mut Bars::new(g))?;
    report(&base, g);
    Ok(ExitCode::SUCCESS)
}

fn import(a: &ImportArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let to = match (&a.name, &a.out) {
        (Some(name), _) => ImportTo::Name(name),
        (None, Some(dir)) => ImportTo::Dir(dir),
        (None, None) => ImportTo::Cache,
    };
    let options = ImportOptions { dequantize: a.dequantize };
    let base = store::import_gguf(&a.file, to, options, a.force, &mut Bars::new(g))?;
    report(&base, g);
    Ok(ExitCode::SUCCESS)
}

/// Says where a model is now.
fn report(base: &registry::Base, g: &Global) {
    if g.json {
        say!("{}", serde_json::json!({ "id": base.id, "dir": base.dir }));
    } else {
        say!("{} is in {}", base.id, base.dir.display());
    }
}

fn inspect(a: &InspectArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let options = Options { offline: g.offline, ..Options::default() };
    let base = registry::resolve_with(&a.spec, options, &mut Bars::new(g))?;
    let found = inspect::inspect(&base)?;
    if g.json {
        say!("{}", serde_json::to_string(&found)?);
    } else {
        say!("{}", described(&found));
    }
    Ok(ExitCode::SUCCESS)
}

/// The facts as a table, and how the numbers are stored as another.
fn described(m: &Inspection) -> String {
    let mut facts = table::plain(&["model", &m.id], &[]);
    let heads = format!("{} query, {} key/value, {} wide", m.heads, m.kv_heads, m.head_dim);
    let tied = if m.tied_head { "the embedding (tied)" } else { "its own" };
    let rows = [
        ("directory", m.dir.display().to_string()),
        ("architecture", m.architecture.clone()),
        ("layers", m.layers.to_string()),
        ("width", format!("{}, feed-forward {}", m.hidden_size, m.intermediate_size)),
        ("heads", heads),
        ("vocabulary", format!("{} tokens, output head {tied}", m.vocab_size)),
        ("context", m.context.map_or_else(|| "not stated".to_owned(), |c| format!("{c} tokens"))),
        (
            "parameters",
            format!("{}, {} of them in {} slices", millions(m.parameters), millions(m.slice_parameters), m.slices),
        ),
        ("weights", format!("{} in {} file{}", megabytes(m.bytes), m.files, if m.files == 1 { "" } else { "s" })),
        ("chat template", if m.chat_template { "yes" } else { "no" }.to_owned()),
        ("SHA-256", m.sha256.clone()),
    ];
    for (name, value) in rows {
        facts.add_row(vec![name.to_owned(), value]);
    }
    let mut stored = table::plain(&["stored as", "tensors", "parameters", "bytes", "bits each"], &[1, 2, 3, 4]);
    for s in &m.stored {
        let bits = 8.0 * s.bytes as f64 / s.parameters.max(1) as f64;
        stored.add_row(vec![
            s.form.clone(),
            s.tensors.to_string(),
            millions(s.parameters),
            megabytes(s.bytes),
            format!("{bits:.2}"),
        ]);
    }
    let mut text = format!("{facts}\n{stored}");
    if let Some(q) = &m.quantization {
        text += &format!("\nquantised: {q}");
    }
    if !m.overrides.is_empty() {
        let some: Vec<String> = m.overrides.iter().take(4).map(|(name, form)| format!("{name} ({form})")).collect();
        let more = if m.overrides.len() > 4 { ", ..." } else { "" };
        let plural = if m.overrides.len() == 1 { "" } else { "s" };
        text += &format!("\nexcept {} tensor{plural}: {}{more}", m.overrides.len(), some.join(", "));
    }
    text
}

fn list(g: &Global) -> anyhow::Result<ExitCode> {
    let all = registry::list();
    if g.json {
        let models: Vec<serde_json::Value> = all
            .iter()
            .map(|l| {
                let bytes = l.dir.as_deref().map(weight_bytes);
                serde_json::json!({
                    "spec": l.spec, "dir": l.dir, "origin": l.origin, "bytes": bytes, "default": l.spec == DEFAULT_BASE,
                })
            })
            .collect();
        say!("{}", serde_json::json!({ "models": models }));
        return Ok(ExitCode::SUCCESS);
    }
    let mut models = table::plain(&["model", "weights", "from", "directory"], &[1]);
    for Listed { spec, dir, origin } in all {
        let (bytes, place) = match dir {
            Some(dir) => (megabytes(weight_bytes(&dir)), dir.display().to_string()),
            None => (String::new(), "fetched when it is needed".to_owned()),
        };
        models.add_row(vec![spec, bytes, origin.to_owned(), place]);
    }
    say!("{models}");
    Ok(ExitCode::SUCCESS)
}

/// Bytes of all weight files.
fn weight_bytes(dir: &Path) -> u64 {
    let files = layout::shards(dir).unwrap_or_default();
    files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum()
}
