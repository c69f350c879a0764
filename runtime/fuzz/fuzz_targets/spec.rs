//! Any bytes as config.json: read and planned, or refused with a field's name; no panic.

#![no_main]

#[path = "../../tests/common/any.rs"]
mod any;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let _ = any::decide(text);
});
