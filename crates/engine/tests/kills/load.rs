//! Reads and writes of known blocks, several at a time, each answered exactly once, each byte compared.

use guest::PATIENCE;
use guest::nvme::{Driver, Sqe};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 4096;
/// Longer without any completion is a hang.
const HANG: Duration = PATIENCE;

struct Operation {
    block: u64,
    /// Written with this version; `None`: a read.
    version: Option<u32>,
    buffer: usize,
}

/// See the module.
pub(crate) struct Load {
    driver: Driver,
    queues: u16,
    depth: usize,
    buffers: guest::ram::Buffer,
    free: Vec<usize>,
    out: HashMap<(u16, u16), Operation>,
    /// By block: version that it holds, and whether an operation is out.
    blocks: Vec<(u32, bool)>,
    chance: u64,
    done: u64,
    last: Instant,
    /// Buffers that the guest has written since it was asked.
    written: HashSet<usize>,
}

impl Load {
    pub(crate) fn new(mut driver: Driver, queues: u16, depth: usize, seed: u64) -> Self {
        (1..=queues).for_each(|qid| driver.create_queue_pair(qid, 64).unwrap());
        let count = depth.min(usize::from(queues) * 60);
        let buffers = driver.ram().clone().alloc(count * BLOCK).unwrap();
        Self {
            driver,
            queues,
            depth: count,
            buffers,
            free: (0..count).collect(),
            out: HashMap::new(),
            blocks: vec![(0, false); BLOCKS as usize],
            chance: seed | 1,
            done: 0,
            last: Instant::now(),
            written: HashSet::new(),
        }
    }

    /// What the guest's processors have written since the last call, by offset in its memory and bytes.
    pub(crate) fn take_written(&mut self) -> Vec<(usize, usize)> {
        let rings = (1..=self.queues).map(|qid| {
            let ring = self.driver.sq(qid).unwrap().ring();
            (ring.offset(), ring.len())
        });
        let buffers = self.written.drain().map(|buffer| (self.buffers.offset() + buffer * BLOCK, BLOCK));
        rings.chain(buffers).collect()
    }

    /// To be moved.
    pub(crate) fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }

    fn next(&mut self, below: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % below
    }

    fn word(block: u64, version: u32, at: usize) -> u64 {
        if version == 0 { 0 } else { (block << 32 | u64::from(version)).wrapping_mul(2 * at as u64 + 1) }
    }

    fn submit(&mut self) {
        while self.out.len() < self.depth {
            let block = self.next(BLOCKS);
            if self.blocks[block as usize].1 {
                continue;
            }
            let buffer = self.free.pop().unwrap();
            self.written.insert(buffer);
            let qid = self.next(u64::from(self.queues)) as u16 + 1;
            let writes = self.next(2) == 0;
            let version = writes.then(|| self.blocks[block as usize].0 + 1);
            for at in 0..BLOCK / 8 {
                let word = version.map_or(!0, |version| Self::word(block, version, at));
                self.buffers.write(buffer * BLOCK + at * 8, &word.to_le_bytes());
            }
            let iova = self.buffers.iova() + (buffer * BLOCK) as u64;
            let sqe = Sqe::new(if writes { 1 } else { 2 }).nsid(1).prp(iova, 0).qword(10, block * 8).cdw12(7);
            let cid = match self.driver.place(qid, sqe) {
                Ok(cid) => cid,
                // The queue is full.
                Err(_) => {
                    self.free.push(buffer);
                    break;
                }
            };
            self.driver.ring(qid).unwrap();
            self.blocks[block as usize].1 = true;
            let before = self.out.insert((qid, cid), Operation { block, version, buffer });
            assert!(before.is_none());
        }
    }

    fn collect(&mut self) -> bool {
        let mut any = false;
        for qid in 1..=self.queues {
            while let Some(completion) = self.driver.poll(qid).unwrap() {
                completion.ok().unwrap();
                let operation = self.out.remove(&(completion.sqid, completion.cid));
                let operation = operation.expect("a completion of nothing that is outstanding");
                let Operation { block, version, buffer } = operation;
                let expected = version.unwrap_or(self.blocks[block as usize].0);
                let bytes = self.buffers.bytes(buffer * BLOCK, BLOCK);
                for (at, word) in bytes.chunks_exact(8).enumerate() {
                    let word = u64::from_le_bytes(word.try_into().unwrap());
                    assert_eq!(
                        word,
                        Self::word(block, expected, at),
                        "block {block} version {expected} word {at}"
                    );
                }
                self.blocks[block as usize] = (expected, false);
                self.free.push(buffer);
                self.done += 1;
                any = true;
            }
        }
        if any {
            self.last = Instant::now();
        } else {
            assert!(self.last.elapsed() < HANG, "no completion, {} commands are out", self.out.len());
            std::thread::yield_now();
        }
        any
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.submit();
            self.collect();
        }
    }

    /// The longest time without a completion, until three thousand came, or as many as a slow machine does in half a minute.
    pub(crate) fn run_until_progress(&mut self) -> Duration {
        let (start, until) = (Instant::now(), self.done + 3000);
        let mut longest = Duration::ZERO;
        while self.done < until && start.elapsed() < Duration::from_secs(30) {
            self.submit();
            let last = self.last;
            if self.collect() {
                longest = longest.max(self.last - last);
            }
        }
        longest
    }

    /// Leaves its drive, with what is out unanswered.
    pub(crate) fn leave(self) -> Left {
        let mut blocks: Vec<_> = self.blocks.iter().map(|(version, _)| (*version, None)).collect();
        for Operation { block, version, .. } in self.out.values() {
            blocks[*block as usize].1 = *version;
        }
        Left { blocks, chance: self.chance, queues: self.queues, depth: self.depth }
    }

    fn read(&mut self, block: u64) -> Vec<u8> {
        let iova = self.buffers.iova();
        let sqe = Sqe::new(2).nsid(1).prp(iova, 0).qword(10, block * 8).cdw12(7);
        self.driver.place(1, sqe).unwrap();
        self.driver.ring(1).unwrap();
        let end = Instant::now() + HANG;
        loop {
            if let Some(completion) = self.driver.poll(1).unwrap() {
                completion.ok().unwrap();
                return self.buffers.bytes(0, BLOCK);
            }
            assert!(Instant::now() < end, "no completion");
        }
    }

    /// Waits for all that is out; how much was done in all.
    pub(crate) fn finish(mut self) -> u64 {
        while !self.out.is_empty() {
            self.collect();
        }
        self.done
    }
}

/// What a drive must hold, without anybody at it.
pub(crate) struct Left {
    /// By block: version that it holds, and the one that it may hold instead.
    blocks: Vec<(u32, Option<u32>)>,
    chance: u64,
    queues: u16,
    depth: usize,
}

impl Left {
    /// Reads every block by another driver, and goes on.
    pub(crate) fn go_on(self, driver: Driver) -> Load {
        let Self { blocks, chance, queues, depth } = self;
        let mut load = Load::new(driver, queues, depth, chance);
        for (block, (version, instead)) in (0_u64..).zip(blocks) {
            let bytes = load.read(block);
            let is = |version: u32| {
                bytes.chunks_exact(8).enumerate().all(|(at, word)| {
                    u64::from_le_bytes(word.try_into().unwrap()) == Load::word(block, version, at)
                })
            };
            let held = [Some(version), instead].into_iter().flatten().find(|version| is(*version));
            let held = held
                .unwrap_or_else(|| panic!("block {block} holds neither version {version} nor {instead:?}"));
            load.blocks[block as usize] = (held, false);
        }
        load
    }
}
