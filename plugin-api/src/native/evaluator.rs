//! The table of an evaluator, and the host's measurements as the SDK's [`Measure`].

use super::{Description, call, create, destroy, emit_info, last_error, read};
use crate::abi::{self, Context, Emit, Facts, Info, Instance, Misread, Reader, Sized32, Str, View};
use crate::evaluator::{Evaluator, EvaluatorAdapter, ExportedEvaluator, Measure, Subject};
use crate::options::Options;
use crate::records::{Attribute, Example, Metric, Value};
use crate::verdict::{Decision, Verdict};
use std::ffi::c_void;

/// The exported symbol of an evaluator's library.
pub const fn evaluator_entry<E: ExportedEvaluator>() -> abi::Entry {
    abi::Entry {
        magic: abi::MAGIC,
        abi_major: abi::MAJOR,
        struct_size: size_of::<abi::Entry>() as u32,
        min_host_minor: 0,
        abi_minor: abi::MINOR,
        kind: abi::EVALUATOR,
        get: Some(get::<E>),
    }
}

struct Tables<E>(std::marker::PhantomData<E>);

impl<E: ExportedEvaluator> Tables<E> {
    const EVALUATOR: &'static abi::Evaluator = &abi::Evaluator {
        struct_size: size_of::<abi::Evaluator>() as u32,
        reserved: 0,
        create: Some(make::<E>),
        destroy: Some(destroy::<Body<E>>),
        describe: Some(describe::<E>),
        configure: Some(configure::<E>),
        evaluate: Some(evaluate::<E>),
        last_error: Some(last_error::<Body<E>>),
        get_extension: Some(extension),
    };
}

type Body<E> = EvaluatorAdapter<<E as ExportedEvaluator>::Evaluator>;

// SAFETY of all that follows: the host keeps to the header; what it must keep to stands there.

unsafe extern "C" fn get<E: ExportedEvaluator>(_host_minor: u32) -> *const c_void {
    std::ptr::from_ref(Tables::<E>::EVALUATOR).cast()
}

unsafe extern "C" fn make<E: ExportedEvaluator>(host: *const abi::Host, to: *mut Instance) -> i32 {
    // SAFETY: the host's.
    unsafe { create(host, to, Body::<E>::new) }
}

unsafe extern "C" fn describe<E: ExportedEvaluator>(this: Instance, emit: Emit<*const Info>, to: Context) -> i32 {
    // SAFETY: the host's.
    unsafe {
        call::<Body<E>>(this, |_| {
            let description = Description {
                phases: Vec::new(),
                needs: Vec::new(),
                schema: <E::Evaluator as Evaluator>::Options::schema(),
                attributes: match E::Evaluator::METRICS {
                    [] => Vec::new(),
                    names => {
                        let names = names.iter().map(|n| n.to_string()).collect();
                        vec![Attribute { name: "metrics".into(), value: Value::Texts(names) }]
                    }
                },
            };
            emit_info(E::IDENTITY, &description, emit, to);
            Ok(())
        })
    }
}

unsafe extern "C" fn configure<E: ExportedEvaluator>(this: Instance, options: Str) -> i32 {
    // SAFETY: the host's.
    unsafe { call::<Body<E>>(this, |e| Ok(e.configure(Reader::new(usize::MAX).str(options, "options")?)?)) }
}

unsafe extern "C" fn evaluate<E: ExportedEvaluator>(
    this: Instance,
    task: *const abi::Task,
    measure: *const abi::Measure,
    emit: Emit<*const abi::Verdict>,
    to: Context,
) -> i32 {
    // SAFETY: the host's.
    unsafe {
        call::<Body<E>>(this, |evaluator| {
            let reader = &mut Reader::new(usize::MAX);
            let task = read::task(reader, task)?;
            let host = Host(reader.one(measure, size_of::<abi::Measure>(), "the table of measurements")?);
            emit_verdict(&evaluator.evaluate(&task, &host)?, emit, to);
            Ok(())
        })
    }
}

unsafe extern "C" fn extension(_: Instance, _: Str) -> *const c_void {
    std::ptr::null()
}

fn emit_verdict(verdict: &Verdict, emit: Emit<*const abi::Verdict>, to: Context) {
    let decision = match verdict.decision {
        Decision::Accept => abi::decision::ACCEPT,
        Decision::Reject => abi::decision::REJECT,
        Decision::Abstain => abi::decision::ABSTAIN,
    };
    let (metrics, facts) = (abi::lend_metrics(&verdict.metrics), Facts::of(&verdict.attributes));
    let reason = Str::of(&verdict.reason);
    let (metrics, attributes) = (View::of(&metrics), facts.view());
    emit(to, &abi::Verdict { decision, reason, metrics, attributes, ..abi::Verdict::new() });
}

/// The host, for the time of one call of `evaluate`.
struct Host(abi::Measure);

/// An answer on its way: what the emit function of this type puts there.
struct Slot<T>(Option<Result<T, Misread>>);

