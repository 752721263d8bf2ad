//! Two network namespaces that a pair of virtual interfaces joins: two hosts on one machine, with a link that can be made slow. For root alone.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// See the module; dropping it takes them away.
pub struct Spaces {
    names: [String; 2],
}

/// What the two ends are called, in a net that nobody else has.
pub const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 213, 77, 1)), IpAddr::V4(Ipv4Addr::new(10, 213, 77, 2))];

impl Spaces {
    /// Makes them. `None`: this is not allowed or not possible here.
    #[must_use]
    pub fn new() -> Option<Self> {
        let names = [0, 1].map(|host| format!("godwit-{}-{host}", std::process::id()));
        let spaces = Spaces { names };
        spaces.make().ok().map(|()| spaces)
    }

    fn make(&self) -> Result<()> {
        let [a, b] = &self.names;
        for name in &self.names {
            run("ip", &["netns", "add", name])?;
        }
        run("ip", &["-n", a, "link", "add", "gw0", "type", "veth", "peer", "name", "gw0", "netns", b])?;
        for (name, address) in self.names.iter().zip(ADDRESSES) {
            run("ip", &["-n", name, "addr", "add", &format!("{address}/24"), "dev", "gw0"])?;
            run("ip", &["-n", name, "link", "set", "gw0", "up"])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        self.within(0, || ())
    }

    /// Lets so many bits a second through, each way.
    ///
    /// # Errors
    /// The kernel has no token bucket.
    pub fn shape(&self, bits_per_s: u64) -> Result<()> {
        // Some milliseconds of it at once: less is not reached with a timer, and a bucket holds a packet of the largest size.
        let burst = (bits_per_s / 8 / 250).max(256 << 10);
        for name in &self.names {
            let (rate, burst) = (format!("{bits_per_s}bit"), format!("{burst}b"));
            let words = ["qdisc", "replace", "dev", "gw0", "root", "tbf", "rate", &rate, "burst", &burst];
            run("tc", &[&["-n", name][..], &words, &["latency", "20ms"]].concat())?;
        }
        Ok(())
    }

    /// Does something in one of them ([`Spaces::within`]), or here if there are none.
    ///
    /// # Errors
    /// It cannot be entered, or what was done has failed.
    pub fn within_any<T: Send>(
        spaces: Option<&Self>,
        host: usize,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        match spaces {
            Some(spaces) => spaces.within(host, work)?,
            None => work(),
        }
    }

    /// Does something in one of them, on a thread of its own. Threads and processes that it starts are there, too.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn within<T: Send>(&self, host: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
        let space = File::open(Path::new("/run/netns").join(&self.names[host]))?;
        std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            there.join().map_err(|_| anyhow!("what was done in a namespace ended with a panic"))?
        })
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _not_made = run("ip", &["netns", "delete", name]);
        }
    }
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    let quiet = || Stdio::null();
    let status = Command::new(program).args(words).stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
    let status = status.with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{program} {} ended with {status}", words.join(" "));
    Ok(())
}
