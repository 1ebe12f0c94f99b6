//! The C ABI: structs as a native library would lend them, with wrong sizes, lengths and pointers.
//!
//! A pointer that is not null and a length within the budget are the library's word, which nobody can
//! check. So every block here is exactly as long as its own size and length say, each in an allocation
//! of its own: under AddressSanitizer any byte read beyond is seen.

use super::rare;
use arbitrary::{Result, Unstructured};
use plastic_host::plugin::Limits;
use plastic_host::plugin::contract::{Observation, Plan};
use plastic_host::plugin::fuzzing::{
    check_info, check_plan, check_verdict, frame, read_info, read_plan, read_verdict, with_observation,
};
use plastic_host::plugin::native::abi::{self, Misread, Reader, Sized32, Str, View};
use std::alloc::Layout;

/// Bytes that may cross at once.
const BUDGET: usize = 1 << 16;

/// The bytes are a script that makes one answer.
pub fn c_tables(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let mut library = Library::default();
    let limits = Limits::default();
    let reader = &mut Reader::new(BUDGET);
    // SAFETY: every block holds what its size and length say; see `Library`.
    unsafe {
        match u.int_in_range(0..=2).unwrap_or_default() {
            0 => {
                let Ok(at) = library.plan(&mut u) else { return };
                if let Some(mut plan) = sound(read_plan(reader, at)) {
                    lent_again(&plan);
                    let _ = check_plan(&mut plan, 8, 4, &limits);
                }
            }
            1 => {
                let Ok(at) = library.verdict(&mut u) else { return };
                if let Some(mut verdict) = sound(read_verdict(reader, at)) {
                    let _ = check_verdict(&mut verdict, &limits);
                }
            }
            _ => {
                let Ok(at) = library.info(&mut u) else { return };
                if let Some(mut info) = sound(read_info(reader, at)) {
                    let _ = check_info(&mut info, &limits);
                }
            }
        }
    }
}

fn sound<T>(read: std::result::Result<T, Misread>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(Misread::Broken(why)) => {
            super::shown(&why);
            None
        }
        Err(Misread::TooMuch) => None,
    }
}

/// What was read is lent to the next policy as it is.
fn lent_again(plan: &Plan) {
    let seen = Observation { proposed: Some(plan.clone()), ..Observation::default() };
    // SAFETY: the host's own structs.
    let back = with_observation(&seen, |o| unsafe { read_plan(&mut Reader::new(usize::MAX), o.proposed) });
    // As bytes: what is not a number equals itself there.
    assert_eq!(back.map(|p| frame(&p)), Ok(frame(plan)), "another plan comes back");
}

/// The memory of a library that answers: blocks of exactly the bytes they hold.
#[derive(Default)]
struct Library {
    blocks: Vec<(*mut u8, Layout)>,
}

impl Drop for Library {
    fn drop(&mut self) {
        for (at, layout) in self.blocks.drain(..) {
            // SAFETY: allocated with this layout.
            unsafe { std::alloc::dealloc(at, layout) };
        }
    }
}

impl Library {
    fn block(&mut self, bytes: &[u8], align: usize) -> *mut u8 {
        let layout = Layout::from_size_align(bytes.len().max(1), align).expect("a small block");
        // SAFETY: at least one byte; as many are written as there are.
        let at = unsafe {
            let at = std::alloc::alloc(layout);
            assert!(!at.is_null());
            at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            at
        };
        self.blocks.push((at, layout));
        at
    }

    /// A struct with a size of its own: right, shorter, longer, anything.
    fn one<T: Sized32>(&mut self, u: &mut Unstructured, mut value: T) -> Result<*const T> {
        if rare(u, 24)? {
            return Ok(std::ptr::null());
        }
        let size = self.size::<T>(u)?;
        // SAFETY: the size is the first field of every struct.
        unsafe { (&raw mut value).cast::<u32>().write(size) };
        let bytes = padded(u, &value, size)?;
        let at = self.block(&bytes, 8);
        Ok(shifted(u, at)?.cast())
    }

