//! `plastic-host packs create`: trains a pack.

use super::training;
use super::{Global, locate};
use crate::cli::locate::Purpose;
use crate::cli::rules::RuleArgs;
use crate::cli::run::set_options;
use crate::eval::data::Loss;
use crate::pack::train::auto::{Auto, Strategy};
use crate::pack::train::options::{Method, Options, RankOptions, Rule, Schedule};
use crate::pack::{Profile, Store, ranks};
use crate::plastic::config::Choice;
use crate::plugin::Rules;
use anyhow::bail;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `packs create`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  plastic-host packs create --name plays --data data/plays_train.jsonl --valid-data data/plays_valid.jsonl
  plastic-host packs create --name plays --base smollm2-135m --layers attn.q_proj,attn.k_proj,attn.v_proj \\
      --rank 8 --alpha 16 --data mine.jsonl --steps 300 --learning-rate 1e-3
  plastic-host packs create --name all --data mine.jsonl --layers 'attn.*,mlp.*' --rank-map q:8,mlp.down_proj:4
  plastic-host packs create --name chat --data chats.jsonl --loss answer --grad-accumulation 4
  plastic-host packs create --name lean --data mine.jsonl --policy exchange --rank-budget 360
  plastic-host packs resume plays            go on after Ctrl-C, a crash or a power cut

