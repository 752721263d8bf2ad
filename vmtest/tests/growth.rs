//! A pool's life as its guests see it: an NVMe ssd and a virtio-blk disk grow under load, one is held to its limit, both are deleted, and
//! the next guest finds only zeros where they were.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmtest::bed::{Bed, Drive, with_guest};
use vmtest::daemon::{Backend, POOL, Ssd};

const PATIENCE: Duration = Duration::from_secs(300);
const OLD_MIB: u64 = 64;
const NEW_MIB: u64 = 96;
const IOPS: u32 = 100;

/// Verifying loads on both drives until /tmp/stop is there; their status goes to /tmp/status.
const LOAD: &str = r#"
cat > /tmp/load <<'END'
verify() {
    while [ ! -e /tmp/stop ]; do
        fio --name=v --filename=$1 --size=24m --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1 \
            --verify=crc32c --verify_fatal=1 --randrepeat=0 > $2 2>&1 || return 7
        echo >> $2.rounds
    done
}
verify /dev/nvme0n1 /tmp/nvme & one=$!
verify /dev/vda /tmp/disk & two=$!
wait $one; one=$?; wait $two; two=$?
echo $one $two > /tmp/status
END
sh /tmp/load > /tmp/said 2>&1 &
while [ ! -s /tmp/nvme.rounds ] || [ ! -s /tmp/disk.rounds ]; do sleep 0.1; done
"#;

const END: &str = "touch /tmp/stop; while [ ! -s /tmp/status ]; do sleep 0.1; done; \
    [ \"$(cat /tmp/status)\" = '0 0' ] || { cat /tmp/status /tmp/said /tmp/nvme /tmp/disk; exit 1; }";

fn ssds(size_mib: u64) -> [Ssd; 2] {
    [Ssd::new("a", size_mib).on(Backend::Thin), Ssd::new("d", size_mib).on(Backend::Full).as_disk()]
}

/// The guest sees the new size by itself: nobody asks its kernel to look.
fn grow(bed: &mut Bed) -> Result<()> {
    bed.vm().run_ok(
        "modprobe virtio_blk; for n in $(seq 600); do [ -b /dev/vda ] && exit; sleep 0.1; done; exit 1",
    )?;
    bed.vm().run_ok(
        "head -c 8M /dev/urandom > /tmp/d && for d in nvme0n1 vda; do \
         dd if=/tmp/d of=/dev/$d bs=1M seek=32 oflag=direct status=none || exit 1; done",
    )?;
    bed.vm().run_within(PATIENCE, LOAD)?.into_ok("load")?;
    bed.apply(&ssds(NEW_MIB))?;
    let sectors = NEW_MIB << 11;
    bed.vm()
        .run_within(
            PATIENCE,
            &format!(
                "for d in nvme0n1 vda; do n=0; while [ $(cat /sys/block/$d/size) != {sectors} ]; do \
             n=$((n + 1)); [ $n -lt 1000 ] || {{ cat /sys/block/$d/size; exit 1; }}; sleep 0.1; done; done"
            ),
        )?
        .into_ok("wait for the new sizes")?;
    bed.vm().run_within(PATIENCE, END)?.into_ok("end of load")?;
    for drive in ["/dev/nvme0n1", "/dev/vda"] {
        // What is new reads as zeros, and is used to its end; what was there before is there.
        bed.vm().run_within(
            PATIENCE,
            &format!(
                "dd if={drive} bs=1M skip={OLD_MIB} iflag=direct status=none | cmp -n {new} - /dev/zero && \
                 fio --name=new --filename={drive} --offset={OLD_MIB}m --size=32m --rw=write --bs=1m --ioengine=io_uring \
                 --direct=1 --verify=crc32c --verify_fatal=1 > /tmp/new 2>&1 && \
                 dd if={drive} bs=1M skip=32 count=8 iflag=direct status=none | cmp - /tmp/d || {{ cat /tmp/new; exit 1; }}",
                new = (NEW_MIB - OLD_MIB) << 20
            ),
        )?
        .into_ok(drive)?;
    }
    Ok(())
}

