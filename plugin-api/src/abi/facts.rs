//! Facts, figures and changes across the border, in both directions: the same for the host and the
//! SDK, which each have records of their own under these names.

use super::super::shared::{Attribute, Change, Metric, Value};
use super::{Misread, Reader, Sized32, Str, View, action as kinds, kind};
use std::marker::PhantomData;

/// Facts, lent for as long as this lives.
pub struct Facts<'a> {
    list: Vec<super::Attribute>,
    /// What the lists of texts in `list` point at.
    _texts: Vec<Vec<Str>>,
    of: PhantomData<&'a [Attribute]>,
}

impl<'a> Facts<'a> {
    /// Lends these.
    pub fn of(attributes: &'a [Attribute]) -> Facts<'a> {
        let mut list = Vec::with_capacity(attributes.len());
        let mut all_texts = Vec::new();
        for Attribute { name, value } in attributes {
            let mut out = super::Attribute { name: Str::of(name), ..super::Attribute::new() };
            match value {
                Value::Flag(v) => (out.kind, out.integer) = (kind::FLAG, i64::from(*v)),
                Value::Int(v) => (out.kind, out.integer) = (kind::INT, *v),
                Value::Num(v) => (out.kind, out.number) = (kind::NUM, *v),
                Value::Text(v) => (out.kind, out.text) = (kind::TEXT, Str::of(v)),
                Value::Nums(v) => (out.kind, out.numbers) = (kind::NUMS, View::of(v)),
                Value::Texts(v) => {
                    let texts: Vec<Str> = v.iter().map(|t| Str::of(t)).collect();
                    (out.kind, out.texts) = (kind::TEXTS, View::of(&texts));
                    // Moving the vector leaves its elements where they are.
                    all_texts.push(texts);
                }
            }
            list.push(out);
        }
        Facts { list, _texts: all_texts, of: PhantomData }
    }

    /// The list to hand over.
    pub fn view(&self) -> View<super::Attribute> {
        View::of(&self.list)
    }
}

/// Reads facts.
///
/// # Errors
/// As [`Reader::records`]; or a kind of value that is none.
///
/// # Safety
/// As [`Reader::records`], for all that the facts point at.
pub unsafe fn attributes(
    reader: &mut Reader,
    view: View<super::Attribute>,
    what: &str,
) -> Result<Vec<Attribute>, Misread> {
    // SAFETY: passed on to the caller, here and below.
    let list = unsafe { reader.records(view, size_of::<super::Attribute>(), what)? };
    let mut out = Vec::with_capacity(list.len());
    for a in list {
        // SAFETY: as above.
        let (name, value) = unsafe {
            let name = reader.string(a.name, what)?;
            let value = match a.kind {
                kind::FLAG => Value::Flag(a.integer != 0),
                kind::INT => Value::Int(a.integer),
                kind::NUM => Value::Num(a.number),
                kind::TEXT => Value::Text(reader.string(a.text, what)?),
                kind::NUMS => Value::Nums(reader.list(a.numbers, what)?.to_vec()),
                kind::TEXTS => Value::Texts(reader.strings(a.texts, what)?),
                kind => return Err(Misread::Broken(format!("{what}: there is no kind of value {kind}"))),
            };
            (name, value)
        };
        out.push(Attribute { name, value });
    }
    Ok(out)
}

/// Lends figures, for as long as `list` lives.
pub fn lend_metrics(list: &[Metric]) -> Vec<super::Metric> {
    let lend = |m: &Metric| super::Metric {
        higher_is_better: u8::from(m.higher_is_better),
        has_low: u8::from(m.low.is_some()),
        has_high: u8::from(m.high.is_some()),
        name: Str::of(&m.name),
        unit: Str::of(&m.unit),
        value: m.value,
        low: m.low.unwrap_or(0.0),
        high: m.high.unwrap_or(0.0),
        ..super::Metric::new()
    };
    list.iter().map(lend).collect()
}

/// Reads figures.
///
/// # Errors
/// As [`Reader::records`].
///
/// # Safety
/// As [`Reader::records`], for all that the figures point at.
pub unsafe fn metrics(reader: &mut Reader, view: View<super::Metric>, what: &str) -> Result<Vec<Metric>, Misread> {
    // SAFETY: passed on to the caller, here and below.
    let list = unsafe { reader.records(view, size_of::<super::Metric>(), what)? };
    let read = |m: super::Metric| {
        // SAFETY: as above.
        let (name, unit) = unsafe { (reader.string(m.name, what)?, reader.string(m.unit, what)?) };
        let (low, high) = ((m.has_low != 0).then_some(m.low), (m.has_high != 0).then_some(m.high));
        Ok(Metric { name, value: m.value, unit, higher_is_better: m.higher_is_better != 0, low, high })
    };
    list.into_iter().map(read).collect()
}

/// A change as an action carries it: what, how many, which.
pub fn lend_change(change: &Change) -> (u32, u32, View<u32>) {
    match change {
        Change::SetRank(n) => (kinds::SET_RANK, *n, View::EMPTY),
        Change::SleepN(n) => (kinds::SLEEP_N, *n, View::EMPTY),
        Change::WakeN(n) => (kinds::WAKE_N, *n, View::EMPTY),
        Change::Sleep(list) => (kinds::SLEEP, 0, View::of(list)),
        Change::Wake(list) => (kinds::WAKE, 0, View::of(list)),
        Change::Dense => (kinds::DENSE, 0, View::EMPTY),
        Change::Freeze => (kinds::FREEZE, 0, View::EMPTY),
        Change::Thaw => (kinds::THAW, 0, View::EMPTY),
    }
}

/// Reads the change of an action.
///
/// # Errors
/// As [`Reader::list`]; or a change that is none.
///
/// # Safety
/// As [`Reader::list`].
pub unsafe fn change(reader: &mut Reader, action: &super::Action, what: &str) -> Result<Change, Misread> {
    // SAFETY: passed on to the caller.
    let mut components = || unsafe { Ok(reader.list(action.components, what)?.to_vec()) };
    Ok(match action.change {
        kinds::SET_RANK => Change::SetRank(action.n),
        kinds::SLEEP_N => Change::SleepN(action.n),
        kinds::WAKE_N => Change::WakeN(action.n),
        kinds::SLEEP => Change::Sleep(components()?),
        kinds::WAKE => Change::Wake(components()?),
        kinds::DENSE => Change::Dense,
        kinds::FREEZE => Change::Freeze,
        kinds::THAW => Change::Thaw,
        other => return Err(Misread::Broken(format!("{what}: there is no change {other}"))),
    })
}
