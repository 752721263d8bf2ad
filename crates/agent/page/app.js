// The page: asks its own agent, shows the answers, and asks again; whatever goes away comes back by itself.

import { ALL, Live } from "./live.js";
import { Heat } from "./heat.js";
import { Timeline } from "./timeline.js";
import { command, make, momentText, showDrives, showMigrations, showOperations, showPools, showSplit, showSsds, showSums, write } from "./view.js";

/** How long an answer may take, ms: longer is as good as none. */
const PATIENCE_MS = 6000;
/** How long the agent may think about a watch, s. */
const WATCH_S = 20;
const AGAIN_MS = 1000;
/** How often the lists are asked for when nothing changes: how ssds are served is no change of theirs. */
const LISTS_MS = 2000;
const DRIVES_MS = 15000;
/** A migration that is over is looked at for a while more: its time line goes on for some seconds. */
const OVER_MS = 5000;
const OPERATIONS = 20;

const by = (id) => document.getElementById(id);
const live = new Live();
const heat = new Heat(by("maps"), by("scale"), by("readout"));
const timeline = new Timeline(by("timeline"), by("timeline-readout"));
const known = { host: null, ssds: [], migrations: [], line: null, pools: [], operations: [], drives: [], stats: null, heardMs: null, silent: null, noStats: null, lists: false };
let chosen = ALL;
let chosenMove = null;
/** A migration as it was seen last, and since when it is so. */
let seenMove = { as: "", sinceMs: 0 };

class Refused extends Error {}

async function get(path, patience = PATIENCE_MS) {
  const answer = await fetch("/api/v1/" + path, { signal: AbortSignal.timeout(patience) });
  const body = await answer.json();
  if (!answer.ok) throw new Refused(`${body.message}; ${body.next_step}`);
  return body;
}

const pause = (ms) => new Promise((again) => setTimeout(again, ms));

/** Does something again and again. That it failed is known from `host`, or shown by whoever needs it. */
async function forever(ms, work) {
  for (;;) {
    const rest = await work().then(() => ms, () => Math.max(ms, AGAIN_MS));
    await pause(rest);
  }
}

// -- what is asked

async function askHost() {
  try {
    known.host = await get("host");
    known.silent = null;
    known.heardMs = Date.now();
  } catch (error) {
    known.silent = error.name === "TimeoutError" ? "no answer in time" : error.message;
  }
  showTrouble();
}

async function askLists() {
  const [ssds, pools, operations] = await Promise.all([get("ssds"), get("pools"), get(`operations?limit=${OPERATIONS}`)]);
  announce(operations.items);
  Object.assign(known, { ssds: ssds.items, pools: pools.items, operations: operations.items, version: Math.min(ssds.version, pools.version, operations.version), lists: true });
  show();
}

async function askDrives() {
  try {
    known.drives = (await get("drives")).items;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    known.drives = "The agent cannot list this host's drives. The command can:";
  }
  showDrives(known.drives);
}

async function askMigrations() {
  const answer = await get("migrations");
  // A daemon that does not answer for a moment has not forgotten them.
  if (answer.reason === null) known.migrations = answer.items;
  showMoves();
  const one = moving();
  if (!one) return;
  const as = JSON.stringify([one.ssd, one.over, one.elapsed_ms]);
  if (seenMove.as !== as) seenMove = { as, sinceMs: Date.now() };
  if (known.line?.ssd === one.ssd && Date.now() - seenMove.sinceMs > OVER_MS) return;
  known.line = await get(`migrations/${encodeURIComponent(one.ssd)}/timeline`);
  showMoves();
}

async function askStats() {
  try {
    const after = live.at === null ? "" : `?every_ms=1000&after_ms=${Math.round(live.at * 1000)}`;
    known.stats = await get("stats" + after);
    live.take(known.stats);
    known.noStats = null;
  } catch (error) {
    known.noStats = error.message;
    throw error;
  } finally {
    show();
  }
}

/** Waits for a change, then has the lists asked for at once. */
async function watch() {
  if (known.version === undefined) return pause(200);
  const news = await get(`watch?wait_s=${WATCH_S}&after=${known.version}`, (WATCH_S + 5) * 1000);
  if (news.changes.length > 0 || news.lost) await askLists();
}

// -- what is shown

/** What is wrong: the worst first. `[how, title, text, command]` */
function troubles() {
  const { host, silent, heardMs } = known;
  if (silent !== null) {
    const old = heardMs === null ? "" : ` What you see is of ${momentText(heardMs)}.`;
    return [["bad", "The agent does not answer.", `${old} Guests' I/O does not need it and goes on. Asked again every second. (${silent})`, "systemctl status godwit-agent"]];
  }
  if (host === null) return [];
  if (!host.daemon) return [["bad", "The daemon does not answer the agent.", `${host.reason ?? ""}`, "systemctl status godwitd"]];
  const found = [];
  if (host.engine !== "serving") found.push(["warn", `The engine is ${host.engine}.`, "Guests' I/O waits for the next one; nothing is lost.", "godwit status"]);
  if (host.reason) found.push(["warn", "Not all of what is wanted is served.", host.reason, "godwit operation list"]);
  if (known.noStats !== null) found.push(["warn", "There are no live figures.", known.noStats, "godwit top"]);
  const lost = known.ssds.filter((ssd) => ssd.serving.state === "quarantined");
  for (const ssd of lost.slice(0, 3)) {
    found.push(["bad", `Ssd ${ssd.name} is quarantined.`, ssd.serving.reason ?? "Engines crashed with it in hand.", `godwit ssd resume ${ssd.name}`]);
  }
  return found;
}

