// From what the agent says to what is seen. Names, paths and reasons are other people's text: they become text nodes, never markup.

import { PARTS } from "./live.js";
import { rateText, timeText } from "./heat.js";

/** An element with properties and children; strings among these are text. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Writes only what is new: a reader that is in the middle of it is not disturbed. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function give(element, className) {
  if (element.className !== className) element.className = className;
}

export function sizeText(bytes) {
  let [number, unit] = [bytes, "B"];
  for (const next of ["KiB", "MiB", "GiB", "TiB", "PiB"]) {
    if (number < 1023.95) break;
    [number, unit] = [number / 1024, next];
  }
  return (unit === "B" || number >= 99.95 || Number.isInteger(number) ? number.toFixed(0) : number.toFixed(1)) + " " + unit;
}

export function bandwidthText(bytes) {
  let [number, unit] = [bytes, "B/s"];
  for (const next of ["kB/s", "MB/s", "GB/s"]) {
    if (number < 999.5) break;
    [number, unit] = [number / 1000, next];
  }
  return (number < 99.95 && number % 1 > 0 ? number.toFixed(1) : number.toFixed(0)) + " " + unit;
}

function spanText(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (ms < 950) return Math.max(0, Math.round(ms)) + " ms";
  if (seconds < 100) return seconds + " s";
  if (seconds < 6000) return Math.round(seconds / 60) + " min";
  return Math.round(seconds / 3600) + " h";
}

export function momentText(ms) {
  const moment = new Date(ms);
  const today = moment.toDateString() === new Date().toDateString();
  return today ? moment.toLocaleTimeString() : moment.toLocaleString();
}

/** A command to paste. */
export function command(text) {
  const button = make("button", { type: "button" }, "Copy");
  button.setAttribute("aria-label", "Copy: " + text);
  button.addEventListener("click", async () => {
    // Denied, or no secure context: then it is selected, and control-C takes it.
    await navigator.clipboard?.writeText(text).then(() => write(button, "Copied"), () => getSelection().selectAllChildren(code));
    setTimeout(() => write(button, "Copy"), 2000);
  });
  const code = make("code", {}, text);
  return make("div", { className: "next" }, code, button);
}

function empty(text, ...commands) {
  return [make("p", { className: "empty" }, text), ...commands.map(command)];
}

/** Sets what a place contains, if it is another kind of content than before. */
function become(place, kind, content) {
  if (place.dataset.kind === kind) return false;
  place.dataset.kind = kind;
  place.replaceChildren(...content());
  return true;
}

