//! See `plastic_fuzz::texts`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plastic_fuzz::texts(bytes));
