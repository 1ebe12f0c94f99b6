//! See `plastic_fuzz::options`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plastic_fuzz::options(bytes));
