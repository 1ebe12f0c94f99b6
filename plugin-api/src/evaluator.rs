//! What an evaluator implements, what it may ask of the host, and how it becomes a plugin.

use crate::bindings::evaluator::exports::plastic::rank::judge as wit;
use crate::bindings::evaluator::plastic::rank::types;
use crate::convert;
use crate::options::{self, Options};
use crate::policy::Identity;
use crate::records::{Example, Metric};
use crate::verdict::{Task, Verdict};
use std::cell::RefCell;
use std::thread::LocalKey;

/// An evaluator: measures the changed model through the host and accepts or rejects the change.
///
/// The host calls `configure` once, then `evaluate` once a step. Draw randomness from
/// [`Task::seed`].
pub trait Evaluator: Default + 'static {
    /// What it can be told; [`NoOptions`](crate::NoOptions) for nothing.
    type Options: Options;

    /// Names of the metrics its verdicts carry, told to policies before the run.
    const METRICS: &'static [&'static str] = &[];

    /// Takes the options; the host calls it once.
    ///
    /// # Errors
    /// A sentence for the operator that names the option and what is allowed.
    fn configure(&mut self, options: Self::Options) -> Result<(), String> {
        let _ = options;
        Ok(())
    }

    /// Judges the candidate.
    ///
    /// # Errors
    /// A sentence for the operator; the candidate is rolled back.
    fn evaluate(&mut self, task: &Task, host: &dyn Measure) -> Result<Verdict, String>;
}

/// Which model to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Everything awake.
    Base,
    /// The last committed state.
    Current,
    /// The state under judgement.
    Candidate,
}

impl Subject {
    /// Its name in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Subject::Base => "base",
            Subject::Current => "current",
            Subject::Candidate => "candidate",
        }
    }
}

/// What an evaluator may ask of the host. The time the host takes does not count against the
/// evaluator's time limit. Every error is a sentence of the host; pass it on with `?`.
pub trait Measure {
    /// Number of windows of evaluation text.
    fn windows(&self) -> u32;

    /// Token ids of one window.
    ///
    /// # Errors
    /// There is no such window.
    fn window(&self, index: u32) -> Result<Vec<u32>, String>;

    /// Log-probabilities (nats, at most 0) of tokens 1.. of each sequence, given the tokens before.
    ///
    /// # Errors
    /// A sequence is too short, too long or has unknown ids, or the model failed.
    fn score(&self, subject: Subject, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String>;

    /// The same for windows of the evaluation text. Ask for several at once: the host batches them.
    ///
    /// # Errors
    /// There is no such window, or the model failed.
    fn score_windows(&self, subject: Subject, indices: &[u32]) -> Result<Vec<Vec<f32>>, String>;

    /// Text that follows the prompt, greedily decoded.
    ///
    /// # Errors
    /// The prompt is too long, or the model failed.
    fn generate(&self, subject: Subject, prompt: &str, max_tokens: u32) -> Result<String, String>;

    /// Text to token ids.
    ///
    /// # Errors
    /// The tokenizer failed.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String>;

    /// Token ids to text.
    ///
    /// # Errors
    /// There is no such token.
    fn detokenize(&self, tokens: &[u32]) -> Result<String, String>;

    /// Counters: `scored-tokens-per-second`, `awake-parameters`, `resident-bytes`, `peak-bytes`.
    ///
    /// # Errors
    /// The model failed.
    fn counters(&self, subject: Subject) -> Result<Vec<Metric>, String>;

    /// Kullback-Leibler divergence of the next-token distributions, `of` from `reference`, in nats,
    /// at tokens 1.. of each window: Σ_v p_reference(v) (ln p_reference(v) − ln p_of(v)).
    ///
    /// # Errors
    /// There is no such window, or the model failed.
    fn divergence(&self, reference: Subject, of: Subject, indices: &[u32]) -> Result<Vec<Vec<f32>>, String>;

    /// Number of prompts with answers in the evaluation text.
    fn examples(&self) -> u32;

    /// One prompt with its answer.
    ///
    /// # Errors
    /// There is no such example.
    fn example(&self, index: u32) -> Result<Example, String>;

    /// Decodes `new_tokens` after a prompt of `prompt_tokens`, and measures `first-token-ms`,
    /// `token-ms` (median; the interval is the 5th and 95th percentile) and
    /// `decode-tokens-per-second`.
    ///
    /// # Errors
    /// The lengths do not fit the model, or the model failed.
    fn timing(&self, subject: Subject, prompt_tokens: u32, new_tokens: u32) -> Result<Vec<Metric>, String>;
}

/// The host itself, by the imports of the world.
struct Host;

mod imports {
    pub use crate::bindings::evaluator::plastic::rank::measure::*;
}

impl Measure for Host {
    fn windows(&self) -> u32 {
        imports::windows()
    }
    fn window(&self, index: u32) -> Result<Vec<u32>, String> {
        imports::window(index)
    }
    fn score(&self, subject: Subject, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        imports::score(subject.as_str(), sequences)
    }
    fn score_windows(&self, subject: Subject, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        imports::score_windows(subject.as_str(), indices)
    }
    fn generate(&self, subject: Subject, prompt: &str, max_tokens: u32) -> Result<String, String> {
        imports::generate(subject.as_str(), prompt, max_tokens)
    }
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        imports::tokenize(text)
    }
    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        imports::detokenize(tokens)
    }
    fn counters(&self, subject: Subject) -> Result<Vec<Metric>, String> {
        Ok(imports::counters(subject.as_str())?.into_iter().map(convert::metric_from_evaluator).collect())
    }
    fn divergence(&self, reference: Subject, of: Subject, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        imports::divergence(reference.as_str(), of.as_str(), indices)
    }
    fn examples(&self) -> u32 {
        imports::examples()
    }
    fn example(&self, index: u32) -> Result<Example, String> {
        imports::example(index).map(|e| Example { prompt: e.prompt, answer: e.answer })
    }
    fn timing(&self, subject: Subject, prompt_tokens: u32, new_tokens: u32) -> Result<Vec<Metric>, String> {
        let metrics = imports::timing(subject.as_str(), prompt_tokens, new_tokens)?;
        Ok(metrics.into_iter().map(convert::metric_from_evaluator).collect())
    }
}

