//! A device, whatever its protocol.

use std::ops::Range;

use crate::Result;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data comes.
    Read,
    /// Data goes.
    Write {
        /// Force unit access, where the protocol has it.
        fua: bool,
    },
    /// What was written before is durable.
    Flush,
    /// The blocks are given back; they read as zeros from then on.
    Deallocate,
    /// The blocks read as zeros from then on.
    WriteZeroes {
        /// They may be given back.
        deallocate: bool,
    },
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What it does.
    pub kind: Kind,
    /// The first block.
    pub start: u64,
    /// How many, from 1; a flush has none.
    pub blocks: u32,
}

impl Op {
    /// Its blocks.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + u64::from(self.blocks)
    }

    /// Whether it changes its blocks.
    #[must_use]
    pub fn changes(&self) -> bool {
        !matches!(self.kind, Kind::Read | Kind::Flush)
    }
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of one.
    pub block_bytes: usize,
    /// The longest transfer.
    pub transfer_blocks_max: u32,
    /// Queues.
    pub lanes: usize,
    /// Operations a queue takes at once.
    pub depth: usize,
}

/// Names an operation while it is outstanding. A door gives a tag again as late as it can: a repeated answer must not pass
/// for the answer to another operation.
pub type Tag = u32;

/// An operation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which.
    pub tag: Tag,
    /// `None` = it succeeded; else the protocol's status.
    pub failure: Option<u32>,
}

/// A device with queues (lanes), driven from one thread.
///
/// The caller keeps at most `depth` operations outstanding in a lane. After an answer to a read it takes the data before the
/// next call of `submit`. The door does not judge answers: also one with a tag that is not outstanding is passed on.
pub trait Door {
    /// What it can do.
    fn shape(&self) -> Shape;

    /// Places an operation; `data` are the bytes of a write, else empty. The device may see it at once or at [`Door::ring`].
    ///
    /// # Errors
    /// The device is gone.
    fn submit(&mut self, lane: usize, op: &Op, data: &[u8]) -> Result<Tag>;

    /// Tells the device of what was placed, and that answers were taken.
    ///
    /// # Errors
    /// The device is gone.
    fn ring(&mut self, lane: usize) -> Result<()>;

    /// The next answer.
    ///
    /// # Errors
    /// The device is gone.
    fn poll(&mut self, lane: usize) -> Result<Option<Answer>>;

    /// The data of the read that was answered last, and whether the bytes around it were left alone.
    fn data(&mut self, lane: usize, tag: Tag, target: &mut [u8]) -> bool;

    /// A break of the protocol seen since the last call, such as a head that jumps.
    fn complaint(&mut self) -> Option<String>;
}
