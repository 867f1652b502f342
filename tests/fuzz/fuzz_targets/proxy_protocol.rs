//! libFuzzer's way into [`m2u_fuzz::proxy_protocol`]; decides nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    m2u_fuzz::proxy_protocol::check(input);
});