    fn size<T>(&mut self, u: &mut Unstructured) -> Result<u32> {
        let own = size_of::<T>() as u32;
        Ok(match u.int_in_range(0..=15)? {
            12 => u.int_in_range(0..=own)?,
            13 => own + u.int_in_range(0..=64)?,
            14 => own + 8 * u.int_in_range(0..=8)?,
            // More than may cross: refused before anything but the size itself is read.
            15 => u.int_in_range(BUDGET as u32 + 1..=u32::MAX)?,
            _ => own,
        })
    }

    /// A list of structs: one size for all, or another one in between.
    fn records<T: Sized32>(
        &mut self,
        u: &mut Unstructured,
        most: usize,
        mut make: impl FnMut(&mut Library, &mut Unstructured) -> Result<T>,
    ) -> Result<View<T>> {
        let count = u.int_in_range(0..=most)?;
        let size = self.size::<T>(u)?;
        let mut bytes = Vec::new();
        for i in 0..count {
            let mut value = make(self, u)?;
            // The first one's is the step to the next: the library's word.
            let own = if i > 0 && rare(u, 24)? { u.arbitrary()? } else { size };
            // SAFETY: as above.
            unsafe { (&raw mut value).cast::<u32>().write(own) };
            bytes.extend(padded(u, &value, size)?);
        }
        let at = self.block(&bytes, 8);
        self.view(u, at.cast(), count, 8)
    }

    fn list<T: Copy>(&mut self, u: &mut Unstructured, items: &[T]) -> Result<View<T>> {
        let bytes = size_of_val(items);
        // SAFETY: numbers, texts and views have no padding.
        let bytes = unsafe { std::slice::from_raw_parts(items.as_ptr().cast::<u8>(), bytes) };
        let at = self.block(bytes, align_of::<T>());
        self.view(u, at.cast(), items.len(), align_of::<T>())
    }

    /// Pointer and length: mostly right; null, misaligned, or longer than the budget otherwise.
    fn view<T>(&mut self, u: &mut Unstructured, at: *const T, count: usize, align: usize) -> Result<View<T>> {
        let len = count as u64;
        Ok(match u.int_in_range(0..=31)? {
            27 => View { ptr: std::ptr::null(), len },
            28 => View { ptr: std::ptr::null(), len: u.arbitrary()? },
            // Nothing is read from nowhere.
            29 => View { ptr: std::ptr::without_provenance(u.arbitrary()?), len: 0 },
            30 if align > 1 => View { ptr: at.wrapping_byte_add(u.int_in_range(1..=align - 1)?), len: u.arbitrary()? },
            31 if count > 0 => View { ptr: at, len: u.int_in_range(BUDGET as u64 + 1..=u64::MAX)? },
            _ => View { ptr: at, len },
        })
    }

    fn text(&mut self, u: &mut Unstructured) -> Result<Str> {
        let bytes: &[u8] = match u.int_in_range(0..=3)? {
            0 => b"",
            1 => b"name",
            2 => "größer".as_bytes(),
            _ => {
                let n = u.int_in_range(0..=24)?;
                u.bytes(n.min(u.len()))?
            }
        };
        let View { ptr, len } = self.list(u, bytes)?;
        Ok(Str { ptr, len })
    }

    fn texts(&mut self, u: &mut Unstructured) -> Result<View<Str>> {
        let texts = (0..u.int_in_range(0..=3)?).map(|_| self.text(u)).collect::<Result<Vec<Str>>>()?;
        self.list(u, &texts)
    }