Slices are named by kind (q_proj, or q), place (attn.q_proj), in full (blocks.3.attn.q_proj) or by a glob."
)]
pub struct CreateArgs {
    /// Name of the pack
    #[arg(long)]
    name: String,
    /// Base model: an id, a directory, a GGUF file or a hub repository
    #[arg(long, default_value = "smollm2-135m")]
    base: String,
    /// Training text: .jsonl (`text`, `prompt` and `completion`, or `messages`) or .txt, or a data set of the hub as org/name[@revision][:file]
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Validation text, likewise; the pack kept is the one that is best on it
    #[arg(long, value_name = "FILE")]
    valid_data: Option<PathBuf>,
    /// Share of the training rows held back for validation where no text is named
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    valid_share: f64,
    /// Slices that get an adapter, comma-separated
    #[arg(
        long,
        value_name = "SLICES",
        value_delimiter = ',',
        default_value = "attn.q_proj,attn.k_proj,attn.v_proj",
        help_heading = "Adapters"
    )]
    layers: Vec<String>,
    /// Rank; k and v follow the width of their heads [default: 8]
    #[arg(long, value_name = "N", help_heading = "Adapters")]
    rank: Option<u32>,
    /// Ranks of slices, as q:8,k:4
    #[arg(long, value_name = "SLICES:N,…", value_delimiter = ',', value_parser = rank_rule, help_heading = "Adapters")]
    rank_map: Vec<Rule<u32>>,
    /// Ranks of slices from a JSON file {"blocks.0.attn.q_proj": 8, …}; only these are trained
    #[arg(long, value_name = "FILE", conflicts_with = "rank_map", help_heading = "Adapters")]
    rank_map_json: Option<PathBuf>,
    /// Ranks of slices as another pack has them; only these are trained
    #[arg(long, value_name = "PACK", conflicts_with_all = ["rank_map", "rank_map_json"], help_heading = "Adapters")]
    rank_map_from_pack: Option<String>,
    /// Ranks from the base's own weights in the place of --rank: how many singular values hold --target-compression
    #[arg(long, value_enum, conflicts_with_all = ["rank", "rank_map_json", "rank_map_from_pack"], help_heading = "Adapters")]
    rank_strategy: Option<Strategy>,
    /// Share of the energy --rank-strategy holds
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, requires = "rank_strategy", help_heading = "Adapters")]
    target_compression: f64,
    /// Of the Python program, whose search it does not change
    #[arg(long, hide = true)]
    rank_eps: Option<f64>,
    /// What loads the model: this program does
    #[arg(long, hide = true, value_parser = ["auto", "mlx-lm"])]
    loader: Option<String>,
    /// Conversations are always written by the chat template
    #[arg(long, hide = true)]
    chat_template: bool,
    /// No rank below this
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Adapters")]
    min_rank: u32,
    /// Strength of a slice of rank --rank; others have the same alpha / rank [default: twice the rank]
    #[arg(long, value_name = "X", help_heading = "Adapters")]
    alpha: Option<f32>,
    /// Strengths of slices, as q:16,k:8
    #[arg(long, value_name = "SLICES:X,…", value_delimiter = ',', value_parser = alpha_rule, help_heading = "Adapters")]
    alpha_map: Vec<Rule<f32>>,
    /// Scale by alpha / sqrt(rank)
    #[arg(long, help_heading = "Adapters")]
    rslora: bool,
    /// Learn the length of each row of the adapted weights too (DoRA)
    #[arg(long, help_heading = "Adapters")]
    dora: bool,
    /// Begin with the weights of this pack
    #[arg(long, visible_alias = "resume-pack", value_name = "PACK", help_heading = "Adapters")]
    from_pack: Option<String>,
    /// Begin with A at zero, so that the first update starts at the base; always so, unless --from-pack
    #[arg(long, hide = true)]
    zero_init: bool,
    /// Size allowed: lite 10 MiB, heavy 512 MiB
    #[arg(long, value_enum, default_value_t, help_heading = "Adapters")]
    profile: Profile,
    /// Updates
    #[arg(long, value_name = "N", default_value_t = 300, help_heading = "Training")]
    steps: u32,
    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Training")]
    batch_size: usize,
    /// Batches summed for one update
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Training")]
    grad_accumulation: usize,
    /// Tokens of a row
    #[arg(long, value_name = "TOKENS", default_value_t = 256, help_heading = "Training")]
    sequence_length: usize,
    /// Tokens that count
    #[arg(long, visible_alias = "loss-mode", value_enum, default_value_t, help_heading = "Training")]
    loss: Loss,
    /// Conversations and answers as rows of their own, in the place of joining short ones
    #[arg(long, help_heading = "Training")]
    no_packing: bool,
    /// Method
    #[arg(long, value_enum, default_value_t, help_heading = "Training")]
    optimizer: Method,
    /// Highest learning rate [default: 1e-3, with sgd 0.1]
    #[arg(long, visible_alias = "lr", value_name = "X", help_heading = "Training")]
    learning_rate: Option<f64>,
    /// Updates over which the rate rises
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Training")]
    warmup: u32,
    /// How the rate falls afterwards
    #[arg(long, value_enum, default_value_t, help_heading = "Training")]
    schedule: Schedule,
    /// Share of the highest rate at the end
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, help_heading = "Training")]
    final_rate: f64,
    /// Decay of Adam's first moment
    #[arg(long, value_name = "X", default_value_t = 0.9, help_heading = "Training")]
    beta1: f64,
    /// Decay of Adam's second moment
    #[arg(long, value_name = "X", default_value_t = 0.999, help_heading = "Training")]
    beta2: f64,
    /// Added to the root of Adam's second moment
    #[arg(long, value_name = "X", default_value_t = 1e-8, help_heading = "Training")]
    epsilon: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "X", default_value_t = 0.01, help_heading = "Training")]
    weight_decay: f64,
    /// Momentum of sgd
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Training")]
    momentum: f64,
    /// Largest norm of all gradients together; 0: any
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = "Training")]
    grad_clip: f64,
    /// Share of the adapters' inputs that is dropped
    #[arg(long, visible_alias = "dropout", value_name = "SHARE", default_value_t = 0.0, help_heading = "Training")]
    lora_dropout: f64,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "N", default_value_t = 42, help_heading = "Training")]
    seed: u64,
    /// Updates between validations; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 50, help_heading = "Training")]
    valid_every: u32,
    /// Windows of a validation, spread evenly; 0: all
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Training")]
    valid_windows: usize,
    /// End after so many validations without a better one; 0: never
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Training")]
    patience: u32,
    /// Updates between checkpoints; 0: only when it stops
    #[arg(long, value_name = "N", default_value_t = 50, help_heading = "Training")]
    checkpoint_every: u32,
    /// Gradient checkpointing: on bounds the memory for the insides of layers (768 MiB, and a quarter of what is free)
    #[arg(long, value_name = "on|off", value_parser = on_off, action = clap::ArgAction::Set, default_value = "on", help_heading = "Training")]
    grad_checkpoint: bool,
    /// Train against the base dequantised and rounded to float16
    #[arg(long, help_heading = "Training")]
    train_fp16_fallback: bool,
    /// Rank policy: a file, or a name on the plugin path; given again, the later one revises the plan of the one before
    #[arg(long, value_name = "FILE", group = "mover", help_heading = "Ranks that change")]
    policy: Vec<PathBuf>,
    /// Option of a policy, `name=value`, or `policy:name=value` where there are several
    #[arg(long, value_name = "NAME=VALUE", requires = "mover", help_heading = "Ranks that change")]
    policy_opt: Vec<String>,
    /// The policy dynamic-rank, from --dynamic-initial-rank up to --rank
    #[arg(long, conflicts_with = "policy", group = "mover", help_heading = "Ranks that change")]
    dynamic_rank: bool,
    /// Rank at the beginning, with --dynamic-rank
    #[arg(long, value_name = "N", default_value_t = 4, requires = "dynamic_rank", help_heading = "Ranks that change")]
    dynamic_initial_rank: u32,
    /// No rank below this, with --dynamic-rank
    #[arg(long, value_name = "N", default_value_t = 2, hide = true)]
    dynamic_min_rank: u32,
    /// Share of the strongest signal at which a slice grows, with --dynamic-rank
    #[arg(long, value_name = "SHARE", default_value_t = 0.25, hide = true)]
    dynamic_grow_threshold: f64,
    /// Share of the strongest signal at which a slice shrinks, with --dynamic-rank
    #[arg(long, value_name = "SHARE", default_value_t = 0.03, hide = true)]
    dynamic_prune_threshold: f64,
    /// Components that may be awake in all slices together [default: as many as at the beginning; any number with --dynamic-rank]
    #[arg(long, value_name = "N", requires = "mover", help_heading = "Ranks that change")]
    rank_budget: Option<u32>,
    /// Share of the parameters of all adapters that may stay awake, in the place of --rank-budget
    #[arg(
        long,
        value_name = "SHARE",
        requires = "mover",
        conflicts_with = "rank_budget",
        help_heading = "Ranks that change"
    )]
    budget: Option<f64>,
    /// Components a slice can have [default: twice its rank]
    #[arg(long, value_name = "N", requires = "mover", help_heading = "Ranks that change")]
    max_rank: Option<u32>,
    /// Updates between decisions
    #[arg(
        long,
        visible_alias = "dynamic-rank-interval",
        value_name = "N",
        default_value_t = 25,
        requires = "mover",
        help_heading = "Ranks that change"
    )]
    rank_interval: u32,
    /// Updates before the first decision
    #[arg(
        long,
        visible_alias = "dynamic-rank-warmup",
        value_name = "N",
        default_value_t = 50,
        requires = "mover",
        help_heading = "Ranks that change"
    )]
    rank_warmup: u32,
    /// Rise of the loss of a batch, nats per token, beyond which a change is taken back
    #[arg(long, value_name = "NATS", default_value_t = 0.02, requires = "mover", help_heading = "Ranks that change")]
    max_rank_rise: f64,
    /// Free text to keep with the pack
    #[arg(long, value_name = "TEXT", default_value = "")]
    notes: String,
    /// Replace a pack of this name, or an unfinished training of it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    rules: RuleArgs,
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

