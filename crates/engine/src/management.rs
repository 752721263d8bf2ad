//! The migration management controller's hands: what it wants done to other controllers of this process is done on threads of their own,
//! since it takes as long as their commands and their clients take.
//!
//! ```text
//!  home of the management controller --Ask--> this thread --a thread each--> session of the controller (crate::session)
//!                                    <--------Message::Managed-------------
//! ```
//! The management controller asks one thing of a controller at a time, and of few controllers at once.

mod memory;
mod tracking;

pub(crate) use tracking::Trackers;

use crate::message::{Address, Life, Message};
use crate::passenger::Passenger;
use crate::run::House;
use crate::ssd::Ssd;
use nvme::management::{Order, Report, Trouble};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Between two looks whether all is served.
const START_PAUSE: Duration = Duration::from_millis(1);

/// An order, and who waits for the report.
pub(crate) struct Ask {
    pub(crate) ticket: u32,
    pub(crate) cntlid: u16,
    pub(crate) order: Order,
    pub(crate) life: Life,
    pub(crate) home: Address,
}

/// A management controller begins anew: whatever its predecessor tracked, it does not. Before anything of this life is asked.
pub(crate) fn begin_anew(desk: &Desk, life: Life, home: &Address) {
    let home = Arc::clone(home);
    // It waits for no such ticket.
    ask(Some(desk), Ask { ticket: 0, cntlid: 0, order: Order::EndAll, life, home });
}

/// Where orders go.
pub(crate) type Desk = Sender<Ask>;

/// Has it done.
pub(crate) fn ask(desk: Option<&Desk>, ask: Ask) {
    let refused = match desk {
        Some(desk) => desk.send(ask).map_err(|failed| failed.0),
        None => Err(ask),
    };
    if let Err(ask) = refused {
        answer(&ask.home, ask.life, ask.ticket, Report::Failed(Trouble::Failed));
    }
}

fn answer(home: &Address, life: Life, ticket: u32, report: Report) {
    home.send(Message::Managed(life, ticket, Box::new(report)));
}

/// Until the process ends.
pub(crate) fn serve(house: &Arc<House>, inbox: &Receiver<Ask>) {
    // A predecessor's commands come before all controllers do.
    let mut first = inbox.recv().ok();
    while first.is_some() && !house.has_started() {
        std::thread::sleep(START_PAUSE);
    }
    while let Some(Ask { ticket, cntlid, order, life, home }) = first.take().or_else(|| inbox.recv().ok()) {
        let is_quick = matches!(order, Order::Harvest { whole: false, .. });
        if is_quick && house.trackers.is_clean(cntlid) {
            let report = Report::Changes { changes: Vec::new(), more: false };
            answer(&home, life, ticket, report);
            continue;
        }
        let begun = begin(house, cntlid, order);
        let (house, address) = (Arc::clone(house), Arc::clone(&home));
        let work = move || {
            let report = carry_out(&house, cntlid, begun);
            answer(&home, life, ticket, report);
        };
        if let Err(error) = std::thread::Builder::new().name("managed".to_owned()).spawn(work) {
            tracing::error!(%error, "no thread for an order of a management controller");
            answer(&address, life, ticket, Report::Failed(Trouble::Busy));
        }
    }
}

/// An order, and what of it is done in the order in which they come: nothing that is begun later may be undone by it.
struct Begun {
    order: Order,
    /// How often all tracking was ended before.
    era: u64,
    /// Those whose logs of memory are over, and those whose drives nobody asks about.
    ended: (Vec<Passenger>, Vec<Arc<Ssd>>),
}

fn begin(house: &House, cntlid: u16, order: Order) -> Begun {
    let ended = match order {
        Order::Track(false) => {
            tracking::forget(house, cntlid);
            Default::default()
        }
        Order::EndAll => (memory::end_all(house), tracking::forget_all(house)),
        _ => Default::default(),
    };
    Begun { era: house.trackers.era(), order, ended }
}

fn carry_out(house: &Arc<House>, cntlid: u16, begun: Begun) -> Report {
    let Begun { order, era, ended } = begun;
    let configs = house.configs.lock().unwrap_or_else(PoisonError::into_inner);
    if order == Order::List {
        let mut all: Vec<u16> = configs.iter().filter_map(|ssd| ssd.controller_id).collect();
        all.sort_unstable();
        return Report::Controllers(all);
    }
    drop(configs);
    match order {
        Order::Track(on) => tracking::track(house, cntlid, on, era),
        Order::Harvest { most, whole } => tracking::harvest(house, cntlid, most, whole),
        Order::TrackMemory(what) => memory::track(house, cntlid, &what, era),
        Order::EndMemory => memory::end(house, cntlid),
        Order::EndAll => {
            memory::let_go(&ended.0);
            tracking::let_go(house, &ended.1);
            Report::Done
        }
        Order::HarvestMemory { most, heard } => memory::harvest(house, cntlid, most, heard),
        order => match passenger_of(house, cntlid) {
            Some(passenger) => passenger.manage(order),
            None => Report::Failed(Trouble::NoController),
        },
    }
}

/// The controller of that identifier.
fn passenger_of(house: &House, cntlid: u16) -> Option<Passenger> {
    let configs = house.configs.lock().unwrap_or_else(PoisonError::into_inner);
    let name = configs.iter().find(|ssd| ssd.controller_id == Some(cntlid)).map(|ssd| ssd.name.clone());
    drop(configs);
    house.passenger(house.number(&name?)?)
}
