//! `plastic-host demo`: a model under a load that rises and falls, and a policy that moves its ranks.

use super::demo_view::{self, View};
use super::interrupt::Interrupt;
use super::locate::Purpose;
use super::rules::{self, RuleArgs};
use super::run::set_options;
use super::{Global, base, locate, session, ui};
use crate::eval::data;
use crate::mlx;
use crate::model::{LoadOptions, Model, Tokenizer, paths, registry};
use crate::plastic::config::{Choice, RunConfig};
use crate::plastic::demo::load::{self, MOST_REQUESTS, MOST_STEPS, Shape};
use crate::plastic::demo::log::Log;
use crate::plastic::demo::{Demo, DemoError, METRICS, Parts, Stage, serve};
use crate::plastic::elastic::Elastic;
use crate::plastic::policies::{Policies, Seat};
use crate::plastic::statistic::Statistic;
use crate::plugin::contract::{Attribute, Info, Run, Value};
use crate::plugin::{self, Policy, Rules};
use anyhow::{Context, bail};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Requests the idle speed is measured with.
const IDLE_REQUESTS: usize = 5;
/// Prompts that requests are drawn from.
const PROMPTS: usize = 64;

/// Options of `demo`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  plastic-host demo                                      ten steps, the policy guardrail, one wave of requests
  plastic-host demo --load spike --steps 16 --peak 12 --svg demo.svg
  plastic-host demo --load load.txt --pause 1            requests at each step from a file, slowly
  plastic-host demo --policy-opt step=0.1 --log out/plasticity.jsonl
  plastic-host demo --strategy stable --compress 0.9999 --delta 0.05 --log out/plasticity.jsonl
                                                         the controller of mlx-plastic-rank: it follows the loss, not the load

The load file has whole numbers, separated by spaces, commas or line ends; # begins a comment."
)]
pub struct DemoArgs {
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    base: Option<String>,
    /// Rank policy, by name or file; given again, the later one revises the plan of the one before [default: guardrail]
    #[arg(long, short, value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// Option of a policy, `name=value`, or `policy:name=value` where there are several
    #[arg(long, value_name = "NAME=VALUE")]
    policy_opt: Vec<String>,
    /// Steps [default: 10, or as many as the load file has]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MOST_STEPS as i64))]
    steps: Option<u32>,
    /// How requests come: wave, ramp, spike, or a file with their number at each step
    #[arg(long, value_name = "SHAPE", default_value = "wave")]
    load: String,
    /// Requests at the top of a shape
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MOST_REQUESTS as i64))]
    peak: u32,
    /// Seed of the prompts that come, and of the policy
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Wait so long after each step, for people who watch
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pause: f64,
    /// Write a picture of all steps
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write each change of each slice as a line of JSON
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Share of the slices' parameters that may be awake [default: 1 for policies of the phase serve, else 0.9]
    #[arg(long, value_name = "SHARE")]
    budget: Option<f64>,
    /// Only slices whose name matches, such as 'model.layers.1?.mlp.*'; may be repeated
    #[arg(long, value_name = "GLOB")]
    layers: Vec<String>,
    /// Text of the prompts and of the loss: a .jsonl or .txt file, or a data set of the hub [default: data/eval.jsonl]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Calibration text, where the policy needs some; named likewise [default: data/calibration.jsonl]
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Tokens of a request
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=4096))]
    request_tokens: u32,
    /// Speed that a request shall see at least, as a share of what it sees alone on the idle base; sets min_tokens_per_second of a policy that has it
    #[arg(long, value_name = "SHARE", default_value_t = 0.4)]
    target: f64,
    /// Rounds in which the requests of a step come, one after the other; the round of median speed counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Windows of 128 tokens the loss is measured on after each change
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    windows: u32,
    /// As in mlx-plastic-rank: its controller, the policy plateau. stable and theorem choose the same ranks there and here
    #[arg(long, value_enum, conflicts_with = "policy")]
    strategy: Option<Strategy>,
    /// As in mlx-plastic-rank: share of a slice's energy that its wanted rank holds (plateau's `energy`)
    #[arg(long, value_name = "SHARE", conflicts_with = "policy")]
    compress: Option<f64>,
    /// As in mlx-plastic-rank: the loss is flat where it changes less than this (plateau's `delta`)
    #[arg(long, value_name = "NATS", conflicts_with = "policy")]
    delta: Option<f64>,
    #[command(flatten)]
    rules: RuleArgs,
}