fn split(text: &str) -> Result<(String, &str), String> {
    let (slices, value) = text.rsplit_once([':', '=']).ok_or("expected SLICES:NUMBER, as q:8")?;
    Ok((slices.trim().to_owned(), value.trim()))
}

fn rank_rule(text: &str) -> Result<Rule<u32>, String> {
    let (slices, value) = split(text)?;
    Ok(Rule { slices, value: value.parse().map_err(|_| format!("{value} is no rank"))? })
}

fn alpha_rule(text: &str) -> Result<Rule<f32>, String> {
    let (slices, value) = split(text)?;
    Ok(Rule { slices, value: value.parse().map_err(|_| format!("{value} is no number"))? })
}

/// Trains a pack.
///
/// # Errors
/// When the options, the base or the text are wrong, or the training fails.
pub fn run(a: &CreateArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let mut layers: Vec<String> = a.layers.iter().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
    let mut rules = a.rank_map.clone();
    let map = match (&a.rank_map_json, &a.rank_map_from_pack) {
        (Some(path), _) => Some(ranks::read(path)?),
        (_, Some(pack)) => Some(store.read(pack)?.meta.rank_map),
        _ => None,
    };
    if let Some(mut map) = map {
        map.retain(|_, rank| *rank > 0);
        if map.is_empty() {
            bail!("the map of ranks has no adapter of rank 1 or more");
        }
        layers = map.keys().cloned().collect();
        rules = map.into_iter().map(|(slices, value)| Rule { slices, value }).collect();
    }
    let data = locate::text(&a.data, "", "--data", Purpose::Learn, g)?;
    let valid = a.valid_data.as_ref().map(|v| locate::text(v, "", "--valid-data", Purpose::Judge, g)).transpose()?;
    let options = Options {
        name: a.name.clone(),
        base: a.base.clone(),
        data: absolute(&data)?,
        valid: valid.as_deref().map(absolute).transpose()?,
        valid_share: a.valid_share,
        layers,
        rank: if a.dynamic_rank { a.dynamic_initial_rank } else { a.rank.unwrap_or(8) },
        ranks: rules,
        auto: a.rank_strategy.map(|strategy| Auto { strategy, share: a.target_compression }),
        min_rank: a.min_rank,
        alpha: a.alpha,
        alphas: a.alpha_map.clone(),
        rslora: a.rslora,
        dora: a.dora,
        from_pack: a.from_pack.clone(),
        steps: a.steps,
        batch: a.batch_size,
        accumulate: a.grad_accumulation,
        sequence_length: a.sequence_length,
        loss: a.loss,
        packing: !a.no_packing,
        optimizer: a.optimizer,
        learning_rate: a.learning_rate.unwrap_or(if a.optimizer == Method::Sgd { 0.1 } else { 1e-3 }),
        warmup: a.warmup,
        schedule: a.schedule,
        final_rate: a.final_rate,
        beta1: a.beta1,
        beta2: a.beta2,
        epsilon: a.epsilon,
        weight_decay: a.weight_decay,
        momentum: a.momentum,
        clip: a.grad_clip,
        dropout: a.lora_dropout,
        seed: a.seed,
        valid_every: a.valid_every,
        valid_windows: a.valid_windows,
        patience: a.patience,
        checkpoint_every: a.checkpoint_every,
        recompute: a.grad_checkpoint,
        fp16_base: a.train_fp16_fallback,
        ranks_by: ranks_by(a)?,
        profile: a.profile,
        notes: a.notes.clone(),
    };
    if let Err(why) = options.check() {
        note!("error: {why}");
        return Ok(ExitCode::from(2));
    }
    training::begin(options, a.force, store, g)
}

