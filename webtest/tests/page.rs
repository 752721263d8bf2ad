//! The agent's page, in Chromium: what a person sees of a real host, and what nobody can do to the page.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use vmtest::daemon::{Daemon, Ssd, binary};
use webtest::agent::{Agent, ssd};
use webtest::browser::{Browser, Scheme};
use webtest::load::{Load, Shape};
use webtest::pair::two_hosts;
use webtest::relay::Relay;

/// A name that would change the page's title if it were ever markup.
const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";

/// A host whose page is open.
struct Host {
    browser: Browser,
    relay: Relay,
    agent: Agent,
    /// Some tests need none.
    daemon: Option<Daemon>,
    folder: TempDir,
}

impl Host {
    fn new(with_daemon: bool) -> Result<Host> {
        let folder = TempDir::with_prefix("page-")?;
        let daemon = with_daemon.then(|| Daemon::start(folder.path(), &[])).transpose()?;
        Host::beside(daemon, folder)
    }

    /// The page of a daemon whose files are in a folder.
    fn beside(daemon: Option<Daemon>, folder: TempDir) -> Result<Host> {
        let agent = Agent::start(&binary()?, folder.path())?;
        let relay = Relay::start(&agent.socket())?;
        let browser = Browser::start()?;
        browser.size(1360, 900)?;
        Ok(Host { browser, relay, agent, daemon, folder })
    }

    /// A host that answers what the test says.
    fn of(answers: &[(&str, Value)]) -> Result<Host> {
        let host = Host::new(false)?;
        for (path, body) in answers {
            host.relay.answer(&format!("/api/v1/{path}"), body.clone());
        }
        host.open()?;
        Ok(host)
    }

    fn open(&self) -> Result<()> {
        self.browser.open(&self.relay.url())
    }

    fn waits_for(&self, text: &str) -> Result<()> {
        let text = Value::from(text);
        self.browser
            .wait(&format!("the page says {text}"), &format!("document.body.innerText.includes({text})"))
    }

    fn no_longer_says(&self, text: &str) -> Result<()> {
        let text = Value::from(text);
        self.browser.wait(
            &format!("the page no longer says {text}"),
            &format!("!document.body.innerText.includes({text})"),
        )
    }

    /// A picture of the whole page, in the target folder: for people.
    fn picture(&self, name: &str, scheme: Scheme, width: u32) -> Result<()> {
        self.browser.scheme(scheme)?;
        self.browser.size(width, 0)?;
        let png = self.browser.picture()?;
        ensure!(png.starts_with(b"\x89PNG"), "{name} is no PNG");
        let folder = pictures();
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{name}-{}.png", scheme.word())), png)?;
        Ok(())
    }

    /// The browser has nothing to complain about.
    fn is_clean(&self) -> Result<()> {
        let log = self.browser.log()?;
        ensure!(log.is_empty(), "the browser complains: {log:#?}");
        Ok(())
    }
}

/// `target/page` of the build that this test is of.
fn pictures() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.ancestors().nth(3).unwrap_or(Path::new("target")).join("page")
}

fn answers(
    ssds: Value,
    pools: Value,
    drives: Value,
    operations: Value,
    stats: Value,
) -> Vec<(&'static str, Value)> {
    let list = |items: Value| json!({ "items": items, "version": 7 });
    vec![
        (
            "host",
            json!({ "release": "1", "version": 7, "daemon": true, "reason": null, "engine": "serving",
            "engine_generation": 1, "engine_crashes": 0 }),
        ),
        ("ssds", list(ssds)),
        ("pools", list(pools)),
        ("drives", list(drives)),
        ("operations", list(operations)),
        ("watch", json!({ "changes": [], "version": 7, "lost": false })),
        (
            "stats",
            json!({ "at_ms": 1, "clock_ms": 1, "bucket_floors_ns": [0, 64], "engine_generation": 1, "ssds": stats }),
        ),
    ]
}

