// The time line of a migration: I/Os a second from left to right, and what was done when.

import { rateText } from "./heat.js";

const MARGIN = { left: 46, right: 10, bottom: 18 };
/** Words of marks that would lie on one another go one below the other. */
const ROWS = 4;
const ROW_HIGH = 14;
/** Around a switch-over so much is shown, s. */
const AROUND_S = 0.5;
const SWITCH_BEGINS = ["switching over", "ready"];

/** From counts to I/Os a second between one look and the next: `{from, to, rate}`, s since it began. */
export function binsOf(line) {
  return line.points.slice(1).map((point, at) => {
    const before = line.points[at];
    const [from, to] = [before.t / 1e6, point.t / 1e6];
    return { from, to, rate: Math.max(0, point.n - before.n) / Math.max(to - from, 1e-6) };
  });
}

/** 1, 2 or 5 times a power of ten, and no less than `least`. */
function step(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= least * 0.999);
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}

export class Timeline {
  /** Where somebody points: a bin, or null. */
  #cursor = null;
  #place = null;

  constructor(canvas, readout) {
    Object.assign(this, { canvas, readout, ssd: "", bins: [], marks: [], span: "all" });
    this.#listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Shows `all` of a line, or its `switch`-over. */
  show(line, span) {
    if (line.ssd !== this.ssd || span !== this.span) this.#cursor = null;
    const marks = line.marks.map((mark) => ({ at: mark.at_us / 1e6, state: mark.state }));
    Object.assign(this, { ssd: line.ssd, bins: binsOf(line), marks, span });
    this.draw();
  }

  /** From when until when. */
  #range() {
    const [first, last] = [this.bins[0].from, this.bins.at(-1).to];
    const begins = this.marks.findLast((mark) => SWITCH_BEGINS.includes(mark.state));
    if (this.span !== "switch" || !begins) return [first, last];
    const [from, to] = [begins.at - AROUND_S, this.marks.at(-1).at + AROUND_S];
    return from >= last || to <= first ? [first, last] : [Math.max(from, first), Math.min(to, last)];
  }

  draw() {
    const { canvas, bins } = this;
    const [width, height, dense] = [canvas.clientWidth, canvas.clientHeight, devicePixelRatio || 1];
    canvas.dataset.bins = bins.length;
    if (width === 0 || bins.length === 0) return;
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    const [from, to] = this.#range();
    const shown = bins.filter((bin) => bin.to > from && bin.from < to);
    const rates = shown.map((bin) => bin.rate);
    // A bin in which much was caught up with must not press down all others.
    const tick = step(Math.max((quantile(rates, 0.99) * 1.1) / 4, 1));
    const most = tick * Math.max(1, Math.ceil((quantile(rates, 0.99) * 1.1) / tick));
    const top = ROWS * ROW_HIGH + 4;
    const place = { left: MARGIN.left, top, wide: width - MARGIN.left - MARGIN.right, high: height - top - MARGIN.bottom, from, to };
    const x = (at) => place.left + (place.wide * (at - from)) / (to - from);
    const y = (rate) => place.top + place.high * (1 - Math.min(rate, most) / most);
    const style = getComputedStyle(document.documentElement);
    const look = Object.fromEntries(["used", "text", "quiet", "head", "edge", "line"].map((name) => [name, style.getPropertyValue("--" + name).trim()]));
    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    pen.fillStyle = look.head;
    pen.fillRect(place.left, place.top, place.wide, place.high);
    this.#bars(pen, shown, place, x, y, look.used);
    this.#axes(pen, place, x, y, tick, most, look);
    this.#marks(pen, place, x, look);
    this.#crosshair(pen, place, x, look);
    this.#place = place;
    this.#label(rates, from, to);
  }