/// How mlx-plastic-rank calls its rank rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Strategy {
    /// Ranks by energy.
    Stable,
    /// The same ranks; the identity it is named after never changed one.
    Theorem,
}

/// Tokens of a window of the loss.
const WINDOW: usize = 128;

impl DemoArgs {
    /// What is wrong with figures that clap does not check.
    fn wrong(&self) -> Option<String> {
        if !(0.0..=3600.0).contains(&self.pause) {
            return Some(format!("--pause is {}; it must be from 0 to 3600 seconds", self.pause));
        }
        let shares = [("--budget", self.budget), ("--target", Some(self.target))];
        let wrong = |share: f64| !(share > 0.0 && share <= 1.0);
        let found = shares.into_iter().find_map(|(name, share)| Some((name, share.filter(|s| wrong(*s))?)));
        found.map(|(name, share)| format!("{name} is {share}; it must be above 0 and at most 1"))
    }

    /// The policies with the options given on the command line.
    fn choices(&self) -> anyhow::Result<Vec<Choice>> {
        let original = self.strategy.is_some() || self.compress.is_some() || self.delta.is_some();
        let mut choices: Vec<Choice> = match self.policy.is_empty() {
            false => self.policy.iter().map(Choice::new).collect(),
            true => vec![Choice::new(if original { "plateau" } else { "guardrail" })],
        };
        if let Some(plateau) = choices.first_mut().filter(|_| original) {
            let mut set = |name: &str, value| drop(plateau.options.insert(name.into(), toml::Value::Float(value)));
            if let Some(share) = self.compress {
                set("energy", share);
            }
            if let Some(delta) = self.delta {
                set("delta", delta);
                // What rises is not flat.
                set("gamma", delta.max(0.2));
            }
        }
        set_options("--policy-opt", &self.policy_opt, &mut choices.iter_mut().collect::<Vec<_>>())?;
        Ok(choices)
    }

    /// Requests at each step.
    fn requests(&self) -> anyhow::Result<Vec<u32>> {
        if let Some(shape) = Shape::parse(&self.load) {
            return Ok(shape.requests(self.steps.unwrap_or(10), self.peak));
        }
        let read = load::read(Path::new(&self.load)).context("--load")?;
        let steps = self.steps.map_or(read.len(), |s| s as usize);
        Ok(read.iter().copied().cycle().take(steps).collect())
    }
}

/// The policies as they are before they are configured: their phase depends on all of them.
struct Chosen {
    choices: Vec<Choice>,
    policies: Vec<Box<dyn Policy>>,
}

impl Chosen {
    fn load(args: &DemoArgs) -> anyhow::Result<Chosen> {
        let mut choices = args.choices()?;
        let loader = rules::loader(args.rules.over(Rules::default())?);
        let mut policies = Vec::with_capacity(choices.len());
        for c in &mut choices {
            c.file = locate::plugin(&c.file, Some(&loader))?;
            // Wrong options are said before a model is loaded; what is measured of it is added later.
            let mut trial = loader.policy(&c.file)?;
            trial.configure(&session::options_for(trial.info(), &c.options)?)?;
            policies.push(loader.policy(&c.file)?);
        }
        Ok(Chosen { choices, policies })
    }

    fn infos(&self) -> impl Iterator<Item = &Info> {
        self.policies.iter().map(|p| p.info())
    }

