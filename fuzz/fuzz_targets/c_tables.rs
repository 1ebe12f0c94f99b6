//! See `plastic_fuzz::c_tables`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plastic_fuzz::c_tables(bytes));