/// Declares an emit function that reads the host's answer into a [`Slot`].
macro_rules! emits {
    ($($name:ident: $from:ty => $to:ty = |$reader:ident, $answer:ident| $read:expr;)*) => {$(
        extern "C" fn $name(to: Context, $answer: $from) {
            let $reader = &mut Reader::new(usize::MAX);
            // SAFETY: `to` is the slot that went with the question; the answer is the host's.
            unsafe { (*to.cast::<Slot<$to>>()).0 = Some($read) };
        }
    )*};
}

emits! {
    take_tokens: View<u32> => Vec<u32> = |reader, answer| reader.list(answer, "tokens").map(<[u32]>::to_vec);
    take_rows: View<View<f32>> => Vec<Vec<f32>> = |reader, answer| reader.rows(answer, "rows");
    take_text: Str => String = |reader, answer| reader.string(answer, "text");
    take_metrics: View<abi::Metric> => Vec<Metric> = |reader, answer| abi::metrics(reader, answer, "metrics");
    take_example: *const abi::Question => Example = |reader, answer| question(reader, answer);
}

unsafe fn question(reader: &mut Reader, at: *const abi::Question) -> Result<Example, Misread> {
    // SAFETY: the host's.
    unsafe {
        let q = reader.one(at, size_of::<abi::Question>(), "question")?;
        Ok(Example { prompt: reader.string(q.prompt, "prompt")?, answer: reader.string(q.answer, "answer")? })
    }
}

impl Host {
    /// Asks a question whose answer, of type `T`, comes through `take`.
    fn ask<T, F>(
        &self,
        take: Emit<F>,
        ask: impl FnOnce(&abi::Measure, Context, Emit<F>, Context) -> Option<i32>,
    ) -> Result<T, String> {
        let mut slot: Slot<T> = Slot(None);
        let code = ask(&self.0, self.0.context, take, (&raw mut slot).cast());
        match (code, slot.0) {
            (None, _) => Err("the host has no such measurement".into()),
            (Some(abi::OK), Some(Ok(answer))) => Ok(answer),
            (Some(abi::OK), Some(Err(why))) => Err(format!("the host's answer cannot be read: {why:?}")),
            (Some(abi::OK), None) => Err("the host gave no answer".into()),
            (Some(_), _) => Err(self.why()),
        }
    }

    fn why(&self) -> String {
        let mut slot: Slot<String> = Slot(None);
        if let Some(last_error) = self.0.last_error {
            last_error(self.0.context, take_text, (&raw mut slot).cast());
        }
        slot.0.and_then(Result::ok).unwrap_or_else(|| "the host does not say why".into())
    }
}

impl Measure for Host {
    fn windows(&self) -> u32 {
        self.0.windows.map_or(0, |f| f(self.0.context))
    }
    fn window(&self, index: u32) -> Result<Vec<u32>, String> {
        self.ask(take_tokens, |m, cx, emit, to| Some(m.window?(cx, index, emit, to)))
    }
    fn score(&self, subject: Subject, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        let sequences: Vec<View<u32>> = sequences.iter().map(|s| View::of(s)).collect();
        let (subject, sequences) = (Str::of(subject.as_str()), View::of(&sequences));
        self.ask(take_rows, |m, cx, emit, to| Some(m.score?(cx, subject, sequences, emit, to)))
    }
    fn score_windows(&self, subject: Subject, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        let (subject, indices) = (Str::of(subject.as_str()), View::of(indices));
        self.ask(take_rows, |m, cx, emit, to| Some(m.score_windows?(cx, subject, indices, emit, to)))
    }
    fn generate(&self, subject: Subject, prompt: &str, max_tokens: u32) -> Result<String, String> {
        let (subject, prompt) = (Str::of(subject.as_str()), Str::of(prompt));
        self.ask(take_text, |m, cx, emit, to| Some(m.generate?(cx, subject, prompt, max_tokens, emit, to)))
    }
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        self.ask(take_tokens, |m, cx, emit, to| Some(m.tokenize?(cx, Str::of(text), emit, to)))
    }
    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        self.ask(take_text, |m, cx, emit, to| Some(m.detokenize?(cx, View::of(tokens), emit, to)))
    }
    fn counters(&self, subject: Subject) -> Result<Vec<Metric>, String> {
        let subject = Str::of(subject.as_str());
        self.ask(take_metrics, |m, cx, emit, to| Some(m.counters?(cx, subject, emit, to)))
    }
    fn divergence(&self, reference: Subject, of: Subject, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        let (reference, of) = (Str::of(reference.as_str()), Str::of(of.as_str()));
        let indices = View::of(indices);
        self.ask(take_rows, |m, cx, emit, to| Some(m.divergence?(cx, reference, of, indices, emit, to)))
    }
    fn examples(&self) -> u32 {
        self.0.examples.map_or(0, |f| f(self.0.context))
    }
    fn example(&self, index: u32) -> Result<Example, String> {
        self.ask(take_example, |m, cx, emit, to| Some(m.example?(cx, index, emit, to)))
    }
    fn timing(&self, subject: Subject, prompt_tokens: u32, new_tokens: u32) -> Result<Vec<Metric>, String> {
        let subject = Str::of(subject.as_str());
        self.ask(take_metrics, |m, cx, emit, to| Some(m.timing?(cx, subject, prompt_tokens, new_tokens, emit, to)))
    }
}
