//! An operator's guest with a migration management controller: stock Linux brings it up, and nvme-cli suspends, saves and resumes another
//! controller under load.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmtest::bed::{Drive, with_guest};
use vmtest::daemon::Ssd;

const PATIENCE: Duration = Duration::from_secs(180);
/// `$m` is the management controller, `$d` the namespace of the ssd; `send` is Migration Send; `state FILE` is Get Controller State.
const WORDS: &str = r#"
    set -e
    m=/dev/$(basename $(dirname $(grep -l Management /sys/class/nvme/nvme*/model)))
    d=/dev/$(ls /sys/block | grep '^nvme')
    send() { nvme admin-passthru $m --opcode=0x41 --cdw10=$1 --cdw11=$2 2>&1; }
    state() { nvme admin-passthru $m --opcode=0x42 --cdw10=$((1<<16)) --cdw11=$((1<<16|1)) --cdw15=1023 -l 4096 -r -b > $1 2>/tmp/said; }
    ios() { awk '{ print $1 + $5 }' /sys/block/$(basename $d)/stat; }
"#;

#[test]
fn nvme_cli_suspends_saves_and_resumes_a_controller_under_load() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    let ssds = [Ssd::new("a", 64).managed_as(1), Ssd::management("m")];
    with_guest(&ssds, |bed| {
        let mut run =
            |script: &str| bed.vm().run_within(PATIENCE, &format!("{WORDS}{script}"))?.into_ok(script);
        let said = run("nvme id-ctrl $m")?;
        let has = |name: &str, value: &str| {
            said.lines()
                .any(|line| line.split_once(':').is_some_and(|(n, v)| n.trim() == name && v.trim() == value))
        };
        ensure!(has("oacs", "0x800") && has("cntrltype", "3") && has("nn", "0"), "{said}");
        let formats = run(
            "nvme admin-passthru $m --opcode=0x06 --cdw10=0x20 -l 4096 -r -b >/tmp/formats; od -An -tx1 -N20 /tmp/formats",
        )?;
        let formats: String = formats.split_whitespace().collect();
        ensure!(formats == "01010000676f64776974806e966d652d73746174", "formats: {formats}");
        run(
            "before=$(ios); { fio --name=load --filename=$d --size=16m --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1 \
             --verify=crc32c --verify_fatal=1 --verify_backlog=64 --time_based --runtime=10 >/tmp/fio 2>&1 \
             && touch /tmp/verified; touch /tmp/ended; } & \
             while [ $(ios) = $before ] && [ ! -e /tmp/ended ]; do sleep 0.1; done",
        )?;
        // Nothing of it moves while it is suspended, once the guest has seen what was answered before.
        let counts = run(
            "send 0 $((1<<16|1)) >/tmp/sent; for n in 1 2 3 4 5 6; do last=$(ios); sleep 0.5; [ $last != $(ios) ] || break; done; ios; sleep 1; ios; state /tmp/one; state /tmp/two; sleep 1; ios",
        )?;
        let counts: Vec<&str> = counts.split_whitespace().collect();
        ensure!(counts.len() == 3 && counts[0] == counts[1] && counts[1] == counts[2], "{counts:?}");
        // Version 0, suspended, with our data; an I/O queue a processor and more.
        let header = run(
            "od -An -tu1 -N3 /tmp/one; od -An -tu4 -j16 -N4 /tmp/one; od -An -tu4 -j32 -N4 /tmp/one; \
                          od -An -tu2 -j50 -N2 /tmp/one; grep -ac GODWTCTL /tmp/one; cmp -n 104 /tmp/one /tmp/two && echo same",
        )?;
        let header: Vec<&str> = header.split_whitespace().collect();
        ensure!(
            header.len() == 8 && header[..3] == ["0", "0", "1"] && header[6..] == ["1", "same"],
            "{header:?}"
        );
        let (nvmecss, queues): (u32, u32) = (header[3].parse()?, header[5].parse()?);
        ensure!(nvmecss == 2 + 12 * queues && queues > 0 && header[4] != "0", "{header:?}");
        bed.daemon().kill_engine()?;
        let mut run =
            |script: &str| bed.vm().run_within(PATIENCE, &format!("{WORDS}{script}"))?.into_ok(script);
        // It is suspended whatever process serves it. Then it goes on.
        let csup = run("state /tmp/three; od -An -tu1 -j2 -N1 /tmp/three")?;
        ensure!(csup.trim() == "1", "{csup}");
        run("send 1 1; while [ ! -e /tmp/ended ]; do sleep 0.2; done; cat /tmp/fio; test -e /tmp/verified")?;
        // The same by the commands that nvme-cli has for it. Its file is a dword short of what it asked for.
        let lm = run("nvme lm migration-send $m --sel=0 --stype=1 --cntlid=1; \
             nvme lm migration-recv $m --sel=0 --csvi=1 --csuuidi=1 --cntlid=1 --numd=1023 --output-file=/tmp/four >/dev/null; \
             od -An -tu1 -j2 -N1 /tmp/four; wc -c </tmp/four; \
             nvme lm migration-send $m --sel=1 --cntlid=1")?;
        // Suspended.
        ensure!(["1", "4092"].iter().all(|word| lm.lines().any(|line| line.trim() == *word)), "{lm}");
        // 704 MiB of this guest's own memory from 16 MiB on, by 4 KiB: what a read stores is in there, and said once.
        let told = run(
            "printf '\\0\\0\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1\\0\\0\\0\\0\\0\\300\\2\\0' >/tmp/ranges; \
             nvme admin-passthru $m --opcode=0x3d --cdw10=$((1<<16|1)) --cdw11=1 -l 20 -w -i /tmp/ranges >/dev/null 2>&1; \
             dd if=$d of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null; send 0 $((1<<16|1)) >/dev/null; \
             for report in 1 2; do nvme admin-passthru $m --opcode=0x3e --cdw11=1 --cdw12=16383 -l 65536 -r -b 2>/dev/null >/tmp/told; \
             od -An -tu1 -N2 /tmp/told; od -An -tu4 -j4 -N4 /tmp/told; done; send 1 1 >/dev/null",
        )?;
        let told: Vec<u32> = told.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(told.len() == 6 && told[..2] == [0, 2] && told[2] > 0 && told[3..] == [0, 2, 0], "{told:?}");
        // Twice is too often, and says so.
        let refused = bed.vm().run(&format!("{WORDS}set +e; send 1 1"))?;
        ensure!(
            refused.stdout.to_lowercase().contains("13a") || refused.stdout.contains("Not Suspended"),
            "{refused:?}"
        );
        Ok(())
    })
}
