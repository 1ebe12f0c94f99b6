//! The C ABI of native plugins as Rust sees it: the structs of `include/plastic_plugin.h`, which says
//! what each field means, who owns what and on which thread a function may be called.
//!
//! The host and the SDK compile this same file. The layout is checked at compile time against the
//! numbers that the header's own checks carry. All structs are plain data for which zero bytes are
//! a value (no pointer, no function, nothing in a list), so a shorter struct of an older writer is
//! read by filling it up with zeros: see [`Reader`].
//!
//! One-word names: `plastic_slice_state` is [`SliceState`].
#![allow(missing_docs, reason = "include/plastic_plugin.h has the documentation")]

mod facts;
mod reader;

pub use facts::{Facts, attributes, change, lend_change, lend_metrics, metrics};
pub use reader::{Misread, Reader};

use std::ffi::c_void;

/// `PLC1` in memory.
pub const MAGIC: u32 = 0x3143_4c50;
/// Versions with another one do not fit together.
pub const MAJOR: u32 = 1;
/// Counts what was appended.
pub const MINOR: u32 = 0;
/// The exported symbol.
pub const ENTRY: &str = "plastic_plugin_entry";
/// Extension of a policy: [`Report`].
pub const REPORT: &str = "plastic.report/1";

/// [`Entry::kind`] of a policy.
pub const POLICY: u32 = 1;
/// [`Entry::kind`] of an evaluator.
pub const EVALUATOR: u32 = 2;

/// Done.
pub const OK: i32 = 0;
/// An error for the operator; the instance is as good as before.
pub const REFUSED: i32 = -1;
/// It broke; the instance is destroyed and made again.
pub const PANICKED: i32 = -2;
/// A table or struct is too small, or a pointer is null.
pub const MISFIT: i32 = -3;

/// [`Attribute::kind`].
pub mod kind {
    pub const FLAG: u32 = 0;
    pub const INT: u32 = 1;
    pub const NUM: u32 = 2;
    pub const TEXT: u32 = 3;
    pub const NUMS: u32 = 4;
    pub const TEXTS: u32 = 5;
}

/// [`Action::change`].
pub mod action {
    pub const SET_RANK: u32 = 0;
    pub const SLEEP_N: u32 = 1;
    pub const WAKE_N: u32 = 2;
    pub const SLEEP: u32 = 3;
    pub const WAKE: u32 = 4;
    pub const DENSE: u32 = 5;
    pub const FREEZE: u32 = 6;
    pub const THAW: u32 = 7;
}

/// [`Verdict::decision`].
pub mod decision {
    pub const ACCEPT: u32 = 0;
    pub const REJECT: u32 = 1;
    pub const ABSTAIN: u32 = 2;
}

/// A borrowed list: `plastic_strs`, `plastic_f32s`, `plastic_actions`, ...
#[repr(C)]
#[derive(Debug)]
pub struct View<T> {
    pub ptr: *const T,
    pub len: u64,
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<T> {}

impl<T> View<T> {
    /// Nothing.
    pub const EMPTY: View<T> = View { ptr: std::ptr::null(), len: 0 };

    /// Lends a slice; the caller sees to it that it outlives the view.
    pub fn of(list: &[T]) -> View<T> {
        View { ptr: list.as_ptr(), len: list.len() as u64 }
    }
}

/// A borrowed text: `plastic_str`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    pub ptr: *const u8,
    pub len: u64,
}

impl Str {
    /// Nothing.
    pub const EMPTY: Str = Str { ptr: std::ptr::null(), len: 0 };

    /// Lends a text; the caller sees to it that it outlives the view.
    pub fn of(text: &str) -> Str {
        Str { ptr: text.as_ptr(), len: text.len() as u64 }
    }
}

/// A struct or table that begins with its size.
///
/// # Safety
/// The type is `repr(C)`, its first field is the `u32` struct size, and zero bytes are a value of
/// every field.
pub unsafe trait Sized32: Copy {
    /// All zero, with the size filled in.
    fn new() -> Self {
        // SAFETY: zero bytes are a value (contract of the trait); the size is the first field.
        unsafe {
            let mut zero: Self = std::mem::zeroed();
            (&raw mut zero).cast::<u32>().write(size_of::<Self>() as u32);
            zero
        }
    }
}

