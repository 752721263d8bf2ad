//! How quickly pages move between two ends on this host: `cargo run --release -p transfer --example pages`.
//!
//! Nothing is read from or written to a drive, and a socket pair has no network below it: this is what the crate itself costs.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use dirty::Map;
use transfer::control::{Control, System};
use transfer::copy::{Error, Options, Precopy};
use transfer::frame::{Limits, Plan};
use transfer::receive::Receiver;
use transfer::source::{Content, Run, Sink, Source};

const PAGES: u64 = (1 << 30) / 4096;

/// Pages of one kind, made of a stretch that is read again and again.
struct Same(Vec<u8>);

impl Source for Same {
    fn pages(&self) -> u64 {
        PAGES
    }

    fn arm(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocated(&self, each: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        each(0, PAGES);
        Ok(())
    }

    fn harvest(&self, _: &Map) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, _: Run, out: &mut [u8]) -> io::Result<Content> {
        out.chunks_mut(self.0.len())
            .for_each(|out| out.copy_from_slice(self.0.get(..out.len()).unwrap_or_default()));
        Ok(Content::Bytes)
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn write(&self, _: Run, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: Run, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn copy(source: &Same, streams: u16, compress: bool) -> Result<(f64, f64), Error> {
    let options = Options { streams, compress, limits: Limits::default(), ..Options::default() };
    let receiver = Receiver::new(options.migration, Limits::default(), &Nowhere, &|_| Ok(()));
    let (control, clock) = (Control::default(), System::default());
    let (name, profile) = (String::new(), String::new());
    let plan = Plan { pages: PAGES, name, profile, settings: Vec::new() };
    std::thread::scope(|scope| {
        let connect = |_| {
            let (ours, theirs) = UnixStream::pair()?;
            scope.spawn(|| receiver.serve(theirs));
            Ok(ours)
        };
        let mut precopy = Precopy::new(plan, source, &connect, &clock, &control, options)?;
        let started = Instant::now();
        precopy.round()?;
        precopy.last(&Map::new(PAGES)?, &[])?;
        let seconds = started.elapsed().as_secs_f64();
        let share = control.progress().bytes_sent as f64 / (PAGES * 4096) as f64;
        Ok(((PAGES * 4096) as f64 / seconds / 1e6, share))
    })
}

fn main() -> Result<(), Error> {
    let mut word = 1_u64;
    let mut noise = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    };
    let raw: Vec<u8> = (0..8192).flat_map(|_| noise()).collect();
    // Half of each page is noise.
    let half: Vec<u8> = (0..8192).flat_map(|at| if at % 64 < 32 { noise() } else { [7; 8] }).collect();
    println!("{:8} {:>8} {:>5} {:>10} {:>14}", "pages", "streams", "lz4", "MB/s", "bytes on wire");
    for (name, bytes) in [("noise", raw), ("half", half), ("zeros", vec![0; 65536])] {
        for (streams, compress) in [(1, false), (1, true), (4, true)] {
            let (rate, share) = copy(&Same(bytes.clone()), streams, compress)?;
            println!("{name:8} {streams:>8} {compress:>5} {rate:>10.0} {:>13.1}%", share * 100.0);
        }
    }
    Ok(())
}
