// The heat maps: time from left to right, latency from below to above, colour for how many I/Os a second took that long.

import { PARTS, floorNs, quantileNs } from "./live.js";

/** The lowest row is for all that took less. */
const LOW_NS = 1000;
/** A row is so much of an octave. */
const ROWS_AN_OCTAVE = 4;
const MARGIN = { left: 46, right: 4, top: 6, bottom: 18 };
const WORDS = { queue: "waiting in its queue", throttle: "held back by limits", drive: "at the drive" };

export function timeText(ns) {
  if (ns === null) return "–";
  if (ns < 64) return "0";
  let [number, unit] = [ns, "ns"];
  for (const next of ["µs", "ms", "s"]) {
    if (number < 999.5) break;
    [number, unit] = [number / 1000, next];
  }
  return (number < 9.95 && unit !== "ns" ? number.toFixed(1) : number.toFixed(0)) + " " + unit;
}

export function rateText(rate) {
  let [number, unit] = [rate, ""];
  for (const next of ["k", "M", "G"]) {
    if (number < 9999.5) break;
    [number, unit] = [number / 1000, next];
  }
  return (number < 99.95 && (unit || number % 1 > 0) ? number.toFixed(1) : number.toFixed(0)) + unit;
}

function colours(text) {
  return text.split(",").map((colour) => [1, 3, 5].map((at) => parseInt(colour.trim().slice(at, at + 2), 16)));
}

function mixed(ramp, share) {
  const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
  const [low, rest] = [Math.min(Math.floor(at), ramp.length - 2), at - Math.min(Math.floor(at), ramp.length - 2)];
  return "rgb(" + [0, 1, 2].map((of) => Math.round(ramp[low][of] + (ramp[low + 1][of] - ramp[low][of]) * rest)).join(" ") + ")";
}

/** Which row a bucket is in: 0 is all below LOW_NS. */
function rowOf(bucket) {
  const ns = (floorNs(bucket) + floorNs(bucket + 1)) / 2;
  return ns < LOW_NS ? 0 : 1 + Math.floor(Math.log2(ns / LOW_NS) * ROWS_AN_OCTAVE);
}

function rowFloorNs(row) {
  return row === 0 ? 0 : LOW_NS * 2 ** ((row - 1) / ROWS_AN_OCTAVE);
}

/** One of the three maps. */
class Part {
  constructor(part, word) {
    this.part = part;
    this.figure = document.createElement("figure");
    const caption = this.figure.appendChild(document.createElement("figcaption"));
    caption.append(document.createElement("b"), word);
    caption.firstChild.textContent = part[0].toUpperCase() + part.slice(1);
    this.canvas = this.figure.appendChild(document.createElement("canvas"));
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    /** Where somebody points: [column from the newest, row], or null. */
    this.cursor = null;
  }

  /** Rates by row of each look. */
  rates(looks) {
    return looks.map((look) => {
      const rows = new Map();
      const seconds = look.to - look.from;
      for (const [bucket, count] of look.times[this.part]) {
        // Nearly all I/Os are held back by nothing: a row of them would hide those that are.
        if (bucket === 0 && this.part === "throttle") continue;
        const row = rowOf(bucket);
        rows.set(row, (rows.get(row) ?? 0) + count / seconds);
      }
      return rows;
    });
  }
}

