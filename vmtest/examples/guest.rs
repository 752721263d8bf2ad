//! Boots a guest and runs scripts in it, for a look at something by hand:
//! `cargo run -p vmtest --example guest -- [--socket PATH]... 'nvme list' 'dmesg | tail'`.
//! Without a socket it gets QEMU's own NVMe drive of 256 MiB.

use anyhow::{Context, Result};
use vmtest::image::Image;
use vmtest::vm::Vm;

fn main() -> Result<()> {
    let folder = tempfile::TempDir::new()?;
    let mut builder = Vm::builder();
    let mut scripts = Vec::new();
    let mut sockets = 0;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--socket" {
            let socket = arguments.next().context("--socket wants a path")?;
            builder = builder.vfio_user(&format!("ssd{sockets}"), socket.as_ref());
            sockets += 1;
        } else {
            scripts.push(argument);
        }
    }
    if sockets == 0 {
        let file = folder.path().join("drive.img");
        std::fs::File::create(&file)?.set_len(256 << 20)?;
        builder = builder.emulated_nvme("own", &file);
    }
    let mut vm = builder.boot(&Image::ensure()?)?;
    for script in scripts {
        let output = vm.run(&script)?;
        println!("$ {script}\n{}{}[{}]", output.stdout, output.stderr, output.status);
    }
    Ok(())
}
