//! An evaluator's instance in this process, and the table of measurements it is lent for one call.
//! The questions are answered on the calling thread, inside the call.
#![allow(unsafe_code, reason = "calls a native library, and is called back by it")]

use super::super::Measure;
use super::super::contract::{Info, Metric, Task, Verdict};
use super::abi::{self, Context, Emit, Instance, Misread, Reader, Sized32, Str, View};
use super::kept::EvaluatorInstance;
use super::library::Loaded;
use super::policy::{HostSide, LastError, Slot, check, emits, lacks, table, take_info};
use super::{Failure, Lines, records};
use std::panic::{AssertUnwindSafe, catch_unwind};

emits! {
    take_verdict: *const abi::Verdict => Verdict = |reader, answer| records::verdict(reader, answer);
}

type Evaluate =
    unsafe extern "C" fn(Instance, *const abi::Task, *const abi::Measure, Emit<*const abi::Verdict>, Context) -> i32;

/// The functions of an evaluator, all there.
#[derive(Clone, Copy)]
struct Functions {
    destroy: unsafe extern "C" fn(Instance),
    describe: unsafe extern "C" fn(Instance, Emit<*const abi::Info>, Context) -> i32,
    configure: unsafe extern "C" fn(Instance, Str) -> i32,
    evaluate: Evaluate,
    last_error: LastError,
}

/// An instance of an evaluator in this process.
pub(super) struct NativeEvaluator {
    functions: Functions,
    this: Instance,
    host: HostSide,
    budget: usize,
}

impl NativeEvaluator {
    /// Makes an instance; `budget` is what it may hand over at once, in bytes.
    ///
    /// # Errors
    /// The table does not fit, or `create` failed.
    pub(super) fn new(loaded: Loaded, lines: Box<dyn Lines>, budget: usize) -> Result<NativeEvaluator, Failure> {
        let t = table::<abi::Evaluator>(loaded, "evaluator")?;
        let lacks = |function| lacks("evaluator", function);
        let create = t.create.ok_or_else(|| lacks("create"))?;
        let functions = Functions {
            destroy: t.destroy.ok_or_else(|| lacks("destroy"))?,
            describe: t.describe.ok_or_else(|| lacks("describe"))?,
            configure: t.configure.ok_or_else(|| lacks("configure"))?,
            evaluate: t.evaluate.ok_or_else(|| lacks("evaluate"))?,
            last_error: t.last_error.ok_or_else(|| lacks("last_error"))?,
        };
        let host = HostSide::new(lines);
        let mut this: Instance = std::ptr::null_mut();
        // SAFETY: the host's table lives until after `destroy`.
        let code = unsafe { create(host.table(), &raw mut this) };
        host.end_of_call();
        check("create", code, std::ptr::null_mut(), functions.last_error)?;
        Ok(NativeEvaluator { functions, this, host, budget })
    }

    /// One call: `f` gets the instance and where the answer goes.
    fn call<T>(
        &mut self,
        function: &str,
        f: impl FnOnce(&Functions, Instance, &mut Slot<T>) -> i32,
    ) -> Result<Slot<T>, Failure> {
        let mut slot = Slot::new(self.budget);
        let code = f(&self.functions, self.this, &mut slot);
        let result = check(function, code, self.this, self.functions.last_error);
        self.host.end_of_call();
        result.map(|()| slot)
    }
}

// SAFETY of all calls below: the instance is good (`create` made it, no other call is going on, it
// is not destroyed), what is lent lives until the call returns, slots have the type of their emit.
impl EvaluatorInstance for NativeEvaluator {
    fn describe(&mut self) -> Result<Info, Failure> {
        // SAFETY: see above.
        self.call("describe", |f, this, slot| unsafe { (f.describe)(this, take_info, slot.to()) })?.answer("describe")
    }

    fn configure(&mut self, options: &str) -> Result<(), Failure> {
        // SAFETY: see above.
        self.call::<()>("configure", |f, this, _| unsafe { (f.configure)(this, Str::of(options)) }).map(drop)
    }

