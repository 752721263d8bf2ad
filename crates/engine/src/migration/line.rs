//! The source's connection for what the two hosts say: one word, one answer, and a new connection when one breaks.

use super::means::{Means, SILENCE};
use super::word::{FromDestination, FromSource, Offer, There, receive, send, to_source};
use api::config::Limits;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use transfer::commit::{Message, ToDestination, ToSource};
use transfer::tls::{Outgoing, Protocol};

/// See the module.
pub(super) struct Line {
    means: Arc<Means>,
    to: String,
    offer: Offer,
    open: Option<Outgoing>,
    patience: Duration,
}

/// What a word came back with.
pub(super) enum Heard {
    Step(Message<ToSource>),
    /// It has nothing to add.
    Noted,
    /// The other side will have nothing to do with it, and says why.
    No(String),
}

impl Line {
    pub(super) fn new(means: Arc<Means>, to: &str, offer: Offer) -> Self {
        Self { means, to: to.to_owned(), offer, open: None, patience: SILENCE }
    }

    /// Another to the same host, for the same migration.
    pub(super) fn another(&self) -> Self {
        Self::new(Arc::clone(&self.means), &self.to, self.offer.clone())
    }

    /// How long an answer may take from now on.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    pub(super) fn migration(&self) -> [u8; 16] {
        self.offer.migration.to_be_bytes()
    }

    /// Asks what the destination thinks of the migration, by a new connection. One of an older release does not say how the ssd will be there.
    pub(super) fn offer(&mut self) -> io::Result<Result<Option<There>, String>> {
        self.open = None;
        let mut stream = self.means.connect(&self.to, Protocol::Control)?;
        send(&mut stream, &FromSource::Offer(Box::new(self.offer.clone())))?;
        let answer = receive(&mut stream)?;
        match answer {
            FromDestination::Welcome | FromDestination::Expected(_) => self.open = Some(stream),
            _ => {}
        }
        match answer {
            FromDestination::Welcome => Ok(Ok(None)),
            FromDestination::Expected(there) => Ok(Ok(Some(there))),
            FromDestination::No { why } => Ok(Err(why)),
            FromDestination::Step { .. } | FromDestination::Noted => {
                Err(io::Error::other("the destination answers an offer with something else"))
            }
        }
    }

    /// Says a step, and what the ssd's limits are by now, and hears the answer.
    pub(super) fn say(
        &mut self,
        message: Message<ToDestination>,
        limits: Option<Limits>,
    ) -> io::Result<Heard> {
        self.ask(&FromSource::step(message, limits))
    }

    /// Asks for the destination's last word.
    pub(super) fn ping(&mut self) -> io::Result<Heard> {
        self.ask(&FromSource::Ping)
    }

    /// Says a word, and hears the answer.
    pub(super) fn ask(&mut self, word: &FromSource) -> io::Result<Heard> {
        if self.open.is_none()
            && let Err(why) = self.offer()?
        {
            return Ok(Heard::No(why));
        }
        let answer = self.converse(word);
        if answer.is_err() {
            self.open = None;
        }
        answer
    }

    fn converse(&mut self, word: &FromSource) -> io::Result<Heard> {
        let stream = self.open.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        stream.sock.set_read_timeout(Some(self.patience))?;
        send(stream, word)?;
        Ok(match receive(stream)? {
            FromDestination::Step { epoch, word } => {
                Heard::Step(to_source(self.offer.migration.to_be_bytes(), epoch, word))
            }
            FromDestination::Noted => Heard::Noted,
            FromDestination::No { why } => Heard::No(why),
            FromDestination::Welcome | FromDestination::Expected(_) => {
                return Err(io::Error::other("the destination greets twice"));
            }
        })
    }
}