    fn attributes(&mut self, u: &mut Unstructured) -> Result<View<abi::Attribute>> {
        self.records(u, 3, |l, u| {
            let numbers: Vec<f64> = (0..u.int_in_range(0..=3)?).map(|_| u.arbitrary()).collect::<Result<_>>()?;
            Ok(abi::Attribute {
                kind: u.int_in_range(0..=6)?,
                name: l.text(u)?,
                integer: u.arbitrary()?,
                number: u.arbitrary()?,
                text: l.text(u)?,
                numbers: l.list(u, &numbers)?,
                texts: l.texts(u)?,
                ..abi::Attribute::new()
            })
        })
    }

    fn metrics(&mut self, u: &mut Unstructured) -> Result<View<abi::Metric>> {
        self.records(u, 3, |l, u| {
            let (name, unit) = (l.text(u)?, l.text(u)?);
            let [higher_is_better, has_low, has_high, reserved] = u.arbitrary()?;
            let [value, low, high] = u.arbitrary()?;
            let sized = abi::Metric::new();
            Ok(abi::Metric { higher_is_better, has_low, has_high, reserved, name, unit, value, low, high, ..sized })
        })
    }

    fn plan(&mut self, u: &mut Unstructured) -> Result<*const abi::Plan> {
        let actions = self.records(u, 4, |l, u| {
            let components: Vec<u32> = (0..u.int_in_range(0..=4)?).map(|_| u.arbitrary()).collect::<Result<_>>()?;
            let (change, n, slice) = (u.int_in_range(0..=8)?, u.arbitrary()?, u.int_in_range(0..=8)?);
            let (components, reason) = (l.list(u, &components)?, l.text(u)?);
            Ok(abi::Action { slice, change, n, components, reason, ..abi::Action::new() })
        })?;
        let threshold = match u.arbitrary()? {
            false => std::ptr::null(),
            true => {
                let (need, level, reason) = (u.arbitrary()?, u.arbitrary()?, self.text(u)?);
                self.one(u, abi::Threshold { need, level, reason, ..abi::Threshold::new() })?
            }
        };
        let [has_predicted, has_stop] = u.arbitrary()?;
        let plan = abi::Plan {
            has_predicted,
            has_stop,
            actions,
            threshold,
            predicted: u.arbitrary()?,
            requests: self.texts(u)?,
            stop: self.text(u)?,
            attributes: self.attributes(u)?,
            ..abi::Plan::new()
        };
        self.one(u, plan)
    }

    fn verdict(&mut self, u: &mut Unstructured) -> Result<*const abi::Verdict> {
        let decision = u.int_in_range(0..=3)?;
        let (reason, metrics, attributes) = (self.text(u)?, self.metrics(u)?, self.attributes(u)?);
        self.one(u, abi::Verdict { decision, reason, metrics, attributes, ..abi::Verdict::new() })
    }

    fn info(&mut self, u: &mut Unstructured) -> Result<*const abi::Info> {
        let info = abi::Info {
            name: self.text(u)?,
            version: self.text(u)?,
            summary: self.text(u)?,
            phases: self.texts(u)?,
            needs: self.texts(u)?,
            options_schema: self.text(u)?,
            attributes: self.attributes(u)?,
            ..abi::Info::new()
        };
        self.one(u, info)
    }
}

/// The struct's bytes cut or filled to `size`: at least the size itself, and no more than can be paid.
fn padded<T: Sized32>(u: &mut Unstructured, value: &T, size: u32) -> Result<Vec<u8>> {
    let size = match size as usize {
        n if n > BUDGET => 4,
        n => n.max(4),
    };
    let mut bytes = vec![u.arbitrary::<u8>()?; size];
    let own = size.min(size_of::<T>());
    // SAFETY: plain data without padding, made from zeros.
    bytes[..own].copy_from_slice(unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), own) });
    Ok(bytes)
}

/// Sometimes misaligned.
fn shifted(u: &mut Unstructured, at: *mut u8) -> Result<*const u8> {
    Ok(if rare(u, 48)? { at.wrapping_add(u.int_in_range(1..=3)?) } else { at })
}
