//! Clients: who is let in, and what goes to and fro.

use crate::keeper::Keeper;
use crate::listener::Accepted;
use crate::poller::Token;
use crate::process::Stage;
use crate::session::{Client, EndReason, Linked, Session};
use link::control::{Packet, Session as SessionMessage, ToEngine};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to leave clients waiting when the process has no descriptor left to accept with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Keeper {
    /// Somebody waits at an ssd's socket: the first is served, others are turned away meanwhile, and whoever comes when the
    /// first is on its way out waits.
    pub(crate) fn client_waits(&mut self, number: u32, now: Instant) {
        let session_id = self.next_session;
        let Some(ssd) = self.ssds.get_mut(&number) else { return };
        let busy = ssd.session.as_ref().map(Session::is_leaving);
        if (busy == Some(true) && !ssd.turns_away()) || self.stopping {
            self.poller.set(Token::Listener(number), &ssd.listener, (false, false));
            return;
        }
        match ssd.listener.accept() {
            Accepted::Nobody => {}
            Accepted::NoRoom => {
                tracing::error!(ssd = ssd.name, "no descriptor or memory left to accept a client");
                self.listen_at = Some(now + ACCEPT_PAUSE);
                self.poller.set(Token::Listener(number), &ssd.listener, (false, false));
            }
            Accepted::Client(socket) if busy.is_none() && ssd.is_given() && !ssd.turns_away() => {
                tracing::info!(ssd = ssd.name, session = session_id, "client connected");
                self.next_session += 1;
                let mut session = Session::new(session_id, ssd.protocol);
                session.client = Some(Client::new(Arc::new(socket), ssd.protocol));
                ssd.session = Some(session);
                self.keep_session(number);
                if self.active().is_some_and(|engine| engine.stage == Stage::Serving) {
                    self.attach(number);
                }
                self.pump(number, now);
            }
            Accepted::Client(_) => {
                ssd.turned_away += 1;
                // The 1st, 2nd, 4th, 8th...: whoever tries in a loop does not fill the log.
                if ssd.turned_away.is_power_of_two() {
                    let why = match &ssd.standing {
                        _ if busy == Some(false) => "the device is in use",
                        _ if !ssd.is_given() => "it is quarantined",
                        standing => standing.as_ref().map_or("", |standing| &standing.why),
                    };
                    tracing::warn!(ssd = ssd.name, count = ssd.turned_away, why, "a client was turned away");
                }
            }
        }
    }

    /// Gives an ssd's client to the engine that serves.
    pub(crate) fn attach(&mut self, number: u32) {
        let Some(ssd) = self.ssd_mut(number).filter(|ssd| ssd.is_given()) else { return };
        let door = ssd.protocol.door;
        let Some(session) = &mut ssd.session else { return };
        let id = session.id;
        let result = session.attach();
        let Some(engine) = self.active_mut() else { return };
        match result {
            Ok(theirs) => {
                let message = ToEngine::Session(SessionMessage { ssd: number, session: id, door });
                engine.say(Packet::new(&message, vec![Arc::new(theirs)]));
                engine.flush();
            }
            Err(error) => {
                tracing::error!(ssd = number, %error, "a client cannot be given to the engine");
                if let Some(session) = self.session_mut(number) {
                    session.end_client(EndReason::HangUp);
                }
            }
        }
        self.sync_engine();
    }

    pub(crate) fn client_ready(&mut self, number: u32, now: Instant) {
        let limits = self.options.limits.clone();
        if let Some(session) = self.session_mut(number) {
            session.client_readable(now, &limits);
        }
        self.pump(number, now);
    }

    pub(crate) fn link_ready(&mut self, number: u32, now: Instant) {
        let Some(session) = self.session_mut(number) else { return };
        match session.link_readable() {
            Ok(Linked::Open) => {}
            Ok(Linked::Closed) => self.link_closed(number),
            Err(error) => {
                session.link = None;
                self.poller.closed(Token::Link(number));
                if let Some(engine) = self.active_mut() {
                    engine.expel(format!("it sent what no engine sends: {error}"));
                }
            }
        }
        self.pump(number, now);
    }

    /// The engine has closed its end: it is dying, or done with a client that left (then it says so by `PowerOn`), or its
    /// thread for this client ended, which only a broken one does.
    fn link_closed(&mut self, number: u32) {
        let stopping = self.stopping;
        let Some(session) = self.session_mut(number) else { return };
        let done = session.link.as_ref().is_some_and(|link| link.ended);
        session.detach();
        self.poller.closed(Token::Link(number));
        if done || stopping {
            return;
        }
        let grace = Instant::now() + LINK_GRACE;
        if let Some(engine) = self.active_mut().filter(|engine| engine.stage == Stage::Serving) {
            engine.lost_session.get_or_insert((number, grace));
        }
    }

    /// Sends what waits on both sides of an ssd's client, and looks for what may come.
    pub(crate) fn pump(&mut self, number: u32, now: Instant) {
        let limits = self.options.limits.clone();
        let Some(session) = self.session_mut(number) else { return self.sync(number) };
        session.flush_client(now, &limits);
        // Failure shows as the link's end.
        let _ = session.flush_link();
        let gone = session.client.is_none();
        let never_seen = session.link.is_none() && session.next_seq == 0 && session.deposit.is_none();
        if gone {
            // Also one that the clock has ended.
            self.poller.closed(Token::Client(number));
        }
        if gone && never_seen {
            self.end_session(number);
        }
        self.sync(number);
    }

    /// The engine is done with an ssd's client, or never heard of it.
    pub(crate) fn end_session(&mut self, number: u32) {
        let Some(mut session) = self.ssd_mut(number).and_then(|ssd| ssd.session.take()) else { return };
        session.detach();
        if session.client.is_some() {
            session.end_client(EndReason::HangUp);
            session.flush_client(Instant::now(), &self.options.limits);
        }
        self.poller.closed(Token::Client(number));
        self.poller.closed(Token::Link(number));
        drop(session);
        self.save();
        self.sync(number);
    }

    /// Tells the poller what an ssd's sockets are worth looking at for.
    pub(crate) fn sync(&mut self, number: u32) {
        let Some(ssd) = self.ssds.get(&number) else { return };
        let waiting = match &ssd.session {
            None => ssd.is_powered() || !ssd.is_given() || ssd.turns_away(),
            Some(session) => {
                ssd.turns_away() || session.client.as_ref().is_some_and(|client| client.ending.is_none())
            }
        };
        let listens = waiting && !self.stopping && self.listen_at.is_none();
        self.poller.set(Token::Listener(number), &ssd.listener, (listens, false));
        let Some(session) = &ssd.session else { return };
        if let Some(client) = &session.client {
            self.poller.set(Token::Client(number), &client.socket, session.client_interest());
        }
        if let Some(link) = &session.link {
            self.poller.set(Token::Link(number), link.as_fd(), session.link_interest());
        }
    }

    pub(crate) fn sync_all(&mut self) {
        self.numbers().into_iter().for_each(|number| self.sync(number));
    }
}

/// How long an engine that closed a client's link may live without saying why.
const LINK_GRACE: Duration = Duration::from_secs(2);
