//! See `plastic_fuzz::wire`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plastic_fuzz::wire(bytes));
