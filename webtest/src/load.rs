//! A guest that keeps an ssd busy until it is told to stop.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use guest::load::workload::Random;
use guest::nvme::{Driver, Options, Prp, Sqe, nvm};

const BLOCK_BYTES: usize = 4096;
const RAM_BYTES: usize = 8 << 20;

/// What is asked of the ssd.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Commands in flight.
    pub depth: usize,
    /// How long it thinks between two rounds.
    pub pause: Duration,
    /// Places of 4 KiB it reads and writes.
    pub places: u64,
}

/// See the module. Dropping it stops it.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Load {
    /// Rounds of 4 KiB commands at random places, three reads to a write.
    #[must_use]
    pub fn start(socket: &Path, shape: Shape) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, socket) = (Arc::clone(&stop), socket.to_owned());
        let thread = std::thread::spawn(move || run(&socket, shape, &stopped));
        Load { stop, thread: Some(thread) }
    }

    /// Ends it; how many commands were done.
    ///
    /// # Errors
    /// What the ssd did wrong.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("it was stopped already"))?;
        thread.join().map_err(|_| anyhow!("the load panicked"))?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(socket: &Path, shape: Shape, stop: &AtomicBool) -> Result<u64> {
    let options = Options { ram_bytes: RAM_BYTES, timeout: Duration::from_secs(60), ..Options::default() };
    let mut driver = Driver::connect_with(socket, options)?;
    driver.create_queue_pair(1, 256)?;
    let mut buffers = Vec::new();
    for _ in 0..shape.depth {
        let buffer = driver.ram().alloc(BLOCK_BYTES)?;
        let prp = Prp::new(driver.ram(), buffer.iova(), BLOCK_BYTES)?;
        buffers.push((buffer, prp));
    }
    let (mut random, mut done) = (Random::new(7), 0);
    while !stop.load(Ordering::Relaxed) {
        for (_, prp) in &buffers {
            let opcode = if random.below(4) == 0 { nvm::WRITE } else { nvm::READ };
            let slba = random.below(shape.places) * (BLOCK_BYTES as u64 / 512);
            driver.place(1, Sqe::new(opcode).nsid(1).prp(prp.prp1, prp.prp2).blocks(slba, 7))?;
        }
        driver.ring(1)?;
        for _ in &buffers {
            driver.wait_any(1, Duration::from_secs(60))?.ok()?;
            done += 1;
        }
        std::thread::sleep(shape.pause);
    }
    Ok(done)
}
