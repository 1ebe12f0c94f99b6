//! Reading what the other side lends: pointers, lengths and sizes are checked before they are
//! followed, and no more than a budget of bytes is taken.
//!
//! What cannot be checked is whether a pointer that is not null points at what it says. That is the
//! trust a native library needs.

use super::{Sized32, Str, View};

/// Why something was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misread {
    /// The sentence names the field.
    Broken(String),
    /// More bytes than may cross the border at once.
    TooMuch,
}

/// Takes values out of views, within a budget of bytes.
#[derive(Debug)]
pub struct Reader {
    left: usize,
}

/// Types a view can be of that have no size of their own; any bytes are a value.
///
/// # Safety
/// Every bit pattern is a value of the type.
pub unsafe trait Plain: Copy {}

// SAFETY: numbers, and pointers with lengths that are checked where they are followed.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}
// SAFETY: as above.
unsafe impl Plain for Str {}
// SAFETY: as above.
unsafe impl Plain for View<u32> {}
// SAFETY: as above.
unsafe impl Plain for View<f32> {}

impl Reader {
    /// Takes at most so many bytes.
    pub fn new(budget: usize) -> Reader {
        Reader { left: budget }
    }

    /// Pays for `count` elements of `size` bytes.
    fn pay(&mut self, count: u64, size: usize) -> Result<usize, Misread> {
        let count = usize::try_from(count).map_err(|_| Misread::TooMuch)?;
        let bytes = count.checked_mul(size).ok_or(Misread::TooMuch)?;
        self.left = self.left.checked_sub(bytes).ok_or(Misread::TooMuch)?;
        Ok(count)
    }

    /// The elements of a list, where they lie.
    ///
    /// # Errors
    /// A null or misaligned pointer, or more than the budget.
    ///
    /// # Safety
    /// A view that passes the checks points at `len` elements that live as long as `'a`.
    pub unsafe fn list<'a, T: Plain>(&mut self, view: View<T>, what: &str) -> Result<&'a [T], Misread> {
        let count = self.pay(view.len, size_of::<T>())?;
        if count == 0 {
            return Ok(&[]);
        }
        check(view.ptr, view.len, what)?;
        // SAFETY: not null and aligned; the rest is the caller's word. `pay` refused what overflows.
        Ok(unsafe { std::slice::from_raw_parts(view.ptr, count) })
    }

    /// A text, where it lies.
    ///
    /// # Errors
    /// As [`list`](Reader::list), or it is not UTF-8.
    ///
    /// # Safety
    /// As [`list`](Reader::list).
    pub unsafe fn str<'a>(&mut self, text: Str, what: &str) -> Result<&'a str, Misread> {
        // SAFETY: passed on to the caller.
        let bytes: &'a [u8] = unsafe { self.list(View { ptr: text.ptr, len: text.len }, what)? };
        std::str::from_utf8(bytes).map_err(|_| Misread::Broken(format!("{what} is not UTF-8")))
    }

    /// A text of one's own.
    ///
    /// # Errors
    /// As [`str`](Reader::str).
    ///
    /// # Safety
    /// As [`str`](Reader::str).
    pub unsafe fn string(&mut self, text: Str, what: &str) -> Result<String, Misread> {
        // SAFETY: passed on to the caller.
        Ok(unsafe { self.str(text, what)? }.to_owned())
    }

    /// A list of texts.
    ///
    /// # Errors
    /// As [`str`](Reader::str).
    ///
    /// # Safety
    /// As [`str`](Reader::str), for the list and for every text in it.
    pub unsafe fn strings(&mut self, list: View<Str>, what: &str) -> Result<Vec<String>, Misread> {
        // SAFETY: passed on to the caller.
        unsafe { self.list(list, what)?.iter().map(|t| self.string(*t, what)).collect() }
    }

