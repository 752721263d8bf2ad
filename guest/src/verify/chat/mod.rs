//! Talks to a device while its queues are busy: what must survive besides I/O.

pub mod controller;
pub mod disk;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Result;
use crate::load::workload::Random;

/// What a chat found.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Exchanges.
    pub exchanges: u64,
    /// The longest of them, and its topic.
    pub longest: (Duration, u64),
    /// What went wrong; the chat ends with the first error of the connection.
    pub faults: Vec<String>,
}

/// The other end of a busy device.
pub trait Partner: Send {
    /// How many topics there are.
    fn topics(&self) -> u64;

    /// Talks about one; says what is wrong.
    ///
    /// # Errors
    /// The connection's.
    fn exchange(&mut self, topic: u64) -> Result<Option<String>>;
}

/// Talks until told to stop; `talking` counts those who are at it.
pub fn run(partner: &mut dyn Partner, mut random: Random, talking: &AtomicU64, stop: &AtomicBool) -> Heard {
    let mut heard = Heard::default();
    while !stop.load(Ordering::Relaxed) {
        let topic = random.below(partner.topics());
        let start = Instant::now();
        talking.fetch_add(1, Ordering::Relaxed);
        let said = partner.exchange(topic);
        talking.fetch_sub(1, Ordering::Relaxed);
        match said {
            Ok(None) => {}
            Ok(Some(fault)) => heard.faults.push(fault),
            Err(error) => {
                heard.faults.push(format!("topic {topic}: {error}"));
                break;
            }
        }
        heard.exchanges += 1;
        heard.longest = heard.longest.max((start.elapsed(), topic));
        std::thread::sleep(Duration::from_micros(random.below(10_000)));
    }
    heard
}