    /// `serve` where all policies know it, else `compress`.
    fn phase(&self) -> anyhow::Result<&'static str> {
        let without = |phase: &str| self.infos().find(|i| !i.phases.iter().any(|p| p == phase));
        match (without("serve"), without("compress")) {
            (None, _) => Ok("serve"),
            (Some(_), None) => Ok("compress"),
            (Some(_), Some(i)) => bail!(
                "{}: serves the phases {}; a demo needs `serve` or `compress`, such as guardrail, hysteresis or plateau have",
                i.name,
                i.phases.join(", ")
            ),
        }
    }

    /// Configures all, with what the demo measured where nothing else was said.
    fn configured(mut self, target: f64) -> anyhow::Result<Policies> {
        let mut line = Vec::new();
        for (mut policy, choice) in self.policies.into_iter().zip(&mut self.choices) {
            let specs = plugin::options::specs(policy.info());
            // One observation with room is enough for a demo; a service may want more.
            let defaults = [
                ("min_tokens_per_second", toml::Value::Float((10.0 * target).round() / 10.0)),
                ("patience", toml::Value::Integer(1)),
            ];
            for (name, value) in defaults {
                if specs.iter().any(|o| o.name == name) {
                    choice.options.entry(name).or_insert(value);
                }
            }
            policy.configure(&session::options_for(policy.info(), &choice.options)?)?;
            line.push(Seat::new(policy));
        }
        Ok(Policies { line, shadows: Vec::new(), fallback: None })
    }
}

/// Runs the demo.
///
/// # Errors
/// When a plugin, a text or the model cannot be had, the model fails, or the base does not come back.
pub fn run(args: &DemoArgs, g: &Global) -> anyhow::Result<ExitCode> {
    if let Some(wrong) = args.wrong() {
        note!("error: {wrong}");
        return Ok(ExitCode::from(2));
    }
    let begun = Instant::now();
    let interrupt = Interrupt::listen()?;
    match play(args, &interrupt, begun, g) {
        Err(e) if interrupt.raised() => {
            ui::fail(&e, g);
            Ok(ExitCode::from(130))
        }
        other => other,
    }
}