function showTrouble() {
  const found = troubles();
  const place = by("trouble");
  const kind = JSON.stringify(found);
  if (place.dataset.kind !== kind) {
    place.dataset.kind = kind;
    place.replaceChildren(...found.map(([how, title, text, next]) =>
      make("div", { className: "trouble " + how }, make("p", {}, make("strong", {}, title), text.trim()), command(next))));
  }
  document.body.dataset.old = known.silent !== null || known.host?.daemon === false;
  const { host, silent } = known;
  const pill = by("engine");
  const [how, text] = silent !== null ? ["bad", "agent down"] : host === null ? ["", "asking the agent …"] : !host.daemon ? ["bad", "daemon down"]
    : [host.engine === "serving" ? "good" : "warn", `engine ${host.engine}, number ${host.engine_generation}` + (host.engine_crashes > 0 ? `, ${host.engine_crashes} crashes` : "")];
  pill.className = "pill " + how;
  write(pill, text);
  if (host) write(by("release"), host.release);
}

/** Ssds that the daemon serves by its own configuration are not the agent's, but they do I/O. */
function allSsds() {
  const ours = new Set(known.ssds.map((ssd) => ssd.name));
  const others = (known.stats?.ssds ?? []).filter((ssd) => !ours.has(ssd.name));
  return [...known.ssds, ...others.map((ssd) => ({
    name: ssd.name, foreign: true, size_bytes: null, limits: ssd.limits, phase: "ready", reason: ssd.reason,
    serving: { state: ssd.state, client: ssd.client, reason: null },
  }))];
}

function showChoice(ssds) {
  const select = by("chosen");
  const names = [ALL, ...ssds.map((ssd) => ssd.name)];
  if (JSON.stringify(names) !== select.dataset.kind) {
    select.dataset.kind = JSON.stringify(names);
    select.replaceChildren(...names.map((name) => make("option", { value: name }, name === ALL ? "all ssds" : name)));
  }
  if (!names.includes(chosen)) chosen = ALL;
  select.value = chosen;
}

function show() {
  const ssds = allSsds();
  showTrouble();
  if (known.lists) {
    showSums(ssds, known.pools, live, ALL);
    showSsds(ssds, live, chosen, choose);
    showPools(known.pools);
    showOperations(known.operations, Date.now());
  }
  showChoice(ssds);
  const [op, seconds] = [by("op").value, Number(by("span").value)];
  if (live.at !== null) heat.show(live.looks(chosen, op, seconds), seconds, live.at, known.stats.at_ms);
  showSplit(live.recent(chosen, op)?.quantiles, chosen === ALL ? "all ssds" : chosen);
  document.body.dataset.shown = known.lists && live.at !== null;
}

/** The migration whose time line is shown: the chosen one; or the one that began last; or, when all are over, the one that was shown. */
function moving() {
  const { migrations, line } = known;
  const going = migrations.filter((one) => !one.over).sort((a, b) => a.elapsed_ms - b.elapsed_ms);
  const named = (ssd) => migrations.find((one) => one.ssd === ssd);
  return named(chosenMove) ?? going[0] ?? named(line?.ssd) ?? migrations[0];
}

function showMoves() {
  const one = moving();
  showMigrations(known.migrations, one?.ssd, chooseMove);
  const { line } = known;
  const has = one !== undefined && line?.ssd === one.ssd && line.points.length > 1;
  by("timeline-of").hidden = !has;
  if (has) timeline.show(line, by("timeline-span").value);
}

function chooseMove(name) {
  chosenMove = chosenMove === name ? null : name;
  seenMove = { as: "", sinceMs: 0 };
  showMoves();
}

function choose(name) {
  chosen = chosen === name ? ALL : name;
  show();
}

/** Says what has ended since the last look, for those who do not see it. */
function announce(operations) {
  const running = new Set(known.operations.filter((operation) => operation.state === "running").map((operation) => operation.id));
  const ended = operations.filter((operation) => operation.state !== "running" && running.has(operation.id));
  if (ended.length > 0) write(by("news"), ended.map((operation) => `${operation.kind} ${operation.target}: ${operation.state}`).join("; "));
}

by("choice").addEventListener("submit", (event) => event.preventDefault());
by("chosen").addEventListener("change", (event) => {
  chosen = event.target.value;
  show();
});
by("op").addEventListener("change", show);
by("span").addEventListener("change", show);
by("timeline-span").addEventListener("change", showMoves);
showSplit(null, "all ssds");

forever(AGAIN_MS, askHost);
forever(LISTS_MS, askLists);
forever(DRIVES_MS, askDrives);
forever(AGAIN_MS, askMigrations);
forever(20, askStats);
forever(20, watch);