export class Heat {
  constructor(place, scale, readout) {
    this.scale = scale;
    this.readout = readout;
    this.maps = PARTS.map((part) => new Part(part, ": " + WORDS[part]));
    place.replaceChildren(...this.maps.map((map) => map.figure));
    this.shown = { looks: [], seconds: 120, now: 0, wall: 0 };
    for (const map of this.maps) this.#listen(map);
    new ResizeObserver(() => this.draw()).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Shows these looks; `now` is the clock of the looks, `wall` the same moment as people write it. */
  show(looks, seconds, now, wall) {
    this.shown = { looks, seconds, now, wall };
    this.draw();
  }

  draw() {
    const { looks } = this.shown;
    const rates = this.maps.map((map) => map.rates(looks));
    let [highest, topRow] = [0, 0];
    for (const columns of rates) {
      for (const rows of columns) {
        for (const [row, rate] of rows) {
          highest = Math.max(highest, rate);
          topRow = Math.max(topRow, row);
        }
      }
    }
    // Whole decades, and the same for all three: else they could not be compared, and would jump about.
    const topNs = 10 ** Math.max(7, Math.ceil(Math.log10(Math.max(rowFloorNs(topRow + 1), 1)) - 1e-9));
    const rows = 1 + Math.ceil(Math.log2(topNs / LOW_NS) * ROWS_AN_OCTAVE);
    const fullest = 10 ** Math.max(2, Math.ceil(Math.log10(Math.max(highest, 1))));
    const style = getComputedStyle(document.documentElement);
    const look = {
      rows, topNs, fullest,
      ramp: colours(style.getPropertyValue("--heat")),
      line: style.getPropertyValue("--line").trim(),
      quiet: style.getPropertyValue("--quiet").trim(),
      ground: style.getPropertyValue("--head").trim(),
      edge: style.getPropertyValue("--edge").trim(),
    };
    this.maps.forEach((map, at) => this.#map(map, rates[at], look));
    this.#legend(fullest);
  }

  #legend(fullest) {
    if (this.scale.dataset.fullest === String(fullest)) return;
    this.scale.dataset.fullest = fullest;
    const [low, bar, high] = ["span", "i", "span"].map((tag) => document.createElement(tag));
    low.textContent = "1";
    high.textContent = rateText(fullest) + " I/Os a second";
    this.scale.replaceChildren(low, bar, high);
  }

  #map(map, rates, look) {
    const { canvas } = map;
    const { looks, seconds, now } = this.shown;
    const [width, height, dense] = [canvas.clientWidth, canvas.clientHeight, devicePixelRatio || 1];
    if (width === 0) return;
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    const place = {
      left: MARGIN.left, top: MARGIN.top,
      wide: width - MARGIN.left - MARGIN.right, high: height - MARGIN.top - MARGIN.bottom,
    };
    const x = (at) => place.left + place.wide * (1 - (now - at) / seconds);
    const y = (row) => place.top + place.high * (1 - row / look.rows);
    Object.assign(map, { place, rows: look.rows });
    pen.fillStyle = look.ground;
    pen.fillRect(place.left, place.top, place.wide, place.high);
    pen.save();
    pen.beginPath();
    pen.rect(place.left, place.top, place.wide, place.high);
    pen.clip();
    let cells = 0;
    rates.forEach((rows, at) => {
      const [from, to] = [Math.floor(x(looks[at].from)), Math.floor(x(looks[at].to))];
      for (const [row, rate] of rows) {
        const [above, below] = [Math.floor(y(row + 1)), Math.floor(y(row))];
        pen.fillStyle = mixed(look.ramp, Math.log1p(rate) / Math.log1p(look.fullest));
        pen.fillRect(from, above, Math.max(1, to - from), Math.max(1, below - above));
        cells += 1;
      }
    });
    this.#line(pen, map, x, y, look);
    this.#crosshair(pen, map, x, y, look);
    pen.restore();
    this.#axes(pen, place, y, look);
    canvas.dataset.cells = cells;
    const last = looks.at(-1);
    const times = last?.times[map.part] ?? new Map();
    const words = cells === 0 ? "nothing yet" : "now, half of all I/Os took at most " + timeText(quantileNs(times, 0.5)) +
      ", 99 of a hundred at most " + timeText(quantileNs(times, 0.99));
    canvas.setAttribute("aria-label", `Heat map of the time ${WORDS[map.part]}: ${words}. Arrow keys read it cell by cell.`);
  }