fn play(args: &DemoArgs, interrupt: &Interrupt, begun: Instant, g: &Global) -> anyhow::Result<ExitCode> {
    // What is cheap and likely to be wrong comes first.
    let load = args.requests()?;
    let chosen = Chosen::load(args)?;
    let phase = chosen.phase()?;
    let named = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
    let text = locate::text(&named(&args.data), "data/eval.jsonl", "--data", Purpose::Judge, g)?;
    let text = data::load(&text)?;
    let mut log = args.log.as_deref().map(Log::create).transpose().context("--log")?;

    mlx::device::init()?;
    let base = base::open(&args.base, g)?;
    let tokenizer = Tokenizer::load(&base.dir)?;
    let cut = |tokens: usize, count: usize| -> anyhow::Result<Vec<Vec<u32>>> {
        Ok(data::spread(&text.evaluation_windows(&tokenizer, tokens)?, count))
    };
    let prompts = cut(args.request_tokens as usize, PROMPTS)?;
    let check = cut(WINDOW, args.windows as usize)?;
    let model = Model::load(&base.dir, &LoadOptions::default())?;
    let idle = serve::idle_speed(&model, prompts.get(..IDLE_REQUESTS).unwrap_or(&prompts))?;
    let policies = chosen.configured(args.target * idle)?;
    let needs_text = policies.needs().iter().any(|n| Statistic::parse(n).is_some_and(Statistic::needs_moments));
    let moments = match needs_text {
        false => None,
        true => {
            // As a run has them, so that either finds what the other gathered.
            let found = &named(&args.calibration);
            let found = locate::text(found, "data/calibration.jsonl", "--calibration", Purpose::Learn, g)?;
            let config = RunConfig { calibration: found, ..RunConfig::default() };
            let count = config.calibration_windows;
            let (_, windows) = session::text_windows(&config.calibration, count, &config, &tokenizer, "calibration")?;
            let id = session::identity(&registry::checkpoint_hash(&base.dir)?, &[]);
            let cache = paths::cache_dir();
            Some(session::calibrate(&model, &id, &session::pass(&config, &windows), cache.as_deref(), interrupt, g)?)
        }
    };
    let layers = session::choose(&model, &args.layers)?;
    let elastic = Elastic::new(model, layers);
    let parameters: u64 = elastic.slices().iter().map(|s| s.dense_parameters).sum();
    let share = args.budget.unwrap_or(if phase == "serve" { 1.0 } else { 0.9 });
    let metrics = Value::Texts(METRICS.iter().map(|m| (*m).to_owned()).collect());
    let run = Run {
        phase: phase.into(),
        seed: args.seed,
        steps: load.len() as u32,
        parameters,
        budget: (parameters as f64 * share).floor() as u64,
        attributes: vec![Attribute { name: "metrics".into(), value: metrics }],
    };
    let cast: Vec<String> = policies.infos().iter().map(|i| format!("{} {}", i.name, i.version)).collect();
    let strategy = match args.strategy {
        Some(Strategy::Stable) => "stable".into(),
        Some(Strategy::Theorem) => "theorem".into(),
        None => policies.infos().iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(" → "),
    };
    let slices = elastic.slices().len();
    let mut demo = Demo::new(Parts {
        elastic,
        policies,
        moments,
        run,
        load: load.clone(),
        rounds: args.rounds,
        prompts,
        check,
        strategy,
    })?;
    let view = View::new(
        demo_view::About {
            base: base.id,
            policies: cast,
            phase: phase.into(),
            slices,
            parameters,
            budget: share,
            load,
            idle_tokens_per_second: idle,
            target_tokens_per_second: args.target * idle,
            loss: demo.base_loss(),
        },
        g,
    );
    view.opening();

    let mut steps = Vec::new();
    let mut progress = Progress { global: g, interrupt, bar: None, steps: view.steps() };
    loop {
        let number = steps.len() + 1;
        let step = demo.step(&mut |stage, done, total| progress.tell(number, stage, done, total));
        progress.clear();
        let Some(step) = step? else { break };
        if let Some(log) = &mut log {
            log.append(&step.events).context("--log")?;
        }
        view.step(&step);
        let is_last = steps.len() + 1 == view.steps();
        steps.push(step);
        if !is_last {
            rest(args.pause, interrupt)?;
        }
    }
    let woken = demo.wake()?;
    if let Some(path) = &args.svg {
        crate::atomic::write_file(path, view.svg(&steps, &woken).as_bytes()).context("--svg")?;
    }
    view.closing(&steps, &woken, args.log.as_deref(), args.svg.as_deref(), begun.elapsed())?;
    if !woken.identical {
        bail!("waking everything did not restore the base's outputs; please report this");
    }
    Ok(ExitCode::SUCCESS)
}

/// A bar while a step works, on standard error.
struct Progress<'a> {
    global: &'a Global,
    interrupt: &'a Interrupt,
    bar: Option<(Stage, ProgressBar)>,
    steps: usize,
}

impl Progress<'_> {
    fn tell(&mut self, step: usize, stage: Stage, done: u64, total: u64) -> bool {
        if self.bar.as_ref().is_none_or(|(s, _)| *s != stage) {
            self.clear();
            let what = match stage {
                Stage::Serve => "serving",
                Stage::Spectra => "measuring spectra",
                Stage::Apply => "factoring",
                Stage::Check => "scoring",
            };
            let bar = ui::bar(self.global, total, &format!("step {step}/{} {what}", self.steps));
            self.bar = Some((stage, bar));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
        !self.interrupt.raised()
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Waits, but not for longer than until Ctrl-C.
fn rest(seconds: f64, interrupt: &Interrupt) -> Result<(), DemoError> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    loop {
        if interrupt.raised() {
            return Err(DemoError::Interrupted);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}
