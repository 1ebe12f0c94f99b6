//! `plastic-host packs rank-map …`: maps of ranks, and controls of equal budget.

use super::{Global, output, table};
use crate::cli::base;
use crate::mlx;
use crate::model::{LoadOptions, Model};
use crate::pack::ranks::{self, Ranks, Shapes};
use crate::pack::{Error, Profile, Store};
use anyhow::bail;
use clap::Subcommand;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `packs rank-map`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs rank-map extract plays --out plays.json
  plastic-host packs rank-map validate plays.json --base smollm2-135m
  plastic-host packs rank-map random plays --seed 17 --out random.json
  plastic-host packs rank-map shuffled plays --seed 17 --out shuffled.json
  plastic-host packs rank-map normalize-budget plays --target fixed-r16 --out fitted.json
  plastic-host packs create --name control --rank-map-json random.json …

A map is a JSON file with `rank_map`: an adapter key and a rank each. An adapter takes 2 · rank · (outputs + inputs) + 4 bytes.")]
pub struct RankMapArgs {
    #[command(subcommand)]
    verb: MapVerb,
}

#[derive(Subcommand, Debug)]
enum MapVerb {
    /// Write the ranks of a pack as a map
    Extract(MapArgs),
    /// Check a map against a base or a pack
    Validate(ValidateArgs),
    /// A control: random ranks of the same budget
    #[command(alias = "random-same-budget", alias = "random_same_budget")]
    Random(ControlArgs),
    /// A control: the same ranks on other slices, of the same budget
    #[command(alias = "shuffled-discovered", alias = "shuffled_discovered")]
    Shuffled(ControlArgs),
    /// What a map takes, by target and layer
    #[command(alias = "budget_report")]
    BudgetReport(MapArgs),
    /// Bring a map to a budget
    #[command(alias = "normalize_budget", alias = "normalize")]
    NormalizeBudget(NormalizeArgs),
}