/// An evaluator in its plugin.
pub struct EvaluatorAdapter<E> {
    evaluator: E,
}

impl<E: Evaluator> EvaluatorAdapter<E> {
    /// A fresh evaluator. Installs the panic hook first, so that nothing of it can fail in silence.
    #[allow(clippy::new_without_default, reason = "it has an effect beyond the value")]
    pub fn new() -> Self {
        crate::logging::install_panic_hook();
        EvaluatorAdapter { evaluator: E::default() }
    }

    /// Options as JSON.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn configure(&mut self, options: &str) -> Result<(), String> {
        self.evaluator.configure(options::parse(options)?)
    }

    /// Judges the candidate.
    ///
    /// # Errors
    /// The evaluator's own, or the host's.
    pub fn evaluate(&mut self, task: &Task, host: &dyn Measure) -> Result<Verdict, String> {
        self.evaluator.evaluate(task, host)
    }
}

/// Made by [`export_evaluator!`](crate::export_evaluator!): where the one instance lives.
pub trait ExportedEvaluator {
    /// The evaluator.
    type Evaluator: Evaluator;
    /// Who it is.
    const IDENTITY: Identity;
    /// The instance.
    fn instance() -> &'static LocalKey<RefCell<EvaluatorAdapter<Self::Evaluator>>>;
}

impl<E: ExportedEvaluator> wit::Guest for E {
    fn describe() -> wit::Info {
        let id = E::IDENTITY;
        // Creates the instance and with it the panic hook.
        E::instance().with_borrow(|_| ());
        wit::Info {
            name: id.name.into(),
            version: id.version.into(),
            summary: id.summary.into(),
            phases: Vec::new(),
            needs: Vec::new(),
            options_schema: <E::Evaluator as Evaluator>::Options::schema(),
            attributes: match E::Evaluator::METRICS {
                [] => Vec::new(),
                names => {
                    let names = names.iter().map(|n| n.to_string()).collect();
                    vec![types::Attribute { name: "metrics".into(), value: types::Value::Texts(names) }]
                }
            },
        }
    }

    fn configure(options: String) -> Result<(), String> {
        E::instance().with_borrow_mut(|e| e.configure(&options))
    }

    fn evaluate(task: wit::Task) -> Result<wit::Verdict, String> {
        let task = convert::task(task);
        E::instance().with_borrow_mut(|e| e.evaluate(&task, &Host)).map(convert::verdict)
    }
}

/// Makes an [`Evaluator`] the plugin of this crate.
///
/// Name, version and summary come from `Cargo.toml`; `export_evaluator!(MyJudge, name: "short")`
/// gives another name.
#[macro_export]
macro_rules! export_evaluator {
    ($evaluator:ty) => {
        $crate::export_evaluator!($evaluator, name: ::core::env!("CARGO_PKG_NAME"));
    };
    ($evaluator:ty, name: $name:expr) => {
        const _: () = {
            ::std::thread_local! {
                static INSTANCE: ::std::cell::RefCell<$crate::__private::EvaluatorAdapter<$evaluator>> =
                    ::std::cell::RefCell::new($crate::__private::EvaluatorAdapter::new());
            }

            struct Exported;

            impl $crate::__private::ExportedEvaluator for Exported {
                type Evaluator = $evaluator;
                const IDENTITY: $crate::__private::Identity = $crate::__private::Identity {
                    name: $name,
                    version: ::core::env!("CARGO_PKG_VERSION"),
                    summary: ::core::env!("CARGO_PKG_DESCRIPTION"),
                };
                fn instance()
                -> &'static ::std::thread::LocalKey<::std::cell::RefCell<$crate::__private::EvaluatorAdapter<$evaluator>>>
                {
                    &INSTANCE
                }
            }

            #[cfg(target_arch = "wasm32")]
            $crate::__private::evaluator::export_evaluator_world!(Exported with_types_in $crate::__private::evaluator);

            $crate::__native_entry!(evaluator_entry, Exported);
        };
    };
}
