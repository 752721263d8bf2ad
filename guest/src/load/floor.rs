//! What no migration is quicker than: the link, and sequential reads and writes of a file, each by itself.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::fio;
use super::workload::{Direction, Workload};

/// Measured over the raw link.
const LINK_BYTES: usize = 96 << 20;

/// Bytes a second from a connection that `connect` makes to who listens.
///
/// # Errors
/// It breaks.
pub fn link(listener: TcpListener, connect: impl FnOnce() -> Result<TcpStream>) -> Result<f64> {
    let sink = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        let mut room = vec![0; 1 << 20];
        let mut left = LINK_BYTES;
        while left > 0 {
            left -= socket.read(&mut room)?.min(left);
        }
        socket.write_all(&[1])
    });
    let mut socket = connect()?;
    let (bytes, start) = (vec![0x5A; 1 << 20], Instant::now());
    for _ in 0..LINK_BYTES >> 20 {
        socket.write_all(&bytes)?;
    }
    socket.read_exact(&mut [0])?;
    let rate = LINK_BYTES as f64 / start.elapsed().as_secs_f64();
    sink.join().map_err(|_| anyhow!("the raw link's end panicked"))??;
    Ok(rate)
}

/// Bytes a second of a file in a folder, read and written in order by fio on one core: the lower.
///
/// # Errors
/// The file cannot be made, or fio not run.
pub fn file(folder: &Path, mebibytes: u64, cpu: usize) -> Result<f64> {
    fio::ensure_installed()?;
    let file = folder.join("raw.img");
    super::suite::write_file(&file, mebibytes)?;
    let mut slowest = f64::INFINITY;
    for direction in [Direction::Read, Direction::Write] {
        let load = Workload::sequential(direction, 8);
        let (time, warm_up) = (Duration::from_secs(1), Duration::from_millis(200));
        let raw = fio::run(&file, mebibytes << 20, &load, cpu, warm_up, time)?;
        slowest = slowest.min(raw.iops * load.block_bytes as f64);
    }
    std::fs::remove_file(file)?;
    Ok(slowest)
}
