//! Two hosts of one authority on this machine, between which an ssd moves.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::TcpListener;

use anyhow::{Context, Result};
use vmtest::daemon::{Daemon, Ssd, tool};
use vmtest::hosts::{Authority, Host};

/// The ssd is the first's, on a file that begins with so many MiB of noise (zeros go by in no time), and comes to the second.
pub fn two_hosts(ssd: &Ssd, noise_mib: u64) -> Result<[Host; 2]> {
    let authority = Authority::new(&tool()?)?;
    let host = |name: &str, ssd: Ssd| -> Result<Host> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let folder = authority.host(name, address)?;
        if !ssd.incoming {
            let mut file = File::create(folder.path().join(format!("{}.img", ssd.name)))?;
            io::copy(&mut File::open("/dev/urandom")?.take(noise_mib << 20), &mut file).context("noise")?;
            file.set_len(ssd.size_mib << 20)?;
        }
        let daemon = Daemon::start(folder.path(), &[ssd])?;
        Ok(Host { daemon, folder, address: address.to_string() })
    };
    Ok([host("a", ssd.clone())?, host("b", ssd.clone().incoming())?])
}
