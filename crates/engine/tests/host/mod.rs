//! An engine on a directory of its own, and the simplest use of its ssds.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::cast_possible_truncation, reason = "a pattern of bytes")]

use api::config::Config;
use api::control::{PoolRequest, Response};
use engine::Engine;
use guest::nvme::{Driver, Options};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// An engine on a directory of its own.
pub(crate) struct Host {
    engine: Engine,
    directory: TempDir,
}

impl Host {
    /// `ssds`: names and backends, where `DIR` stands for the directory.
    pub(crate) fn start(ssds: &[(&str, &str)], reactors: usize) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), ssds, reactors)
    }

    pub(crate) fn start_in(directory: TempDir, ssds: &[(&str, &str)], reactors: usize) -> Self {
        Self::start_with("256MiB", directory, ssds, reactors)
    }

    pub(crate) fn start_with_pool(pool: &str, ssds: &[(&str, &str)], reactors: usize) -> Self {
        Self::start_with(pool, tempfile::tempdir().unwrap(), ssds, reactors)
    }

    fn start_with(pool: &str, directory: TempDir, ssds: &[(&str, &str)], reactors: usize) -> Self {
        let mut text = text(&directory, ssds, reactors);
        if text.contains("pool = ") {
            let path = directory.path().join("pool.img");
            text.push_str(&format!("[[pool]]\nname = \"p\"\npath = {path:?}\nsize = \"{pool}\"\n"));
        }
        let engine = Self::try_start(&text).unwrap();
        Self { engine, directory }
    }

    /// An engine of this configuration, or why there is none.
    pub(crate) fn try_start(text: &str) -> anyhow::Result<Engine> {
        let config = Config::parse(Path::new("test.toml"), text).unwrap();
        Engine::start(&config, None)
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn ask(&self, request: PoolRequest) -> Response {
        self.engine.ask(request)
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.sock"))
    }

    pub(crate) fn connect(&self, name: &str) -> Driver {
        self.connect_with(name, Options::default())
    }

    /// The one before may still be leaving: a client that comes too early is turned away and tries again.
    pub(crate) fn connect_with(&self, name: &str, options: Options) -> Driver {
        for _ in 0..200 {
            match Driver::connect_with(self.socket(name), options) {
                Ok(driver) => return driver,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        Driver::connect_with(self.socket(name), options).unwrap()
    }

    pub(crate) fn stop(self) -> TempDir {
        self.engine.stop().unwrap();
        self.directory
    }
}

/// The configuration of [`Host::start`].
pub(crate) fn text(directory: &TempDir, ssds: &[(&str, &str)], reactors: usize) -> String {
    let dir = directory.path().display().to_string();
    let mut text = format!("[engine]\nreactors = {reactors}\n");
    for (name, backend) in ssds {
        text.push_str(&format!(
            "[[ssd]]\nname = \"{name}\"\nsize = \"64MiB\"\nsocket = \"{dir}/{name}.sock\"\n\
             state = \"{dir}/{name}.state\"\nbackend = {}\n",
            backend.replace("DIR", &dir)
        ));
    }
    text
}

pub(crate) const RAM: &str = "{ type = \"ram\" }";
pub(crate) const FILE: &str = "{ type = \"uring\", path = \"DIR/disk.img\" }";

pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(seed | 1).wrapping_add(seed) >> 3) as u8).collect()
}

pub(crate) fn write(driver: &mut Driver, qid: u16, slba: u64, bytes: &[u8]) {
    let buffer = driver.ram().clone().alloc_with(bytes).unwrap();
    let blocks = u32::try_from(bytes.len() / 512).unwrap();
    driver.write(qid, 1, slba, blocks, &buffer).unwrap().ok().unwrap();
}

pub(crate) fn read(driver: &mut Driver, qid: u16, slba: u64, len: usize) -> Vec<u8> {
    let buffer = driver.ram().clone().alloc(len).unwrap();
    driver.read(qid, 1, slba, u32::try_from(len / 512).unwrap(), &buffer).unwrap().ok().unwrap();
    buffer.bytes(0, len)
}