/// A figure of `godwit metrics`: the sum of all lines of this name that have these labels.
fn metric(bed: &mut Bed, name: &str, labels: &[&str]) -> Result<f64> {
    let text = bed.daemon().tool(&["metrics"])?;
    let ours = |line: &&str| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    };
    let value =
        |line: &str| line.rsplit(' ').next().and_then(|word| word.parse::<f64>().ok()).context("a value");
    let values = text.lines().filter(ours).map(value).collect::<Result<Vec<f64>>>()?;
    ensure!(!values.is_empty(), "no {name} {labels:?} in:\n{text}");
    Ok(values.into_iter().sum())
}

/// Held to its limit: the engine's own count never says more than the limit and its burst, however slow or quick the machine is.
fn throttle(bed: &mut Bed) -> Result<()> {
    let [a, d] = ssds(NEW_MIB);
    let ios = |bed: &mut Bed| metric(bed, "godwit_ssd_ios_total", &["ssd=\"a\""]);
    bed.apply(&[a.limited(IOPS), d])?;
    // Only what comes after the old burst is counted.
    let (begun, before) = (Instant::now(), ios(bed)?);
    bed.vm().run_within(
        PATIENCE,
        "fio --name=t --filename=/dev/nvme0n1 --rw=randread --bs=4k --iodepth=32 --ioengine=io_uring --direct=1 \
         --number_ios=400 > /tmp/t 2>&1 || { cat /tmp/t; exit 1; }",
    )?
    .into_ok("a load that is limited")?;
    let done = ios(bed)? - before;
    let most = f64::from(IOPS) * (begun.elapsed().as_secs_f64() * 1.02) + f64::from(IOPS) / 100.0 + 1.0;
    ensure!(done >= 400.0 && done <= most, "{done} I/Os in a time in which {most} may be");
    Ok(())
}

/// How many bytes of the pool's file are the pattern.
fn patterned(bed: &Bed) -> Result<u64> {
    let mut file = std::fs::File::open(bed.folder().join(POOL)).context("the pool's file")?;
    let (mut found, mut piece) = (0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece).context("read the pool's file")? {
            0 => return Ok(found),
            len => {
                found += piece[..len].chunks(8).filter(|word| *word == b"ZZZZZZZZ").map(|_| 8).sum::<u64>()
            }
        }
    }
}

fn fill(bed: &mut Bed) -> Result<()> {
    for drive in ["/dev/nvme0n1", "/dev/vda"] {
        bed.vm().run_within(
            PATIENCE,
            &format!(
                "tr '\\0' Z < /dev/zero | dd of={drive} bs=1M count={NEW_MIB} iflag=fullblock oflag=direct status=none"
            ),
        )?
        .into_ok("fill")?;
    }
    Ok(())
}

fn delete(bed: &mut Bed) -> Result<()> {
    bed.shutdown_guest()?;
    let deadline = Instant::now() + PATIENCE;
    // The guest's sessions end when the daemon hears that QEMU is gone.
    while let Err(error) = bed.apply(&[]) {
        ensure!(
            error.to_string().contains("a client is connected") && Instant::now() < deadline,
            "{error:#}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let written = patterned(bed)?;
    ensure!(written >= 2 * (NEW_MIB << 20), "only {written} bytes of the pattern are in the pool");
    for name in ["a", "d"] {
        bed.daemon().tool(&["volume", "delete", "p", name, "--yes"])?;
    }
    while !bed.daemon().tool(&["volume", "list", "--json"])?.replace(' ', "").contains("\"wiping\":0") {
        ensure!(Instant::now() < deadline, "the pool is not wiped");
        std::thread::sleep(Duration::from_millis(50));
    }
    let left = patterned(bed)?;
    ensure!(left == 0, "{left} bytes of the pattern are left in the pool");
    Ok(())
}

#[test]
fn drives_grow_under_a_guest_keep_to_a_limit_and_leave_only_zeros_to_the_next() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&ssds(OLD_MIB), |bed| {
        grow(bed)?;
        throttle(bed)?;
        // Without its limit again.
        bed.apply(&ssds(NEW_MIB))?;
        fill(bed)?;
        delete(bed)?;
        // More than was never used: most of it was theirs.
        let next = Ssd::new("next", 160).on(Backend::Full);
        bed.apply(&[next])?;
        bed.boot()?;
        let all = 160 << 20;
        bed.vm()
            .run_within(PATIENCE, &format!("cmp -n {all} /dev/nvme0n1 /dev/zero"))?
            .into_ok("a former owner's bytes")?;
        Ok(())
    })
}