/// The layout of every struct, for checking the header against it: name, size, fields with offsets.
pub type Layout = (&'static str, usize, &'static [(&'static str, usize)]);

/// Declares the structs, checks their layout at compile time and keeps it in [`LAYOUT`].
macro_rules! structs {
    ($(
        $(#[$about:meta])*
        $c:literal $name:ident = $size:literal { $($field:ident : $ty:ty = $offset:literal),* $(,)? }
    )*) => {
        $(
            $(#[$about])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name { $(pub $field: $ty),* }

            const _: () = assert!(size_of::<$name>() == $size);
            $(const _: () = assert!(std::mem::offset_of!($name, $field) == $offset);)*

            // SAFETY: repr(C), `struct_size` first (the entry's is read by hand), plain data.
            unsafe impl Sized32 for $name {}
        )*

        /// The layout, for checking the header against it.
        pub const LAYOUT: &[Layout] = &[$(($c, $size, &[$((stringify!($field), $offset)),*])),*];
    };
}

/// First argument of a host's function, or of an emit function.
pub type Context = *mut c_void;
/// An instance of a plugin.
pub type Instance = *mut c_void;
/// Takes an answer; the first argument came with the question.
pub type Emit<T> = extern "C" fn(to: Context, answer: T);

structs! {
    "plastic_attribute" Attribute = 88 {
        struct_size: u32 = 0, kind: u32 = 4, name: Str = 8, integer: i64 = 24, number: f64 = 32, text: Str = 40,
        numbers: View<f64> = 56, texts: View<Str> = 72,
    }
    "plastic_info" Info = 120 {
        struct_size: u32 = 0, reserved: u32 = 4, name: Str = 8, version: Str = 24, summary: Str = 40,
        phases: View<Str> = 56, needs: View<Str> = 72, options_schema: Str = 88, attributes: View<Attribute> = 104,
    }
    "plastic_metric" Metric = 64 {
        struct_size: u32 = 0, higher_is_better: u8 = 4, has_low: u8 = 5, has_high: u8 = 6, reserved: u8 = 7,
        name: Str = 8, unit: Str = 24, value: f64 = 40, low: f64 = 48, high: f64 = 56,
    }
    "plastic_run" Run = 64 {
        struct_size: u32 = 0, steps: u32 = 4, phase: Str = 8, seed: u64 = 24, parameters: u64 = 32, budget: u64 = 40,
        attributes: View<Attribute> = 48,
    }
    "plastic_slice" Slice = 88 {
        struct_size: u32 = 0, layer: u32 = 4, name: Str = 8, kind: Str = 24, group: u32 = 40, rows: u32 = 44,
        cols: u32 = 48, max_rank: u32 = 52, dense_parameters: u64 = 56, component_parameters: u64 = 64,
        attributes: View<Attribute> = 72,
    }
    "plastic_slice_state" SliceState = 40 {
        struct_size: u32 = 0, awake: u32 = 4, dwell: u32 = 8, dense: u8 = 12, dense_allowed: u8 = 13, frozen: u8 = 14,
        reserved: u8 = 15, parameters: u64 = 16, bytes: u64 = 24, parked_bytes: u64 = 32,
    }
    "plastic_series" Series = 20 {
        struct_size: u32 = 0, slice: u32 = 4, need: u32 = 8, offset: u32 = 12, len: u32 = 16,
    }
    "plastic_outcome" Outcome = 80 {
        struct_size: u32 = 0, step: u32 = 4, fate: Str = 8, reason: Str = 24, has_predicted: u8 = 40,
        has_measured: u8 = 41, reserved: [u8; 6] = 42, predicted: f64 = 48, measured: f64 = 56,
        metrics: View<Metric> = 64,
    }
    "plastic_action" Action = 48 {
        struct_size: u32 = 0, slice: u32 = 4, change: u32 = 8, n: u32 = 12, components: View<u32> = 16, reason: Str = 32,
    }
    "plastic_threshold" Threshold = 32 { struct_size: u32 = 0, need: u32 = 4, level: f64 = 8, reason: Str = 16 }
    "plastic_plan" Plan = 88 {
        struct_size: u32 = 0, has_predicted: u8 = 4, has_stop: u8 = 5, reserved: [u8; 2] = 6,
        actions: View<Action> = 8, threshold: *const Threshold = 24, predicted: f64 = 32, requests: View<Str> = 40,
        stop: Str = 56, attributes: View<Attribute> = 72,
    }
    "plastic_observation" Observation = 128 {
        struct_size: u32 = 0, step: u32 = 4, awake: u64 = 8, slices: View<SliceState> = 16, series: View<Series> = 32,
        values: View<f32> = 48, asleep: View<u8> = 64, metrics: View<Metric> = 80, last: *const Outcome = 96,
        proposed: *const Plan = 104, attributes: View<Attribute> = 112,
    }
    "plastic_task" Task = 32 { struct_size: u32 = 0, step: u32 = 4, seed: u64 = 8, attributes: View<Attribute> = 16 }
    "plastic_verdict" Verdict = 56 {
        struct_size: u32 = 0, decision: u32 = 4, reason: Str = 8, metrics: View<Metric> = 24,
        attributes: View<Attribute> = 40,
    }
    "plastic_question" Question = 40 { struct_size: u32 = 0, reserved: u32 = 4, prompt: Str = 8, answer: Str = 24 }
    "plastic_host" Host = 32 {
        struct_size: u32 = 0, abi_minor: u32 = 4, context: Context = 8,
        log: Option<extern "C" fn(Context, u32, Str)> = 16,
        get_extension: Option<extern "C" fn(Context, Str) -> *const c_void> = 24,
    }
    "plastic_measure" Measure = 120 {
        struct_size: u32 = 0, reserved: u32 = 4, context: Context = 8,
        windows: Option<extern "C" fn(Context) -> u32> = 16,
        window: Option<extern "C" fn(Context, u32, Emit<View<u32>>, Context) -> i32> = 24,
        score: Option<extern "C" fn(Context, Str, View<View<u32>>, Emit<View<View<f32>>>, Context) -> i32> = 32,
        score_windows: Option<extern "C" fn(Context, Str, View<u32>, Emit<View<View<f32>>>, Context) -> i32> = 40,
        generate: Option<extern "C" fn(Context, Str, Str, u32, Emit<Str>, Context) -> i32> = 48,
        tokenize: Option<extern "C" fn(Context, Str, Emit<View<u32>>, Context) -> i32> = 56,
        detokenize: Option<extern "C" fn(Context, View<u32>, Emit<Str>, Context) -> i32> = 64,
        counters: Option<extern "C" fn(Context, Str, Emit<View<Metric>>, Context) -> i32> = 72,
        divergence: Option<extern "C" fn(Context, Str, Str, View<u32>, Emit<View<View<f32>>>, Context) -> i32> = 80,
        examples: Option<extern "C" fn(Context) -> u32> = 88,
        example: Option<extern "C" fn(Context, u32, Emit<*const Question>, Context) -> i32> = 96,
        timing: Option<extern "C" fn(Context, Str, u32, u32, Emit<View<Metric>>, Context) -> i32> = 104,
        last_error: Option<extern "C" fn(Context, Emit<Str>, Context)> = 112,
    }
    "plastic_policy" Policy = 88 {
        struct_size: u32 = 0, reserved: u32 = 4,
        create: Option<unsafe extern "C" fn(*const Host, *mut Instance) -> i32> = 8,
        destroy: Option<unsafe extern "C" fn(Instance)> = 16,
        describe: Option<unsafe extern "C" fn(Instance, Emit<*const Info>, Context) -> i32> = 24,
        configure: Option<unsafe extern "C" fn(Instance, Str) -> i32> = 32,
        start: Option<unsafe extern "C" fn(Instance, *const Run, View<Slice>) -> i32> = 40,
        decide: Option<unsafe extern "C" fn(Instance, *const Observation, Emit<*const Plan>, Context) -> i32> = 48,
        snapshot: Option<unsafe extern "C" fn(Instance, Emit<View<u8>>, Context) -> i32> = 56,
        restore: Option<unsafe extern "C" fn(Instance, View<u8>) -> i32> = 64,
        last_error: Option<unsafe extern "C" fn(Instance, Emit<Str>, Context)> = 72,
        get_extension: Option<unsafe extern "C" fn(Instance, Str) -> *const c_void> = 80,
    }
    "plastic_evaluator" Evaluator = 64 {
        struct_size: u32 = 0, reserved: u32 = 4,
        create: Option<unsafe extern "C" fn(*const Host, *mut Instance) -> i32> = 8,
        destroy: Option<unsafe extern "C" fn(Instance)> = 16,
        describe: Option<unsafe extern "C" fn(Instance, Emit<*const Info>, Context) -> i32> = 24,
        configure: Option<unsafe extern "C" fn(Instance, Str) -> i32> = 32,
        evaluate:
            Option<unsafe extern "C" fn(Instance, *const Task, *const Measure, Emit<*const Verdict>, Context) -> i32> = 40,
        last_error: Option<unsafe extern "C" fn(Instance, Emit<Str>, Context)> = 48,
        get_extension: Option<unsafe extern "C" fn(Instance, Str) -> *const c_void> = 56,
    }
    "plastic_report" Report = 16 {
        struct_size: u32 = 0, reserved: u32 = 4,
        report: Option<unsafe extern "C" fn(Instance, Emit<Str>, Context) -> i32> = 8,
    }
}

/// The exported symbol: `plastic_entry`. Its size is the third field, not the first: magic and major
/// version come before everything that can change.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub magic: u32,
    pub abi_major: u32,
    pub struct_size: u32,
    pub min_host_minor: u32,
    pub abi_minor: u32,
    pub kind: u32,
    pub get: Option<unsafe extern "C" fn(host_minor: u32) -> *const c_void>,
}

const _: () = assert!(size_of::<Entry>() == 32 && std::mem::offset_of!(Entry, get) == 24);
const _: () = assert!(size_of::<Str>() == 16 && size_of::<View<Str>>() == 16 && size_of::<*const u8>() == 8);