    /// Lists of numbers.
    ///
    /// # Errors
    /// As [`list`](Reader::list).
    ///
    /// # Safety
    /// As [`list`](Reader::list), for the list and for every list in it.
    pub unsafe fn rows<T: Plain>(&mut self, rows: View<View<T>>, what: &str) -> Result<Vec<Vec<T>>, Misread>
    where
        View<T>: Plain,
    {
        // SAFETY: passed on to the caller.
        unsafe { self.list(rows, what)?.iter().map(|r| Ok(self.list(*r, what)?.to_vec())).collect() }
    }

    /// One struct or table, filled up with zeros where its writer knew fewer fields.
    ///
    /// # Errors
    /// A null or misaligned pointer, or a size below `least`, the size of version 1.0.
    ///
    /// # Safety
    /// A pointer that passes the check points at a struct that begins with its own size.
    pub unsafe fn one<T: Sized32>(&mut self, at: *const T, least: usize, what: &str) -> Result<T, Misread> {
        check(at, 1, what)?;
        // SAFETY: not null and aligned for T, which begins with a u32; the rest is the caller's word.
        let size = unsafe { at.cast::<u32>().read() } as usize;
        self.pay(1, size)?;
        check_size(size, least, what)?;
        // SAFETY: `size` bytes are there, as the struct says itself.
        Ok(unsafe { copy(at.cast(), size) })
    }

    /// The structs of a list, stepped by the size their writer gave them.
    ///
    /// # Errors
    /// As [`one`](Reader::one), for the size of the first element, which all of them have.
    ///
    /// # Safety
    /// A view that passes the checks points at `len` structs of that size.
    pub unsafe fn records<T: Sized32>(&mut self, list: View<T>, least: usize, what: &str) -> Result<Vec<T>, Misread> {
        if list.len == 0 {
            return Ok(Vec::new());
        }
        check(list.ptr, list.len, what)?;
        // SAFETY: not null and aligned, and there is a first element.
        let size = unsafe { list.ptr.cast::<u32>().read() } as usize;
        check_size(size, least, what)?;
        if !size.is_multiple_of(align_of::<T>()) {
            return Err(Misread::Broken(format!("{what} steps by {size} bytes, which is not aligned")));
        }
        let count = self.pay(list.len, size)?;
        let mut out = Vec::with_capacity(count);
        for i in 0..count {
            // SAFETY: within `count` elements of `size` bytes; `pay` refused what overflows.
            let (element, own) = unsafe {
                let at = list.ptr.cast::<u8>().add(i * size);
                (copy(at, size), at.cast::<u32>().read() as usize)
            };
            if own != size {
                return Err(Misread::Broken(format!("{what}: element {i} has the size {own}, the first one {size}")));
            }
            out.push(element);
        }
        Ok(out)
    }
}

/// A pointer that will be followed.
fn check<T>(at: *const T, len: u64, what: &str) -> Result<(), Misread> {
    if at.is_null() {
        return Err(Misread::Broken(match len {
            1 => format!("{what} is a null pointer"),
            _ => format!("{what} is a null pointer with {len} elements"),
        }));
    }
    match at.is_aligned() {
        true => Ok(()),
        false => Err(Misread::Broken(format!("{what} is not aligned"))),
    }
}

fn check_size(size: usize, least: usize, what: &str) -> Result<(), Misread> {
    match size >= least {
        true => Ok(()),
        false => Err(Misread::Broken(format!("{what} has a struct_size of {size}, expected at least {least}"))),
    }
}

/// The first bytes of a struct, the rest zero.
///
/// # Safety
/// `size` bytes lie at `at`.
unsafe fn copy<T: Sized32>(at: *const u8, size: usize) -> T {
    let mut out = T::new();
    // SAFETY: no more than either side has; any prefix of the fields followed by zeros is a value.
    unsafe { std::ptr::copy_nonoverlapping(at, (&raw mut out).cast(), size.min(size_of::<T>())) };
    out
}
