//! libFuzzer's way into [`m2u_fuzz::dns`]; decides nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    m2u_fuzz::dns::check(input);
});