    fn evaluate(&mut self, task: &Task, measure: &mut dyn Measure) -> Result<Verdict, Failure> {
        let mut bench = Bench { measure, error: String::new(), budget: self.budget };
        let measure = measurements(&mut bench);
        let call = |f: &Functions, this, slot: &mut Slot<Verdict>| {
            // SAFETY: see above.
            records::with_task(task, |task| unsafe { (f.evaluate)(this, task, &measure, take_verdict, slot.to()) })
        };
        self.call("evaluate", call)?.answer("evaluate")
    }
}

impl Drop for NativeEvaluator {
    fn drop(&mut self) {
        // SAFETY: the last call on the instance.
        unsafe { (self.functions.destroy)(self.this) };
    }
}

/// What the context of a table of measurements points at.
struct Bench<'a> {
    measure: &'a mut dyn Measure,
    error: String,
    budget: usize,
}

/// The table for one call; its context is `bench`.
fn measurements(bench: &mut Bench<'_>) -> abi::Measure {
    abi::Measure {
        context: std::ptr::from_mut(bench).cast(),
        windows: Some(windows),
        window: Some(window),
        score: Some(score),
        score_windows: Some(score_windows),
        generate: Some(generate),
        tokenize: Some(tokenize),
        detokenize: Some(detokenize),
        counters: Some(counters),
        divergence: Some(divergence),
        examples: Some(examples),
        example: Some(example),
        timing: Some(timing),
        last_error: Some(last_error),
        ..abi::Measure::new()
    }
}

