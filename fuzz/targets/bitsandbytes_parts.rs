//! The same of a file that is made from its parts, for what lies behind the header.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::init(), |data: &[u8]| fuzz::bitsandbytes(&fuzz::from_parts(data)));
