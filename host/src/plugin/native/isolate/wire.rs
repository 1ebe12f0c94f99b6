//! The contract's records as bytes. Both ends are this program, so there are no versions; but what
//! comes from the child may come from a plugin gone wild: decoding checks every length and takes no
//! more memory than the frame has bytes.

use super::super::super::FaultClass;
use super::super::super::contract as c;

/// The bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

/// Something that travels.
pub trait Wire: Sized {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);

    /// Takes it from the front.
    ///
    /// # Errors
    /// [`Garbled`]
    fn get(bytes: &mut &[u8]) -> Result<Self, Garbled>;

    /// Appends a list; numbers do it at once.
    fn put_all(list: &[Self], out: &mut Vec<u8>) {
        list.iter().for_each(|item| item.put(out));
    }

    /// Takes a list.
    ///
    /// # Errors
    /// [`Garbled`]
    fn get_all(count: usize, bytes: &mut &[u8]) -> Result<Vec<Self>, Garbled> {
        // Nothing that travels is empty: more elements than bytes cannot be.
        match count > bytes.len() {
            true => Err(Garbled),
            false => (0..count).map(|_| Self::get(bytes)).collect(),
        }
    }
}

/// One whole frame.
///
/// # Errors
/// [`Garbled`], also where something is left over.
pub fn read<T: Wire>(mut bytes: &[u8]) -> Result<T, Garbled> {
    let value = T::get(&mut bytes)?;
    match bytes.is_empty() {
        true => Ok(value),
        false => Err(Garbled),
    }
}

macro_rules! numbers {
    ($($ty:ty),*) => {$(
        impl Wire for $ty {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_ne_bytes());
            }
            fn get(bytes: &mut &[u8]) -> Result<Self, Garbled> {
                let (number, rest) = bytes.split_first_chunk().ok_or(Garbled)?;
                *bytes = rest;
                Ok(<$ty>::from_ne_bytes(*number))
            }
            fn put_all(list: &[Self], out: &mut Vec<u8>) {
                out.extend_from_slice(bytemuck::cast_slice(list));
            }
            fn get_all(count: usize, bytes: &mut &[u8]) -> Result<Vec<Self>, Garbled> {
                let length = count.checked_mul(size_of::<$ty>()).ok_or(Garbled)?;
                let (list, rest) = bytes.split_at_checked(length).ok_or(Garbled)?;
                *bytes = rest;
                Ok(bytemuck::pod_collect_to_vec(list))
            }
        }
    )*};
}

numbers!(u8, u32, u64, i64, f32, f64);

impl Wire for () {
    fn put(&self, _: &mut Vec<u8>) {}
    fn get(_: &mut &[u8]) -> Result<(), Garbled> {
        Ok(())
    }
    fn get_all(_: usize, _: &mut &[u8]) -> Result<Vec<()>, Garbled> {
        Err(Garbled)
    }
}

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(bytes: &mut &[u8]) -> Result<bool, Garbled> {
        match u8::get(bytes)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Garbled),
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_list(self, out);
    }
    fn get(bytes: &mut &[u8]) -> Result<Vec<T>, Garbled> {
        let count = usize::try_from(u64::get(bytes)?).map_err(|_| Garbled)?;
        T::get_all(count, bytes)
    }
}

/// Appends a list as [`Vec`] does.
pub fn put_list<T: Wire>(list: &[T], out: &mut Vec<u8>) {
    (list.len() as u64).put(out);
    T::put_all(list, out);
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_list(self.as_bytes(), out);
    }
    fn get(bytes: &mut &[u8]) -> Result<String, Garbled> {
        String::from_utf8(Vec::get(bytes)?).map_err(|_| Garbled)
    }
}

impl<T: Wire> Wire for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out);
    }
    fn get(bytes: &mut &[u8]) -> Result<Box<T>, Garbled> {
        T::get(bytes).map(Box::new)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(bytes: &mut &[u8]) -> Result<Option<T>, Garbled> {
        match bool::get(bytes)? {
            true => T::get(bytes).map(Some),
            false => Ok(None),
        }
    }
}

impl<T: Wire> Wire for Result<T, String> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_ok().put(out);
        match self {
            Ok(value) => value.put(out),
            Err(why) => why.put(out),
        }
    }
    fn get(bytes: &mut &[u8]) -> Result<Self, Garbled> {
        Ok(match bool::get(bytes)? {
            true => Ok(T::get(bytes)?),
            false => Err(String::get(bytes)?),
        })
    }
}

/// Structs: their fields, one after the other.
macro_rules! records {
    ($($name:ty { $($field:ident),* })*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn get(bytes: &mut &[u8]) -> Result<Self, Garbled> {
                Ok(Self { $($field: Wire::get(bytes)?),* })
            }
        }
    )*};
}

records! {
    c::Attribute { name, value }
    c::Info { name, version, summary, phases, needs, options_schema, attributes }
    c::Metric { name, value, unit, higher_is_better, low, high }
    c::Run { phase, seed, steps, parameters, budget, attributes }
    c::Slice {
        name, layer, kind, group, rows, cols, max_rank, dense_parameters, component_parameters, attributes
    }
    c::SliceState { awake, dense, dense_allowed, frozen, dwell, parameters, bytes, parked_bytes }
    c::Series { slice, need, offset, len }
    c::Outcome { step, fate, reason, predicted, measured, metrics }
    c::Observation { step, awake, slices, series, values, asleep, metrics, last, proposed, attributes }
    c::Action { slice, change, reason }
    c::Threshold { need, level, reason }
    c::Plan { actions, threshold, predicted, requests, stop, attributes }
    c::Task { step, seed, attributes }
    c::Verdict { decision, reason, metrics, attributes }
    c::Example { prompt, answer }
}

/// Enums: a number for the case, then its fields.
macro_rules! cases {
    ($($name:ty { $($number:literal => $case:ident $(($($field:ident),+))?),* $(,)? })*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$case $(($($field),+))? => {
                        out.push($number);
                        $($($field.put(out);)+)?
                    })*
                }
            }
            fn get(bytes: &mut &[u8]) -> Result<Self, Garbled> {
                Ok(match u8::get(bytes)? {
                    $($number => Self::$case $(($({
                        let $field = Wire::get(bytes)?;
                        $field
                    }),+))?,)*
                    _ => return Err(Garbled),
                })
            }
        }
    )*};
}
pub(super) use cases;

cases! {
    c::Value { 0 => Flag(v), 1 => Int(v), 2 => Num(v), 3 => Text(v), 4 => Nums(v), 5 => Texts(v) }
    c::Change {
        0 => SetRank(n), 1 => SleepN(n), 2 => WakeN(n), 3 => Sleep(list), 4 => Wake(list), 5 => Dense, 6 => Freeze,
        7 => Thaw,
    }
    c::Decision { 0 => Accept, 1 => Reject, 2 => Abstain }
    FaultClass { 0 => Load, 1 => Version, 2 => Refused, 3 => Trap, 4 => Timeout, 5 => Memory, 6 => Answer, 7 => Untrusted }
}