  /** Where several bins are in one pixel, the least and the most of them: a standstill of one bin is seen among minutes of them. */
  #bars(pen, shown, place, x, y, colour) {
    const columns = new Map();
    for (const bin of shown) {
      const left = Math.max(Math.floor(x(bin.from)), place.left);
      const right = Math.min(Math.max(Math.floor(x(bin.to)), left + 1), place.left + place.wide);
      for (let at = left; at < right; at += 1) {
        const column = columns.get(at) ?? { low: Infinity, high: 0 };
        columns.set(at, { low: Math.min(column.low, bin.rate), high: Math.max(column.high, bin.rate) });
      }
    }
    pen.fillStyle = colour;
    for (const [at, { low, high }] of columns) {
      pen.globalAlpha = 0.4;
      pen.fillRect(at, y(high), 1, y(low) - y(high));
      pen.globalAlpha = 1;
      pen.fillRect(at, y(low), 1, place.top + place.high - y(low));
    }
  }

  #axes(pen, place, x, y, tick, most, look) {
    pen.strokeStyle = look.edge;
    pen.fillStyle = look.quiet;
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let rate = 0; rate <= most; rate += tick) {
      const at = Math.round(y(rate)) + 0.5;
      pen.globalAlpha = 0.6;
      pen.beginPath();
      pen.moveTo(place.left, at);
      pen.lineTo(place.left + place.wide, at);
      pen.stroke();
      pen.globalAlpha = 1;
      pen.fillText(rateText(rate), place.left - 6, at);
    }
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    const second = step(Math.max(((place.to - place.from) * 90) / place.wide, 0.001));
    const digits = Math.max(0, -Math.floor(Math.log10(second) + 1e-9));
    for (let at = Math.ceil(place.from / second) * second; at <= place.to + second / 1000; at += second) {
      const text = at.toFixed(digits) + " s";
      const half = pen.measureText(text).width / 2;
      if (x(at) + half <= place.left + place.wide + MARGIN.right) pen.fillText(text, x(at), place.top + place.high + 14);
    }
  }

  #marks(pen, place, x, look) {
    // Over bars that are as narrow as a mark, it would hide what it is at.
    const bottom = place.wide / ((place.to - place.from) * 100) < 4 ? place.top : place.top + place.high;
    const ends = new Array(ROWS).fill(-Infinity);
    pen.textBaseline = "alphabetic";
    pen.textAlign = "left";
    for (const mark of this.marks) {
      if (mark.at < place.from - 0.05 || mark.at > place.to) continue;
      const at = Math.max(Math.round(x(mark.at)), place.left) + 0.5;
      const width = pen.measureText(mark.state).width;
      const left = Math.min(at + 4, place.left + place.wide - width);
      const row = Math.max(ends.findIndex((end) => end <= left), 0);
      const above = ROW_HIGH * row + 10;
      pen.strokeStyle = look.text;
      pen.setLineDash([3, 3]);
      pen.beginPath();
      pen.moveTo(at, left < at ? above + 4 : above - 8);
      pen.lineTo(at, bottom);
      pen.stroke();
      pen.setLineDash([]);
      if (ends[row] > left) continue;
      ends[row] = left + width + 8;
      pen.fillStyle = look.text;
      pen.fillText(mark.state, left, above);
    }
    this.canvas.dataset.marks = this.marks.map((mark) => mark.state).join(", ");
  }

  #crosshair(pen, place, x, look) {
    const bin = this.bins[this.#cursor];
    if (!bin || bin.to < place.from || bin.from > place.to) return;
    pen.strokeStyle = look.line;
    pen.strokeRect(Math.floor(x(bin.from)) - 0.5, place.top + 0.5, Math.max(x(bin.to) - x(bin.from), 2) + 1, place.high - 1);
  }

  #label(rates, from, to) {
    const marks = this.marks.map((mark) => `${mark.state} at ${mark.at.toFixed(2)} s`).join(", ") || "none";
    this.canvas.setAttribute("aria-label", `I/Os a second of ${this.ssd} from ${from.toFixed(2)} s to ${to.toFixed(2)} s of its migration: ` +
      `half of the time ${rateText(Math.round(quantile(rates, 0.5)))} or more. What was done: ${marks}. Arrow keys read it bin by bin.`);
  }

  #listen() {
    const { canvas } = this;
    const leave = () => {
      this.#cursor = null;
      this.readout.textContent = "";
      this.draw();
    };
    canvas.addEventListener("pointermove", (event) => {
      const place = this.#place;
      if (!place) return;
      const at = place.from + ((place.to - place.from) * (event.offsetX - place.left)) / place.wide;
      const bin = this.bins.findIndex((bin) => bin.from <= at && at < bin.to);
      if (bin < 0) return leave();
      this.#point(bin, "off");
    });
    canvas.addEventListener("pointerleave", leave);
    canvas.addEventListener("blur", leave);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") return leave();
      if (!step || this.bins.length === 0) return;
      event.preventDefault();
      const mark = this.marks.at(-1)?.at ?? 0;
      const next = this.#cursor === null ? this.bins.findIndex((bin) => bin.to >= mark) : this.#cursor + step;
      this.#point(Math.min(Math.max(next, 0), this.bins.length - 1), "polite");
    });
  }

  #point(at, live) {
    this.#cursor = at;
    const bin = this.bins[at];
    const state = this.marks.findLast((mark) => mark.at <= bin.from)?.state ?? "before it began";
    this.readout.setAttribute("aria-live", live);
    this.readout.textContent = `${bin.from.toFixed(2)} s, ${state}: ${rateText(Math.round(bin.rate))} I/Os a second`;
    this.draw();
  }
}