/// A map, where its shapes come from, and where the result goes.
#[derive(clap::Args, Debug)]
struct MapArgs {
    /// Pack whose ranks and shapes are taken
    #[arg(value_name = "PACK", required_unless_present_any = ["source_pack", "base"])]
    pack: Option<String>,
    /// The same
    #[arg(long, visible_alias = "name", value_name = "PACK", conflicts_with = "pack")]
    source_pack: Option<String>,
    /// Take the shapes from this base, in the place of a pack
    #[arg(long, short, value_name = "BASE", conflicts_with_all = ["pack", "source_pack"], requires = "map")]
    base: Option<String>,
    /// Map in the place of the pack's own ranks: a JSON file, or rules such as q:8,k:4
    #[arg(long, visible_alias = "rank-map-json", value_name = "FILE|RULES")]
    map: Option<String>,
    /// One rank for every slice, in the place of the pack's own
    #[arg(long, value_name = "N", conflicts_with = "map")]
    fixed_rank: Option<u32>,
    /// Ranks that may be used, and the size allowed [default: those of the pack; heavy where ranks are above 8]
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// Write the map into this file
    #[arg(long, visible_alias = "rank-map-out", value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Options of `validate`.
#[derive(clap::Args, Debug)]
struct ValidateArgs {
    /// The map: a JSON file
    #[arg(value_name = "MAP")]
    file: PathBuf,
    /// Base that it is for
    #[arg(long, short, value_name = "BASE", required_unless_present = "pack")]
    base: Option<String>,
    /// Pack whose slices it is for
    #[arg(long, visible_alias = "source-pack", value_name = "PACK", conflicts_with = "base")]
    pack: Option<String>,
    /// Size allowed
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
}

/// Options of the controls.
#[derive(clap::Args, Debug)]
struct ControlArgs {
    #[command(flatten)]
    map: MapArgs,
    /// Seed of the draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Bytes that it may take [default: what the map takes]
    #[arg(long, visible_alias = "target-bytes", value_name = "BYTES")]
    budget_bytes: Option<u64>,
}

/// Options of `normalize-budget`.
#[derive(clap::Args, Debug)]
struct NormalizeArgs {
    #[command(flatten)]
    map: MapArgs,
    /// The budget: fixed-rN (as rank N everywhere takes), fixed-rN-percent, bytes or pack
    #[arg(long, value_name = "WHAT")]
    target: String,
    /// Bytes, with --target bytes
    #[arg(long, visible_alias = "target-budget-bytes", value_name = "BYTES")]
    target_bytes: Option<u64>,
    /// Percent, with --target fixed-rN-percent
    #[arg(long, visible_alias = "target-fixed-r32-pct", value_name = "PERCENT")]
    target_percent: Option<f64>,
    /// Pack whose size is the budget, with --target pack
    #[arg(long, value_name = "PACK")]
    target_pack: Option<String>,
    /// Answer the smallest map where nothing fits
    #[arg(long)]
    allow_over_budget: bool,
}

/// A map with its shapes.
struct Source {
    name: String,
    ranks: Ranks,
    shapes: Shapes,
    profile: Profile,
}

impl MapArgs {
    fn open(&self, store: &Store, g: &Global) -> anyhow::Result<Source> {
        let inputs: Vec<&Path> = self.map.iter().map(Path::new).collect();
        output::check(store, &[("--out", self.out.as_ref())], &inputs)?;
        let named = self.pack.as_deref().or(self.source_pack.as_deref());
        let (name, own, shapes, profile) = match (named, &self.base) {
            (Some(name), _) => {
                let pack = store.read(name)?;
                (name.to_owned(), pack.meta.rank_map.clone(), ranks::of_pack(&pack), pack.meta.profile)
            }
            (None, spec) => {
                let (id, shapes) = shapes_of(spec, g)?;
                (id, Ranks::new(), shapes, Profile::Lite)
            }
        };
        let mut ranks = own;
        if let Some(text) = &self.map {
            ranks = ranks::parse(text, &shapes)?;
        }
        // A sum of packs can have more components than its slice has ranks; a map of it says what the slice can have.
        ranks.iter_mut().for_each(|(k, r)| *r = (*r).min(ranks::most(&shapes, k)));
        if let Some(rank) = self.fixed_rank {
            ranks.values_mut().for_each(|r| *r = rank);
            ranks::check(&ranks, &shapes).map_err(|reason| Error::Usage(format!("--fixed-rank: {reason}")))?;
        }
        ranks.retain(|_, r| *r > 0);
        if ranks.is_empty() {
            bail!("{name}: the map has no adapter of rank 1 or more");
        }
        // Ranks that only the larger ladder has ask for it.
        let large = ranks.values().any(|r| *r > 8);
        let profile = self.profile.unwrap_or(if large { Profile::Heavy } else { profile });
        Ok(Source { name, ranks, shapes, profile })
    }
}

fn shapes_of(spec: &Option<String>, g: &Global) -> anyhow::Result<(String, Shapes)> {
    mlx::device::init()?;
    let base = base::open(spec, g)?;
    let model = Model::load(&base.dir, &LoadOptions::default())?;
    Ok((base.id, ranks::of_model(&model)))
}

/// A map as it is written.
#[derive(serde::Serialize)]
struct Document<'a> {
    kind: &'static str,
    source: &'a str,
    profile: Profile,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_bytes: Option<u64>,
    total_bytes: u64,
    total_rank: u64,
    by_target: BTreeMap<String, Sum>,
    by_layer: BTreeMap<u32, Sum>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_rank_map: Option<&'a Ranks>,
    rank_map: &'a Ranks,
    alpha_map: BTreeMap<&'a str, f64>,
}

/// Sums over some adapters.
#[derive(Default, serde::Serialize)]
struct Sum {
    adapters: usize,
    rank: u64,
    bytes: u64,
}

