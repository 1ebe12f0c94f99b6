//! See `plastic_fuzz::plan`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plastic_fuzz::plan(bytes));