/** Keeps one element for each item, in order; those that stay are changed in place, so that focus and selection stay too. */
function keep(place, items, key, create, update) {
  const known = new Map([...place.children].map((child) => [child.dataset.key, child]));
  let at = place.firstElementChild;
  for (const item of items) {
    let child = known.get(key(item));
    known.delete(key(item));
    if (!child) {
      child = create(item);
      child.dataset.key = key(item);
    }
    if (child === at) at = at.nextElementSibling;
    else place.insertBefore(child, at);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

/** A table. A column is `[head, class, fill]`; `fill(cell, item)` writes a cell. The first cell is the row's head. */
function table(place, kind, label, caption, columns, items, key, row = () => {}) {
  become(place, kind, () => {
    const heads = columns.map(([head, className]) => make("th", { scope: "col", className }, head));
    const rows = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody"));
    const region = make("div", { className: "scroll", tabIndex: 0 }, rows);
    region.setAttribute("role", "region");
    for (const part of [region, rows]) part.setAttribute("aria-label", label);
    return caption ? [make("p", { className: "note" }, caption), region] : [region];
  });
  const create = () => make("tr", {}, ...columns.map(([, className], at) => (at === 0 ? make("th", { scope: "row" }) : make("td", { className }))));
  keep(place.querySelector("tbody"), items, key, create, (line, item) => {
    columns.forEach(([, , fill], at) => fill(line.children[at], item));
    row(line, item);
  });
}

function counted(section, count) {
  const title = document.getElementById(section + "-title");
  const span = title.querySelector(".count") ?? title.appendChild(make("span", { className: "count" }));
  write(span, count === null ? "" : ` (${count})`);
}

const body = (section) => document.querySelector(`#${section} .body`);

// -- ssds

const LIMITS = [
  ["iops", (n) => rateText(n) + " I/Os a second"], ["read_iops", (n) => rateText(n) + " reads a second"],
  ["write_iops", (n) => rateText(n) + " writes a second"], ["bandwidth", (n) => sizeText(n) + "/s"],
  ["read_bandwidth", (n) => sizeText(n) + "/s read"], ["write_bandwidth", (n) => sizeText(n) + "/s written"],
  ["weight", (n) => "weight " + n],
];

function limitsText(limits) {
  return LIMITS.filter(([name]) => limits?.[name] != null).map(([name, text]) => text(limits[name])).join(", ") || "none";
}

/** The state of an ssd as a word, how good that is, and why. */
export function stateOf(ssd) {
  const reason = ssd.reason ?? ssd.serving.reason ?? "";
  if (ssd.phase !== "ready") return [ssd.phase, ssd.phase === "quarantined" ? "bad" : "warn", reason];
  const { state, client } = ssd.serving;
  if (state === "serving") return [client ? "serving" : "no guest", client ? "good" : "quiet", reason];
  return [state, state === "quarantined" || state === "absent" ? "bad" : "warn", reason];
}

function where(ssd) {
  if (ssd.foreign) return "the daemon's own file";
  const thin = ssd.thin ? ", thin" : "";
  return (ssd.pool ? "pool " + ssd.pool : "file") + thin + (ssd.interface === "virtio-blk" ? ", virtio-blk" : "");
}

const SPARK = { points: 60, wide: 84, high: 22 };

function spark(cell, trend) {
  const svgOf = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (!cell.firstElementChild) {
    const svg = svgOf("svg");
    svg.setAttribute("class", "spark");
    svg.setAttribute("viewBox", `0 0 ${SPARK.wide} ${SPARK.high}`);
    svg.setAttribute("aria-hidden", "true");
    svg.append(svgOf("path"));
    cell.append(svg);
  }
  const highest = Math.max(...trend, 1);
  const point = (rate, at) => {
    const x = SPARK.wide - ((trend.length - 1 - at) * SPARK.wide) / (SPARK.points - 1);
    return `${x.toFixed(1)} ${(SPARK.high - 1 - ((SPARK.high - 2) * rate) / highest).toFixed(1)}`;
  };
  const line = trend.length > 1 ? "M" + trend.map(point).join("L") : "";
  cell.querySelector("path").setAttribute("d", line);
}

function ssdColumns(live, choose) {
  const recent = (ssd) => live.recent(ssd.name);
  const quantile = (part, at) => (cell, ssd) => write(cell, timeText(recent(ssd)?.quantiles[part][at] ?? null));
  return [
    ["Name", "", (cell, ssd) => {
      if (!cell.firstElementChild) {
        const button = cell.appendChild(make("button", { type: "button", title: "Show its latency above" }));
        button.addEventListener("click", () => choose(cell.parentElement.dataset.key));
      }
      write(cell.firstElementChild, ssd.name);
    }],
    ["Size", "n", (cell, ssd) => write(cell, ssd.size_bytes === null ? "–" : sizeText(ssd.size_bytes))],
    ["In", "", (cell, ssd) => write(cell, where(ssd))],
    ["Limits", "", (cell, ssd) => write(cell, limitsText(ssd.limits))],
    ["State", "", (cell, ssd) => {
      const [word, how, reason] = stateOf(ssd);
      const span = cell.firstElementChild ?? cell.appendChild(make("span"));
      give(span, "state " + how);
      const failed = live.errors(ssd.name);
      write(span, word + (failed > 0 ? `, ${rateText(failed)} failed I/Os` : ""));
      if (cell.title !== reason) cell.title = reason;
    }],
    ["Last minute", "", (cell, ssd) => spark(cell, live.trend(ssd.name, SPARK.points))],
    ["I/Os a second", "n", (cell, ssd) => write(cell, recent(ssd) ? rateText(Math.round(recent(ssd).iops)) : "–")],
    ["Bandwidth", "n", (cell, ssd) => write(cell, recent(ssd) ? bandwidthText(recent(ssd).bandwidth) : "–")],
    ["Drive p50", "n", quantile("drive", 0)],
    ["p99", "n", quantile("drive", 1)],
    ["p99.9", "n", quantile("drive", 2)],
    ["Queue p99", "n", quantile("queue", 1)],
    ["Throttle p99", "n", quantile("throttle", 1)],
  ];
}

export function showSsds(ssds, live, chosen, choose) {
  counted("ssds", ssds.length);
  const place = body("ssds");
  if (ssds.length === 0) {
    become(place, "empty", () => empty("There is none yet. Make one, and print what its hypervisor needs:",
      "godwit ssd create vm1 --size 100GiB --wait", "godwit attach vm1 --qemu"));
    return;
  }
  table(place, "table", "Ssds", "Figures are of the last 5 s. A name shows that ssd's latency above.", ssdColumns(live, choose), ssds,
    (ssd) => ssd.name, (line, ssd) => {
      line.dataset.chosen = ssd.name === chosen;
      line.firstElementChild.firstElementChild.setAttribute("aria-pressed", ssd.name === chosen);
    });
}

// -- migrations

const MOVED = { moved: "good", arrived: "good", forced: "warn", failed: "bad" };
const hasMoved = (migration) => ["moved", "arrived", "forced"].includes(migration.state);

function copied(cell, migration) {
  if (!cell.firstElementChild) {
    cell.append(make("progress"), " ", make("span"));
    cell.firstElementChild.setAttribute("aria-label", `Progress of ${migration.ssd}`);
  }
  const [bar, text] = cell.children;
  const { incoming, over, size_bytes: size, sent_bytes: sent, left_bytes: left, memory_bytes: memory } = migration;
  bar.hidden = over && !hasMoved(migration);
  if (over) Object.assign(bar, { max: 1, value: 1 });
  // Who takes does not know what is to come.
  else if (incoming || sent + left === 0) bar.removeAttribute("value");
  else Object.assign(bar, { max: sent + left, value: sent });
  const of = incoming ? `of ${sizeText(size)}` : `${sizeText(sent)} sent` + (over ? "" : `, ${sizeText(left)} left`);
  write(text, of + (memory > 0 ? `, memory ${sizeText(memory)}` : ""));
}

function stunText(migration) {
  if (migration.stun_ns !== null) return timeText(migration.stun_ns);
  return migration.over || migration.predicted_stun_ns === null ? "–" : "about " + timeText(migration.predicted_stun_ns);
}

/** The first pass is measured when it ends. */
function moveRateText({ over, incoming, rate, sent_bytes: sent, elapsed_ms: elapsed }) {
  const bytes = rate || (elapsed > 0 ? (sent * 1000) / elapsed : 0);
  return over || incoming || bytes === 0 ? "–" : bandwidthText(bytes);
}

function migrationColumns(choose) {
  const p99 = (field) => (cell, migration) => write(cell, timeText(migration[field]));
  return [
    ["Ssd", "", (cell, migration) => {
      if (!cell.firstElementChild) {
        const button = cell.appendChild(make("button", { type: "button", title: "Show its time line below" }));
        button.addEventListener("click", () => choose(cell.parentElement.dataset.key));
      }
      write(cell.firstElementChild, migration.ssd);
    }],
    ["Goes", "", (cell, migration) => write(cell, (migration.incoming ? "from " : "to ") + migration.peer + (migration.guest ? ", with its guest" : ""))],
    ["State", "", (cell, migration) => {
      const span = cell.firstElementChild ?? cell.appendChild(make("span"));
      give(span, "state " + (migration.over ? MOVED[migration.state] ?? "quiet" : "warn"));
      write(span, migration.state);
    }],
    ["Copied", "", copied],
    ["Rate", "n", (cell, migration) => write(cell, moveRateText(migration))],
    ["p99 now", "n", p99("p99_ns")],
    ["p99 before", "n", p99("p99_before_ns")],
    ["Stun", "n", (cell, migration) => write(cell, stunText(migration))],
    ["Took", "n", (cell, migration) => write(cell, spanText(migration.elapsed_ms))],
    ["Says", "wrap", (cell, migration) => write(cell, migration.reason ?? "")],
  ];
}

/** `shown` is the one whose time line is shown, if there is any. */
export function showMigrations(migrations, shown, choose) {
  for (const id of ["migrations", "to-migrations"]) document.getElementById(id).hidden = migrations.length === 0;
  if (migrations.length === 0) return;
  table(body("migrations"), "table", "Migrations", "Those that are under way, and the last one of each ssd. p99 is of the guest's reads and writes, here and at the drive; the stun is how long they stood still.",
    migrationColumns(choose), migrations, (migration) => migration.ssd, (line, migration) => {
      line.dataset.chosen = migration.ssd === shown;
      line.firstElementChild.firstElementChild.setAttribute("aria-pressed", migration.ssd === shown);
    });
  write(document.getElementById("moving"), shown ?? "");
}

// -- pools

/** What a pool's space is taken by: `[name, class, bytes]`. */
function spaceOf(space) {
  return [
    ["used", "used", space.used_bytes], ["being wiped", "wiping", space.wiping_bytes],
    ["quarantined", "lost", space.quarantined_bytes], ["free", "rest", space.free_bytes],
  ].filter(([name, , bytes]) => bytes > 0 || name === "free" || name === "used");
}

function poolCard(card, pool) {
  const [title, facts, warning] = card.children;
  const space = pool.serving ?? { state: "unknown", size_bytes: 0 };
  const word = pool.phase === "ready" ? space.state : pool.phase;
  write(title.children[0], pool.name);
  write(title.children[1], pool.path);
  give(title.children[2], "state " + (word === "serving" ? "good" : ["creating", "deleting", "unknown"].includes(word) ? "warn" : "bad"));
  write(title.children[2], word);
  const [bar, key, text] = facts.children;
  const known = space.size_bytes > 0;
  bar.hidden = key.hidden = !known;
  const parts = known ? spaceOf(space) : [];
  keep(bar, parts.slice(0, -1), (part) => part[1], () => make("i"), (segment, [, className, bytes]) => {
    give(segment, className);
    segment.style.width = Math.max((100 * bytes) / space.size_bytes, bytes > 0 ? 0.6 : 0) + "%";
  });
  bar.setAttribute("aria-label", parts.map(([name, , bytes]) => `${sizeText(bytes)} ${name}`).join(", "));
  keep(key, parts, (part) => part[1], () => make("li", {}, make("i"), make("span")), (item, [name, className, bytes]) => {
    give(item.firstElementChild, className);
    write(item.lastElementChild, `${sizeText(bytes)} ${name}`);
  });
  const times = known && pool.promised_bytes > space.size_bytes ? ` (thin: ${(pool.promised_bytes / space.size_bytes).toFixed(1)} times what is there)` : "";
  const snapshots = pool.snapshots > 0 ? `, ${pool.snapshots} ${pool.snapshots === 1 ? "snapshot" : "snapshots"}` : "";
  write(text, `${pool.ssds} ${pool.ssds === 1 ? "ssd" : "ssds"}${snapshots}; ${sizeText(pool.promised_bytes)} promised` +
    (known ? ` of ${sizeText(space.size_bytes)}` : "") + times);
  write(warning, space.waiting > 0 ? `Full: writes to ${space.waiting} extents wait for space. They go on by themselves when something is deleted or discarded.` : "");
}

export function showPools(pools) {
  counted("pools", pools.length);
  const place = body("pools");
  if (pools.length === 0) {
    become(place, "empty", () => empty("There is none yet. A pool is a drive that many ssds share, each with the space that it uses:",
      "godwit drive list", "godwit pool create p1 /dev/disk/by-id/nvme-… --wait"));
    return;
  }
  become(place, "cards", () => [make("div", { className: "cards" })]);
  const create = () => {
    const bar = make("div", { className: "bar" });
    bar.setAttribute("role", "img");
    return make("div", { className: "card" }, make("h3", {}, make("span"), make("span", { className: "path" }), make("span")),
      make("div", {}, bar, make("ul", { className: "key" }), make("p")), make("p", { className: "bad" }));
  };
  keep(place.firstElementChild, pools, (pool) => pool.name, create, poolCard);
}

// -- drives

const DRIVE = { free: "good", pool: "good", taken: "quiet", "in-use": "quiet", "read-only": "quiet", wiping: "warn", quarantined: "bad" };
const HEALTH = { good: "good", warning: "warn", failing: "bad" };

export function showDrives(drives) {
  const place = body("drives");
  if (typeof drives === "string") {
    counted("drives", null);
    const kind = "why " + drives;
    become(place, kind, () => empty(drives, "godwit drive list"));
    return;
  }
  counted("drives", drives.length);
  if (drives.length === 0) {
    become(place, "empty", () => empty("The agent sees no drive of this host. A file can be a pool, too:",
      "godwit pool create p1 /srv/p1.img --size 100GiB --wait"));
    return;
  }
  const stated = (cell, word, how) => {
    const span = cell.firstElementChild ?? cell.appendChild(make("span"));
    give(span, "state " + how);
    write(span, word);
  };
  table(place, "table", "Drives", "", [
    ["Name", "", (cell, drive) => write(cell, drive.name)],
    ["Model", "", (cell, drive) => write(cell, drive.model ?? "–")],
    ["Serial", "", (cell, drive) => write(cell, drive.serial ?? "–")],
    ["Size", "n", (cell, drive) => write(cell, sizeText(drive.size_bytes))],
    ["State", "", (cell, drive) => stated(cell, drive.pool ? "pool " + drive.pool : drive.state, DRIVE[drive.state] ?? "warn")],
    ["Health", "", (cell, drive) => {
      if (!drive.health) return write(cell, "–");
      stated(cell, drive.health.verdict, HEALTH[drive.health.verdict] ?? "warn");
      cell.title = drive.health.warnings.join("; ");
    }],
    ["Wear", "n", (cell, drive) => write(cell, drive.health ? drive.health.used_percent + " %" : "–")],
    ["On it", "wrap", (cell, drive) => write(cell, [drive.contents, ...drive.users, ...drive.unknown].filter(Boolean).join(", ") || "nothing")],
  ], drives, (drive) => drive.path ?? drive.name);
}

// -- operations

function operationState(cell, operation) {
  const [word, how] = { running: ["running", "warn"], done: ["done", "good"], failed: ["failed", "bad"] }[operation.state] ?? [operation.state, "quiet"];
  if (cell.dataset.state !== operation.state) {
    cell.dataset.state = operation.state;
    cell.replaceChildren(make("span", { className: "state " + how }, word));
    if (operation.state === "running") {
      const bar = make("progress");
      bar.setAttribute("aria-label", `Progress of ${operation.kind} ${operation.target}`);
      cell.append(" ", bar);
    }
  }
  const bar = cell.querySelector("progress");
  if (bar && operation.total > 0) Object.assign(bar, { max: operation.total, value: operation.done });
}

export function showOperations(operations, nowMs) {
  counted("operations", null);
  const place = body("operations");
  if (operations.length === 0) {
    become(place, "empty", () => empty("Nothing was asked of the agent yet. What you ask is listed here, and survives the agent:",
      "godwit ssd create vm1 --size 100GiB --wait"));
    return;
  }
  table(place, "table", "Operations", "The newest come first. An operation is done exactly once, also if the agent is killed at it.", [
    ["What", "", (cell, operation) => write(cell, operation.kind)],
    ["To", "", (cell, operation) => write(cell, operation.target)],
    ["State", "", operationState],
    ["Step", "", (cell, operation) => write(cell, operation.state === "running" ? operation.step : "")],
    ["Begun", "", (cell, operation) => write(cell, momentText(operation.created_ms))],
    ["Took", "n", (cell, operation) => write(cell, spanText((operation.finished_ms ?? nowMs) - operation.created_ms))],
    ["Says", "wrap", (cell, operation) => write(cell, operation.message ?? "")],
    ["Id", "path", (cell, operation) => write(cell, operation.id)],
  ], operations, (operation) => operation.id);
}

// -- all of it

export function showSums(ssds, pools, live, all) {
  const place = document.getElementById("sums");
  const recent = live.recent(all);
  const served = ssds.filter((ssd) => ssd.serving.state === "serving").length;
  const slowest = ssds.map((ssd) => [live.recent(ssd.name)?.quantiles.drive[1] ?? -1, ssd.name]).sort((a, b) => b[0] - a[0])[0];
  const held = ssds.filter((ssd) => (live.recent(ssd.name)?.quantiles.throttle[1] ?? 0) > 0).length;
  const [used, size] = ["used_bytes", "size_bytes"].map((field) => pools.reduce((sum, pool) => sum + (pool.serving?.[field] ?? 0), 0));
  const tiles = [
    ["I/Os a second", recent ? rateText(Math.round(recent.iops)) : "–", ""],
    ["Bandwidth", recent ? bandwidthText(recent.bandwidth) : "–", ""],
    ["Slowest drive p99", slowest && slowest[0] >= 0 ? timeText(slowest[0]) : "–", slowest && slowest[0] > 0 ? slowest[1] : ""],
    ["Ssds served", `${served}`, `of ${ssds.length}` + (held > 0 ? `, ${held} at a limit` : "")],
    ["Space used in pools", size > 0 ? sizeText(used) : "–", size > 0 ? "of " + sizeText(size) : ""],
  ];
  const create = ([name]) => make("div", {}, make("dt", {}, name), make("dd", {}, "", make("small")));
  keep(place, tiles, (tile) => tile[0], create, (tile, [, figure, more]) => {
    const [value, small] = [tile.lastChild.firstChild, tile.lastChild.lastChild];
    if (value.data !== figure + " ") value.data = figure + " ";
    write(small, more);
  });
}

const WHAT = {
  queue: "from the last look that did not find it until it was handed to the drive",
  throttle: "held back by a limit, or for the sake of other ssds",
  drive: "from being handed to the drive until its end was seen",
};

export function showSplit(quantiles, name) {
  write(document.getElementById("split-of"), name);
  const create = () => make("tr", {}, make("th", { scope: "row" }), ...["n", "n", "n", "quiet"].map((className) => make("td", { className })));
  keep(document.querySelector("#split tbody"), PARTS, (part) => part, create, (line, part) => {
    const times = quantiles?.[part] ?? [null, null, null];
    const texts = [part[0].toUpperCase() + part.slice(1), ...times.map(timeText), WHAT[part]];
    texts.forEach((text, at) => write(line.children[at], text));
  });
}
