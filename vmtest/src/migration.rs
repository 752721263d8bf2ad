//! QEMU's own live migration from one guest's process to another, held where storage may pass (`pause-before-switchover`).

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hypervisor::{Destination, DestinationWord, Source, SourceWord, Terms};

use crate::vm::Vm;

const PATIENCE: Duration = Duration::from_secs(240);
/// For the first pass over the guest's memory.
const FIRST: Terms = Terms { bandwidth_bytes_s: 128 << 20, downtime_limit_ms: 1 };
/// From then on: less than a guest writes that is at work, so that the copy does not come to its end.
const SLOW: Terms = Terms { bandwidth_bytes_s: 1 << 20, downtime_limit_ms: 1 };
const QUICK: Terms = Terms { bandwidth_bytes_s: 0, downtime_limit_ms: 2000 };

/// A migration under way: memory is copied, again and again, as the guest writes it.
pub struct Migration {
    /// The QEMU that the guest leaves.
    pub source: Source,
    /// The QEMU that it comes to.
    pub destination: Destination,
}

impl Migration {
    /// Begins to copy memory. It does not end before [`Migration::hurry`].
    pub fn begin(source: &Vm, destination: &Vm) -> Result<Self> {
        Self::begin_by(source, destination, &FIRST)
    }

    /// Begins to copy memory as quickly as may be; the guest may stand still so long for the rest of it.
    pub fn begin_quickly(source: &Vm, destination: &Vm, downtime_limit_ms: u64) -> Result<Self> {
        Self::begin_by(source, destination, &Terms { bandwidth_bytes_s: 0, downtime_limit_ms })
    }

    fn begin_by(source: &Vm, destination: &Vm, terms: &Terms) -> Result<Self> {
        let (mut source, mut destination) = (source.as_source()?, destination.as_destination()?);
        destination.check()?;
        source.check()?;
        let (from, to) = UnixStream::pair().context("a socket for the memory")?;
        destination.expect(to.into())?;
        source.begin(from.into(), terms)?;
        Ok(Self { source, destination })
    }

    /// Until all memory was copied once. What is written from then on is copied slowly, until [`Migration::hurry`].
    pub fn wait_first_pass(&mut self) -> Result<()> {
        wait_for(&mut self.source, |word| matches!(word, SourceWord::Pass(2..)))?;
        Ok(self.source.set_terms(&SLOW)?)
    }

    /// Copies as quickly as may be. When this returns the guest stands still, and its disks have ended all I/O.
    pub fn hurry(&mut self) -> Result<()> {
        self.source.set_terms(&QUICK)?;
        self.wait_held()
    }

    /// Until the guest stands still, and its disks have ended all I/O.
    pub fn wait_held(&mut self) -> Result<()> {
        wait_for(&mut self.source, |word| *word == SourceWord::PreSwitchover)
    }

    /// Moves the guest. It stands still at its destination until that is told to run it.
    pub fn switch_over(&mut self) -> Result<()> {
        self.source.go_on()?;
        wait_for(&mut self.source, |word| *word == SourceWord::Completed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.destination.next(left)?.context("the destination does not come to its end")? {
                DestinationWord::Completed => return Ok(()),
                DestinationWord::Coming => {}
                other => bail!("instead of its end, the destination is at {other:?}"),
            }
        }
    }
}

fn wait_for(source: &mut Source, wanted: impl Fn(&SourceWord) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let word = source.next(left)?.context("the migration does not come to its end")?;
        if wanted(&word) {
            return Ok(());
        }
        let copying = matches!(
            word,
            SourceWord::Copying | SourceWord::Pass(_) | SourceWord::Stopped | SourceWord::SwitchingOver
        );
        if !copying {
            bail!("the migration came to {word:?}");
        }
    }
}
