#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| psyncd_fuzz::journal(data));
