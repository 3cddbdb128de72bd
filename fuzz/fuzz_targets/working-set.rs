//! `working-set` of `userswap_tests::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (userswap_tests::fuzz::TARGETS[6].run)(bytes));
