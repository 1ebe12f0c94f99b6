//! See `plastic_fuzz::component`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plastic_fuzz::component(bytes));