fn document<'a>(kind: &'static str, source: &'a Source, ranks: &'a Ranks, budget: Option<u64>) -> Document<'a> {
    let (mut by_target, mut by_layer) = (BTreeMap::<String, Sum>::new(), BTreeMap::<u32, Sum>::new());
    for (key, rank) in ranks {
        let bytes = source.shapes.get(key).map_or(0, |s| ranks::bytes(*s, *rank));
        let target = crate::pack::key::target(key).to_owned();
        let layer = crate::pack::key::layer(key).unwrap_or_default();
        for sum in [by_target.entry(target).or_default(), by_layer.entry(layer).or_default()] {
            sum.adapters += 1;
            sum.rank += u64::from(*rank);
            sum.bytes += bytes;
        }
    }
    Document {
        kind,
        source: &source.name,
        profile: source.profile,
        seed: None,
        budget_bytes: budget,
        total_bytes: ranks::total(ranks, &source.shapes),
        total_rank: ranks.values().map(|r| u64::from(*r)).sum(),
        by_target,
        by_layer,
        source_rank_map: None,
        rank_map: ranks,
        alpha_map: ranks.iter().map(|(k, r)| (k.as_str(), 2.0 * f64::from(*r))).collect(),
    }
}

/// Writes a map where it was asked for, and shows it.
fn finish(d: &Document, out: Option<&Path>, g: &Global) -> anyhow::Result<ExitCode> {
    let json = serde_json::to_string_pretty(d)?;
    if let Some(path) = out {
        crate::atomic::write_file(path, (json.clone() + "\n").as_bytes())?;
    }
    if g.json || (out.is_none() && g.quiet) {
        say!("{json}");
        return Ok(ExitCode::SUCCESS);
    }
    if g.quiet {
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table::plain(&["target", "adapters", "rank", "mean", "bytes"], &[1, 2, 3, 4]);
    for (target, s) in &d.by_target {
        let mean = s.rank as f64 / s.adapters.max(1) as f64;
        rows.add_row([
            target.clone(),
            s.adapters.to_string(),
            s.rank.to_string(),
            format!("{mean:.1}"),
            s.bytes.to_string(),
        ]);
    }
    say!("{rows}");
    let budget = d
        .budget_bytes
        .map_or(String::new(), |b| format!(" of a budget of {b} ({} left)", i128::from(b) - i128::from(d.total_bytes)));
    say!(
        "{} from {}: rank {} in {} adapters, {} bytes{budget}",
        d.kind,
        d.source,
        d.total_rank,
        d.rank_map.len(),
        d.total_bytes
    );
    match out {
        Some(path) => say!("written to {}", path.display()),
        None => say!("--out FILE writes the map, --json prints it"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one of them.
///
/// # Errors
/// When a map, a pack or a base cannot be read, or a budget cannot be kept.
pub fn run(args: &RankMapArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.verb {
        MapVerb::Extract(a) => report("rank_map", a, store, g),
        MapVerb::BudgetReport(a) => report("rank_map_budget_report", a, store, g),
        MapVerb::Validate(a) => validate(a, store, g),
        MapVerb::Random(a) => control("random_same_budget", a, ranks::random, store, g),
        MapVerb::Shuffled(a) => control("shuffled_discovered", a, ranks::shuffled, store, g),
        MapVerb::NormalizeBudget(a) => normalize(a, store, g),
    }
}

fn report(kind: &'static str, a: &MapArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let source = a.open(store, g)?;
    finish(&document(kind, &source, &source.ranks, None), a.out.as_deref(), g)
}

type Control = fn(&Ranks, &Shapes, &[u32], u64, u64) -> Ranks;

fn control(kind: &'static str, a: &ControlArgs, draw: Control, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let source = a.map.open(store, g)?;
    let budget = a.budget_bytes.unwrap_or_else(|| ranks::total(&source.ranks, &source.shapes));
    let ladder = ranks::ladder(&source.ranks, &source.shapes, source.profile);
    let drawn = draw(&source.ranks, &source.shapes, &ladder, budget, a.seed);
    within(ranks::total(&drawn, &source.shapes), budget)?;
    let mut d = document(kind, &source, &drawn, Some(budget));
    (d.seed, d.source_rank_map) = (Some(a.seed), Some(&source.ranks));
    finish(&d, a.map.out.as_deref(), g)
}

fn within(bytes: u64, budget: u64) -> anyhow::Result<()> {
    if bytes > budget {
        bail!(
            "the smallest map takes {bytes} bytes, more than the budget of {budget}; raise it, or choose fewer slices"
        );
    }
    Ok(())
}

fn normalize(a: &NormalizeArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let mut source = a.map.open(store, g)?;
    let Some(budget) = budget(a, &source, store)? else {
        note!(
            "error: --target {}: use fixed-r16, fixed-r32-percent with --target-percent, bytes with --target-bytes, or pack with --target-pack",
            a.target
        );
        return Ok(ExitCode::from(2));
    };
    // As mlx-plastic-rank, which takes all ranks unless told otherwise.
    source.profile = a.map.profile.unwrap_or(Profile::Heavy);
    let ladder = ranks::ladder(&source.ranks, &source.shapes, source.profile);
    let fitted = ranks::fit(&source.ranks, &source.shapes, &ladder, budget);
    if !a.allow_over_budget {
        within(ranks::total(&fitted, &source.shapes), budget)?;
    }
    let mut d = document("rank_map_budget_normalization", &source, &fitted, Some(budget));
    d.source_rank_map = Some(&source.ranks);
    finish(&d, a.map.out.as_deref(), g)
}

/// The budget a target means; `None` where it is none.
fn budget(a: &NormalizeArgs, source: &Source, store: &Store) -> anyhow::Result<Option<u64>> {
    let fixed = |rank: u32| ranks::total(&source.ranks.keys().map(|k| (k.clone(), rank)).collect(), &source.shapes);
    Ok(match (a.target.as_str(), &a.target_pack) {
        ("bytes", _) => a.target_bytes,
        ("pack", Some(pack)) => Some(store.read(pack)?.nbytes()),
        (text, _) => {
            let Some(rest) = text.strip_prefix("fixed-r") else { return Ok(None) };
            match (rest.strip_suffix("-percent"), a.target_percent) {
                (Some(rank), Some(percent)) if percent.is_finite() && percent > 0.0 => {
                    rank.parse().ok().map(|r| (percent / 100.0 * fixed(r) as f64) as u64)
                }
                (Some(_), _) => None,
                (None, _) => rest.parse().ok().map(fixed),
            }
        }
    })
}

fn validate(a: &ValidateArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let map = ranks::read(&a.file)?;
    let (what, shapes) = match &a.pack {
        Some(pack) => (format!("pack {pack}"), ranks::of_pack(&store.read(pack)?)),
        None => {
            let (id, shapes) = shapes_of(&a.base, g)?;
            (format!("base {id}"), shapes)
        }
    };
    let mut problems: Vec<String> = Vec::new();
    for (key, rank) in &map {
        match shapes.get(key) {
            None => problems.push(format!("{key}: {what} has no such slice")),
            Some((rows, cols)) if *rank as usize > *rows.min(cols) => {
                problems.push(format!("{key}: rank {rank} is more than the {} it can have", rows.min(cols)));
            }
            Some(_) => {}
        }
    }
    if map.values().all(|r| *r == 0) {
        problems.push("no adapter has a rank of 1 or more".into());
    }
    let bytes = ranks::total(&map, &shapes);
    if bytes > a.profile.limit() {
        problems.push(format!("{bytes} bytes; at most {} are allowed, more with --profile heavy", a.profile.limit()));
    }
    let code = if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if g.json {
        let document = serde_json::json!({
            "kind": "rank_map_validation", "map": a.file, "against": what, "ok": problems.is_empty(),
            "adapters": map.len(), "total_rank": map.values().map(|r| u64::from(*r)).sum::<u64>(),
            "total_bytes": bytes, "problems": problems,
        });
        say!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(code);
    }
    for p in &problems {
        note!("{}: {p}", a.file.display());
    }
    if problems.is_empty() && !g.quiet {
        say!("{}: {} adapters, {bytes} bytes, fits {what}", a.file.display(), map.len());
    }
    Ok(code)
}
