//! What a plugin may use. Every limit is a field with a default; hitting one is a
//! [`Fault`](super::Fault) of class `Memory` or `Timeout`, never harm to the host.

use super::Grant;
use std::time::Duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Upper end of [`Limits::stack_bytes`]: guests run on ordinary threads, whose own stack must hold
/// theirs.
pub const MAX_STACK_BYTES: usize = MIB;

/// Limits of one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the plugin file.
    pub file_bytes: u64,
    /// Linear memory of an instance, all memories together.
    pub memory_bytes: usize,
    /// Elements of one table.
    pub table_elements: usize,
    /// Core instances, memories and tables, each.
    pub instances: usize,
    /// Stack of the guest; at most [`MAX_STACK_BYTES`].
    pub stack_bytes: usize,
    /// Wall-clock time of one call. What the host spends on an evaluator's measurements is not counted.
    pub call_time: Duration,
    /// Bytes the guest may hand to the host at once: one answer, or the arguments of one question.
    pub transfer_bytes: usize,
    /// Log lines of one call; the rest is counted and dropped.
    pub log_lines: usize,
    /// Bytes of log text of one call; the rest is counted and dropped.
    pub log_bytes: usize,
    /// Actions of one plan.
    pub plan_actions: usize,
    /// Bytes of one text in an answer: a reason, a summary.
    pub text_bytes: usize,
    /// Instructions of one call, about; counted only where there is a limit, or with `deterministic`.
    pub fuel: Option<u64>,
    /// Results do not depend on the machine: one bit pattern for what is not a number, and fuel counted.
    pub deterministic: bool,
    /// Wall-clock time of compiling the plugin, where a process of its own does it.
    pub compile_time: Duration,
    /// Memory of that process.
    pub compile_bytes: u64,
    /// What the plugin is given beyond the contract.
    pub grants: Vec<Grant>,
}

impl Limits {
    /// Fuel of one call, where fuel is counted.
    pub(super) fn fuel_budget(&self) -> Option<u64> {
        self.fuel.or(self.deterministic.then_some(ENDLESS))
    }
}

/// More fuel than any call burns; wasmtime counts in signed numbers.
const ENDLESS: u64 = u64::MAX / 2;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            file_bytes: 64 * MIB as u64,
            memory_bytes: 256 * MIB,
            table_elements: 100_000,
            // CPython's component, the largest of the four languages', has 38.
            instances: 64,
            stack_bytes: 512 * KIB,
            call_time: Duration::from_secs(10),
            transfer_bytes: 16 * MIB,
            log_lines: 100,
            log_bytes: 64 * KIB,
            plan_actions: 65_536,
            text_bytes: 4 * KIB,
            fuel: None,
            deterministic: false,
            compile_time: Duration::from_secs(120),
            compile_bytes: 2048 * MIB as u64,
            grants: Vec::new(),
        }
    }
}

/// Watches an instance grow, and remembers what it was refused.
#[derive(Debug)]
pub(super) struct Watch {
    memory_limit: usize,
    table_limit: usize,
    instances: usize,
    memory: usize,
    /// The first growth that was refused, in the words of the fault.
    pub refused: Option<String>,
}

impl Watch {
    pub(super) fn new(limits: &Limits) -> Watch {
        Watch {
            memory_limit: limits.memory_bytes,
            table_limit: limits.table_elements,
            instances: limits.instances,
            memory: 0,
            refused: None,
        }
    }
}

impl Watch {
    /// Bytes of linear memory; it never shrinks, so this is the peak.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory as u64
    }
}

impl wasmtime::ResourceLimiter for Watch {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.memory.saturating_sub(current).saturating_add(desired);
        if total > self.memory_limit {
            let text =
                format!("wanted {} of memory, the limit (memory_bytes) is {}", size(total), size(self.memory_limit));
            self.refused.get_or_insert(text);
            return Ok(false);
        }
        self.memory = total;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.table_limit {
            let text =
                format!("wanted a table of {desired} elements, the limit (table_elements) is {}", self.table_limit);
            self.refused.get_or_insert(text);
            return Ok(false);
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.instances
    }

    fn tables(&self) -> usize {
        self.instances
    }

    fn memories(&self) -> usize {
        self.instances
    }
}

/// A size for people.
pub(super) fn size(bytes: usize) -> String {
    match bytes {
        0..KIB => format!("{bytes} bytes"),
        KIB..MIB => format!("{} KiB", bytes.div_ceil(KIB)),
        _ => format!("{} MiB", bytes.div_ceil(MIB)),
    }
}