/// Reads a question, measures, hands the answer over. Nothing unwinds into the plugin.
fn answer<T>(
    context: Context,
    ask: impl FnOnce(&mut dyn Measure, &mut Reader) -> Result<Result<T, String>, Misread>,
    emit: impl FnOnce(T),
) -> i32 {
    // SAFETY: the context is the `Bench` of the call that is going on, on this thread.
    let Some(bench) = (unsafe { context.cast::<Bench<'_>>().as_mut() }) else { return abi::MISFIT };
    let reader = &mut Reader::new(bench.budget);
    let asked = catch_unwind(AssertUnwindSafe(|| ask(bench.measure, reader)));
    let error = match asked {
        Ok(Ok(Ok(answer))) => {
            emit(answer);
            return abi::OK;
        }
        Ok(Ok(Err(why))) => why,
        Ok(Err(Misread::Broken(why))) => why,
        Ok(Err(Misread::TooMuch)) => "the question is too long (transfer_bytes)".into(),
        Err(_) => "the host failed to measure".into(),
    };
    bench.error = error;
    abi::REFUSED
}

/// Lends rows to an emit function.
fn emit_rows(rows: &[Vec<f32>], emit: Emit<View<View<f32>>>, to: Context) {
    let rows: Vec<View<f32>> = rows.iter().map(|r| View::of(r)).collect();
    emit(to, View::of(&rows));
}

// SAFETY of all that reads below: what the plugin lends lives until the function returns.

/// Reads a text of a question.
fn text<'a>(reader: &mut Reader, text: Str, what: &str) -> Result<&'a str, Misread> {
    // SAFETY: see above.
    unsafe { reader.str(text, what) }
}

/// Reads numbers of a question.
fn numbers<'a>(reader: &mut Reader, list: View<u32>, what: &str) -> Result<&'a [u32], Misread> {
    // SAFETY: see above.
    unsafe { reader.list(list, what) }
}

extern "C" fn windows(context: Context) -> u32 {
    let mut n = 0;
    answer(context, |m, _| Ok(Ok(m.windows())), |windows| n = windows);
    n
}

extern "C" fn window(context: Context, index: u32, emit: Emit<View<u32>>, to: Context) -> i32 {
    answer(context, |m, _| Ok(m.window(index)), |tokens| emit(to, View::of(&tokens)))
}

extern "C" fn score(
    context: Context,
    subject: Str,
    sequences: View<View<u32>>,
    emit: Emit<View<View<f32>>>,
    to: Context,
) -> i32 {
    let ask = |m: &mut dyn Measure, r: &mut Reader| {
        let subject = text(r, subject, "the subject")?;
        // SAFETY: see above.
        let sequences = unsafe { r.rows(sequences, "the list of sequences")? };
        Ok(m.score(subject, &sequences))
    };
    answer(context, ask, |rows| emit_rows(&rows, emit, to))
}

extern "C" fn score_windows(
    context: Context,
    subject: Str,
    indices: View<u32>,
    emit: Emit<View<View<f32>>>,
    to: Context,
) -> i32 {
    let ask = |m: &mut dyn Measure, r: &mut Reader| {
        Ok(m.score_windows(text(r, subject, "the subject")?, numbers(r, indices, "the list of windows")?))
    };
    answer(context, ask, |rows| emit_rows(&rows, emit, to))
}

extern "C" fn generate(
    context: Context,
    subject: Str,
    prompt: Str,
    max_tokens: u32,
    emit: Emit<Str>,
    to: Context,
) -> i32 {
    let ask = |m: &mut dyn Measure, r: &mut Reader| {
        Ok(m.generate(text(r, subject, "the subject")?, text(r, prompt, "the prompt")?, max_tokens))
    };
    answer(context, ask, |continued| emit(to, Str::of(&continued)))
}

extern "C" fn tokenize(context: Context, words: Str, emit: Emit<View<u32>>, to: Context) -> i32 {
    answer(context, |m, r| Ok(m.tokenize(text(r, words, "the text")?)), |tokens| emit(to, View::of(&tokens)))
}

extern "C" fn detokenize(context: Context, tokens: View<u32>, emit: Emit<Str>, to: Context) -> i32 {
    answer(context, |m, r| Ok(m.detokenize(numbers(r, tokens, "the tokens")?)), |words| emit(to, Str::of(&words)))
}

extern "C" fn counters(context: Context, subject: Str, emit: Emit<View<abi::Metric>>, to: Context) -> i32 {
    answer(context, |m, r| Ok(m.counters(text(r, subject, "the subject")?)), |list| emit_metrics(&list, emit, to))
}

fn emit_metrics(list: &[Metric], emit: Emit<View<abi::Metric>>, to: Context) {
    emit(to, View::of(&abi::lend_metrics(list)));
}

extern "C" fn divergence(
    context: Context,
    reference: Str,
    of: Str,
    indices: View<u32>,
    emit: Emit<View<View<f32>>>,
    to: Context,
) -> i32 {
    let ask = |m: &mut dyn Measure, r: &mut Reader| {
        let (reference, of) = (text(r, reference, "the reference")?, text(r, of, "the subject")?);
        Ok(m.divergence(reference, of, numbers(r, indices, "the list of windows")?))
    };
    answer(context, ask, |rows| emit_rows(&rows, emit, to))
}

extern "C" fn examples(context: Context) -> u32 {
    let mut n = 0;
    answer(context, |m, _| Ok(Ok(m.examples())), |examples| n = examples);
    n
}

extern "C" fn example(context: Context, index: u32, emit: Emit<*const abi::Question>, to: Context) -> i32 {
    let emit = |e: super::super::contract::Example| {
        let (prompt, answer) = (Str::of(&e.prompt), Str::of(&e.answer));
        emit(to, &abi::Question { prompt, answer, ..abi::Question::new() });
    };
    answer(context, |m, _| Ok(m.example(index)), emit)
}

extern "C" fn timing(
    context: Context,
    subject: Str,
    prompt_tokens: u32,
    new_tokens: u32,
    emit: Emit<View<abi::Metric>>,
    to: Context,
) -> i32 {
    let ask =
        |m: &mut dyn Measure, r: &mut Reader| Ok(m.timing(text(r, subject, "the subject")?, prompt_tokens, new_tokens));
    answer(context, ask, |list| emit_metrics(&list, emit, to))
}

extern "C" fn last_error(context: Context, emit: Emit<Str>, to: Context) {
    // SAFETY: the context is the `Bench` of the call that is going on, on this thread.
    if let Some(bench) = unsafe { context.cast::<Bench<'_>>().as_ref() } {
        emit(to, Str::of(&bench.error));
    }
}