  /** The 99th percentile, smoothed over three looks so that it can be seen. */
  #line(pen, map, x, y, look) {
    const { looks } = this.shown;
    pen.beginPath();
    let drawn = false;
    looks.forEach((one, at) => {
      const times = new Map();
      for (const near of looks.slice(Math.max(0, at - 1), at + 2)) {
        for (const [bucket, count] of near.times[map.part]) times.set(bucket, (times.get(bucket) ?? 0) + count);
      }
      const ns = quantileNs(times, 0.99);
      const broken = at > 0 && one.from - looks[at - 1].to > 0.5;
      if (ns === null || (ns === 0 && map.part === "throttle")) {
        drawn = false;
        return;
      }
      const row = ns < LOW_NS ? 0.5 : 1 + Math.log2(ns / LOW_NS) * ROWS_AN_OCTAVE;
      const point = [x((one.from + one.to) / 2), y(row)];
      if (drawn && !broken) pen.lineTo(...point);
      else pen.moveTo(...point);
      drawn = true;
    });
    pen.lineJoin = "round";
    // Seen on dark cells and on light ones.
    pen.strokeStyle = look.ground;
    pen.lineWidth = 3.5;
    pen.stroke();
    pen.strokeStyle = look.line;
    pen.lineWidth = 1.5;
    pen.stroke();
  }

  #crosshair(pen, map, x, y, look) {
    if (!map.cursor) return;
    const one = this.shown.looks.at(-1 - map.cursor[0]);
    if (!one) return;
    pen.strokeStyle = look.line;
    pen.lineWidth = 1;
    const [left, right] = [x(one.from), x(one.to)];
    pen.strokeRect(left - 0.5, y(map.cursor[1] + 1) - 0.5, Math.max(3, right - left) + 1, Math.max(3, y(map.cursor[1]) - y(map.cursor[1] + 1)) + 1);
  }

  #axes(pen, place, y, look) {
    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    pen.fillStyle = look.quiet;
    pen.strokeStyle = look.edge;
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let ns = LOW_NS; ns <= look.topNs; ns *= 10) {
      const at = Math.round(y(1 + Math.log2(ns / LOW_NS) * ROWS_AN_OCTAVE)) + 0.5;
      pen.globalAlpha = 0.45;
      pen.beginPath();
      pen.moveTo(place.left, at);
      pen.lineTo(place.left + place.wide, at);
      pen.stroke();
      pen.globalAlpha = 1;
      pen.fillText(timeText(ns).replace(".0", ""), place.left - 6, Math.max(at, place.top + 5));
    }
    pen.textBaseline = "alphabetic";
    const { seconds } = this.shown;
    for (const share of [0, 0.5, 1]) {
      pen.textAlign = share === 0 ? "left" : share === 1 ? "right" : "center";
      const ago = seconds * (1 - share);
      const text = ago === 0 ? "now" : ago % 60 === 0 ? `−${ago / 60} min` : `−${ago} s`;
      pen.fillText(text, place.left + place.wide * share, place.top + place.high + 14);
    }
  }

  #listen(map) {
    const { canvas } = map;
    const leave = () => {
      map.cursor = null;
      this.readout.textContent = "";
      this.draw();
    };
    canvas.addEventListener("pointermove", (event) => {
      if (!map.place) return;
      const { looks, seconds, now } = this.shown;
      const at = now - seconds * (1 - (event.offsetX - map.place.left) / map.place.wide);
      const column = looks.findIndex((look) => look.from < at && at <= look.to);
      const row = Math.floor(map.rows * (1 - (event.offsetY - map.place.top) / map.place.high));
      if (column < 0 || row < 0 || row >= map.rows) return leave();
      this.#point(map, looks.length - 1 - column, row, "off");
    });
    canvas.addEventListener("pointerleave", leave);
    canvas.addEventListener("blur", leave);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (event.key === "Escape") return leave();
      if (!step || this.shown.looks.length === 0) return;
      event.preventDefault();
      const [column, row] = map.cursor ?? [-step[0], this.#busiest(map) - step[1]];
      const within = (value, end) => Math.min(Math.max(value, 0), end - 1);
      this.#point(map, within(column + step[0], this.shown.looks.length), within(row + step[1], map.rows), "polite");
    });
  }

  #busiest(map) {
    const rows = [...(map.rates(this.shown.looks.slice(-1))[0] ?? [])];
    return rows.sort((a, b) => b[1] - a[1])[0]?.[0] ?? 0;
  }

  #point(map, column, row, live) {
    for (const other of this.maps) other.cursor = null;
    map.cursor = [column, row];
    const { looks, now, wall } = this.shown;
    const look = looks.at(-1 - column);
    if (!look) return;
    const rate = map.rates([look])[0].get(row) ?? 0;
    const clock = new Date(wall - (now - look.to) * 1000).toLocaleTimeString();
    const times = row === 0 ? "less than " + timeText(LOW_NS) : timeText(rowFloorNs(row)) + " to " + timeText(rowFloorNs(row + 1));
    const [p50, p99] = [0.5, 0.99].map((share) => timeText(quantileNs(look.times[map.part], share)));
    this.readout.setAttribute("aria-live", live);
    this.readout.textContent = `${clock}, ${WORDS[map.part]} ${times}: ${rateText(rate)} I/Os a second (all of that second: p50 ${p50}, p99 ${p99})`;
    this.draw();
  }
}
