//! Any text as a configuration: read or refused with a place that lies in the text, never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match api::config::Config::parse(Path::new("godwit.toml"), text) {
        Ok(config) => {
            assert!(config.ssds.len() <= api::config::SSDS_MAX);
            assert!((1..=api::config::REACTORS_MAX).contains(&config.engine.reactors));
            for ssd in &config.ssds {
                assert!(
                    config.ssd(&ssd.name).is_some_and(|found| found.socket == ssd.socket),
                    "names differ"
                );
                assert!(ssd.size_bytes.is_none_or(|bytes| bytes > 0 && bytes % (1 << 20) == 0));
                assert!((1..=20).contains(&ssd.identity.serial.len()));
            }
        }
        Err(error) => assert!(error.to_string().starts_with("godwit.toml")),
    }
});