fn ranks_by(a: &CreateArgs) -> anyhow::Result<Option<RankOptions>> {
    let mut policies: Vec<Choice> = a.policy.iter().map(Choice::new).collect();
    let most = a.rank.unwrap_or(8).max(a.dynamic_initial_rank);
    if a.dynamic_rank {
        let mut choice = Choice::new("dynamic-rank");
        for (name, value) in [("grow", a.dynamic_grow_threshold), ("prune", a.dynamic_prune_threshold)] {
            choice.options.insert(name.into(), toml::Value::Float(value));
        }
        choice.options.insert("min_rank".into(), toml::Value::Integer(a.dynamic_min_rank.into()));
        policies.push(choice);
    }
    if policies.is_empty() {
        return Ok(None);
    }
    set_options("--policy-opt", &a.policy_opt, &mut policies.iter_mut().collect::<Vec<_>>())?;
    Ok(Some(RankOptions {
        policies,
        sha256: Vec::new(),
        // It bounds each slice, not their sum.
        budget: a.rank_budget.or(a.dynamic_rank.then_some(u32::MAX >> 1)),
        share: a.budget,
        most: a.max_rank.unwrap_or(if a.dynamic_rank { most } else { 0 }),
        interval: a.rank_interval,
        warmup: a.rank_warmup,
        max_rise: a.max_rank_rise,
        rules: a.rules.over(Rules::default())?,
    }))
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    Ok(std::path::absolute(path)?)
}