/// Every text of the page against what it stands on: WCAG 2.2, 1.4.3, level AA.
const WEAK_TEXTS: &str = r#"(() => {
  const parse = (text) => { const [r, g, b, a] = text.match(/[\d.]+/g).map(Number); return { rgb: [r, g, b], a: a ?? 1 }; };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => { const c = value / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const { rgb, a } = parse(getComputedStyle(at).backgroundColor);
      if (a === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const weak = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest("noscript, script, option")) continue;
    seen += 1;
    const [text, under] = [light(parse(getComputedStyle(element).color).rgb), light(ground(element))];
    const contrast = (Math.max(text, under) + 0.05) / (Math.min(text, under) + 0.05);
    if (contrast < 4.5) weak.push(`${walk.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return { weak, seen };
})()"#;

fn texts_can_be_read(host: &Host, scheme: Scheme) -> Result<()> {
    host.browser.scheme(scheme)?;
    let found = host.browser.value(WEAK_TEXTS)?;
    ensure!(found["seen"].as_u64() > Some(30), "there is hardly any text: {found}");
    ensure!(found["weak"] == json!([]), "too weak in {scheme:?}: {}", found["weak"]);
    Ok(())
}

/// Coloured cells of the three maps: queue, throttle, drive.
fn cells(host: &Host, at_least: [u32; 3]) -> Result<()> {
    let expression = format!(
        "[...document.querySelectorAll('#maps canvas')].every((map, at) => Number(map.dataset.cells ?? 0) >= {at_least:?}[at])"
    );
    host.browser.wait("the heat maps have colour", &expression)
}

#[test]
fn the_heat_maps_of_a_real_engine_have_colour_and_its_figures_are_shown() -> Result<()> {
    let host = Host::new(true)?;
    let pool = host.folder.path().join("pool.img");
    host.agent.change("POST", "pools", &json!({ "name": "p1", "path": pool, "size_bytes": 1_u64 << 30 }))?;
    for (name, limits) in [("calm", json!({})), ("noisy", json!({ "iops": 100 }))] {
        let mut wish = ssd(name, 64);
        wish["pool"] = json!("p1");
        wish["limits"] = limits;
        host.agent.change("POST", "ssds", &wish)?;
    }
    let shape = |depth, pause| Shape { depth, pause, places: 4096 };
    let calm = Load::start(&host.agent.ssd_socket("calm"), shape(2, Duration::from_millis(4)));
    let noisy = Load::start(&host.agent.ssd_socket("noisy"), shape(64, Duration::ZERO));
    host.open()?;
    cells(&host, [10, 3, 10])?;
    let busy = format!(
        "{SSDS_SHOWN}.length === 2 && {SSDS_SHOWN}.every((line) => parseFloat(line.children[6].textContent) > 0)"
    );
    host.browser.wait("both do I/O", &busy)?;
    host.waits_for("128 MiB used")?;
    for scheme in [Scheme::Light, Scheme::Dark] {
        host.picture("real", scheme, 1360)?;
        texts_can_be_read(&host, scheme)?;
    }
    host.is_clean()?;
    ensure!(calm.stop()? > 0 && noisy.stop()? > 0);
    Ok(())
}

const SSDS_SHOWN: &str = "[...document.querySelectorAll('#ssds tbody tr')]";

#[test]
fn the_page_of_a_real_host_comes_back_after_the_agent_and_the_daemon() -> Result<()> {
    let mut host = Host::new(true)?;
    host.agent.change("POST", "ssds", &ssd("calm", 64))?;
    let mut noisy = ssd("noisy", 64);
    noisy["limits"] = json!({ "iops": 800 });
    host.agent.change("POST", "ssds", &noisy)?;
    let shape = Shape { depth: 8, pause: Duration::from_millis(4), places: 4096 };
    let load = Load::start(&host.agent.ssd_socket("noisy"), shape);
    host.open()?;
    host.waits_for("engine serving")?;
    let line = format!("{SSDS_SHOWN}.find((line) => line.firstChild.textContent === 'noisy')");
    for part in ["64 MiB", "file", "800 I/Os a second", "serving"] {
        let has = format!("{line}?.innerText.includes('{part}') === true");
        host.browser.wait(&format!("the ssd's line says {part}"), &has)?;
    }
    host.browser.value(&format!("{line}.querySelector('button').click()"))?;
    ensure!(host.browser.text("document.getElementById('chosen').value")? == "noisy");
    ensure!(host.browser.text("document.getElementById('split-of').textContent")? == "noisy");

    host.agent.kill();
    host.waits_for("The agent does not answer.")?;
    host.picture("agent-down", Scheme::Dark, 1360)?;
    texts_can_be_read(&host, Scheme::Dark)?;
    host.agent.restart()?;
    host.no_longer_says("The agent does not answer.")?;
    ensure!(load.stop()? > 0, "the guest did nothing");

    let daemon = host.daemon.as_mut().unwrap();
    daemon.kill();
    host.waits_for("The daemon does not answer the agent.")?;
    host.daemon.as_mut().unwrap().restart()?;
    host.no_longer_says("The daemon does not answer the agent.")?;
    host.waits_for("engine serving")
}

/// What the daemon tells of a migration.
fn migration(ssd: &str, state: &str, over: bool) -> Value {
    json!({ "ssd": ssd, "peer": "host-b:8010", "guest": null, "incoming": false, "state": state, "reason": null, "over": over,
        "size_bytes": 1_u64 << 36, "sent_bytes": 11_u64 << 30, "memory_bytes": 0, "left_bytes": 5_u64 << 30, "pass": 0, "rate": 0,
        "dirty_rate": 20 << 20, "predicted_stun_ns": 6_100_000, "stun_ns": null, "p99_before_ns": 300_000, "p99_ns": 450_000, "elapsed_ms": 52_100 })
}

/// A time line of `seconds`, in which nothing ends for 30 ms before the last second.
fn timeline(ssd: &str, seconds: u64) -> Value {
    let (mut ios, mut points) = (0, Vec::new());
    for at in 0..=seconds * 100 {
        points.push(json!({ "t": at * 10_000, "n": ios }));
        let still = (seconds * 100 - 103..seconds * 100 - 100).contains(&at);
        ios += if still { 0 } else { 90 + at * 7919 % 31 };
    }
    let ends = seconds * 1_000_000 - 1_030_000;
    let mark = |at_us: u64, state: &str| json!({ "at_us": at_us, "state": state });
    let marks =
        [(5_000, "copying"), (ends, "switching over"), (ends + 5_000, "granted"), (ends + 30_000, "moved")];
    json!({ "ssd": ssd, "began_unix_ms": 1, "points": points, "marks": marks.map(|(at, state)| mark(at, state)) })
}

#[test]
fn an_ssd_that_moves_is_shown_on_its_way_with_its_time_line_and_where_it_came_to() -> Result<()> {
    let [a, mut b] = two_hosts(&Ssd::new("db", 64), 32)?;
    let address = b.address.clone();
    let shape = Shape { depth: 4, pause: Duration::from_millis(1), places: 4096 };
    let load = Load::start(&a.daemon.socket("db"), shape);
    let host = Host::beside(Some(a.daemon), a.folder)?;
    host.open()?;
    host.waits_for("Last minute")?;
    let shown = "document.getElementById('migrations').checkVisibility()";
    ensure!(host.browser.value(shown)? == json!(false), "nothing moves yet");
    let tool = |words: &[&str]| host.daemon.as_ref().unwrap().tool(words);
    let words = ["migrate", "db", "--to", &address, "--bandwidth", "1MiB", "--max-stun", "2s", "--no-wait"];
    let began = Instant::now();
    // Daemons listen for one another a moment after they serve.
    while let Err(error) = tool(&words) {
        ensure!(began.elapsed() < Duration::from_secs(20), "{error:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
    for part in ["to 127.0.0.1", "copying", " left", "B/s"] {
        let says =
            format!("document.querySelector('#migrations tbody tr')?.innerText.includes('{part}') === true");
        host.browser.wait(&format!("the migration's line says {part}"), &says)?;
    }
    let line = |says: &str| {
        format!(
            "(() => {{ const {{ bins, marks }} = document.getElementById('timeline').dataset; return {says}; }})()"
        )
    };
    host.browser.wait("the time line goes on", &line("Number(bins) > 100 && marks.startsWith('copying')"))?;
    host.picture("moving", Scheme::Light, 1360)?;
    tool(&["migration", "bandwidth", "db", "0"])?;
    host.browser.wait("it has moved", &line("marks === 'copying, switching over, granted, moved'"))?;
    let stun = "document.querySelector('#migrations tbody tr').children[7].textContent";
    host.browser.wait("its stun is told", &format!("/^[0-9.]+ (µs|ms|s)$/.test({stun})"))?;
    drop(load);
    host.browser.value("document.getElementById('timeline').focus()")?;
    host.browser.press("ArrowLeft")?;
    let said = host.browser.text("document.getElementById('timeline-readout').textContent")?;
    ensure!(said.contains("I/Os a second"), "the time line reads: {said}");
    for scheme in [Scheme::Light, Scheme::Dark] {
        host.picture("moved", scheme, 1360)?;
        texts_can_be_read(&host, scheme)?;
    }
    host.is_clean()?;
    let load = Load::start(&b.daemon.socket("db"), shape);
    let there = Agent::start(&binary()?, b.folder.path())?;
    let list = there.get("migrations")?;
    let came = &list["items"][0];
    ensure!(came["incoming"] == json!(true) && came["state"] == json!("arrived"), "{list}");
    let line = there.get("migrations/db/timeline")?;
    ensure!(line["marks"].as_array().is_some_and(|marks| !marks.is_empty()), "{line}");
    ensure!(load.stop()? > 0, "nobody is served there");
    drop(there);
    b.daemon.stop()
}

#[test]
fn every_text_can_be_read_in_light_and_in_dark_in_wide_windows_and_in_narrow_ones() -> Result<()> {
    let ssd = |name: &str, state: &str| {
        json!({ "name": name, "uuid": "u", "generation": 1, "phase": "ready", "operation": null, "size_bytes": 1_u64 << 40,
            "interface": "nvme", "pool": "p1", "thin": true, "flavor": null, "limits": { "iops": 50_000 }, "socket": "/run/vm1.sock",
            "reason": null, "serving": { "state": state, "reason": null, "client": true, "unanswered": 0 } })
    };
    let pool = json!({ "name": "p1", "path": "/dev/disk/by-id/nvme-example", "promised_bytes": 3_u64 << 40, "ssds": 2, "snapshots": 1,
        "operation": null, "phase": "ready", "serving": { "state": "serving", "size_bytes": 2_u64 << 40, "used_bytes": 1_u64 << 40,
            "free_bytes": 1_u64 << 39, "wiping_bytes": 1_u64 << 38, "quarantined_bytes": 1_u64 << 38, "waiting": 3 } });
    let drive = |name: &str, state: &str, verdict: &str| {
        json!({ "name": name, "path": format!("/dev/{name}"), "model": "Example", "serial": "S1", "size_bytes": 2_u64 << 40, "state": state,
            "contents": "GPT", "users": [], "pool": null, "health": { "verdict": verdict, "used_percent": 4, "warnings": [] }, "unknown": [] })
    };
    let drives = json!([
        drive("nvme0n1", "free", "good"),
        drive("nvme1n1", "taken", "warning"),
        drive("nvme2n1", "wiping", "failing")
    ]);
    let operation = |id: &str, state: &str| {
        json!({ "id": id, "kind": "ssd-create", "target": "vm1", "state": state, "step": "serve",
        "message": "the daemon refused it", "created_ms": 1, "finished_ms": 900 })
    };
    let operations = json!([operation("1", "running"), operation("2", "done"), operation("3", "failed")]);
    let ssds = json!([ssd("vm1", "serving"), ssd("vm2", "quarantined")]);
    let mut answers = answers(ssds, json!([pool]), drives, operations, json!([]));
    let moves = [
        migration("vm1", "copying", false),
        migration("vm2", "failed", true),
        migration("vm3", "moved", true),
    ];
    answers.push(("migrations", json!({ "items": moves, "reason": null })));
    answers.push(("migrations/vm1/timeline", timeline("vm1", 20)));
    let host = Host::of(&answers)?;
    // The page asks when it is ready to, and draws from the second answer on: the next one comes when something was drawn, or in a while.
    let cells = "Number(document.querySelectorAll('#maps canvas')[2].dataset.cells ?? 0)";
    let drawn = || host.browser.value(cells).map(|cells| cells.as_u64().unwrap_or(0));
    for looks in 1..60 {
        let before = drawn()?;
        if before >= 6 {
            break;
        }
        host.relay.answer("/api/v1/stats", looked(looks));
        let asked = Instant::now();
        while drawn()? == before && asked.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    ensure!(drawn()? >= 6, "the map stays empty");
    for (scheme, width, name) in [
        (Scheme::Light, 1360, "page"),
        (Scheme::Dark, 1360, "page"),
        (Scheme::Light, 400, "narrow"),
        (Scheme::Dark, 400, "narrow"),
    ] {
        host.picture(name, scheme, width)?;
        texts_can_be_read(&host, scheme)?;
        host.browser
            .wait("the time line is there", "document.getElementById('timeline').dataset.bins === '2000'")?;
        let fits = host.browser.value("document.documentElement.scrollWidth <= innerWidth")?;
        ensure!(fits == json!(true), "{name}: the page is wider than its window");
    }
    host.is_clean()
}

#[test]
fn names_and_reasons_of_others_are_text_and_nothing_but_text() -> Result<()> {
    let h = HOSTILE;
    let ssd = json!({ "name": h, "uuid": h, "generation": 1, "phase": "ready", "operation": h, "size_bytes": 1 << 30, "interface": "nvme",
        "pool": h, "thin": true, "flavor": h, "limits": {}, "socket": h, "reason": h,
        "serving": { "state": "quarantined", "reason": h, "client": false, "unanswered": 0 } });
    let pool = json!({ "name": h, "path": h, "promised_bytes": 1, "ssds": 1, "snapshots": 0, "operation": h, "phase": "ready",
        "serving": { "state": h, "size_bytes": 4, "used_bytes": 1, "free_bytes": 1, "wiping_bytes": 1, "quarantined_bytes": 1, "waiting": 1 } });
    let drive = json!({ "name": h, "path": h, "model": h, "serial": h, "size_bytes": 1, "state": h, "contents": h,
        "users": [h], "pool": null, "health": { "verdict": h, "used_percent": 1, "warnings": [h] }, "confirmation": h, "unknown": [h] });
    let operation = |id: &str, state: &str| json!({ "id": id, "kind": h, "target": h, "state": state, "step": h, "message": h, "created_ms": 1, "finished_ms": null });
    let operations = json!([operation(h, "running"), operation("2", h), operation("3", "failed")]);
    let stats = json!([{ "name": h, "serial": h, "state": h, "client": true, "reason": h, "read": {}, "write": {}, "other": {} }]);
    let mut answers = answers(json!([ssd]), json!([pool]), json!([drive]), operations, stats);
    let path = format!("migrations/{}/timeline", in_path(h));
    let mut moving = migration(h, h, true);
    for field in ["peer", "reason"] {
        moving[field] = json!(h);
    }
    let mut line = timeline(h, 2);
    line["marks"][0]["state"] = json!(h);
    answers.extend([("migrations", json!({ "items": [moving], "reason": null })), (&path, line)]);
    answers[0].1 = json!({ "release": h, "version": 7, "daemon": true, "reason": h, "engine": h, "engine_generation": 1, "engine_crashes": 1 });
    let host = Host::of(&answers)?;
    for section in [
        "trouble",
        "ssds",
        "pools",
        "drives",
        "operations",
        "migrations",
        "moving",
        "chosen",
        "engine",
        "release",
    ] {
        let has = format!("document.getElementById('{section}').textContent.includes({})", Value::from(h));
        host.browser.wait(&format!("{section} shows the name as it is"), &has)?;
    }
    let made = host.browser.value("document.querySelectorAll('main img, main script, [onerror]').length")?;
    ensure!(made == json!(0), "names became elements: {made}");
    ensure!(host.browser.text("document.title")? == "Godwit");
    host.is_clean()
}

/// A name as a part of a path, as a browser writes it.
fn in_path(name: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'\'' | b'(' | b')' | b'.' | b'-' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(byte).collect()
}

#[test]
fn an_empty_host_tells_the_next_step_as_a_command() -> Result<()> {
    let nothing = || json!([]);
    let host = Host::of(&answers(nothing(), nothing(), nothing(), nothing(), nothing()))?;
    for (section, command) in [
        ("ssds", "godwit ssd create vm1 --size 100GiB"),
        ("pools", "godwit pool create p1"),
        ("drives", "godwit pool create p1"),
        ("operations", "godwit ssd create"),
    ] {
        let says = format!(
            "[...document.querySelectorAll('#{section} code')].some((code) => code.textContent.startsWith('{command}'))"
        );
        host.browser.wait(&format!("{section} tells what to do"), &says)?;
    }
    for scheme in [Scheme::Light, Scheme::Dark] {
        host.picture("empty", scheme, 1360)?;
        texts_can_be_read(&host, scheme)?;
    }
    host.is_clean()
}

#[test]
fn the_browser_runs_nothing_but_the_agents_own_files() -> Result<()> {
    let host = Host::new(false)?;
    host.open()?;
    let tried = host.browser.value(
        "(async () => {
            const inline = document.body.appendChild(document.createElement('div'));
            const tried = {};
            const attempt = async (name, work) => { try { tried[name] = await work(); } catch (error) { tried[name] = 'refused'; } };
            await attempt('markup', () => { inline.innerHTML = '<b>x</b>'; return 'made'; });
            await attempt('handler', () => { inline.setAttribute('onclick', 'window.owned = 1'); inline.click(); return window.owned ? 'ran' : 'refused'; });
            await attempt('script', () => { const script = document.createElement('script'); script.textContent = 'window.owned = 1'; document.body.append(script); return window.owned ? 'ran' : 'refused'; });
            await attempt('elsewhere', () => fetch('http://localhost:9/').then(() => 'asked'));
            await attempt('picture', () => new Promise((done) => { const picture = new Image(); picture.onload = () => done('shown'); picture.onerror = () => done('refused'); picture.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw='; }));
            return tried;
        })()",
    )?;
    let refused = json!({ "markup": "refused", "handler": "refused", "script": "refused", "elsewhere": "refused", "picture": "refused" });
    ensure!(tried == refused, "{tried}");
    let log = host.browser.log()?.join("\n");
    for rule in ["connect-src", "img-src", "TrustedHTML", "TrustedScript"] {
        ensure!(log.contains(rule), "{rule} forbade nothing:\n{log}");
    }
    Ok(())
}

/// Stats of one ssd, `looks` seconds after its beginning.
fn looked(looks: u64) -> Value {
    let op = |count: u64| json!({ "ios": count, "bytes": count * 4096, "errors": 0, "queue": [[2, count]], "throttle": [[0, count]], "drive": [[5, count]] });
    let floors = [0, 500, 1000, 2000, 10_000, 100_000, 1_000_000];
    let ssd = json!({ "name": "vm1", "serial": "S", "state": "serving", "client": true, "reason": null, "read": op(looks * 1000), "write": op(0), "other": op(0) });
    json!({ "at_ms": 1_000_000 + looks * 1000, "clock_ms": looks * 1000, "bucket_floors_ns": floors, "engine_generation": 1, "ssds": [ssd] })
}

#[test]
fn all_of_the_page_can_be_reached_and_read_by_keyboard() -> Result<()> {
    let nothing = || json!([]);
    let host = Host::of(&answers(nothing(), nothing(), nothing(), nothing(), nothing()))?;
    for looks in 1..4 {
        host.relay.answer("/api/v1/stats", looked(looks));
        let seen = format!(
            "document.querySelector('#ssds tbody tr')?.children[6].textContent === '{}'",
            if looks > 1 { "1000" } else { "–" }
        );
        host.browser.wait("the look is seen", &seen)?;
    }
    let mut reached = Vec::new();
    for _ in 0..40 {
        host.browser.press("Tab")?;
        reached.push(host.browser.text(
            "(document.activeElement.closest('[id]')?.id ?? '') + ' ' + document.activeElement.tagName",
        )?);
    }
    for wanted in ["chosen SELECT", "op SELECT", "span SELECT", "maps CANVAS", "ssds BUTTON", "pools BUTTON"]
    {
        ensure!(reached.iter().any(|place| place == wanted), "{wanted} cannot be reached: {reached:?}");
    }
    host.browser.value("document.querySelectorAll('#maps canvas')[2].focus()")?;
    // The first key goes to where most is, the next from there.
    for (key, wanted) in [("ArrowUp", "1000 I/Os a second"), ("ArrowDown", "0 I/Os a second")] {
        host.browser.press(key)?;
        let said = host.browser.text("document.getElementById('readout').textContent")?;
        ensure!(
            said.contains("at the drive") && said.contains(&format!(": {wanted}")),
            "the map reads: {said}"
        );
    }
    let heads = host.browser.value(
        "[...document.querySelectorAll('h1, h2')].filter((head) => head.checkVisibility()).map((head) => head.textContent.replace(/ \\(.*/, ''))",
    )?;
    ensure!(heads == json!(["Godwit", "Latency", "Ssds", "Pools", "Drives", "Operations"]), "{heads}");
    let nameless = host.browser.value("[...document.querySelectorAll('canvas, [role=img], select, button, [role=region], progress')].filter((part) => !(part.ariaLabel || part.labels?.length || part.textContent)).map((part) => part.outerHTML)")?;
    ensure!(nameless == json!([]), "without a name: {nameless}");
    host.is_clean()
}
