//! The journal of one migration, as its side writes it: never over that of another, and nothing is believed that may not be durable.

use crate::passage::Store;
use anyhow::{Context, ensure};
use state::migration::LimitsV1;
use std::sync::Arc;
use transfer::commit::{Parties, Record};

/// See the module.
pub(super) struct Journal {
    store: Arc<dyn Store>,
    parties: Parties,
    migration: [u8; 16],
    /// As it was written or read last. `None`: the journal is of a migration before this one, or of none.
    last: Option<Record>,
}

impl Journal {
    /// `last`: the record, if there is one of this migration.
    pub(super) fn new(
        store: Arc<dyn Store>,
        parties: Parties,
        migration: [u8; 16],
        last: Option<Record>,
    ) -> Self {
        Self { store, parties, migration, last }
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn parties(&self) -> &Parties {
        &self.parties
    }

    /// The limits that the ssd comes with, as the source says them last: they go with the next record.
    pub(super) fn bring(&mut self, limits: LimitsV1) {
        self.parties.limits = Some(limits);
    }

    pub(super) fn last(&self) -> Option<Record> {
        self.last
    }

    /// The record is durable when this returns. The first of a migration takes the place of one that is over; no other takes another's.
    ///
    /// # Errors
    /// It is not, or nobody knows: [`Journal::read_back`].
    pub(super) fn write(&mut self, record: Record) -> anyhow::Result<()> {
        if self.last.is_some() {
            let there = self.store.read()?.map(|bytes| Record::from_bytes(&bytes)).transpose()?;
            let is_mine = there.is_some_and(|(_, record)| migration_of(&record) == self.migration);
            ensure!(is_mine, "{} is of another migration by now", self.store.place());
        }
        self.store.replace(&record.to_bytes(&self.parties)?)?;
        self.last = Some(record);
        Ok(())
    }

    /// Changes what is noted beside the record, durably, if that is not so yet.
    ///
    /// # Errors
    /// As [`Journal::write`]; the note is then not made.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Parties)) -> anyhow::Result<()> {
        let before = self.parties.clone();
        change(&mut self.parties);
        let Some(record) = self.last.filter(|_| self.parties != before) else { return Ok(()) };
        self.write(record).inspect_err(|_| self.parties = before)
    }

    /// After an error: what is there, made durable before anybody acts on it. `None`: nothing of this migration is.
    ///
    /// # Errors
    /// Nobody can say: nothing may be done until this has been asked again.
    pub(super) fn read_back(&mut self) -> anyhow::Result<Option<Record>> {
        let Some(bytes) = self.store.read()? else {
            ensure!(self.last.is_none(), "{} has gone", self.store.place());
            return Ok(None);
        };
        let (_, record) = Record::from_bytes(&bytes)?;
        if migration_of(&record) != self.migration {
            ensure!(self.last.is_none(), "{} is of another migration by now", self.store.place());
            return Ok(None);
        }
        self.store.replace(&bytes).context("it cannot be made durable")?;
        self.last = Some(record);
        Ok(Some(record))
    }
}

fn migration_of(record: &Record) -> [u8; 16] {
    match record {
        Record::Source(record) => record.pledge.migration,
        Record::Destination(record) => record.pledge.migration,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::sync::Mutex;
    use transfer::commit::{Pledge, SourceRecord, SourceStep};

    /// A journal in memory that takes so many records.
    #[derive(Default)]
    struct Paper(Mutex<(Option<Vec<u8>>, usize)>);

    impl Store for Paper {
        fn read(&self) -> anyhow::Result<Option<Vec<u8>>> {
            Ok(self.0.lock().unwrap().0.clone())
        }

        fn replace(&self, record: &[u8]) -> anyhow::Result<()> {
            let (bytes, left) = &mut *self.0.lock().unwrap();
            // What fails may be there all the same.
            *bytes = Some(record.to_vec());
            *left = left.checked_sub(1).context("no space")?;
            Ok(())
        }

        fn place(&self) -> String {
            "paper".to_owned()
        }
    }

    fn record(migration: u8, step: SourceStep) -> Record {
        let pledge = Pledge { migration: [migration; 16], epoch: 2 };
        Record::Source(SourceRecord { pledge, held: 1, round: 1, step })
    }

    fn journal(paper: &Arc<Paper>, migration: u8) -> Journal {
        let parties = Parties {
            ssd: [1; 16],
            peer: "b".to_owned(),
            keep: false,
            closed: false,
            wiped: false,
            hypervisor: None,
            limits: None,
        };
        Journal::new(Arc::clone(paper) as Arc<dyn Store>, parties, [migration; 16], None)
    }

    #[test]
    fn a_former_migration_writes_nothing_over_a_newer_one() {
        let paper = Arc::new(Paper(Mutex::new((None, 9))));
        let (mut former, mut newer) = (journal(&paper, 1), journal(&paper, 2));
        former.write(record(1, SourceStep::Cancelled)).unwrap();
        newer.write(record(2, SourceStep::Offered)).unwrap();
        for done in
            [former.write(record(1, SourceStep::Cancelled)), former.note(|parties| parties.closed = true)]
        {
            assert!(done.unwrap_err().to_string().contains("another migration"));
        }
        assert!(former.read_back().is_err() && !former.parties().closed);
        newer.note(|parties| parties.wiped = true).unwrap();
        assert!(newer.parties().wiped);
    }

    #[test]
    fn what_could_not_be_written_is_made_durable_before_anybody_acts_on_it() -> anyhow::Result<()> {
        let paper = Arc::new(Paper(Mutex::new((None, 1))));
        let mut journal = journal(&paper, 1);
        journal.write(record(1, SourceStep::Offered))?;
        assert!(journal.write(record(1, SourceStep::Granted)).is_err());
        assert!(journal.read_back().is_err(), "it is there, and nobody knows for how long");
        paper.0.lock().unwrap().1 = 1;
        let Some(Record::Source(there)) = journal.read_back()? else { bail!("nothing is there") };
        assert_eq!(there.step, SourceStep::Granted);
        Ok(())
    }
}
